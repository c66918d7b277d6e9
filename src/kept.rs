//! What outlives the sampler that made it.
//!
//! A sampler is built anew when its section of the configuration changes, or what detection knows of its source. What it has
//! counted goes on, and a child process that the kernel holds still has its room taken. It is kept by what it is of, until the
//! agent ends.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One value for each source of a kind.
#[derive(Debug)]
pub struct Kept<K, V>(Mutex<BTreeMap<K, V>>);

impl<K: Ord, V: Clone + Default> Kept<K, V> {
    /// Nothing yet.
    #[expect(clippy::new_without_default, reason = "it is made for a static")]
    pub const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    /// That of this source: the one that was handed out before, or a first one. It is a handle, such as [`Shared`].
    pub fn of(&self, source: K) -> V {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(source).or_default().clone()
    }
}

/// A value with many owners; for moments only, never over an `await`.
#[derive(Debug, Default)]
pub struct Shared<T>(Arc<Mutex<T>>);

impl<T> Shared<T> {
    /// The value, for as long as the guard lives. After a panic of an earlier owner it is what that one left.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_builder_finds_what_the_first_left_and_another_source_has_its_own() {
        static COUNTS: Kept<&str, Shared<u64>> = Kept::new();
        *COUNTS.of("one").lock() += 2;
        *COUNTS.of("one").lock() += 1;
        assert_eq!((*COUNTS.of("one").lock(), *COUNTS.of("other").lock()), (3, 0));
    }
}
