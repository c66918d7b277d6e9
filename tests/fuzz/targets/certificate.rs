//! Certificates as DER.
#![no_main]

use controlplane_exporter::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: fuzzing::write_seeds("certificate"), |bytes: &[u8]| fuzzing::certificate(bytes));
