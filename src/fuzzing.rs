//! Each parser of what others wrote as a function on bytes, with what must hold whatever the bytes are.
//!
//! The functions lie beside the parsers, in files of this name, and are listed here. `tests/fuzz` gives them to libFuzzer;
//! the test below gives them the first inputs and some thousand damaged ones, without a nightly compiler. None of this is in
//! the program: it is built for tests and under `cfg(fuzzing)` only.

use std::fs::File;
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};

use rustix::fs::MemfdFlags;

pub use crate::certificate::fuzzing::certificate;
pub use crate::config::fuzzing::agent_config;
pub use crate::dqlite::fuzzing::{dqlite_files, dqlite_wire};
pub use crate::host::fuzzing::{
    component_config, go_build, mountinfo, os_release, unit_file, yaml,
};
pub use crate::samplers::apiserver::fuzzing::apiserver_checks;
pub use crate::samplers::args::fuzzing::arguments;
pub use crate::samplers::certificate::fuzzing::kubeconfig;
pub use crate::samplers::journal::fuzzing::{
    cri_log, journal_export, journal_line, journal_signatures,
};
pub use crate::samplers::kernel::fuzzing::kmsg;
pub use crate::samplers::volume::fuzzing::{longhorn_object, superblock, volume_state};
pub use crate::web::fuzzing::web_config;

/// A secret that stands where secrets stand, and must not come out.
pub(crate) const SECRET: &str = "hunter2";

/// A file in memory with these bytes, for what reads files only.
pub(crate) fn file(bytes: &[u8]) -> File {
    let made = rustix::fs::memfd_create("fuzzing", MemfdFlags::CLOEXEC);
    let mut file = File::from(made.expect("memory for a file"));
    file.write_all(bytes).and_then(|()| file.rewind()).expect("memory takes it");
    file
}

/// The first inputs of a target: samples of the tests, and a few that are written down here.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    let hosts = |names: &[&str]| {
        let named = |path: &Path| names.iter().any(|name| path.ends_with(name));
        below("tests/fixtures/host", &named)
    };
    let ending = |ends: &[&str]| {
        let named = |path: &Path| {
            let path = path.to_string_lossy();
            ends.iter().any(|end| path.ends_with(end))
        };
        below("tests/fixtures/host", &named)
    };
    match target {
        "agent_config" => below("deploy", &|path| path.ends_with("config.yaml")),
        "apiserver_checks" => vec![
            b"[+]ping ok\n[-]etcd failed: reason withheld\n[-]poststarthook/rbac/bootstrap-roles failed: reason withheld\n\
              [+]shutdown ok\nreadyz check failed\n"
                .to_vec(),
        ],
        "arguments" => below("tests/fixtures/host", &|path| {
            path.parent().is_some_and(|folder| folder.ends_with("args"))
        }),
        "certificate" => ending(&[".crt"]).iter().filter_map(|pem| der(pem)).collect(),
        "component_config" | "yaml" => ending(&[".yaml", ".yml", "bom.json"]),
        "cri_log" => vec![
            b"2024-03-14T21:16:57.04800154Z stderr F {\"level\":\"warn\",\"msg\":\"slow fdatasync\",\"took\":\"1.2s\"}\n\
              2024-03-14T21:16:57.9+02:00 stdout P the first half \n2024-03-14T21:16:58-07:30 stdout F and the second\n"
                .to_vec(),
        ],
        "dqlite_files" => {
            below("tests/data/dqlite", &|path| !path.ends_with("README.md") && path.extension().is_none_or(|e| e != "txt"))
        }
        "dqlite_wire" => text("tests/data/dqlite/wire-captures.txt")
            .lines()
            .filter_map(|line| unhex(line.strip_prefix("< ")?))
            .collect(),
        "go_build" => vec![bytes("tests/data/go-build-info.elf")],
        "journal_export" => vec![
            b"__CURSOR=s=b9d5;i=1f;b=6f1e;m=2f5a;t=6448;x=d3\n__REALTIME_TIMESTAMP=1764111111000001\n\
              _TRANSPORT=stdout\nMESSAGE=k3s.service: Main process exited, code=exited, status=1/FAILURE\n\
              UNIT=k3s.service\n_PID=1\nN_RESTARTS=7\n\n__CURSOR=s=b9d5;i=20\nMESSAGE\n\x0b\0\0\0\0\0\0\0two\n\xfflines\n\n\
              _SYSTEMD_UNIT=k3s.service\n\n"
                .to_vec(),
        ],
        "journal_line" => samples("tests/data/journal-samples.jsonl"),
        "journal_signatures" => vec![
            b"- {id: own_line, severity: warning, pattern: 'took (?<seconds>[0-9.]+s)', not: ok, timeline: true}\n\
              - {id: own_msg, from: systemd, severity: critical, msg: [a, b], level: [fatal], seconds: took}\n"
                .to_vec(),
        ],
        "kmsg" => {
            let mut all = hosts(&["dev/kmsg"]);
            let lines = samples("tests/data/kmsg-samples.jsonl");
            all.extend(lines.iter().enumerate().map(|(n, line)| {
                let escaped = String::from_utf8_lossy(line).replace('\n', "\\x0a");
                format!("{},{n},{n}000000,-;{escaped}\n SUBSYSTEM=scsi\n DEVICE=+scsi:2:0:0:0\n", 3 + 40 * (n % 2))
                    .into_bytes()
            }));
            all
        }
        "kubeconfig" => ending(&["k3s.yaml", ".conf", ".kubeconfig", ".crt"]),
        "longhorn_object" => vec![
            br#"{"metadata":{"name":"pvc-1","creationTimestamp":"2022-11-01T10:00:00Z","labels":{"backup-volume":"pvc-1"}},
              "spec":{"Standby":false,"backupTargetURL":"s3://backups@eu/"},"status":{"state":"Completed","isStandby":true,
              "volumeName":"pvc-1","size":"1048576","snapshotCreatedAt":"2022-12-13T00:00:03Z"}}"#
                .to_vec(),
        ],
        "mountinfo" => hosts(&["mountinfo", "mounts"]),
        "os_release" => hosts(&["os-release"]),
        "superblock" => {
            let mut ext4 = vec![0; 4096];
            ext4[1024 + 0x38..1024 + 0x3a].copy_from_slice(&[0x53, 0xef]);
            ext4[1024 + 0x2c..1024 + 0x30].copy_from_slice(&1_795_934_205_u32.to_le_bytes());
            ext4[1024 + 0x68..1024 + 0x78].copy_from_slice(&[7; 16]);
            ext4[1024 + 0x108..1024 + 0x10c].copy_from_slice(&1_795_934_200_u32.to_le_bytes());
            let mut xfs = b"XFSB\0\0\x10\0".to_vec();
            xfs.resize(48, 9);
            vec![ext4, xfs]
        }
        "unit_file" => ending(&[".service", ".conf", ".env", "etc/default/etcd"]),
        "volume_state" => vec![
            br#"{"version":1,"volumes":{"pvc-1":{"uuid":"1a77","created":1700000000,"first_seen":1700000005,
              "last_seen":1700086400,"reformatted":1700000030,"listed":true},"pvc-2":{"first_seen":5}}}"#
                .to_vec(),
        ],
        "web_config" => {
            let mut all = below("deploy", &|path| path.ends_with("web-config.yaml"));
            all.push(
                b"tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n  client_ca_file: ca.crt\n  \
                  client_auth_type: RequireAndVerifyClientCert\n  client_allowed_sans: [a, b]\n  min_version: TLS12\n\
                  http_server_config:\n  http2: false\n  headers: {X-Frame-Options: deny}\n\
                  basic_auth_users:\n  a: $2y$04$UuTkLRZZ6QofpDOlMz32MuuxEHA43WOemOYHPz6.SjsVsyO1tDU96\n\
                  rate_limit: {interval: 1m30s, burst: 20}\n"
                    .to_vec(),
            );
            all
        }
        _ => Vec::new(),
    }
}

/// Writes the first inputs of a target into the folder that the variable `SEEDS` names, for libFuzzer to find.
///
/// # Panics
///
/// When the folder cannot be written to.
pub fn write_seeds(target: &str) {
    let Some(folder) = std::env::var_os("SEEDS") else { return };
    for (n, seed) in seeds(target).iter().enumerate() {
        std::fs::write(Path::new(&folder).join(format!("seed-{n}")), seed)
            .expect("a folder to write to");
    }
}

fn in_clone(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn bytes(path: &str) -> Vec<u8> {
    std::fs::read(in_clone(path)).expect("a sample of the tests")
}

fn text(path: &str) -> String {
    String::from_utf8_lossy(&bytes(path)).into_owned()
}

/// The content of all files below a folder that are wanted, each once, in the order of their paths.
fn below(folder: &str, wanted: &dyn Fn(&Path) -> bool) -> Vec<Vec<u8>> {
    let (mut folders, mut files) = (vec![in_clone(folder)], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(kind) if kind.is_file() && wanted(&entry.path()) => files.push(entry.path()),
                _ => {}
            }
        }
    }
    files.sort_unstable();
    let mut all: Vec<_> = files.iter().filter_map(|path| std::fs::read(path).ok()).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// The lines of a file of captured input.
fn samples(path: &str) -> Vec<Vec<u8>> {
    let line = |sample: &str| {
        let sample: serde_json::Value = serde_json::from_str(sample).ok()?;
        Some(sample.get("line")?.as_str()?.as_bytes().to_vec())
    };
    text(path).lines().filter_map(line).collect()
}

fn unhex(digits: &str) -> Option<Vec<u8>> {
    let pairs = digits.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).ok());
    pairs.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect()
}

fn der(pem: &[u8]) -> Option<Vec<u8>> {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    CertificateDer::from_pem_slice(pem).ok().map(|der| der.to_vec())
}

#[cfg(test)]
mod tests;
