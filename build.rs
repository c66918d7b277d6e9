//! Takes the commands of each runbook's diagnosis, so that the check command can show the first.

use std::path::Path;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let runbooks = Path::new("alerts/runbooks");
    println!("cargo::rerun-if-changed={}", runbooks.display());
    let mut pages: Vec<_> = fs::read_dir(runbooks)?.collect::<io::Result<_>>()?;
    pages.sort_by_key(fs::DirEntry::file_name);
    let mut rows = String::new();
    for page in pages {
        let path = page.path();
        let Some(alert) = path.file_stem().and_then(|stem| stem.to_str()) else { continue };
        let text = fs::read_to_string(&path)?;
        let commands = commands(&text);
        if !commands.is_empty() {
            rows.push_str(&format!("    ({alert:?}, &{commands:?}),\n"));
        }
    }
    let code = format!("&[\n{rows}]\n");
    let out = env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("no OUT_DIR"))?;
    fs::write(Path::new(&out).join("commands.rs"), code)
}

/// The blocks of shell below `## Diagnosis`.
fn commands(page: &str) -> Vec<&str> {
    let diagnosis = page.split_once("\n## Diagnosis\n").map_or("", |(_, rest)| rest);
    let diagnosis = diagnosis.split("\n## ").next().unwrap_or_default();
    let blocks = diagnosis.split("```sh\n").skip(1);
    blocks.filter_map(|block| Some(block.split_once("\n```")?.0)).collect()
}
