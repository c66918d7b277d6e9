//! Keeps a line that a log repeats from filling the timeline: what is the same is told once a minute.
//!
//! What is the same is the sampler's business, and is its key: a kind of line and the device it names, for example.
//! Counters count every line; only events are held back. The keys come from what others write, so at most 256 are
//! kept in mind, and while there are that many of the last minute, a further one is not told.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, SystemTime};

/// What is the same is told again after this time.
const QUIET: Duration = Duration::from_mins(1);
/// No more is kept in mind than this.
const KEYS: usize = 256;

/// When each key was last told.
#[derive(Debug)]
pub struct Quiet<K>(HashMap<K, SystemTime>);

impl<K> Default for Quiet<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> Quiet<K> {
    /// Whether something of this key, which happened at `time`, is to be told. A time long before the last one is told
    /// as well: a clock that is set back must not silence anybody.
    pub fn tells(&mut self, key: K, time: SystemTime) -> bool {
        let recent = |told: &SystemTime| {
            let apart = time.duration_since(*told).unwrap_or_else(|before| before.duration());
            apart < QUIET
        };
        if self.0.get(&key).is_some_and(recent) {
            return false;
        }
        if self.0.len() >= KEYS {
            self.0.retain(|_, told| recent(told));
        }
        let room = self.0.len() < KEYS;
        if room {
            self.0.insert(key, time);
        }
        room
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn the_same_is_told_once_a_minute_and_another_at_once() {
        let mut quiet = Quiet::default();
        let mut tells = |key, second| quiet.tells(key, UNIX_EPOCH + Duration::from_secs(second));
        assert!(tells("sda", 0));
        assert!(!tells("sda", 59));
        assert!(tells("sdb", 59));
        assert!(tells("sda", 60), "a minute after it was told, not after it was held back");
        assert!(!tells("sda", 119));
    }

    #[test]
    fn a_clock_that_is_set_back_silences_nobody() {
        let mut quiet = Quiet::default();
        assert!(quiet.tells("sda", UNIX_EPOCH + Duration::from_hours(2)));
        assert!(quiet.tells("sda", UNIX_EPOCH + Duration::from_hours(1)));
        assert!(!quiet.tells("sda", UNIX_EPOCH + Duration::from_hours(1)));
    }

    #[test]
    fn a_flood_of_keys_makes_no_memory_grow() {
        let mut quiet = Quiet::default();
        let told = (0..5_000).filter(|key| quiet.tells(*key, UNIX_EPOCH)).count();
        assert_eq!((told, quiet.0.len()), (KEYS, KEYS));
        assert!(quiet.tells(9_999, UNIX_EPOCH + QUIET), "the others are forgotten");
    }
}
