//! Superblocks of ext4 and xfs.
#![no_main]

use controlplane_exporter::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: fuzzing::write_seeds("superblock"), |bytes: &[u8]| fuzzing::superblock(bytes));
