//! What the datastore itself paid for its syncs, and what its disks answered, seen in the kernel and without writing anything.
//!
//! | file | what |
//! |---|---|
//! | `passive/programs.rs` | what runs in the kernel at system calls |
//! | `passive/syncs.rs` | the datastore's `fdatasync`, `fsync` and asynchronous writes |
//! | `passive/block.rs` | requests of disks, and those that fail |
//! | `passive/figures.rs` | distributions that the kernel fills |
//!
//! A run reads the programs' maps and adds what is new to the figures; nothing here waits for a disk. Programs and figures
//! outlive the sampler; both go with the agent.
//!
//! First the functions of the system calls are hooked, which costs other calls nothing. Tracepoints are the other way: while
//! one is on, every system call of the node takes the slow way, so they are used only where the configuration says so. Where
//! neither works nothing is seen, and the sampler's state says why; nothing else changes.

mod block;
mod figures;
mod programs;
mod syncs;

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::bpf;
use crate::host::Host;
use crate::kept::{Kept, Shared};
use crate::sample::{Batch, SampleError};

use super::DATASTORE_SOURCE;
use super::place::Device;
use block::Block;
use programs::{Maps, Way};
use syncs::Syncs;

/// What was refused is tried again after this: a limit may have been lifted.
const AGAIN: Duration = Duration::from_mins(10);
/// The inode of the pid namespace in which the kernel itself counts: `PROC_PID_INIT_INO`.
const FIRST_PID_NAMESPACE: u64 = 0xefff_fffc;

/// Whether the datastore's own syncs are seen: the key `passive`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Passive {
    /// Where the kernel lets functions be hooked, which costs other calls nothing.
    #[default]
    Auto,
    /// By tracepoints where there is no other way.
    Tracepoints,
    /// Never.
    Off,
}

/// One agent has one.
static KNOWN: Kept<(), Shared<Known>> = Kept::new();

/// What is in the kernel, and what was read of it.
#[derive(Debug, Default)]
struct Known {
    inside: Option<Inside>,
    /// Samplers that want it: while one is built anew there are two.
    holders: usize,
    syncs: syncs::Counted,
    requests: block::Counted,
}

/// What is in the kernel while it is seen.
#[derive(Debug)]
struct Inside {
    maps: Maps,
    bounds: Vec<f64>,
    syncs: Option<Syncs>,
    block: Option<Block>,
}

/// What is not seen, and why.
#[derive(Debug)]
enum Refusal {
    Syncs(String),
    Requests(String),
}

/// The source as the sampler holds it.
#[derive(Debug)]
pub(super) struct Source {
    wanted: Passive,
    host: Host,
    proc: PathBuf,
    /// Why something is not seen, and when that was tried.
    refused: Option<(Vec<Refusal>, Instant)>,
    known: Shared<Known>,
}

impl Source {
    pub(super) fn new(wanted: Passive, host: &Host) -> Self {
        let (host, proc, known) = (host.clone(), host.path("/proc"), KNOWN.of(()));
        known.lock().holders += 1;
        Self { wanted, host, proc, refused: None, known }
    }

    /// Reads what the datastore's `processes` have synced, and what `disks` answered, and tells it. The datastore lies on
    /// `device`, where that is known.
    pub(super) fn look(
        &mut self,
        processes: &[(u32, String)],
        device: Option<&Device>,
        disks: &BTreeSet<String>,
        out: &mut Batch,
    ) {
        let known = self.known.clone();
        let known = &mut *known.lock();
        let is_tracepoint = |syncs: &Syncs| syncs.way == Way::Tracepoint;
        let by_tracepoint = known.inside.as_ref().and_then(|inside| inside.syncs.as_ref());
        if self.wanted == Passive::Off
            || self.wanted == Passive::Auto && by_tracepoint.is_some_and(is_tracepoint)
        {
            known.inside = None;
        }
        if self.wanted == Passive::Off {
            return;
        }
        let (refused, when) = match self.refused.take() {
            Some((refused, when)) if refused.is_empty() || when.elapsed() < AGAIN => {
                (refused, when)
            }
            _ => (self.attach(known), Instant::now()),
        };
        for refusal in &refused {
            match (self.wanted, refusal) {
                // It was asked for.
                (Passive::Tracepoints, Refusal::Syncs(why)) => {
                    out.fail(SampleError::call("the kernel", why));
                }
                (_, Refusal::Syncs(why) | Refusal::Requests(why)) => out.remark(why),
            }
        }
        self.refused = Some((refused, when));
        let mut seen = false;
        if let Some(Inside { maps, bounds, syncs, block }) = &mut known.inside {
            if let Some(syncs) = syncs {
                seen = !processes.is_empty();
                if let Some(why) = &syncs.refused {
                    out.remark(why);
                }
                let read = syncs.look(maps, processes, &self.proc, bounds, &mut known.syncs);
                told(read, out);
                if seen && known.syncs.is_fed() {
                    let device = device.map_or("", |device| &device.label);
                    let source = match syncs.way {
                        Way::Function => "fentry",
                        Way::Tracepoint => "tracepoint",
                    };
                    out.info(&DATASTORE_SOURCE, [source, device]);
                }
            }
            if let Some(block) = block {
                told(block.look(&self.host.path("/sys"), bounds, &mut known.requests), out);
            }
        }
        known.syncs.export(seen, out);
        let own = |name: &String| {
            device.is_some_and(|device| device.label == *name || device.disks.contains(name))
        };
        known.requests.export(disks, own, out);
    }

    /// Attaches what is not yet, and says what cannot be.
    fn attach(&self, known: &mut Known) -> Vec<Refusal> {
        let blind = |error: io::Error| {
            Refusal::Syncs(format!("the datastore's own syncs are not seen: {error}"))
        };
        let inside = match &mut known.inside {
            Some(inside) => inside,
            None => {
                bpf::lift_memory_limit();
                let bounds = figures::bounds();
                match Maps::new(&figures::nanoseconds(&bounds)) {
                    Ok(maps) => {
                        known.inside.insert(Inside { maps, bounds, syncs: None, block: None })
                    }
                    Err(error) => return vec![blind(bpf::told("making a map", &error))],
                }
            }
        };
        let types = bpf::kernel_types();
        let mut refused = Vec::new();
        if inside.syncs.is_none() {
            let allowed = self.wanted == Passive::Tracepoints;
            let syncs = self
                .are_numbers_the_kernels()
                .and_then(|()| Syncs::attach(&inside.maps, &types, allowed));
            match syncs {
                Ok(syncs) => inside.syncs = Some(syncs),
                Err(error) => refused.push(blind(error)),
            }
        }
        if inside.block.is_none() {
            match types.and_then(|types| Block::attach(&types, &inside.maps)) {
                Ok(block) => inside.block = Some(block),
                Err(error) => {
                    let why = format!("requests of disks are not seen: {error}");
                    refused.push(Refusal::Requests(why));
                }
            }
        }
        refused
    }

    /// Below another root lies the host's own `/proc`.
    fn are_numbers_the_kernels(&self) -> io::Result<()> {
        let namespace = || std::fs::metadata("/proc/self/ns/pid").map(|meta| meta.ino());
        let is_own = self.host.rootfs() == Path::new("/");
        if is_own && namespace().is_ok_and(|inode| inode != FIRST_PID_NAMESPACE) {
            return Err(io::Error::other(
                "the agent's processes have numbers of their own (a pid namespace); hostPID shows it those of the node",
            ));
        }
        Ok(())
    }
}

impl Drop for Source {
    /// The last one takes the programs away: whoever switches the sampler off does not want them.
    fn drop(&mut self) {
        let mut known = self.known.lock();
        known.holders -= 1;
        if known.holders == 0 {
            known.inside = None;
        }
    }
}

fn told(read: io::Result<()>, out: &mut Batch) {
    if let Err(error) = read {
        out.fail(SampleError::call("the maps in the kernel", error));
    }
}
