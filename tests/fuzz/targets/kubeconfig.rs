//! Kubeconfigs, and certificates as PEM.
#![no_main]

use controlplane_exporter::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: fuzzing::write_seeds("kubeconfig"), |bytes: &[u8]| fuzzing::kubeconfig(bytes));
