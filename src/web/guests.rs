//! Who is connected at one door, and who has to leave when it is full.
//!
//! A connection that is kept alive between two scrapes is idle, and so is one that only takes a place, or that does not
//! take its answer. When there is no room for somebody new, the one that has been idle longest goes: a scraper that it
//! hits connects again, while nobody can shut the others out by staying. A request that waits for its answer is never cut
//! off for it, and who takes an answer slowly is idle only since its last part.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
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
    /// Requests that wait for their answer.
    busy: u32,
    /// Since when nothing has waited, and no part of an answer was taken.
    idle: Instant,
    /// Whether it is on its way out.
    leaves: bool,
    leave: Arc<Notify>,
}

/// One connection, as long as this is there.
#[derive(Debug)]
pub(super) struct Guest {
    guests: Arc<Guests>,
    number: u64,
    leave: Arc<Notify>,
    /// Bytes that have come since the last request began.
    unasked: AtomicUsize,
    /// Given back after the guest is off the list.
    _place: OwnedSemaphorePermit,
}

/// A request that waits for its answer; it does no more when this is dropped.
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
                if !self.send_away() {
                    return None;
                }
                let free = Arc::clone(&self.places).acquire_owned();
                timeout(LEAVING, free).await.ok()?.ok()?
            }
        };
        let leave = Arc::new(Notify::new());
        let mut all = self.all();
        let number = all.next;
        all.next += 1;
        let idle = Instant::now();
        let state = State { busy: 0, idle, leaves: false, leave: Arc::clone(&leave) };
        all.guests.insert(number, state);
        let (guests, unasked) = (Arc::clone(self), AtomicUsize::new(0));
        Some(Arc::new(Guest { guests, number, leave, unasked, _place: place }))
    }

    /// Tells the one who has been idle longest to leave, and the next one when that one takes its time. False when nobody
    /// is idle.
    fn send_away(&self) -> bool {
        let mut all = self.all();
        let idle = all.guests.values_mut().filter(|guest| guest.busy == 0 && !guest.leaves);
        let Some(guest) = idle.min_by_key(|guest| guest.idle) else { return false };
        guest.leaves = true;
        guest.leave.notify_one();
        true
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
        self.unasked.store(0, Ordering::Relaxed);
        if let Some(state) = self.guests.all().guests.get_mut(&self.number) {
            state.busy += 1;
        }
        UnderWay(Arc::clone(self))
    }

    /// Waits until the place is wanted by somebody else.
    pub(super) async fn wanted(&self) {
        self.leave.notified().await;
    }

    /// So many bytes have come; gives how many since the last request began.
    pub(super) fn came(&self, bytes: usize) -> usize {
        self.unasked.fetch_add(bytes, Ordering::Relaxed) + bytes
    }

    /// A part of an answer was taken.
    pub(super) fn took(&self) {
        if let Some(state) = self.guests.all().guests.get_mut(&self.number) {
            state.idle = Instant::now();
        }
    }

    /// Whether a request waits for its answer.
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

    #[tokio::test(start_paused = true)]
    async fn who_takes_an_answer_slowly_is_not_the_one_that_goes() {
        let guests = Guests::new(2);
        let slow = guests.admit().await.unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        let deaf = stays(guests.admit().await.unwrap());
        tokio::time::advance(Duration::from_secs(1)).await;
        slow.took();
        let slow = stays(slow);
        assert!(guests.admit().await.is_some());
        assert!(deaf.is_finished() && !slow.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_takes_its_time_to_leave_does_not_keep_the_next_one() {
        let guests = Guests::new(2);
        let _ends_a_request = guests.admit().await.unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        let other = stays(guests.admit().await.unwrap());
        assert!(guests.admit().await.is_none());
        assert!(guests.admit().await.is_some());
        assert!(other.is_finished());
    }
}
