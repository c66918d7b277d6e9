//! See `crate::fuzzing`.

use std::cell::RefCell;
use std::os::fd::AsRawFd;

use super::{CLASSIFIER, Counted, Host, Kernel, Log, Options, Quiet, Shared, clock};
use crate::fuzzing;
use crate::sample::Batch;

/// A file of records: there are never more events than lines, and never more series than the caps allow.
pub fn kmsg(bytes: &[u8]) {
    thread_local! {
        static KERNEL: RefCell<Option<Kernel>> = const { RefCell::new(None) };
    }
    let file = fuzzing::file(bytes);
    KERNEL.with_borrow_mut(|kernel| {
        let kernel = kernel.get_or_insert_with(|| {
            let host = Host::at("/nonexistent");
            let made = Kernel::new(&Options::default(), &host, clock, Shared::default());
            made.unwrap_or_else(|_| unreachable!("the defaults are valid"))
        });
        kernel.log = Log::new(format!("/proc/self/fd/{}", file.as_raw_fd()).into());
        kernel.quiet = Quiet::default();
        let classifier = CLASSIFIER.as_ref().expect("the table compiles");
        let mut out = Batch::default();
        let mut counted = Counted::default();
        kernel.open(&mut counted).expect("a file in memory");
        kernel.drain(classifier, &mut counted, &mut out).expect("it can be read");
        counted.tally.push(&mut out);
        // An escaped line end makes two lines of one.
        let lines = bytes.iter().filter(|byte| matches!(byte, b'\n' | b'\\')).count() + 1;
        let events = out.take_events();
        assert!(events.len() <= lines, "{} events in {lines} lines", events.len());
        assert!(out.all().len() < 1_000, "{} series", out.all().len());
    });
}
