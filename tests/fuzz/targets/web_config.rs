//! The web configuration.
#![no_main]

use controlplane_exporter::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: fuzzing::write_seeds("web_config"), |bytes: &[u8]| fuzzing::web_config(bytes));
