//! What runs in the kernel: two programs for each system call that writes to disk, which time it for the datastore's processes.
//!
//! `fdatasync` and `fsync` are timed from the call's entry to its return. dqlite has neither: its log is written with
//! `io_submit` to a file that is opened `O_DSYNC`, so the time is that from `io_submit` to the `io_getevents` that brings the
//! event; an event that says `EAGAIN` is submitted again, and counts from then.
//!
//! Maps: `targets` has the processes that are timed; `inflight` and `writes` what has begun; `waiting` which call of
//! `io_getevents` waits for what; `syncs` the figures of each descriptor of each process, in cells whose bounds are in
//! `bounds`. Everything else of the node costs one lookup a call.

use std::io;

use crate::bpf::asm::{Asm, Helper, If, Label, Op, Reg, Size};
use crate::bpf::{Map, MapKind};

use Reg::{R0, R1, R2, R3, R4, R6, R7, R8, R9, Stack};

/// Cells of a distribution, the last for what lies above all bounds; a power of two for the search in halves.
pub(super) const CELLS: usize = 256;
/// Processes that are watched.
pub(super) const MAX_TARGETS: usize = 64;
/// Descriptors that have figures.
pub(super) const MAX_SYNCS: usize = 4_096;
/// Calls that are under way.
pub(super) const MAX_FLIGHTS: usize = 1_024;
/// Bytes of a descriptor's figures: time in all, failures, cells of four bytes.
pub(super) const FIGURES: usize = 16 + 4 * CELLS;

/// Bits of a descriptor's number beside which the kind of call stands.
const FD_BITS: i32 = 28;
const FD_MASK: i32 = (1 << FD_BITS) - 1;

/// What kind of call was timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Call {
    Fdatasync,
    Fsync,
    /// Of dqlite.
    AioWrite,
}

impl Call {
    const ALL: [Self; 3] = [Self::Fdatasync, Self::Fsync, Self::AioWrite];

    /// The value of the label `op`.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Fdatasync => "fdatasync",
            Self::Fsync => "fsync",
            Self::AioWrite => "aio_write",
        }
    }

    /// Call and descriptor of a key.
    pub(super) fn of(key: u32) -> Option<(Self, u32)> {
        let call = Self::ALL.get((key >> FD_BITS) as usize)?;
        Some((*call, key & FD_MASK.cast_unsigned()))
    }

    /// The number by which maps know a call and its descriptor.
    pub(super) fn key(self, fd: u32) -> u32 {
        self.bits().cast_unsigned() | (fd & FD_MASK.cast_unsigned())
    }

    fn bits(self) -> i32 {
        (self as i32) << FD_BITS
    }
}

/// The maps that the programs share with the agent.
#[derive(Debug)]
pub(super) struct Maps {
    /// Process -> nothing.
    pub(super) targets: Map,
    /// Thread -> when its call began, and which it is.
    pub(super) inflight: Map,
    /// Context and process of asynchronous writes -> when the one under way was submitted.
    pub(super) writes: Map,
    /// Thread -> context and events that its `io_getevents` waits for.
    waiting: Map,
    /// Process, call and descriptor -> figures.
    pub(super) syncs: Map,
    /// Figures of nothing.
    zero: Map,
    /// Upper bounds of the cells, in nanoseconds.
    bounds: Map,
}

impl Maps {
    /// Makes them; `bounds` ascend, in nanoseconds.
    pub(super) fn new(bounds: &[u64; CELLS]) -> io::Result<Self> {
        let room = |most: usize| u32::try_from(most).map_err(io::Error::other);
        let hash = |name, key, value, most| Map::new(name, MapKind::Hash, key, value, room(most)?);
        let lru =
            |name, key, value, most| Map::new(name, MapKind::LruHash, key, value, room(most)?);
        let one = |name, value| Map::new(name, MapKind::Array, 4, value, 1);
        let maps = Self {
            targets: hash("sync_targets", 4, 4, MAX_TARGETS)?,
            inflight: hash("sync_inflight", 8, 16, MAX_FLIGHTS)?,
            writes: hash("sync_writes", 16, 8, MAX_FLIGHTS)?,
            // What a process left behind makes room for others.
            waiting: lru("sync_waiting", 8, 16, MAX_FLIGHTS)?,
            syncs: lru("syncs", 8, FIGURES, MAX_SYNCS)?,
            zero: one("sync_zero", FIGURES)?,
            bounds: one("sync_bounds", 8 * CELLS)?,
        };
        let bytes: Vec<u8> = bounds.iter().flat_map(|bound| bound.to_ne_bytes()).collect();
        maps.bounds.set(&[0; 4], &bytes)?;
        Ok(maps)
    }
}

/// How a program is started, which decides where it finds arguments and answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// At the kernel's function, whose one argument is the caller's registers.
    Function,
    /// At the tracepoint of the system call.
    Tracepoint,
}

/// The arguments of a system call that programs read: the first, and the fourth.
#[derive(Debug, Clone, Copy)]
enum Argument {
    First,
    Fourth,
}

impl Argument {
    /// Where it is in `struct pt_regs`, which belongs to the ABI of `ptrace`: `di` and `r10`, or `x0` and `x3`.
    fn in_registers(self) -> i16 {
        match (self, cfg!(target_arch = "x86_64")) {
            (Self::First, true) => 112,
            (Self::First, false) => 0,
            (Self::Fourth, true) => 56,
            (Self::Fourth, false) => 24,
        }
    }

    /// Where it is in what the tracepoint hands over, on every kernel.
    fn in_tracepoint(self) -> i16 {
        match self {
            Self::First => 16,
            Self::Fourth => 40,
        }
    }
}

impl Way {
    /// `to` = the argument; the program's own argument is in `R6`.
    fn argument(self, asm: &mut Asm, to: Reg, which: Argument) {
        match self {
            Self::Function => {
                asm.load(Size::Double, to, R6, 0);
                asm.load(Size::Double, to, to, which.in_registers());
            }
            Self::Tracepoint => asm.load(Size::Double, to, R6, which.in_tracepoint()),
        }
    }

    /// `to` = what the call answers.
    fn answer(self, asm: &mut Asm, to: Reg) {
        asm.load(Size::Double, to, R6, if self == Self::Function { 8 } else { 16 });
    }
}

/// The programs of one system call.
pub(super) struct Timed {
    /// Its name without the architecture's prefix.
    pub(super) call: &'static str,
    /// Run when it begins.
    pub(super) enter: Vec<u64>,
    /// Run when it returns, where that matters.
    pub(super) leave: Option<Vec<u64>>,
}

/// The programs at the calls that sync.
pub(super) fn syncs(maps: &Maps, way: Way) -> [Timed; 2] {
    [("fdatasync", Call::Fdatasync), ("fsync", Call::Fsync)].map(|(call, of)| Timed {
        call,
        enter: sync_begins(maps, way, of),
        leave: Some(sync_ends(maps, way)),
    })
}

/// The programs at the calls of asynchronous writes.
pub(super) fn writes(maps: &Maps, way: Way) -> [Timed; 3] {
    [
        Timed {
            call: "io_submit",
            enter: write_begins(maps, way),
            leave: Some(submit_ends(maps, way)),
        },
        Timed {
            call: "io_getevents",
            enter: wait_begins(maps, way),
            leave: Some(write_ends(maps, way)),
        },
        Timed { call: "io_destroy", enter: context_ends(maps, way), leave: None },
    ]
}

/// Where things lie in a program's own memory, in bytes below its end.
const THREAD: i32 = 8;
const PROCESS: i32 = 16;
pub(super) const KEY: i32 = 24;
const INDEX: i32 = 28;
const VALUE: i32 = 48;
const WRITE: i32 = 64;

/// So far below the end, as an offset.
pub(super) fn below(bytes: i32) -> i16 {
    i16::try_from(-bytes).expect("a program has 512 bytes")
}

/// `R0` = the address of the map's value for the key that lies so far below.
pub(super) fn lookup(asm: &mut Asm, map: &Map, key: i32) {
    asm.map(R1, map);
    asm.stack(R2, key);
    asm.call(Helper::MapLookup);
}

/// Sets the key to what lies at `value`; `flags` 1 leaves one that is there.
pub(super) fn update(asm: &mut Asm, map: &Map, key: i32, value: i32, flags: i32) {
    asm.map(R1, map);
    asm.stack(R2, key);
    asm.stack(R3, value);
    asm.number(Op::Move, R4, flags);
    asm.call(Helper::MapUpdate);
}

pub(super) fn delete(asm: &mut Asm, map: &Map, key: i32) {
    asm.map(R1, map);
    asm.stack(R2, key);
    asm.call(Helper::MapDelete);
}

/// Puts thread and process at their places.
fn who(asm: &mut Asm) {
    asm.register(Op::Move, R6, R1);
    asm.call(Helper::PidTgid);
    asm.store(Size::Double, Stack, below(THREAD), R0);
    asm.number(Op::ShiftRight, R0, 32);
    asm.store(Size::Word, Stack, below(PROCESS), R0);
}

/// The beginning of a program that looks at the datastore's processes only.
fn of_targets(asm: &mut Asm, maps: &Maps, out: Label) {
    who(asm);
    lookup(asm, &maps.targets, PROCESS);
    asm.jump_if(R0, If::Equal, 0, out);
}

pub(super) fn end(mut asm: Asm, out: Label) -> Vec<u64> {
    asm.bind(out);
    asm.exit();
    asm.finish()
}

fn sync_begins(maps: &Maps, way: Way, call: Call) -> Vec<u64> {
    let mut asm = Asm::default();
    let out = asm.label();
    of_targets(&mut asm, maps, out);
    way.argument(&mut asm, R7, Argument::First);
    asm.number(Op::And, R7, FD_MASK);
    asm.number(Op::Or, R7, call.bits());
    asm.call(Helper::KtimeNs);
    asm.store(Size::Double, Stack, below(VALUE), R0);
    asm.store(Size::Double, Stack, below(VALUE - 8), R7);
    update(&mut asm, &maps.inflight, THREAD, VALUE, 0);
    end(asm, out)
}

fn sync_ends(maps: &Maps, way: Way) -> Vec<u64> {
    let mut asm = Asm::default();
    let out = asm.label();
    who(&mut asm);
    lookup(&mut asm, &maps.inflight, THREAD);
    asm.jump_if(R0, If::Equal, 0, out);
    asm.load(Size::Double, R7, R0, 0);
    asm.load(Size::Double, R8, R0, 8);
    way.answer(&mut asm, R6);
    delete(&mut asm, &maps.inflight, THREAD);
    // The key: process, call and descriptor.
    asm.load(Size::Word, R1, Stack, below(PROCESS));
    asm.store(Size::Word, Stack, below(KEY), R1);
    asm.store(Size::Word, Stack, below(KEY - 4), R8);
    record(&mut asm, &maps.syncs, maps, out);
    end(asm, out)
}

fn write_begins(maps: &Maps, way: Way) -> Vec<u64> {
    let mut asm = Asm::default();
    let out = asm.label();
    of_targets(&mut asm, maps, out);
    context(&mut asm, way);
    asm.call(Helper::KtimeNs);
    asm.store(Size::Double, Stack, below(VALUE), R0);
    update(&mut asm, &maps.writes, WRITE, VALUE, 0);
    // The tracepoint of its return does not say which context it was.
    asm.load(Size::Double, R1, Stack, below(WRITE));
    asm.store(Size::Double, Stack, below(VALUE), R1);
    asm.store(Size::Double, Stack, below(VALUE - 8), R1);
    update(&mut asm, &maps.waiting, THREAD, VALUE, 0);
    end(asm, out)
}

/// Writes of a context that is taken down end without an event.
fn context_ends(maps: &Maps, way: Way) -> Vec<u64> {
    let mut asm = Asm::default();
    let out = asm.label();
    of_targets(&mut asm, maps, out);
    context(&mut asm, way);
    delete(&mut asm, &maps.writes, WRITE);
    end(asm, out)
}

/// A submission that is refused is no write.
fn submit_ends(maps: &Maps, way: Way) -> Vec<u64> {
    let mut asm = Asm::default();
    let out = asm.label();
    waited(&mut asm, maps, way, out);
    asm.jump_if(R6, If::SignedAtLeast, 1, out);
    delete(&mut asm, &maps.writes, WRITE);
    end(asm, out)
}

/// What the thread's call waits for: the write's key at its place, where its events come to in `R8`, its answer in `R6`.
fn waited(asm: &mut Asm, maps: &Maps, way: Way, out: Label) {
    who(asm);
    lookup(asm, &maps.waiting, THREAD);
    asm.jump_if(R0, If::Equal, 0, out);
    asm.load(Size::Double, R1, R0, 0);
    asm.load(Size::Double, R8, R0, 8);
    write_of(asm);
    way.answer(asm, R6);
    delete(asm, &maps.waiting, THREAD);
}

/// Puts the context of the call and the process at their place.
fn context(asm: &mut Asm, way: Way) {
    way.argument(asm, R1, Argument::First);
    write_of(asm);
}

/// Puts the context in `R1` and the process at the place of a write's key.
fn write_of(asm: &mut Asm) {
    asm.store(Size::Double, Stack, below(WRITE), R1);
    asm.load(Size::Word, R1, Stack, below(PROCESS));
    asm.store(Size::Double, Stack, below(WRITE - 8), R1);
}

fn wait_begins(maps: &Maps, way: Way) -> Vec<u64> {
    let mut asm = Asm::default();
    let out = asm.label();
    of_targets(&mut asm, maps, out);
    way.argument(&mut asm, R1, Argument::First);
    asm.store(Size::Double, Stack, below(VALUE), R1);
    way.argument(&mut asm, R1, Argument::Fourth);
    asm.store(Size::Double, Stack, below(VALUE - 8), R1);
    update(&mut asm, &maps.waiting, THREAD, VALUE, 0);
    end(asm, out)
}

fn write_ends(maps: &Maps, way: Way) -> Vec<u64> {
    /// The result in `struct io_event`.
    const RESULT: i32 = 16;
    const EAGAIN: i32 = -11;
    let mut asm = Asm::default();
    let out = asm.label();
    waited(&mut asm, maps, way, out);
    asm.jump_if(R6, If::SignedAtMost, 0, out);
    asm.register(Op::Move, R3, R8);
    asm.number(Op::Add, R3, RESULT);
    asm.number(Op::Move, R2, 8);
    asm.stack(R1, VALUE);
    asm.call(Helper::ProbeReadUser);
    asm.jump_if(R0, If::NotEqual, 0, out);
    asm.load(Size::Double, R6, Stack, below(VALUE));
    lookup(&mut asm, &maps.writes, WRITE);
    asm.jump_if(R0, If::Equal, 0, out);
    asm.load(Size::Double, R7, R0, 0);
    delete(&mut asm, &maps.writes, WRITE);
    // It is submitted again at once, by a thread that may wait.
    asm.jump_if(R6, If::Equal, EAGAIN, out);
    asm.load(Size::Word, R1, Stack, below(PROCESS));
    asm.store(Size::Word, Stack, below(KEY), R1);
    asm.number(Op::Move, R1, Call::AioWrite.bits());
    asm.store(Size::Word, Stack, below(KEY - 4), R1);
    record(&mut asm, &maps.syncs, maps, out);
    end(asm, out)
}

/// Counts in `figures` what began at `R7` and answered `R6`, for the key at [`KEY`].
pub(super) fn record(asm: &mut Asm, figures: &Map, maps: &Maps, out: Label) {
    const FAILURES: i16 = 8;
    const COUNTS: i16 = 16;
    const EINVAL: i32 = -22;
    let (there, well) = (asm.label(), asm.label());
    asm.call(Helper::KtimeNs);
    asm.register(Op::Sub, R0, R7);
    asm.register(Op::Move, R7, R0);
    asm.number(Op::Move, R1, 0);
    asm.store(Size::Word, Stack, below(INDEX), R1);
    lookup(asm, figures, KEY);
    asm.jump_if(R0, If::NotEqual, 0, there);
    // Its first: there is no room on the stack for a value of nothing.
    lookup(asm, &maps.zero, INDEX);
    asm.jump_if(R0, If::Equal, 0, out);
    asm.register(Op::Move, R3, R0);
    asm.map(R1, figures);
    asm.stack(R2, KEY);
    asm.number(Op::Move, R4, 1);
    asm.call(Helper::MapUpdate);
    lookup(asm, figures, KEY);
    asm.jump_if(R0, If::Equal, 0, out);
    asm.bind(there);
    asm.register(Op::Move, R9, R0);
    asm.number(Op::Move, R1, 1);
    asm.jump_if(R6, If::SignedAtLeast, 0, well);
    // What cannot be synced at all is no disk's fault.
    asm.jump_if(R6, If::Equal, EINVAL, out);
    asm.add_atomic(Size::Double, R9, FAILURES, R1);
    asm.jump(out);
    asm.bind(well);
    asm.add_atomic(Size::Double, R9, 0, R7);
    lookup(asm, &maps.bounds, INDEX);
    asm.jump_if(R0, If::Equal, 0, out);
    // The first cell whose bound is not below: in eight steps, each of half of the one before.
    asm.number(Op::Move, R1, 0);
    let mut step = CELLS / 2;
    while step > 0 {
        let skip = asm.label();
        let constant = |n: usize| i32::try_from(n).unwrap_or_default();
        asm.register(Op::Move, R2, R1);
        asm.number(Op::Add, R2, constant(step - 1));
        asm.number(Op::And, R2, constant(CELLS - 1));
        asm.number(Op::ShiftLeft, R2, 3);
        asm.register(Op::Move, R3, R0);
        asm.register(Op::Add, R3, R2);
        asm.load(Size::Double, R3, R3, 0);
        asm.jump_if_registers(R7, If::AtMost, R3, skip);
        asm.number(Op::Add, R1, constant(step));
        asm.bind(skip);
        step /= 2;
    }
    asm.number(Op::And, R1, 255);
    asm.number(Op::ShiftLeft, R1, 2);
    asm.register(Op::Add, R9, R1);
    asm.number(Op::Move, R1, 1);
    asm.add_atomic(Size::Word, R9, COUNTS, R1);
}

/// Four bytes of a key as a number.
pub(super) fn number(key: &[u8], at: usize) -> u32 {
    let four = key.get(at..at + 4).and_then(|four| four.try_into().ok());
    four.map_or(0, u32::from_ne_bytes)
}

/// The name of a system call's function in the kernel.
pub(super) fn function(call: &str) -> String {
    let architecture = if cfg!(target_arch = "x86_64") { "x64" } else { "arm64" };
    format!("__{architecture}_sys_{call}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::btf::{Wanted, find};
    use crate::bpf::{self, Hook};

    /// The maps, if this user may make some.
    fn maps() -> Option<Maps> {
        bpf::lift_memory_limit();
        let made = Maps::new(&[u64::MAX; CELLS]);
        if rustix::process::geteuid().is_root() {
            return Some(made.unwrap());
        }
        eprintln!("skipped: only root may load programs into the kernel");
        None
    }

    #[test]
    fn a_call_and_its_descriptor_come_out_of_a_key_as_they_went_in() {
        for call in Call::ALL {
            assert_eq!(Call::of(call.key(71)), Some((call, 71)));
        }
        assert_eq!(Call::of(u32::MAX), None);
    }

    #[test]
    fn the_verifier_accepts_each_program_at_tracepoints() {
        let Some(maps) = maps() else { return };
        let way = Way::Tracepoint;
        for timed in syncs(&maps, way).into_iter().chain(writes(&maps, way)) {
            for code in [Some(&timed.enter), timed.leave.as_ref()].into_iter().flatten() {
                bpf::verify(timed.call, Hook::Tracepoint(0), code).unwrap();
                assert!(code.len() < 200, "{} instructions of {}", code.len(), timed.call);
            }
        }
    }

    #[test]
    fn the_verifier_accepts_each_program_at_functions() {
        let Some(maps) = maps() else { return };
        let types = bpf::kernel_types().unwrap();
        let way = Way::Function;
        for timed in syncs(&maps, way).into_iter().chain(writes(&maps, way)) {
            let name = function(timed.call);
            let number = find(&types, &[Wanted::Function(&name)]).unwrap()[0].unwrap();
            let exit = timed.leave.as_ref().map(|code| (Hook::Exit(number), code));
            for (hook, code) in
                [Some((Hook::Entry(number), &timed.enter)), exit].into_iter().flatten()
            {
                match bpf::verify(timed.call, hook, code) {
                    Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                        eprintln!(
                            "skipped: this kernel hooks no functions; tests/fentry.sh has one that does"
                        );
                        return;
                    }
                    verdict => verdict.unwrap(),
                }
            }
        }
    }

    #[test]
    fn what_the_verifier_says_of_a_program_that_it_refuses_is_told() {
        let Some(_) = maps() else { return };
        let mut asm = Asm::default();
        asm.load(Size::Double, R0, R7, 0);
        asm.exit();
        let error = bpf::verify("wrong", Hook::Tracepoint(0), &asm.finish()).unwrap_err();
        assert!(error.to_string().contains("R7 !read_ok"), "{error}");
    }
}
