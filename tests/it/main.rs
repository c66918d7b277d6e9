//! Integration tests against real daemons: etcd, systemd as PID 1, Prometheus, and disks that fail for real.
//!
//! `tests/setup.sh` installs what they need; `lab` starts it. A test that lacks something fails and says
//! so, it never passes quietly. Each test's first line is `lab::together()` or, when it measures time or
//! reads the kernel log, `lab::alone()`.

#![expect(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be"
)]

mod alerts;
mod apiserver;
mod args;
mod budget;
mod certificate;
mod check;
mod comparison;
mod dashboards;
mod demo;
mod dqlite;
mod etcd;
mod etcd_snapshot;
#[path = "../faults/mod.rs"]
mod faults;
mod fdatasync;
mod filesystem;
mod golden;
mod house;
#[path = "../incidents/mod.rs"]
mod incidents;
mod journal;
mod kernel;
mod kine;
mod kubernetes;
mod lab;
mod lab_itself;
mod node;
mod packages;
mod page;
mod registry_keys;
mod settings;
mod shipped;
mod snap;
mod static_pod;
mod syncs;
mod systemd;
mod timeline;
mod volume;
mod web;
