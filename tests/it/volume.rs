//! Sampler `volume` on real filesystems that are made anew, and beside a real etcd with Longhorn's objects.

use std::path::Path;
use std::time::Duration;

use crate::lab;
use crate::lab::agent::{Agent, Scrape};
use crate::lab::disk::Kind;
use crate::lab::etcd::{Cluster, Etcd, Listen, Options};
use crate::lab::process::{bound_command, output};
use crate::lab::volume::{self, Volume};

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_hours(24);
const ALL: &str = "controlplane_volume_";
const INFO: &str = "controlplane_volume_info";
const FORMATTED: &str = "controlplane_volume_formatted_timestamp_seconds";
const REFORMATTED: &str = "controlplane_volume_reformatted_timestamp_seconds";
const SIZE: &str = "controlplane_volume_size_bytes";
const USED: &str = "controlplane_volume_used_bytes";
const BACKUPS: &str = "controlplane_volume_backups";
const FAILURES: &str = "controlplane_sampler_failures_total";

/// The section, and a node on which it runs; `more` is what else is in the section.
fn config(more: &str) -> String {
    format!(
        "host: {{distribution: k3s, role: server, datastore: unknown}}\n\
         etcd: {{enabled: false}}\nkine: {{enabled: false}}\nregistry_keys: {{enabled: false}}\n\
         snap: {{enabled: false}}\nsystemd: {{enabled: false}}\nkernel: {{enabled: false}}\n\
         volume: {{interval: 300ms, timeout: 2s{more}}}\n"
    )
}

fn known(agent: &Agent, volume: &Volume) -> Scrape {
    let label = [("volume", volume.name())];
    agent.wait_until("the volume", ALL, 10 * SECOND, |s| s.value(FORMATTED, &label).is_some())
}

/// Parts that failed, but for the datastore, which this node is said to have and has not.
fn failures(scrape: &Scrape) -> f64 {
    let of = |reason: &[(&str, &str)]| scrape.sum(FAILURES, reason);
    of(&[("sampler", "volume")]) - of(&[("sampler", "volume"), ("reason", "call")])
}

fn uuid(scrape: &Scrape, volume: &Volume) -> String {
    let info = scrape.all(INFO, &[("volume", volume.name())]);
    assert_eq!(info.len(), 1, "{}", scrape.with_prefix(ALL));
    info[0].labels["uuid"].clone()
}

#[test]
fn a_volume_that_is_formatted_anew_is_told_and_a_mount_again_is_not() {
    let _turn = lab::together();
    for kind in [Kind::Ext4, Kind::Xfs] {
        let mut volume = Volume::longhorn(kind, Duration::ZERO);
        let agent = Agent::start(&config(", state_file: ~"));
        let name = volume.name().to_owned();
        let label = [("volume", name.as_str())];
        let before = known(&agent, &volume);
        let made = before.value(FORMATTED, &label).unwrap();
        assert_eq!(uuid(&before, &volume).len(), 36, "{}", before.with_prefix(ALL));
        let last = before.value("controlplane_volume_last_mount_timestamp_seconds", &label);
        assert_eq!(last.is_some(), kind == Kind::Ext4, "xfs does not keep it");
        volume.unmount();
        agent.wait_until("no volume", ALL, 10 * SECOND, |s| s.value(USED, &label).is_none());
        volume.mount();
        let again = known(&agent, &volume);
        assert_eq!(again.value(FORMATTED, &label), Some(made));
        assert_eq!(again.value(REFORMATTED, &label), None, "{}", again.with_prefix(ALL));
        // A filesystem of the same second would be the same.
        std::thread::sleep(SECOND * 2);
        volume.reformat();
        let after = agent.wait_until("a volume formatted anew", ALL, 10 * SECOND, |s| {
            s.value(REFORMATTED, &label).is_some()
        });
        assert_eq!(after.value(REFORMATTED, &label), after.value(FORMATTED, &label));
        assert!(after.value(FORMATTED, &label).unwrap() > made + 1.0);
        assert_ne!(uuid(&before, &volume), uuid(&after, &volume));
        let page = agent.get("/api/v1/status").unwrap().text();
        assert!(page.contains("was formatted anew: another filesystem was on it before"), "{page}");
        volume.unmount();
        let gone =
            agent.wait_until("no volume", ALL, 10 * SECOND, |s| s.value(USED, &label).is_none());
        assert!(gone.value(REFORMATTED, &label).is_some(), "it stays");
    }
}

#[test]
fn an_agent_without_any_right_to_the_device_knows_it_as_well() {
    let _turn = lab::together();
    let volume = Volume::of_driver(Kind::Ext4);
    let all = "exec setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all,+dac_read_search \
               --ambient-caps=-all,+dac_read_search \"$0\" \"$@\"";
    // CAP_DAC_READ_SEARCH alone would open the device: the bounded namespace has none.
    let hidden = format!("mount -t tmpfs none /dev && {all}");
    let through = ["unshare", "--mount", "sh", "-c", &hidden].map(str::to_owned).into();
    let config = config(", state_file: ~");
    let agent = Agent::start_with(lab::agent::Options { config, through, ..Default::default() });
    let name = volume.name().to_owned();
    let label = [("volume", name.as_str())];
    let before = known(&agent, &volume);
    assert_eq!(before.value("controlplane_volume_last_mount_timestamp_seconds", &label), None);
    assert!(failures(&before) < 1.0, "{}", before.with_prefix(FAILURES));
    volume.fill(10 << 20);
    agent.wait_until("use", ALL, 10 * SECOND, |s| s.value(USED, &label) > Some(10e6));
}

#[test]
fn a_btrfs_has_its_size_and_what_is_used_of_it() {
    // An agent without rights beside it would fail for this volume, whose UUID nothing but the device tells.
    let _turn = lab::alone();
    let mut volume = Volume::of_driver(Kind::Ext4);
    volume.make_btrfs();
    let agent = Agent::start(&config(", state_file: ~"));
    let name = volume.name().to_owned();
    let label = [("volume", name.as_str())];
    let scrape = agent.wait_until("use", ALL, 10 * SECOND, |s| s.value(USED, &label).is_some());
    assert!(scrape.value(SIZE, &label) > Some(400e6), "{}", scrape.with_prefix(ALL));
    assert!(failures(&scrape) < 1.0, "{}", scrape.with_prefix(FAILURES));
    volume.fill(50 << 20);
    agent.wait_until("more use", ALL, 10 * SECOND, |s| s.value(USED, &label) > Some(50e6));
}

#[test]
fn what_is_remembered_is_known_after_a_restart_and_a_file_that_is_damaged_is_not_needed() {
    let _turn = lab::together();
    let mut volume = Volume::longhorn(Kind::Ext4, Duration::ZERO);
    let folder = lab::temp_dir("state");
    let file = folder.path().join("volumes.json");
    let config = config(&format!(", state_file: '{}'", file.display()));
    let name = volume.name().to_owned();
    let label = [("volume", name.as_str())];
    let mut agent = Agent::start(&config);
    known(&agent, &volume);
    lab::wait_for("the state file", 10 * SECOND, || {
        std::fs::read_to_string(&file).map_err(|error| error.to_string())
    });
    agent.stop(5 * SECOND);
    std::thread::sleep(SECOND * 2);
    volume.reformat();
    let mut agent = Agent::start(&config);
    let is_told = |s: &Scrape| s.value(REFORMATTED, &label).is_some();
    agent.wait_until("a volume formatted anew", ALL, 10 * SECOND, is_told);
    lab::wait_for("what was found", 10 * SECOND, || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        text.contains("\"reformatted\":1").then_some(()).ok_or(text)
    });
    agent.stop(5 * SECOND);
    let mut agent = Agent::start(&config);
    agent.wait_until("it is remembered", ALL, 10 * SECOND, is_told);
    agent.stop(5 * SECOND);
    std::fs::write(&file, "{\"version\":1,\"volu").unwrap();
    let agent = Agent::start(&config);
    let scrape = known(&agent, &volume);
    assert_eq!(scrape.value(FAILURES, &[("sampler", "volume"), ("reason", "parse")]), Some(1.0));
    assert_eq!(scrape.value("controlplane_sampler_up", &[("sampler", "volume")]), Some(1.0));
    lab::wait_for("a whole file again", 10 * SECOND, || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        text.contains(volume.name()).then_some(()).ok_or(text)
    });
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().flatten().collect();
    assert_eq!(names.len(), 1, "{names:?}");
}

#[test]
fn without_a_folder_for_it_no_file_is_written_and_a_closed_one_is_a_part_that_failed() {
    let _turn = lab::together();
    let volume = Volume::longhorn(Kind::Ext4, Duration::ZERO);
    let folder = lab::temp_dir("state");
    let none = folder.path().join("none/volumes.json");
    let agent = Agent::start(&config(&format!(", state_file: '{}'", none.display())));
    let scrape = known(&agent, &volume);
    assert!(failures(&scrape) < 1.0, "{}", scrape.with_prefix(FAILURES));
    std::thread::sleep(SECOND);
    assert!(!none.parent().unwrap().exists());
    std::fs::create_dir(folder.path().join("volumes.json")).unwrap();
    let file = folder.path().join("volumes.json");
    let agent = Agent::start(&config(&format!(", state_file: '{}'", file.display())));
    known(&agent, &volume);
    agent.wait_until("a failed part", FAILURES, 10 * SECOND, |s| failures(s) > 0.0);
}

#[test]
fn a_device_that_does_not_answer_hides_no_other_volume() {
    let _turn = lab::alone();
    lab::need_root("a FUSE mount");
    let volume = Volume::longhorn(Kind::Ext4, Duration::ZERO);
    let folder = lab::temp_dir("mute");
    let dead = folder.path().join("dead");
    std::fs::create_dir(&dead).unwrap();
    let session = lab::mute::from("/dev/longhorn/dead", &dead);
    let mut agent = Agent::start(&config(", state_file: ~"));
    known(&agent, &volume);
    let timeout = [("sampler", "volume"), ("reason", "timeout")];
    let scrape = agent.wait_until("time-outs", FAILURES, 20 * SECOND, |s| {
        s.value(FAILURES, &timeout) >= Some(2.0)
    });
    assert!(
        scrape.value(USED, &[("volume", volume.name())]).is_some(),
        "{}",
        scrape.with_prefix(ALL)
    );
    assert!(scrape.all(USED, &[("volume", "dead")]).is_empty());
    let held = lab::process::children(agent.pid())
        .into_iter()
        .filter(|pid| {
            let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            line.contains("volume") && state.rsplit(") ").next().is_some_and(|s| s.starts_with('D'))
        })
        .count();
    assert!(held <= 1, "{held} children wait for the dead mount");
    assert!(agent.stop(5 * SECOND).success());
    drop(session);
}

#[test]
fn backups_are_counted_and_one_that_is_older_than_the_filesystem_tells_of_a_wiped_volume() {
    let _turn = lab::together();
    for (version, listen) in [(Etcd::V34, Listen::Plain), (Etcd::V35, Listen::Unix)] {
        let options = Options { listen, ..Options::default() };
        let cluster = Cluster::start_with(version, 1, options);
        let address = match listen {
            Listen::Unix => cluster.socket(0).display().to_string(),
            _ => cluster.client_url(0),
        };
        let wiped = Volume::longhorn(Kind::Ext4, Duration::ZERO);
        let well = Volume::longhorn(Kind::Ext4, 20 * DAY);
        // More than a page of others.
        volume::put_target(&cluster, "s3://KEY:SECRET@backups/");
        for n in 0..120 {
            volume::put_volume(&cluster, &format!("other-{n:03}"), 30 * DAY);
            for backup in 0..3 {
                let (id, name) = (format!("backup-{n}-{backup}"), format!("other-{n:03}"));
                volume::put_backup(&cluster, &id, &name, DAY);
            }
        }
        for volume in [&wiped, &well] {
            volume::put_volume(&cluster, volume.name(), 21 * DAY);
            let id = format!("backup-{}", volume.name());
            volume::put_backup(&cluster, &id, volume.name(), 9 * DAY);
        }
        let agent = Agent::start(&config(&format!(
            ", state_file: ~, endpoints: '{address}', ignore_volumes: ['other-0*']"
        )));
        let of =
            |s: &Scrape, name: &str, volume: &Volume| s.value(name, &[("volume", volume.name())]);
        let scrape = agent.wait_until("backups", ALL, 10 * SECOND, |s| {
            of(s, BACKUPS, &wiped) == Some(1.0) && of(s, REFORMATTED, &wiped).is_some()
        });
        assert_eq!(scrape.all(BACKUPS, &[]).len(), 22, "{}", scrape.with_prefix(BACKUPS));
        assert_eq!(scrape.value(BACKUPS, &[("volume", "other-119")]), Some(3.0));
        assert_eq!(
            of(&scrape, REFORMATTED, &well),
            None,
            "its filesystem is older than its backup"
        );
        let status = agent.get("/api/v1/status").unwrap().text();
        assert!(status.contains("is older"), "{status}");
        for text in [scrape.text.clone(), status, agent.get("/").unwrap().text(), agent.log()] {
            assert!(!text.contains("SECRET"), "{text}");
        }
        let mut command = bound_command(env!("CARGO_BIN_EXE_controlplane-exporter"));
        command.args(["check", "--profile=volumes", "--format=nagios"]);
        command.env("CONTROLPLANE_EXPORTER__WEB__SOCKET", agent.socket());
        let said = output(command, 10 * SECOND);
        assert_eq!(said.status.code(), Some(2), "{}", said.stdout);
        for word in ["CONTROLPLANE VOLUMES CRITICAL", "formatted anew", "volume_backups=1"] {
            assert!(said.stdout.contains(word), "{word}: {}", said.stdout);
        }
        // A retention of one: the next night there is only the new one, and it is known all the same.
        volume::delete_backup(&cluster, &format!("backup-{}", wiped.name()));
        volume::put_backup(&cluster, "backup-new", wiped.name(), Duration::ZERO);
        let late = |s: &Scrape| of(s, "controlplane_volume_backup_last_timestamp_seconds", &wiped);
        let then = late(&scrape);
        let scrape = agent.wait_until("the new one", ALL, 10 * SECOND, |s| late(s) > then);
        assert!(of(&scrape, REFORMATTED, &wiped).is_some());
    }
}

#[test]
fn a_node_without_longhorn_has_no_figure_of_backups_and_no_failure() {
    let _turn = lab::together();
    let options = Options { listen: Listen::Plain, ..Options::default() };
    let cluster = Cluster::start_with(Etcd::V35, 1, options);
    let volume = Volume::of_driver(Kind::Xfs);
    let url = cluster.client_url(0);
    let agent = Agent::start(&config(&format!(", state_file: ~, endpoints: '{url}'")));
    let scrape = known(&agent, &volume);
    assert!(scrape.all(BACKUPS, &[]).is_empty());
    let failed = scrape.sum(FAILURES, &[("sampler", "volume")]);
    assert!(failed < 1.0, "{}", scrape.with_prefix(FAILURES));
    assert!(Path::new(volume.path()).exists());
}
