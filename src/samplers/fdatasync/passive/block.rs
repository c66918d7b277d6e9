//! What the datastore's disks answer: how long their requests take, and which fail, without a line in any log.
//!
//! Programs at three tracepoints of the block layer time each request of each disk from when it is handed to the driver to when it is
//! done, and count those that fail by their status, which is finer than an errno. A disk that device-mapper or the multipath of
//! `NVMe` puts together of others has no requests of its own: those below have them, and the paths of `NVMe` are hidden. Needs a kernel that describes its types, from 5.18 on.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::Path;
use std::time::SystemTime;

use crate::bpf::asm::{Asm, Helper, If, Op, Reg, Size};
use crate::bpf::btf::{self, Wanted};
use crate::bpf::{self, Attached, Hook, Map, MapKind};
use crate::sample::Batch;

use super::super::{DEVICE_ERRORS, DEVICE_LAST_ERROR, DEVICE_REQUESTS};
use super::figures::{Figures, Reader};
use super::programs::{self, FIGURES, Maps, below, lookup, number};

use Reg::{R0, R1, R2, R3, R6, R7, R8, R9, Stack};

/// Requests under way.
const MAX_REQUESTS: u32 = 16_384;
/// Disks and kinds of request that have figures; what comes when there is no more room has none.
const MAX_FIGURES: u32 = 256;
const MAX_ERRORS: u32 = 4_096;
/// Bits of a device's minor number, as the kernel has them.
const MINOR_BITS: i32 = 20;

/// Kinds of request, by their number in the kernel.
const OPS: [(u32, &str); 4] = [(0, "read"), (1, "write"), (2, "flush"), (3, "discard")];
/// What went wrong, by the kernel's `blk_status_t`.
const STATUSES: [(u32, &str); 9] = [
    (1, "notsupp"),
    (2, "timeout"),
    (3, "nospc"),
    (4, "transport"),
    (5, "target"),
    (7, "medium"),
    (8, "protection"),
    (10, "ioerr"),
    (12, "again"),
];
/// What says nothing about the disk.
const HARMLESS: [&str; 2] = ["notsupp", "again"];
/// Discards, and zeroes without data: a device that refuses them keeps all that is on it.
const REFUSABLE: [u32; 3] = [3, 5, 9];

/// The tracepoints, and where things lie in the kernel's structures.
const WANTED: [Wanted; 8] = [
    Wanted::Typedef("btf_trace_block_rq_issue"),
    Wanted::Typedef("btf_trace_block_rq_complete"),
    Wanted::Typedef("btf_trace_block_rq_error"),
    Wanted::Member("request", "q"),
    Wanted::Member("request", "cmd_flags"),
    Wanted::Member("request_queue", "disk"),
    Wanted::Member("gendisk", "major"),
    Wanted::Member("gendisk", "first_minor"),
];

/// Offsets in the kernel's structures.
#[derive(Debug, Clone, Copy)]
struct Places {
    queue: i16,
    flags: i16,
    disk: i16,
    major: i16,
    minor: i16,
}

/// The programs while they are attached, and what was read of them.
#[derive(Debug)]
pub(super) struct Block {
    requests: Map,
    errors: Map,
    _started: Map,
    _programs: Vec<Attached>,
    reader: Reader,
    errors_read: HashMap<Vec<u8>, u64>,
}

/// What was counted so far.
#[derive(Debug, Default)]
pub(super) struct Counted {
    requests: BTreeMap<(String, &'static str), Figures>,
    errors: BTreeMap<(String, &'static str, &'static str), u64>,
    last: BTreeMap<String, SystemTime>,
}

impl Block {
    /// Attaches the programs; `types` are the kernel's own, `maps` has the bounds of the cells.
    pub(super) fn attach(types: &[u8], maps: &Maps) -> io::Result<Self> {
        let found = btf::find(types, &WANTED)?;
        if let Some((wanted, _)) = WANTED.iter().zip(&found).find(|(_, found)| found.is_none()) {
            return Err(io::Error::other(format!("this kernel has no {wanted:?}")));
        }
        let place =
            |at: usize| i16::try_from(found[at].unwrap_or_default()).map_err(io::Error::other);
        let places = Places {
            queue: place(3)?,
            flags: place(4)?,
            disk: place(5)?,
            major: place(6)?,
            minor: place(7)?,
        };
        let started = Map::new("block_started", MapKind::LruHash, 8, 8, MAX_REQUESTS)?;
        // One that forgets what was used least begins with that long before it is full: it sets room aside for each CPU.
        let requests = Map::new("block_requests", MapKind::Hash, 8, FIGURES, MAX_FIGURES)?;
        let errors = Map::new("block_errors", MapKind::Hash, 12, 8, MAX_ERRORS)?;
        let hook = |at: usize| Hook::Typed(found[at].unwrap_or_default());
        let programs = vec![
            bpf::attach(
                "block_rq_complete",
                hook(1),
                &completed(&started, &requests, maps, places),
            )?,
            bpf::attach("block_rq_issue", hook(0), &issued(&started))?,
            bpf::attach("block_rq_error", hook(2), &failed(&errors, places))?,
        ];
        Ok(Self {
            requests,
            errors,
            _started: started,
            _programs: programs,
            reader: Reader::default(),
            errors_read: HashMap::new(),
        })
    }

    /// Adds what is new.
    pub(super) fn look(
        &mut self,
        sys: &Path,
        bounds: &[f64],
        counted: &mut Counted,
    ) -> io::Result<()> {
        for (key, growth) in self.reader.look(&self.requests, MAX_FIGURES as usize)? {
            if !growth.is_new() {
                continue;
            }
            let device = name(sys, number(&key, 0));
            let op = word(&OPS, number(&key, 4));
            growth.add_to(counted.requests.entry((device, op)).or_default(), bounds);
        }
        let mut value = [0; 8];
        for key in self.errors.keys(2 * MAX_ERRORS as usize)? {
            if !matches!(self.errors.get(&key, &mut value), Ok(true)) {
                continue;
            }
            let count = u64::from_ne_bytes(value);
            let before = self.errors_read.insert(key.clone(), count).unwrap_or(0);
            let grown = count.saturating_sub(before);
            if grown > 0 {
                let device = name(sys, number(&key, 0));
                let status = word(&STATUSES, number(&key, 8));
                if is_fault(number(&key, 4), status) {
                    counted.last.insert(device.clone(), SystemTime::now());
                }
                let op = word(&OPS, number(&key, 4));
                *counted.errors.entry((device, op, status)).or_default() += grown;
            }
        }
        Ok(())
    }
}

impl Counted {
    /// Tells all of it: times of these disks, the errors of any, and the last ones of the datastore's own.
    pub(super) fn export(
        &self,
        disks: &BTreeSet<String>,
        is_own: impl Fn(&String) -> bool,
        out: &mut Batch,
    ) {
        for ((device, op), figures) in &self.requests {
            if disks.contains(device) {
                out.histogram(&DEVICE_REQUESTS, [device, op], &figures.well);
            }
        }
        for ((device, op, status), count) in &self.errors {
            out.push(&DEVICE_ERRORS, [device, op, status], *count);
        }
        for (device, when) in &self.last {
            if is_own(device) {
                out.push(&DEVICE_LAST_ERROR, [device], *when);
            }
        }
    }
}

/// Whether a request that failed says that the disk is ill.
fn is_fault(op: u32, status: &str) -> bool {
    !HARMLESS.contains(&status) && !REFUSABLE.contains(&op)
}

/// The kernel's name for a device of this number; numbers are given again when a device goes.
fn name(sys: &Path, device: u32) -> String {
    let (major, minor) = (device >> MINOR_BITS, device & ((1 << MINOR_BITS) - 1));
    let link = std::fs::read_link(sys.join(format!("dev/block/{major}:{minor}"))).ok();
    let name = link.as_deref().and_then(Path::file_name);
    name.map_or_else(|| format!("{major}:{minor}"), |name| name.to_string_lossy().into_owned())
}

fn word(of: &[(u32, &'static str)], number: u32) -> &'static str {
    of.iter().find(|(known, _)| *known == number).map_or("other", |(_, word)| word)
}

const REQUEST: i32 = 8;
const VALUE: i32 = 16;
/// Device and kind of request, and behind them the status; [`programs::record`] looks for its key here.
const KEY: i32 = programs::KEY;
const ERROR: i32 = 48;

fn issued(started: &Map) -> Vec<u64> {
    let mut asm = Asm::default();
    asm.load(Size::Double, R6, R1, 0);
    asm.store(Size::Double, Stack, below(REQUEST), R6);
    asm.call(Helper::KtimeNs);
    asm.store(Size::Double, Stack, below(VALUE), R0);
    programs::update(&mut asm, started, REQUEST, VALUE, 0);
    asm.exit();
    asm.finish()
}

/// `R7` = the request, `R8` = what became of it; the program's own argument is in `R1`.
fn request_and_status(asm: &mut Asm) {
    asm.load(Size::Double, R7, R1, 0);
    asm.load(Size::Double, R8, R1, 8);
    asm.number(Op::And, R8, 0xff);
}

/// Puts the device and the kind of the request in `R7` at their place.
fn device_and_kind(asm: &mut Asm, places: Places, key: i32) {
    asm.load(Size::Double, R1, R7, places.queue);
    asm.load(Size::Double, R1, R1, places.disk);
    asm.load(Size::Word, R2, R1, places.major);
    asm.load(Size::Word, R3, R1, places.minor);
    asm.number(Op::ShiftLeft, R2, MINOR_BITS);
    asm.register(Op::Or, R2, R3);
    asm.store(Size::Word, Stack, below(key), R2);
    asm.load(Size::Word, R1, R7, places.flags);
    asm.number(Op::And, R1, 0xff);
    asm.store(Size::Word, Stack, below(key - 4), R1);
}

fn completed(started: &Map, requests: &Map, maps: &Maps, places: Places) -> Vec<u64> {
    let mut asm = Asm::default();
    let out = asm.label();
    request_and_status(&mut asm);
    asm.store(Size::Double, Stack, below(REQUEST), R7);
    lookup(&mut asm, started, REQUEST);
    asm.jump_if(R0, If::Equal, 0, out);
    asm.load(Size::Double, R9, R0, 0);
    programs::delete(&mut asm, started, REQUEST);
    device_and_kind(&mut asm, places, KEY);
    asm.number(Op::Move, R6, 0);
    asm.register(Op::Sub, R6, R8);
    asm.register(Op::Move, R7, R9);
    programs::record(&mut asm, requests, maps, out);
    programs::end(asm, out)
}

fn failed(errors: &Map, places: Places) -> Vec<u64> {
    let mut asm = Asm::default();
    let (first, out) = (asm.label(), asm.label());
    request_and_status(&mut asm);
    device_and_kind(&mut asm, places, ERROR);
    asm.store(Size::Word, Stack, below(ERROR - 8), R8);
    lookup(&mut asm, errors, ERROR);
    asm.jump_if(R0, If::Equal, 0, first);
    asm.number(Op::Move, R1, 1);
    asm.add_atomic(Size::Double, R0, 0, R1);
    asm.jump(out);
    asm.bind(first);
    asm.number(Op::Move, R1, 1);
    asm.store(Size::Double, Stack, below(VALUE), R1);
    programs::update(&mut asm, errors, ERROR, VALUE, 0);
    programs::end(asm, out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_the_device_may_refuse_is_no_fault_of_it() {
        let discard = OPS.iter().find(|(_, word)| *word == "discard").unwrap().0;
        for status in ["target", "ioerr"] {
            assert!(!is_fault(discard, status) && !is_fault(9, status), "{status}");
            assert!(is_fault(0, status) && is_fault(1, status) && is_fault(2, status), "{status}");
        }
        assert!(!is_fault(1, "notsupp") && !is_fault(1, "again"));
    }
}
