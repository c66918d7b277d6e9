//! Files that are shipped or committed agree with the program.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use controlplane_exporter::config::{Config, Flags};
use controlplane_exporter::{catalog, samplers, store};
use regex::Regex;

use crate::alerts::metric;
use crate::lab::process::{bound_command, output};

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

/// What people read and what programs are given: README, SECURITY, Dockerfile, docs and deploy, by path.
fn pages() -> BTreeMap<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut open: Vec<PathBuf> = ["README.md", "SECURITY.md", "Dockerfile", "docs", "deploy"]
        .map(|name| root.join(name))
        .into();
    let mut found = BTreeMap::new();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if let Ok(text) = std::fs::read_to_string(&path) {
            // Pictures are no text, and copies of boards and rules are tested where they come from.
            if !path.components().any(|part| part.as_os_str() == "files") {
                found.insert(path, text);
            }
        }
    }
    assert!(found.len() > 15, "{:?}", found.keys());
    found
}

/// What `--help` prints, of the program or of a command.
fn help(command: &[&str]) -> String {
    let mut program = bound_command(env!("CARGO_BIN_EXE_controlplane-exporter"));
    program.args(command).arg("--help");
    output(program, std::time::Duration::from_secs(10)).stdout
}

/// The commands of the program.
fn commands() -> Vec<String> {
    let help = help(&[]);
    let list = help.split_once("Commands:\n").unwrap().1.split_once("\n\n").unwrap().0;
    list.lines().map(|line| line.split_whitespace().next().unwrap().to_owned()).collect()
}

/// The long flags that a help lists.
fn long_flags(help: &str) -> BTreeSet<String> {
    let listed = Regex::new(r"(?m)^ +(?:-[a-zA-Z], )?(--[a-z.-]+)").unwrap();
    listed.captures_iter(help).map(|found| found[1].to_owned()).collect()
}

#[test]
fn every_flag_of_a_page_or_a_manifest_is_one_of_the_programs() {
    // The dotted ones are Prometheus' way; `--set a.b` of Helm has a space.
    let flag = Regex::new(r"--[a-z]+(?:[.-][a-z]+)*\.[a-z]+(?:[.-][a-z]+)*").unwrap();
    let known = long_flags(&help(&[]));
    assert!(known.contains("--path.rootfs"), "{known:?}");
    for (path, text) in pages() {
        // A script also starts other programs.
        let script = path.extension().is_none_or(|ending| ending == "py" || ending == "sh");
        for found in flag.find_iter(&text).filter(|_| !script) {
            assert!(known.contains(found.as_str()), "{}: {}", path.display(), found.as_str());
        }
    }
}

#[test]
fn every_flag_behind_a_command_is_one_of_that_command() {
    let check = long_flags(&help(&["check"]));
    assert!(check.contains("--self") && check.contains("--profile"), "{check:?}");
    // What follows on the line, without the punctuation of JSON, Markdown and shells.
    let call = Regex::new(
        r#"(?:controlplane-exporter"?,? *"?|/)(check|inspect|config|catalog)\b([^`|;&\n]*)"#,
    )
    .unwrap();
    let plugin = Regex::new(r"check_controlplane\b([^`|;&\n]*)").unwrap();
    // Icinga has each flag as a key.
    let key = Regex::new(r#"(?m)^ *"(--[a-z]+)" = "#).unwrap();
    let flag = Regex::new(r"--[a-z]+[a-z.-]*").unwrap();
    let mut seen = BTreeSet::new();
    for (path, text) in pages() {
        let mut lines: Vec<(String, String)> = Vec::new();
        for found in call.captures_iter(&text) {
            lines.push((found[1].to_owned(), found[2].to_owned()));
        }
        let nagios = path.components().any(|part| part.as_os_str() == "nagios");
        for found in plugin.captures_iter(&text).chain(key.captures_iter(&text)) {
            if nagios || !found[1].starts_with("--") {
                lines.push(("check".into(), found[1].to_owned()));
            }
        }
        for (command, rest) in lines {
            let known = long_flags(&help(&[&command]));
            for found in flag.find_iter(&rest) {
                let name = found.as_str();
                assert!(known.contains(name), "{}: {command} {rest}", path.display());
                seen.insert(name.to_owned());
            }
        }
    }
    for name in ["--self", "--profile", "--warning", "--timeout"] {
        assert!(seen.contains(name), "{name} is nowhere: the pattern is wrong: {seen:?}");
    }
}

#[test]
fn the_manual_page_names_every_command_and_every_flag_and_no_other() {
    let page = committed("deploy/deb/controlplane-exporter.8").replace("\\-", "-");
    let mut wanted = long_flags(&help(&[]));
    for command in commands() {
        let listed = format!(".B {command}\n");
        assert!(page.contains(&listed), "the manual page does not describe {command}");
        wanted.extend(long_flags(&help(&[&command])));
    }
    let flag = Regex::new(r"--[a-z]+[a-z.-]*").unwrap();
    let named: BTreeSet<String> =
        flag.find_iter(&page).map(|found| found.as_str().to_owned()).collect();
    assert_eq!(named, wanted);
}

/// What is below `deploy/`, and the test that holds it against the program it is for. A folder stands for its files
/// where that test goes through all of them.
const OWNED: &[(&str, &str)] = &[
    ("config.yaml", "shipped: the configuration with every default"),
    ("web-config.yaml", "web: the web configuration"),
    ("package.sh", "packages: runs it"),
    ("demo/demo.py", "demo: runs it"),
    ("deb/changelog", "packages: lintian, and the version in it"),
    ("deb/check_controlplane", "packages: leads to the program"),
    ("deb/controlplane-exporter.8", "shipped: commands and flags; packages: lintian"),
    ("deb/copyright", "packages: lintian"),
    ("deb/lintian-overrides", "packages: lintian"),
    ("deb/postinst", "packages: the package comes and goes"),
    ("deb/postrm", "packages: the package comes and goes"),
    ("nagios/icinga2.conf", "check: icinga2"),
    ("nagios/nrpe.cfg", "check: nrpe"),
    ("prometheus/prometheus.yml", "kubernetes::prometheus: promtool, and a real Prometheus"),
    ("systemd/controlplane-exporter.service", "packages: systemd-analyze, and boots it"),
    ("systemd/controlplane-exporter.default", "packages: the package comes and goes"),
    ("systemd/controlplane-exporter.sysusers", "packages: the package comes and goes"),
    ("systemd/controlplane-exporter-credentials.path", "packages: rotates a certificate"),
    ("systemd/controlplane-exporter-credentials.service", "packages: rotates a certificate"),
    ("systemd/controlplane-exporter-web.socket", "packages: boots with it"),
    ("systemd/controlplane-exporter-disk@.service", "packages: makes the directory on a disk"),
    (
        "systemd/controlplane-exporter.service.d/",
        "packages: systemd-analyze, and the keys they set",
    ),
    ("kubernetes/README.md", "shipped: links and flags"),
    ("kubernetes/controlplane-exporter.yaml", "kubernetes: written from the chart"),
    ("kubernetes/controlplane-exporter-privileged.yaml", "kubernetes: written from the chart"),
    ("kubernetes/values.yaml", "kubernetes: the manifest is rendered from it"),
    ("kubernetes/values-privileged.yaml", "kubernetes: the manifest is rendered from it"),
    ("kubernetes/helmchart.yaml", "kubernetes: schemas, and its values through Helm"),
    ("kubernetes/kustomization.yaml", "kubernetes: kubectl kustomize"),
    ("kubernetes/monitoring/", "kubernetes: the operator's types"),
    ("helm/controlplane-exporter/.helmignore", "kubernetes: what a packed chart holds"),
    ("helm/controlplane-exporter/Chart.yaml", "kubernetes: helm lint, and the version in it"),
    ("helm/controlplane-exporter/README.md", "kubernetes: every value and no other"),
    ("helm/controlplane-exporter/values.yaml", "kubernetes: helm lint and the README"),
    ("helm/controlplane-exporter/values.schema.json", "kubernetes: wrong values are refused"),
    ("helm/controlplane-exporter/ci/", "kubernetes: renders each"),
    ("helm/controlplane-exporter/files/", "kubernetes: copies of rules and boards"),
    ("helm/controlplane-exporter/templates/", "kubernetes: every kind is rendered; the notes"),
];

#[test]
fn every_file_of_deploy_has_a_test_that_holds_it_against_its_program() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let mut open = vec![root.clone()];
    let mut used = BTreeSet::new();
    while let Some(path) = open.pop() {
        // A link is a file here, wherever it leads.
        if path.is_dir() && !path.is_symlink() {
            open.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let name = path.strip_prefix(&root).unwrap().to_str().unwrap();
        let entry = OWNED
            .iter()
            .find(|(owned, _)| *owned == name || owned.ends_with('/') && name.starts_with(owned));
        let (owned, test) =
            entry.unwrap_or_else(|| panic!("deploy/{name}: no test; name one in OWNED"));
        used.insert(*owned);
        let module = test.split([':', ' ']).next().unwrap();
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/it/{module}.rs"));
        assert!(file.exists(), "deploy/{name}: there is no {}", file.display());
    }
    for (owned, _) in OWNED {
        assert!(used.contains(owned), "deploy/{owned} is not there any more");
    }
}

#[test]
fn every_variable_of_a_page_or_a_manifest_is_a_key_of_the_configuration() {
    let variable = Regex::new(r"CONTROLPLANE_EXPORTER__([A-Z_]+?)__([A-Z_]+)").unwrap();
    let defaults = Config::defaults().to_yaml();
    let mut section = "";
    let mut known = BTreeSet::new();
    for line in defaults.lines() {
        let Some((key, _)) = line.split_once(':') else { continue };
        match key.strip_prefix("  ") {
            None => section = key,
            Some(key) if !key.starts_with(' ') => {
                known.insert((section.to_uppercase(), key.to_uppercase()));
            }
            Some(_) => {}
        }
    }
    let mut seen = 0;
    for (path, text) in pages() {
        for found in variable.captures_iter(&text) {
            let key = (found[1].to_owned(), found[2].to_owned());
            assert!(known.contains(&key), "{}: {}", path.display(), &found[0]);
            seen += 1;
        }
    }
    assert!(seen > 4);
}

#[test]
fn every_metric_and_alert_on_a_page_exists() {
    let word = Regex::new(r"\bcontrolplane_[a-z0-9_]*[a-z0-9]\b([_…*]?)").unwrap();
    let alert = Regex::new(r"\bControlPlane[A-Z][A-Za-z]+([…*(]?)").unwrap();
    let runbooks = Path::new(env!("CARGO_MANIFEST_DIR")).join("alerts/runbooks");
    for (path, text) in pages() {
        // Icinga's and NRPE's own variables begin with the program's name too.
        let theirs = path.components().any(|part| part.as_os_str() == "nagios");
        for found in word.captures_iter(&text).filter(|found| found[1].is_empty() && !theirs) {
            assert!(metric(&found[0]).is_some(), "{}: no metric {}", path.display(), &found[0]);
        }
        // It is written by a run, and has patterns of names.
        let written = path.ends_with("docs/incidents.md");
        for found in alert.captures_iter(&text).filter(|found| found[1].is_empty() && !written) {
            let page = runbooks.join(format!("{}.md", &found[0]));
            assert!(page.exists(), "{}: no alert {}", path.display(), &found[0]);
        }
    }
}

#[test]
fn every_link_to_a_file_leads_to_one() {
    let link = Regex::new(r"\]\(([^)#:]+)(#[^)]*)?\)").unwrap();
    for (path, text) in pages() {
        if path.extension().is_none_or(|ending| ending != "md") {
            continue;
        }
        for found in link.captures_iter(&text) {
            let target = path.parent().unwrap().join(&found[1]);
            assert!(target.exists(), "{}: {}", path.display(), &found[0]);
            let Some(heading) = found.get(2) else { continue };
            let wanted = heading.as_str().trim_start_matches('#');
            let page = std::fs::read_to_string(&target).unwrap();
            let slug = |line: &str| -> String {
                let text = line.trim_start_matches('#').trim().to_lowercase();
                let kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
                text.chars().filter(kept).collect::<String>().replace(' ', "-")
            };
            let headings = page.lines().filter(|line| line.starts_with('#')).map(slug);
            assert!(headings.collect::<Vec<_>>().contains(&wanted.to_owned()), "{}", &found[0]);
        }
    }
}
