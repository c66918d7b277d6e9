//! Room for a few requests at a time (`web.max_requests`).
//!
//! A request has its place until its answer is on its way. One whose client does not take the answer has it for ten
//! seconds: forty of them would otherwise shut out every scraper for as long as their connections last.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// No request counts for longer.
const LONGEST: Duration = Duration::from_secs(10);

/// Places for so many requests.
#[derive(Debug)]
pub(super) struct Room {
    most: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    /// Since when each place is taken.
    since: BTreeMap<u64, Instant>,
}

/// A request's place, as long as this is there.
#[derive(Debug)]
pub(super) struct Place {
    room: Arc<Room>,
    number: u64,
}

impl Room {
    /// Room for `most`.
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, taken: Mutex::default() })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, if one is free.
    pub(super) fn enter(self: &Arc<Self>) -> Option<Place> {
        let now = Instant::now();
        let mut taken = self.taken();
        taken.since.retain(|_, since| now.duration_since(*since) < LONGEST);
        if taken.since.len() >= self.most {
            return None;
        }
        let number = taken.next;
        taken.next += 1;
        taken.since.insert(number, now);
        Some(Place { room: Arc::clone(self), number })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.taken().since.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_takes_has_a_place_for_ten_seconds_and_no_longer() {
        let room = Room::new(1);
        let untaken = room.enter().unwrap();
        tokio::time::advance(Duration::from_secs(9)).await;
        assert!(room.enter().is_none());
        tokio::time::advance(Duration::from_secs(1)).await;
        let next = room.enter().unwrap();
        // The one that is over takes nobody else's place with it.
        drop(untaken);
        assert!(room.enter().is_none());
        drop(next);
        assert!(room.enter().is_some());
    }
}
