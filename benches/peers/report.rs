//! Where results go: raw data as JSON in `docs/performance/`, tables into `docs/performance.md`.
//!
//! A table stands between two lines, `<!-- bench NAME -->` and `<!-- end NAME -->`; what is around them is written by hand.

use super::stats;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

fn docs() -> PathBuf {
    // Another place, for a trial that is not to be kept.
    std::env::var_os("BENCH_DOCS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("docs"), PathBuf::from)
}

/// Keeps raw data with what the machine is and what load it had when the part began and ended.
pub(crate) fn keep(name: &str, load_before: &str, data: Value) {
    let folder = docs().join("performance");
    fs::create_dir_all(&folder).expect("docs/performance");
    let all = json!({
        "date": humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        "revision": std::env::var("REVISION").unwrap_or_default(),
        "machine": machine(),
        "loadavg_before": load_before,
        "loadavg_after": stats::load(),
        "data": data,
    });
    let mut text = serde_json::to_string_pretty(&rounded(all)).expect("JSON");
    text.push('\n');
    fs::write(folder.join(format!("{name}.json")), text).expect("a file of raw data");
}

/// Numbers with six digits: more would be noise.
fn rounded(value: Value) -> Value {
    match value {
        Value::Array(all) => all.into_iter().map(rounded).collect(),
        Value::Object(all) => all.into_iter().map(|(key, value)| (key, rounded(value))).collect(),
        Value::Number(number) if number.is_f64() => number
            .as_f64()
            .and_then(|number| format!("{number:.5e}").parse::<f64>().ok())
            .map_or(Value::Null, Value::from),
        other => other,
    }
}

/// Processor, cores and kernel.
pub(crate) fn machine() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split(':').nth(1));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = rustix::system::uname();
    let release = kernel.release().to_string_lossy();
    format!("{}, {cores} cores, Linux {release}", model.unwrap_or("unknown processor").trim())
}

/// One line that says when, where and under which load a table was made.
pub(crate) fn conditions(load_before: &str) -> String {
    let first = |load: &str| load.split(' ').next().unwrap_or_default().to_owned();
    let date = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    format!(
        "{}, {}; load average {} at the beginning, {} at the end.",
        &date[..10],
        machine(),
        first(load_before),
        first(&stats::load())
    )
}

/// Puts a text into its place in `docs/performance.md`.
pub(crate) fn write(name: &str, text: &str) {
    let file = docs().join("performance.md");
    let page = fs::read_to_string(&file).expect("docs/performance.md");
    let (begin, end) = (format!("<!-- bench {name} -->\n"), format!("<!-- end {name} -->\n"));
    let (before, rest) = page.split_once(&begin).unwrap_or_else(|| panic!("no {begin}"));
    let (_, after) = rest.split_once(&end).unwrap_or_else(|| panic!("no {end}"));
    fs::write(&file, format!("{before}{begin}{text}{end}{after}")).expect("docs/performance.md");
    eprintln!("{text}");
}

/// A table in Markdown.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(&head.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>());
    text.push_str(&format!("|{}\n", "---|".repeat(head.len())));
    for row in rows {
        text.push_str(&line(row));
    }
    text
}

/// A number with three digits that mean something.
pub(crate) fn short(value: f64) -> String {
    if !value.is_finite() {
        "-".to_owned()
    } else if value.abs() >= 99.95 {
        let mut digits = format!("{value:.0}");
        let mut at = digits.len();
        while at > 3 + usize::from(value < 0.0) {
            at -= 3;
            digits.insert(at, ',');
        }
        digits
    } else if value.abs() >= 9.995 {
        format!("{value:.1}")
    } else if value.abs() >= 0.0995 {
        format!("{value:.2}")
    } else {
        format!("{value:.3}")
    }
}

/// Seconds in the unit that suits them.
pub(crate) fn time(seconds: f64) -> String {
    if !seconds.is_finite() {
        "-".to_owned()
    } else if seconds < 1e-3 {
        format!("{} µs", short(seconds * 1e6))
    } else if seconds < 1.0 {
        format!("{} ms", short(seconds * 1e3))
    } else {
        format!("{} s", short(seconds))
    }
}

/// Bytes in MiB.
pub(crate) fn mib(bytes: f64) -> String {
    format!("{} MiB", short(bytes / 1024.0 / 1024.0))
}

/// Whether a figure is within its target, and the figure.
pub(crate) fn verdict(met: bool) -> String {
    if met { "met".to_owned() } else { "**missed**".to_owned() }
}
