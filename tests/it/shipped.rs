//! Files that are shipped or committed agree with the program.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use controlplane_exporter::config::{Config, Flags};
use controlplane_exporter::{catalog, samplers, store};

fn committed(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn metrics_md_is_what_the_program_prints() {
    assert!(committed("METRICS.md") == catalog::markdown(), "METRICS.md is stale: run `make docs`");
}

#[test]
fn every_metric_has_one_name_and_a_help_that_any_parser_reads() {
    let mut families = BTreeMap::new();
    for desc in store::descs() {
        let family = desc.name.trim_end_matches("_total").trim_end_matches("_info");
        let double = families.insert(family, desc.name);
        assert_eq!(double, None, "two metrics share the OpenMetrics family {family}");
        assert!(desc.help.is_ascii() && !desc.help.contains(['\n', '\\']), "{}", desc.name);
        assert!(desc.help.ends_with('.'), "the help of {} is no sentence", desc.name);
        let well_formed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        assert!(desc.name.chars().all(well_formed), "{}", desc.name);
        for label in desc.labels {
            assert!(!["cluster", "instance", "job"].contains(label), "{} sets {label}", desc.name);
        }
    }
}

#[test]
fn every_metric_carries_the_name_of_its_sampler() {
    for (name, def) in samplers::ALL {
        for desc in def.metrics {
            let own = format!("controlplane_{name}_");
            let plain = format!("controlplane_{name}");
            let process = *name == "exporter" && desc.name.starts_with("process_");
            assert!(
                desc.name.starts_with(&own) || desc.name == plain || process,
                "{} is not of {name}",
                desc.name
            );
        }
        assert!(!def.cost.is_empty() && def.about.ends_with('.'), "{name}");
    }
}

#[test]
fn the_shipped_configuration_is_valid_and_holds_every_key_with_its_default() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/config.yaml");
    let shipped = Config::load(&Flags { file: Some(path), ..Flags::default() }).unwrap();
    assert_eq!(shipped.to_yaml(), Config::defaults().to_yaml());
    // Every key is written out, so that a reader sees it; a `#` before it is fine.
    let text = committed("deploy/config.yaml");
    let written: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.trim_start_matches(['#', ' ']).split_once(':'))
        .map(|(key, _)| key)
        .collect();
    for line in Config::defaults().to_yaml().lines() {
        let Some((key, _)) = line.trim().split_once(':') else { continue };
        let key = key.trim_matches('"');
        if key.starts_with('-') || key.contains('.') {
            continue;
        }
        assert!(written.contains(key), "deploy/config.yaml does not document {key}");
    }
}

#[test]
fn every_sampler_is_named_in_the_readme() {
    let readme = committed("README.md");
    for (name, _) in samplers::ALL {
        assert!(readme.contains(&format!("`{name}`")), "README.md does not name {name}");
    }
}

#[test]
fn the_release_binary_stays_below_12_mib() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/release/controlplane-exporter");
    let size = std::fs::metadata(&path)
        .unwrap_or_else(|e| panic!("{}: {e}; run `cargo build --release`", path.display()))
        .len();
    assert!(size < 12 << 20, "{size} bytes");
}
