//! Whether a password is right.
//!
//! bcrypt is slow on purpose, so it runs on one thread of its own with a lower priority, one password at a time,
//! and only so many may wait. A password that was right is remembered by a keyed digest, even if whoever showed it did not
//! wait that long, and a scraper that has been let in once waits for nobody. Wrong ones are not remembered: no number of
//! them makes memory grow.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use ring::hmac;
use ring::rand::SystemRandom;
use tokio::sync::oneshot;

/// How many passwords may wait.
const WAITING: usize = 16;
/// How many right ones are remembered: there is one for each user, and one more after a change.
const REMEMBERED: usize = 128;

/// What came of a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Right,
    Wrong,
    /// Too many wait.
    Busy,
}

/// How nice the thread is: not so much that on a busy node a scraper waits for ever to be let in.
const NICE: i32 = 5;

struct Question {
    hash: String,
    password: Vec<u8>,
    /// What is remembered if it is right; none for an unknown user.
    mark: Option<Mark>,
    answer: oneshot::Sender<bool>,
}

/// Stands for user, password and hash; nobody can tell them from it.
type Mark = Vec<u8>;

/// The marks of passwords that were right, the oldest first.
#[derive(Debug, Clone, Default)]
struct Known(Arc<Mutex<VecDeque<Mark>>>);

impl Known {
    fn has(&self, mark: &Mark) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(mark)
    }

    fn add(&self, mark: Mark) {
        let mut marks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !marks.contains(&mark) {
            marks.push_back(mark);
            let excess = marks.len().saturating_sub(REMEMBERED);
            marks.drain(..excess);
        }
    }
}

/// See the module's page.
pub(super) struct Passwords {
    key: hmac::Key,
    right: Known,
    ask: SyncSender<Question>,
}

impl Passwords {
    /// # Errors
    ///
    /// When the kernel gives no random numbers or no thread.
    pub(super) fn new() -> io::Result<Self> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new());
        let key = key.map_err(|_| io::Error::other("no random numbers"))?;
        let (ask, asked) = sync_channel(WAITING);
        let thread = std::thread::Builder::new().name("passwords".into()).stack_size(256 << 10);
        let right = Known::default();
        let known = right.clone();
        thread.spawn(move || check_all(&asked, &known))?;
        Ok(Self { key, right, ask })
    }

    /// Whether this is the password of `hash`. Who has none, since no such user is known, is compared with a hash
    /// all the same, so that it takes as long; it is wrong whatever it is.
    pub(super) async fn check(&self, user: &str, password: &[u8], hash: Hash<'_>) -> Answer {
        let (text, known) = match hash {
            Hash::Of(text) => (text, true),
            Hash::Unknown(text) => (text, false),
        };
        let mark = self.mark(user, password, text);
        if known && self.right.has(&mark) {
            return Answer::Right;
        }
        let (answer, answered) = oneshot::channel();
        let (hash, password) = (text.to_owned(), password.to_owned());
        let question = Question { hash, password, mark: known.then_some(mark), answer };
        if self.ask.try_send(question).is_err() {
            return Answer::Busy;
        }
        if answered.await.unwrap_or(false) { Answer::Right } else { Answer::Wrong }
    }

    fn mark(&self, user: &str, password: &[u8], hash: &str) -> Mark {
        let mut context = hmac::Context::with_key(&self.key);
        for part in [user.as_bytes(), hash.as_bytes(), password] {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part);
        }
        context.sign().as_ref().to_vec()
    }
}

/// What a password is compared with.
#[derive(Debug, Clone, Copy)]
pub(super) enum Hash<'a> {
    /// The user's hash.
    Of(&'a str),
    /// No such user: a hash of the same cost.
    Unknown(&'a str),
}

/// Checks what it is asked until nobody can ask any more.
fn check_all(asked: &Receiver<Question>, known: &Known) {
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!(%error, "passwords are checked with ordinary priority");
    }
    while let Ok(question) = asked.recv() {
        // Whoever asked may have given up.
        if question.answer.is_closed() {
            continue;
        }
        let fits = bcrypt::verify(&question.password, &question.hash).unwrap_or(false);
        let right = fits && question.mark.is_some();
        if let Some(mark) = question.mark.filter(|_| fits) {
            known.add(mark);
        }
        if question.answer.send(right).is_err() {
            tracing::debug!("whoever showed a password did not wait for the answer");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn hash(password: &str, version: bcrypt::Version) -> String {
        let parts = bcrypt::hash_with_salt(password, 4, *b"sixteen byte it!").unwrap();
        parts.format_for_version(version)
    }

    #[tokio::test]
    async fn a_right_password_is_remembered_and_a_wrong_one_is_not() {
        let passwords = Passwords::new().unwrap();
        let right = || passwords.right.0.lock().unwrap().len();
        for (n, version) in [bcrypt::Version::TwoA, bcrypt::Version::TwoB, bcrypt::Version::TwoY]
            .into_iter()
            .enumerate()
        {
            let hash = hash("fine", version);
            for _ in 0..3 {
                assert_eq!(passwords.check("alice", b"fine", Hash::Of(&hash)).await, Answer::Right);
                assert_eq!(passwords.check("alice", b"fone", Hash::Of(&hash)).await, Answer::Wrong);
                assert_eq!(passwords.check("alice", b"", Hash::Of(&hash)).await, Answer::Wrong);
            }
            assert_eq!(right(), n + 1);
        }
        // The right password of an unknown user is no password, remembered or not.
        let nobody = hash("fine", bcrypt::Version::TwoY);
        assert_eq!(passwords.check("alice", b"fine", Hash::Unknown(&nobody)).await, Answer::Wrong);
        assert_eq!(
            passwords.check("mallory", b"fine", Hash::Unknown(&nobody)).await,
            Answer::Wrong
        );
        // Another hash of the same user is another password.
        assert_eq!(
            passwords.check("alice", b"fine", Hash::Of(&hash("new", bcrypt::Version::TwoY))).await,
            Answer::Wrong
        );
    }

    #[tokio::test]
    async fn a_right_password_is_remembered_although_nobody_waited_for_the_answer() {
        let passwords = Passwords::new().unwrap();
        // A quarter of a second of work, of which nobody waits for more than a part.
        let parts = bcrypt::hash_with_salt("fine", 12, *b"sixteen byte it!").unwrap();
        let hash = parts.format_for_version(bcrypt::Version::TwoY);
        let limit = std::time::Duration::from_millis(50);
        for _ in 0..400 {
            let answer = passwords.check("alice", b"fine", Hash::Of(&hash));
            match tokio::time::timeout(limit, answer).await {
                Ok(Answer::Right) => return,
                Ok(Answer::Wrong) => panic!("it was right"),
                // The queue fills up with those who have given up.
                Ok(Answer::Busy) => tokio::time::sleep(limit).await,
                Err(_) => {}
            }
        }
        panic!("nobody was let in");
    }

    #[tokio::test]
    async fn what_is_remembered_is_bounded_and_forgets_the_oldest() {
        let passwords = Passwords::new().unwrap();
        let hash = hash("fine", bcrypt::Version::TwoY);
        for n in 0..REMEMBERED + 5 {
            let answer = passwords.check(&n.to_string(), b"fine", Hash::Of(&hash)).await;
            assert_eq!(answer, Answer::Right);
        }
        assert_eq!(passwords.right.0.lock().unwrap().len(), REMEMBERED);
    }

    #[tokio::test]
    async fn only_so_many_wait_and_who_is_remembered_does_not_wait_with_them() {
        let passwords = Passwords::new().unwrap();
        let hash = hash("fine", bcrypt::Version::TwoY);
        assert_eq!(passwords.check("alice", b"fine", Hash::Of(&hash)).await, Answer::Right);
        // A minute of work for each.
        let slow = hash.replace("$04", "$18");
        let answers = (0..WAITING + 5).map(|_| passwords.check("bob", b"x", Hash::Of(&slow)));
        let mut all: Vec<_> = answers.map(Box::pin).collect();
        let mut busy = 0;
        for answer in &mut all {
            let mut context = Context::from_waker(Waker::noop());
            let polled = answer.as_mut().poll(&mut context);
            busy += usize::from(polled == Poll::Ready(Answer::Busy));
        }
        assert!((4..=5).contains(&busy), "{busy}");
        assert_eq!(passwords.check("alice", b"fine", Hash::Of(&hash)).await, Answer::Right);
    }
}
