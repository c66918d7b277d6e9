//! The whole scrape of the real agent on each fixture root, against a committed file.
//!
//! What depends on this machine or on the moment (times, sizes, counts of runs) is shown as `*`: the
//! series must be there, its value is another test's business. `make golden` writes the files anew.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::lab;
use crate::lab::agent::{Agent, Options};

/// Nothing in a fixture can be reached, and each sampler needs only one run. What the kernel sees is of this machine's disks.
const CONFIG: &str = "\
registry_keys: {timeout: 1s}
fdatasync: {interval: 1h, passive: off}
kernel: {ignore_devices: []}
";

/// What stands for a secret in the fixtures, and the same in the base64 of a kubeconfig.
const SECRETS: [&str; 2] = ["SECRET", "U0VDUkVU"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

/// Whether a value of this series is the same on every machine and at every time.
fn is_stable(name: &str) -> bool {
    let volatile_ends = ["_seconds", "_seconds_total", "_sum", "_count", "_bucket", "_runs_total"];
    let timeless = name == "controlplane_sampler_interval_seconds";
    let machine = ["process_", "controlplane_filesystem_", "controlplane_sampler_dropped"];
    // Sizes and counts of the fixture's own filesystem, and retries of what cannot be reached.
    let measured = [
        "controlplane_snap_disk_usage_bytes",
        "controlplane_dqlite_directory_bytes",
        "controlplane_sampler_failures_total",
        // It depends on when the fixture was checked out.
        "controlplane_certificate_restart_due",
        "controlplane_settings_clock_synchronised",
    ];
    timeless
        || !(volatile_ends.iter().any(|end| name.ends_with(end))
            || machine.iter().chain(&measured).any(|start| name.starts_with(start))
            || name.contains("_request_failures_total")
            || name.contains("fdatasync_failures_total")
            // A loaded machine has a slow sync now and then.
            || name.contains("fdatasync_stalls_total"))
}

fn normalise(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines().filter(|line| !line.starts_with("# HELP")) {
        let name = line.split(['{', ' ']).next().unwrap_or_default();
        match line.rsplit_once(' ') {
            _ if name.ends_with("_bucket") => continue,
            _ if line.starts_with('#') || is_stable(name) => out.push_str(line),
            Some((series, _)) => out.push_str(&format!("{series} *")),
            None => out.push_str(line),
        }
        out.push('\n');
    }
    let version = format!("version=\"{}\"", env!("CARGO_PKG_VERSION"));
    let mut out = out.replace(&version, "version=\"*\"");
    if let Some(start) = out.find("revision=\"").map(|at| at + "revision=\"".len()) {
        let end = out[start..].find('"').map_or(start, |length| start + length);
        out.replace_range(start..end, "*");
    }
    out
}

/// The series of one case, once every sampler has run.
fn scrape(case: &str) -> String {
    let rootfs = root().join("fixtures/host").join(case);
    let options = Options { config: CONFIG.into(), rootfs: Some(rootfs), ..Options::default() };
    let agent = Agent::start_with(options);
    agent.wait_until("the first round", "controlplane_sampler_up", Duration::from_secs(30), |_| {
        agent.get("/-/ready").is_ok_and(|ready| ready.status == 200)
    });
    normalise(&agent.scrape().text)
}

fn cases() -> BTreeSet<String> {
    let entries = std::fs::read_dir(root().join("fixtures/host")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn the_scrape_of_every_fixture_is_the_committed_one() {
    let _turn = lab::together();
    let folder = root().join("golden");
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    if update {
        std::fs::create_dir_all(&folder).unwrap();
    }
    let mut wrong = Vec::new();
    for case in cases() {
        let file = folder.join(format!("{case}.prom"));
        let found = scrape(&case);
        if update {
            std::fs::write(&file, &found).unwrap();
            continue;
        }
        let committed = std::fs::read_to_string(&file).unwrap_or_default();
        let (old, new): (BTreeSet<_>, BTreeSet<_>) =
            (committed.lines().collect(), found.lines().collect());
        if committed != found {
            wrong.push(format!("== {case}"));
            wrong.extend(old.difference(&new).map(|line| format!("- {line}")));
            wrong.extend(new.difference(&old).map(|line| format!("+ {line}")));
        }
    }
    assert!(
        wrong.is_empty(),
        "the scrape has changed; if that is meant, run `make golden`:\n{}",
        wrong.join("\n")
    );
    let committed: BTreeSet<String> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "prom"))
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(committed, cases(), "a golden file without a fixture, or a fixture without one");
}

#[test]
fn no_secret_of_a_fixture_reaches_a_page() {
    let _turn = lab::together();
    for case in cases() {
        let rootfs = root().join("fixtures/host").join(&case);
        let agent = Agent::start_with(Options { rootfs: Some(rootfs), ..Options::default() });
        agent.wait_until(
            "the first round",
            "controlplane_sampler_up",
            Duration::from_secs(30),
            |_| agent.get("/-/ready").is_ok_and(|ready| ready.status == 200),
        );
        for path in ["/", "/metrics", "/api/v1/status", "/api/v1/timeline"] {
            let page = agent.get(path).unwrap().text();
            assert!(SECRETS.iter().all(|secret| !page.contains(secret)), "{case}{path}");
        }
        let log = agent.log();
        assert!(SECRETS.iter().all(|secret| !log.contains(secret)), "{case}: the log");
    }
}
