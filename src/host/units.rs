//! systemd unit files: which exist, which start at boot, what they run.
//!
//! Reads the unit file, its drop-ins and the environment files it names. Only variables that
//! detection asks for are kept: such files hold tokens and passwords.

use std::path::{Path, PathBuf};

use super::flags::split_words;
use super::read::Probe;

/// Where units lie, first wins.
const FOLDERS: &[&str] = &[
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// What detection wants of a unit.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct UnitFile {
    /// Its command, split into words, the prefix characters of the first taken off.
    pub(super) exec: Vec<String>,
    /// Its variables, later ones win, filtered by the caller's predicate.
    pub(super) environment: Vec<(String, String)>,
    /// Where its command starts, if not in `/`.
    pub(super) working_directory: Option<PathBuf>,
    /// Whether a file of variables is there that could not be read, which is noted.
    pub(super) partial: bool,
}

/// The last value of a variable, where it is not empty.
pub(super) fn variable<'a>(variables: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let (_, value) = variables.iter().rev().find(|(key, _)| key == name)?;
    Some(value.as_str()).filter(|value| !value.is_empty())
}

/// The unit's file, or that of its template; `None` when there is none, or it is masked.
pub(super) fn find(probe: &Probe, unit: &str) -> Option<PathBuf> {
    let file = |name: &str| {
        FOLDERS.iter().map(|folder| Path::new(folder).join(name)).find(|path| {
            // A link may lead to a place that is absent here, and is a unit all the same.
            probe.exists(path) || probe.is_link(path)
        })
    };
    let path = file(unit).or_else(|| file(&template(unit)?))?;
    let masked = probe.host.resolve(&path).is_ok_and(|target| target == Path::new("/dev/null"));
    (!masked).then_some(path)
}

/// Names of the units in every folder that begin and end so, sorted.
pub(super) fn matching(probe: &Probe, prefix: &str, suffix: &str) -> Vec<String> {
    let mut units: Vec<String> = FOLDERS
        .iter()
        .flat_map(|folder| probe.names(folder))
        .filter(|name| name.starts_with(prefix) && name.ends_with(suffix))
        .filter(|name| find(probe, name).is_some())
        .collect();
    units.sort_unstable();
    units.dedup();
    units
}

/// Whether a link wants the unit at boot.
pub(super) fn enabled(probe: &Probe, unit: &str) -> bool {
    FOLDERS.iter().map(Path::new).any(|folder| {
        probe
            .names(folder)
            .iter()
            .filter(|name| has_extension(name, "wants") || has_extension(name, "requires"))
            .any(|name| probe.is_link(&folder.join(name).join(unit)))
    })
}

/// Reads a unit with its drop-ins; `keep` says which variables may be kept.
pub(super) fn load(probe: &Probe, unit: &str, keep: &dyn Fn(&str) -> bool) -> Option<UnitFile> {
    let mut texts = vec![probe.text(find(probe, unit)?)?];
    for name in template(unit).into_iter().chain([unit.to_owned()]) {
        for folder in FOLDERS.iter().rev() {
            let folder = Path::new(folder).join(format!("{name}.d"));
            let names = probe.names(&folder);
            let drop_ins = names.iter().filter(|name| has_extension(name, "conf"));
            texts.extend(drop_ins.filter_map(|name| probe.text(folder.join(name))));
        }
    }
    let mut loaded = UnitFile::default();
    let mut files = Vec::new();
    for (key, value) in texts.iter().flat_map(|text| service_settings(text)) {
        let value = with_specifiers(&value, unit);
        match key.as_str() {
            "ExecStart" if value.is_empty() => loaded.exec.clear(),
            "ExecStart" if loaded.exec.is_empty() => {
                loaded.exec = split_words(value.trim_start_matches(['@', '-', ':', '+', '!']));
            }
            "Environment" if value.is_empty() => loaded.environment.clear(),
            "Environment" => loaded
                .environment
                .extend(split_words(&value).iter().filter_map(|entry| assignment(entry))),
            "EnvironmentFile" if value.is_empty() => files.clear(),
            "EnvironmentFile" => files.push(value),
            "WorkingDirectory" => {
                let folder = value.trim_start_matches('-');
                loaded.working_directory = (!folder.is_empty()).then(|| folder.into());
            }
            _ => {}
        }
    }
    for file in files {
        let file = Path::new(file.trim_start_matches('-'));
        let text = probe.text(file);
        loaded.partial |= text.is_none() && probe.presence(file) != Some(false);
        loaded.environment.extend(assignments(&text.unwrap_or_default()));
    }
    loaded.environment.retain(|(name, _)| keep(name));
    Some(loaded)
}

/// The template of an instance, `etcd@.service` of `etcd@node1.service`.
fn template(unit: &str) -> Option<String> {
    let (prefix, rest) = unit.split_once('@')?;
    let (instance, suffix) = rest.rsplit_once('.')?;
    (!instance.is_empty()).then(|| format!("{prefix}@.{suffix}"))
}

/// A setting with systemd's specifiers in place, as far as the unit's name tells them; others stay as they are written.
fn with_specifiers(value: &str, unit: &str) -> String {
    let stem = unit.rsplit_once('.').map_or(unit, |(stem, _)| stem);
    let (prefix, instance) = stem.split_once('@').unwrap_or((stem, ""));
    let last = prefix.rsplit_once('-').map_or(prefix, |(_, last)| last);
    let mut out = String::new();
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('n') => out.push_str(unit),
            Some('N') => out.push_str(stem),
            Some('p') => out.push_str(prefix),
            Some('P') => out.push_str(&unescaped(prefix)),
            Some('i') => out.push_str(instance),
            Some('I') => out.push_str(&unescaped(instance)),
            Some('j') => out.push_str(last),
            Some('J') => out.push_str(&unescaped(last)),
            Some('%') => out.push('%'),
            other => {
                out.push('%');
                out.extend(other);
            }
        }
    }
    out
}

/// A part of a unit's name before systemd escaped it: a slash becomes `-`, and `-` becomes `\x2d`.
fn unescaped(name: &str) -> String {
    name.replace('-', "/").replace("\\x2d", "-")
}

fn has_extension(name: &str, wanted: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == wanted)
}

/// The assignments in a file of `NAME=value` lines. The caller drops what it must not keep.
pub(super) fn environment_file(probe: &Probe, path: &Path) -> Vec<(String, String)> {
    assignments(&probe.text(path).unwrap_or_default())
}

pub(super) fn assignments(text: &str) -> Vec<(String, String)> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.starts_with(['#', ';']))
        .filter_map(|line| {
            let (name, value) = assignment(line)?;
            Some((name, split_words(&value).join(" ")))
        })
        .collect()
}

fn assignment(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once('=')?;
    Some((name.trim().to_owned(), value.trim().to_owned()))
}

/// `key=value` of the `[Service]` section, continuation lines joined.
pub(super) fn service_settings(text: &str) -> Vec<(String, String)> {
    let mut settings = Vec::new();
    let mut in_service = false;
    let mut joined = String::new();
    for line in text.lines() {
        let line = line.trim();
        if joined.is_empty() && (line.is_empty() || line.starts_with(['#', ';'])) {
            continue;
        }
        if joined.is_empty() && line.starts_with('[') {
            in_service = line == "[Service]";
            continue;
        }
        // systemd leaves comments inside a continued value out.
        if !joined.is_empty() && line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(part) = line.strip_suffix('\\') {
            joined.push_str(part);
            joined.push(' ');
            continue;
        }
        joined.push_str(line);
        if in_service {
            settings.extend(assignment(&joined));
        }
        joined.clear();
    }
    if in_service {
        settings.extend(assignment(&joined));
    }
    settings
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::host::Host;

    fn unit(text: &str, more: &[(&str, &str)]) -> UnitFile {
        let dir = tempfile::tempdir().unwrap();
        let mut files = vec![("etc/systemd/system/k3s.service", text)];
        files.extend(more);
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let host = Host::at(dir.path());
        load(&Probe::new(&host), "k3s.service", &|name| name == "K3S_DATA_DIR").unwrap()
    }

    /// As k3s's installer writes it.
    const INSTALLED: &str = concat!(
        "[Unit]\nDescription=Lightweight Kubernetes\n[Service]\nType=notify\n",
        "EnvironmentFile=-/etc/default/%N\n",
        "EnvironmentFile=-/etc/systemd/system/k3s.service.env\n",
        "ExecStartPre=-/sbin/modprobe overlay\n",
        "ExecStart=/usr/local/bin/k3s \\\n    server \\\n\t'--data-dir' \\\n\t'/srv/k3s' \\\n\n",
    );

    #[test]
    fn a_command_over_several_lines_is_one() {
        let words = ["/usr/local/bin/k3s", "server", "--data-dir", "/srv/k3s"];
        assert_eq!(unit(INSTALLED, &[]).exec, words);
    }

    #[test]
    fn a_drop_in_replaces_the_command() {
        let drop_in = "[Service]\nExecStart=\nExecStart=-/opt/bin/k3s server\n";
        let more = [("etc/systemd/system/k3s.service.d/10.conf", drop_in)];
        assert_eq!(unit(INSTALLED, &more).exec, ["/opt/bin/k3s", "server"]);
    }

    #[test]
    fn only_the_variables_asked_for_are_kept() {
        let more = [
            ("etc/default/k3s", "K3S_TOKEN=secret\nK3S_DATA_DIR='/first'\n"),
            ("etc/systemd/system/k3s.service.env", "# x\nK3S_DATA_DIR=\"/last\"\nK3S_TOKEN=s\n"),
        ];
        let unit = unit(INSTALLED, &more);
        assert_eq!(variable(&unit.environment, "K3S_DATA_DIR"), Some("/last"));
        assert!(unit.environment.iter().all(|(name, _)| name == "K3S_DATA_DIR"));
    }

    #[test]
    fn an_empty_setting_takes_back_what_was_set_before() {
        let drop_in = "[Service]\nEnvironment=\nEnvironmentFile=\nEnvironmentFile=/srv/env\n";
        let more = [
            ("etc/default/k3s", "K3S_DATA_DIR=/first\n"),
            ("etc/systemd/system/k3s.service.d/10.conf", drop_in),
        ];
        let text = format!("{INSTALLED}Environment=K3S_DATA_DIR=/second\n");
        assert!(unit(&text, &more).environment.is_empty());
    }

    #[test]
    fn a_file_of_variables_that_cannot_be_read_is_told_from_one_that_is_absent() {
        assert!(!unit(INSTALLED, &[]).partial);
        let more = [("etc/systemd/system/k3s.service.env/x", "a folder in its place")];
        assert!(unit(INSTALLED, &more).partial);
    }

    #[test]
    fn specifiers_are_what_the_name_of_the_unit_tells() {
        let of = |value: &str| with_specifiers(value, "etcd-main@node\\x2d1-a.service");
        assert_eq!(of("-/etc/default/%p"), "-/etc/default/etcd-main");
        assert_eq!(of("%n %N"), "etcd-main@node\\x2d1-a.service etcd-main@node\\x2d1-a");
        assert_eq!(of("%i %I %j %J %P"), "node\\x2d1-a node-1/a main main etcd/main");
        assert_eq!(of("%H %% 5%"), "%H % 5%");
        assert_eq!(with_specifiers("%p-%i", "etcd.service"), "etcd-");
    }

    #[test]
    fn an_instance_is_read_from_its_template() {
        let dir = tempfile::tempdir().unwrap();
        let units = dir.path().join("etc/systemd/system");
        fs::create_dir_all(units.join("etcd@.service.d")).unwrap();
        fs::create_dir_all(units.join("etcd@node1.service.d")).unwrap();
        let write = |name: &str, text: &str| {
            fs::write(units.join(name), format!("[Service]\n{text}\n")).unwrap();
        };
        write("etcd@.service", "WorkingDirectory=-/srv/%i\nExecStart=/usr/bin/etcd --name %i");
        write("etcd@.service.d/a.conf", "Environment=A=1 B=1");
        write("etcd@node1.service.d/a.conf", "Environment=A=2");
        let host = Host::at(dir.path());
        let probe = Probe::new(&host);
        let unit = load(&probe, "etcd@node1.service", &|_| true).unwrap();
        assert_eq!(unit.exec, ["/usr/bin/etcd", "--name", "node1"]);
        assert_eq!(unit.working_directory.as_deref(), Some(Path::new("/srv/node1")));
        assert_eq!(variable(&unit.environment, "A"), Some("2"));
        assert_eq!(variable(&unit.environment, "B"), Some("1"));
        assert_eq!(find(&probe, "other@node1.service"), None);
    }

    #[test]
    fn a_masked_unit_is_none_and_a_wanted_one_is_enabled() {
        let dir = tempfile::tempdir().unwrap();
        let units = dir.path().join("etc/systemd/system");
        fs::create_dir_all(units.join("multi-user.target.wants")).unwrap();
        symlink("/dev/null", units.join("k3s.service")).unwrap();
        fs::write(units.join("kubelet.service"), "").unwrap();
        symlink("../kubelet.service", units.join("multi-user.target.wants/kubelet.service"))
            .unwrap();
        let host = Host::at(dir.path());
        let probe = Probe::new(&host);
        assert_eq!(find(&probe, "k3s.service"), None);
        assert!(find(&probe, "kubelet.service").is_some());
        assert!(enabled(&probe, "kubelet.service"));
        assert!(!enabled(&probe, "k3s.service"));
        assert_eq!(matching(&probe, "k", ".service"), ["kubelet.service"]);
    }
}
