//! Who is connected at one door, and who has to leave when it is full.
//!
//! A connection that is kept alive between two scrapes is idle, and so is one that only takes a place. When there is
//! no room for somebody new, the one that has been idle longest goes: a scraper that it hits connects again, while
//! nobody can shut the others out by staying. A request under way is never cut off for it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

/// How long somebody new waits for the one who leaves; that takes no I/O.
const LEAVING: Duration = Duration::from_millis(100);

/// The connections of one door.
#[derive(Debug)]
pub(super) struct Guests {
    most: usize,
    places: Arc<Semaphore>,
    all: Mutex<All>,
}

#[derive(Debug, Default)]
struct All {
    next: u64,
    guests: BTreeMap<u64, State>,
}

#[derive(Debug)]
struct State {
    /// Requests under way.
    busy: u32,
    /// Since when nothing was under way.
    idle: Instant,
    leave: Arc<Notify>,
}

/// One connection, as long as this is there.
#[derive(Debug)]
pub(super) struct Guest {
    guests: Arc<Guests>,
    number: u64,
    leave: Arc<Notify>,
    /// Given back after the guest is off the list.
    _place: OwnedSemaphorePermit,
}

/// A request under way; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct UnderWay(Arc<Guest>);

impl Guests {
    /// Room for `most`.
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, places: Arc::new(Semaphore::new(most)), all: Mutex::default() })
    }

    fn all(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for somebody new, if need be that of the one who has been idle longest; none when nobody is idle.
    pub(super) async fn admit(self: &Arc<Self>) -> Option<Arc<Guest>> {
        let place = match Arc::clone(&self.places).try_acquire_owned() {
            Ok(place) => place,
            Err(_) => {
                self.longest_idle()?.notify_one();
                let free = Arc::clone(&self.places).acquire_owned();
                timeout(LEAVING, free).await.ok()?.ok()?
            }
        };
        let leave = Arc::new(Notify::new());
        let mut all = self.all();
        let number = all.next;
        all.next += 1;
        let state = State { busy: 0, idle: Instant::now(), leave: Arc::clone(&leave) };
        all.guests.insert(number, state);
        Some(Arc::new(Guest { guests: Arc::clone(self), number, leave, _place: place }))
    }

    fn longest_idle(&self) -> Option<Arc<Notify>> {
        let all = self.all();
        let idle = all.guests.values().filter(|guest| guest.busy == 0);
        idle.min_by_key(|guest| guest.idle).map(|guest| Arc::clone(&guest.leave))
    }

    /// Waits until everybody has gone.
    pub(super) async fn gone(&self) {
        let all = self.places.acquire_many(u32::try_from(self.most).unwrap_or(u32::MAX));
        drop(all.await);
    }
}

impl Guest {
    /// A request begins.
    pub(super) fn begin(self: &Arc<Self>) -> UnderWay {
        if let Some(state) = self.guests.all().guests.get_mut(&self.number) {
            state.busy += 1;
        }
        UnderWay(Arc::clone(self))
    }

    /// Waits until the place is wanted by somebody else.
    pub(super) async fn wanted(&self) {
        self.leave.notified().await;
    }

    /// Whether a request is under way.
    pub(super) fn is_busy(&self) -> bool {
        self.guests.all().guests.get(&self.number).is_some_and(|state| state.busy > 0)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.guests.all().guests.remove(&self.number);
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut all = self.0.guests.all();
        if let Some(state) = all.guests.get_mut(&self.0.number) {
            state.busy -= 1;
            state.idle = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Leaves when told so, as a connection does.
    fn stays(guest: Arc<Guest>) -> tokio::task::JoinHandle<()> {
        tokio::spawn(async move { guest.wanted().await })
    }

    #[tokio::test(start_paused = true)]
    async fn the_one_that_has_been_idle_longest_makes_room_and_who_is_busy_stays() {
        let guests = Guests::new(3);
        let scraper = guests.admit().await.unwrap();
        let request = scraper.begin();
        let mut others = Vec::new();
        for _ in 0..2 {
            tokio::time::advance(Duration::from_secs(1)).await;
            others.push(stays(guests.admit().await.unwrap()));
        }
        let third = guests.admit().await.unwrap();
        assert!(others[0].is_finished() && !others[1].is_finished());
        let _third = third.begin();
        let fourth = guests.admit().await.unwrap();
        assert!(others[1].is_finished() && scraper.is_busy());
        let _fourth = fourth.begin();
        assert!(guests.admit().await.is_none(), "everybody is busy");
        drop(request);
        let scraper = stays(scraper);
        assert!(guests.admit().await.is_some());
        assert!(scraper.is_finished());
    }
}
