//! What it costs that the datastore's own syncs are timed in the kernel: each system call of the node, a sync of another process and
//! one of a watched process, and fio's syncs; with the programs and without them by turns, an agent running in both.

use super::effect::fio;
use super::report::{self, table, time};
use super::server::Server;
use super::{Size, growth, stats};
use crate::lab::process::{self, bound_command};
use crate::lab::temp_dir;
use serde_json::json;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

const INFLIGHT: &str = "controlplane_fdatasync_datastore_inflight_seconds";
/// What is measured: a name, and what it is in the table.
const WHAT: [(&str, &str); 4] = [
    ("getppid", "any other system call"),
    ("other", "`fdatasync` of a process that is not watched, on a file in memory"),
    ("watched", "`fdatasync` of a watched process, on a file in memory"),
    ("fio", "fio's `fdatasync` on the machine's disk, median"),
];

pub(crate) fn run(size: Size) {
    let load_before = stats::load();
    let (rounds, calls, length) = match size {
        Size::Trial => (2, 200_000, Duration::from_secs(2)),
        Size::Whole => (7, 2_000_000, Duration::from_secs(8)),
    };
    let folder = temp_dir("passive");
    // [what][0 without, 1 with][round], in seconds.
    let mut all = vec![[Vec::new(), Vec::new()]; WHAT.len()];
    for round in 0..rounds {
        eprintln!("passive: round {} of {rounds}, load {}", round + 1, stats::load());
        for half in 0..2 {
            let with = (round + half) % 2 == 1;
            let found = measured(folder.path(), with, calls, length);
            for (all, value) in all.iter_mut().zip(found) {
                all[usize::from(with)].push(value);
            }
        }
    }
    let rows: Vec<Vec<String>> = WHAT
        .iter()
        .zip(&all)
        .map(|((_, what), [without, with])| {
            let more: Vec<f64> =
                with.iter().zip(without).map(|(with, without)| with - without).collect();
            let (low, high) = stats::range(&more);
            vec![
                (*what).to_owned(),
                time(stats::median(without)),
                time(stats::median(with)),
                format!(
                    "{:+.2} µs ({:+.2} to {:+.2})",
                    stats::median(&more) * 1e6,
                    low * 1e6,
                    high * 1e6
                ),
            ]
        })
        .collect();
    let text = format!(
        "{} {rounds} rounds of each, {calls} calls a loop, {} of fio; by tracepoints.\n\n{}",
        report::conditions(&load_before),
        time(length.as_secs_f64()),
        table(&["", "without", "with", "more (rounds)"], &rows)
    );
    report::write("passive", &text);
    let data: Vec<_> = WHAT
        .iter()
        .zip(&all)
        .map(|((name, _), [without, with])| json!({"what": name, "without_s": without, "with_s": with}))
        .collect();
    report::keep("passive", &load_before, json!(data));
}

/// The time of one call each, with the programs in the kernel or without.
fn measured(folder: &Path, with: bool, calls: u32, length: Duration) -> [f64; 4] {
    // The kernel calls a process by the name of its file.
    let [mut watched, mut other] = ["etcd", "other"].map(|name| {
        let program = folder.join(name);
        if !program.exists() {
            std::fs::copy(std::env::current_exe().expect("this program"), &program)
                .expect("a copy");
        }
        let mut command = bound_command(program);
        command.arg("--call").arg(calls.to_string());
        process::spawn({
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            command
        })
    });
    let passive = if with { "tracepoints" } else { "off" };
    let config = growth::only("fdatasync")
        + &format!("fdatasync: {{passive: {passive}, paths: [/var/lib]}}\n");
    let mut agent = Server::agent(&config, None);
    agent.wait_for("/-/ready", Duration::from_secs(20));
    if with {
        agent.wait_until("the programs", Duration::from_secs(20), |scrape| {
            scrape.value(INFLIGHT, &[("process", "etcd")]).is_some()
        });
    }
    let told = |child: &mut std::process::Child| -> [f64; 2] {
        writeln!(child.stdin.take().expect("a pipe"), "go").expect("it reads");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        child.wait().expect("its end");
        let mut values = line.split_whitespace().map(|value| value.parse().expect("seconds"));
        [values.next().expect("a value"), values.next().expect("a value")]
    };
    let [getppid, of_other] = told(&mut other);
    let [_, of_watched] = told(&mut watched);
    let syncs: Vec<f64> = fio(folder, length, None)
        .into_iter()
        .flat_map(|(count, value)| std::iter::repeat_n(value, count))
        .collect();
    [getppid, of_other, of_watched, stats::quantile(&syncs, 0.5)]
}

/// As a child: waits for a line, and says what a `getppid` and a `fdatasync` take, in seconds.
pub(crate) fn call(calls: u32) {
    let memory =
        rustix::fs::memfd_create("syncs", rustix::fs::MemfdFlags::CLOEXEC).expect("memory");
    let memory = File::from(memory);
    std::io::stdin().read_exact(&mut [0; 2]).expect("a line");
    let each = |one: &dyn Fn()| {
        let started = Instant::now();
        (0..calls).for_each(|_| one());
        started.elapsed().as_secs_f64() / f64::from(calls)
    };
    let getppid = each(&|| _ = rustix::process::getppid());
    let sync = each(&|| memory.sync_data().expect("a sync"));
    writeln!(std::io::stdout(), "{getppid:e} {sync:e}").expect("a reader");
}
