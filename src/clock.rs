//! Whether the kernel's clock is kept right, how wrong it may be, and whether it was wrong until now.
//!
//! One of two modules with `unsafe`, beside the system calls of BPF: `adjtimex(2)` is the one way to ask the kernel, and no
//! library of ours has a safe call of it. Asked to change nothing, it needs no right; systemd's `ProtectClock=` and system call filters refuse it all the
//! same.

#![expect(unsafe_code, reason = "adjtimex(2) has no safe wrapper")]

use std::io;
use std::time::Duration;

/// Whether a machine has just learnt what time it is, when its clock has moved by `step` and it has been `up` for so long. A clock
/// that moves by less was corrected, and a step of one that is up for longer says nothing about the times that it gave before.
pub(crate) fn has_learnt_the_time(step: Duration, up: Duration) -> bool {
    step > Duration::from_mins(1) && up < Duration::from_hours(1)
}

/// The error at which the kernel itself calls the clock unsynchronised, and what systemd's `timedatectl` goes by: chrony may
/// leave the kernel's own flag unset.
const LOST: Duration = Duration::from_secs(16);

/// What the kernel knows of its clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Clock {
    /// How far it may be off; it grows by half a millisecond a second while nobody corrects it.
    pub(crate) max_error: Duration,
}

impl Clock {
    /// Asks the kernel.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::PermissionDenied`] where a filter of system calls forbids the question.
    pub(crate) fn read() -> io::Result<Self> {
        // SAFETY: `timex` is a C struct of integers, for which all zeros is a value; with `modes` zero the kernel only
        // fills it in.
        let (state, answer) = unsafe {
            let mut answer: libc::timex = std::mem::zeroed();
            (libc::adjtimex(&raw mut answer), answer)
        };
        if state < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self::after(answer.maxerror))
    }

    /// Of the kernel's figure, in microseconds.
    fn after(max_error: impl TryInto<u64>) -> Self {
        Self { max_error: Duration::from_micros(max_error.try_into().unwrap_or_default()) }
    }

    /// Whether somebody keeps it right.
    pub(crate) fn synchronised(self) -> bool {
        self.max_error < LOST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_answers_without_any_right() {
        let clock = Clock::read().unwrap();
        // It stops counting there.
        assert!(clock.max_error <= Duration::from_mins(1), "{clock:?}");
    }

    #[test]
    fn a_clock_is_lost_from_sixteen_seconds_on() {
        assert!(Clock::after(15_999_999_i64).synchronised());
        assert!(!Clock::after(16_000_000_i64).synchronised());
    }
}
