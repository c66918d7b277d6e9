//! Configuration files of the programs of the control plane.
#![no_main]

use controlplane_exporter::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: fuzzing::write_seeds("component_config"), |bytes: &[u8]| fuzzing::component_config(bytes));
