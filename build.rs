//! Takes the first command of each runbook's diagnosis, so that the check command can show it.

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
        if let Some(command) = first_command(&text) {
            rows.push_str(&format!("    ({alert:?}, {command:?}),\n"));
        }
    }
    let code = format!("&[\n{rows}]\n");
    let out = env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("no OUT_DIR"))?;
    fs::write(Path::new(&out).join("first_commands.rs"), code)
}

/// The first block of shell below `## Diagnosis`.
fn first_command(page: &str) -> Option<&str> {
    let diagnosis = page.split_once("\n## Diagnosis\n")?.1;
    let diagnosis = diagnosis.split("\n## ").next()?;
    let block = diagnosis.split_once("```sh\n")?.1;
    Some(block.split_once("\n```")?.0)
}
