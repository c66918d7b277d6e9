//! The agent against its peers, what it costs those it watches, and how its costs grow: `make bench`.
//!
//! `cargo bench --bench peers -- peers effect growth passive` runs these parts, all of them without a name; `trial` makes
//! them short. Everything is real: etcd, systemd in a container, a disk. What is compared is measured in the same run, in
//! rounds whose order changes, and told as medians and ratios of rounds, because a machine is never quite silent. Tables go
//! into `docs/performance.md`, raw data into `docs/performance/`, below `BENCH_DOCS` where that is set.

#![expect(
    clippy::unwrap_used,
    reason = "a measurement stops at the first thing that is not as it should be"
)]

mod effect;
mod growth;
#[path = "../../tests/it/lab/mod.rs"]
mod lab;
mod load;
mod node;
mod passive;
mod peers;
mod report;
mod server;
mod stats;

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    /// Enough to see that it works.
    Trial,
    Whole,
}

type Part = fn(Size);
const PARTS: [(&str, Part); 4] = [
    ("peers", peers::run),
    ("effect", effect::run),
    ("growth", growth::run),
    ("passive", passive::run),
];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [mode, address, bytes] = &args[..]
        && mode == "--serve-empty"
    {
        server::serve_empty(address.parse().expect("an address"), bytes.parse().expect("a number"));
        return;
    }
    if let [mode, calls] = &args[..]
        && mode == "--call"
    {
        passive::call(calls.parse().expect("a number"));
        return;
    }
    let has = |name: &str| args.iter().any(|arg| arg == name);
    let size = if has("trial") { Size::Trial } else { Size::Whole };
    let named = PARTS.iter().any(|(name, _)| has(name));
    for (name, part) in PARTS {
        if !named || has(name) {
            let started = std::time::Instant::now();
            part(size);
            eprintln!("{name}: {:.0} s", started.elapsed().as_secs_f64());
        }
    }
}
