use serde_json::json;

use super::*;
use crate::host::{Datastore, Distribution, Facts, Host, Installation};
use crate::sampler::{self, Driver};

fn volumes(ignored: &[&str]) -> Volumes {
    Volumes {
        rootfs: "/".into(),
        registry: None,
        interval: Duration::from_mins(1),
        timeout: Duration::from_secs(5),
        ignored: globs(&ignored.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap(),
        max_age: Duration::from_hours(8 * 24),
        state_file: None,
        memory: Shared::default(),
        kept: None,
        runs: 0,
        names: HashMap::new(),
        longhorn: None,
    }
}

fn device(name: &str, longhorn: Option<&str>, pv: Option<&str>) -> Device {
    serde_json::from_value(json!({
        "source": format!("/dev/{name}"), "mount_point": format!("/csi/{name}/globalmount"), "whole": true,
        "majmin": [8, 16], "fstype": "ext4", "name": name, "longhorn": longhorn, "persistent_volume": pv,
        "staged": true,
    }))
    .unwrap()
}

fn seen(uuid: &str, created: u64) -> Seen {
    Seen {
        uuid: Some(uuid.into()),
        created: Some(created),
        space: Some((1_000, 400)),
        ..Seen::default()
    }
}

fn mounted(uuid: &str, created: u64) -> Vec<Mounted> {
    let device = device("sdb", Some("pvc-1"), Some("pvc-1"));
    vec![Mounted { name: "pvc-1".into(), device, seen: seen(uuid, created) }]
}

fn built(own: &serde_json::Value, facts: Facts) -> Result<Build, OptionsError> {
    let own = own.as_object().cloned().unwrap_or_default();
    let (interval, timeout) = (SAMPLER.interval, SAMPLER.timeout);
    let options = sampler::Options { interval, timeout, own };
    (SAMPLER.build)(&options, &Host::at("/").with_facts(facts))
}

#[test]
fn it_runs_where_a_kubernetes_or_its_datastore_is() {
    let of = |own, facts| matches!(built(&own, facts), Ok(Build::Run(Driver::Async(_))));
    let agent =
        Installation { datastore: Datastore::Unknown, ..Installation::new(Distribution::K3s) };
    let node = Facts { installations: vec![agent], ..Facts::default() };
    assert!(of(json!({}), node));
    assert!(of(json!({"endpoints": ["http://127.0.0.1:2379"]}), Facts::default()));
    assert!(!of(json!({}), Facts::default()));
}

#[test]
fn a_wrong_key_is_named() {
    let key = |own| built(&own, Facts::default()).err().unwrap().key;
    assert_eq!(key(json!({"state_file": "volumes.json"})), "state_file");
    assert_eq!(key(json!({"ignore_volumes": ["{a"]})), "ignore_volumes");
    assert_eq!(key(json!({"backup_max_age": 8})), "backup_max_age");
    assert_eq!(key(json!({"endpoints": ["ftp://x"]})), "endpoints");
    let defaults = (SAMPLER.defaults)();
    assert_eq!(defaults["backup_max_age"], "8days");
    assert!(
        built(&defaults, Facts::default()).is_ok(),
        "the defaults are valid as they are printed"
    );
}

#[test]
fn a_volume_that_was_formatted_anew_is_told_with_how_it_is_known() {
    let sampler = volumes(&[]);
    let mut out = Batch::default();
    sampler.judge(&mounted("a", 1_700_000_000), &mut out);
    sampler.export(&mounted("a", 1_700_000_000), &mut out);
    assert_eq!((out.series(&REFORMATTED), out.take_events().len()), (0, 0));
    assert_eq!(out.value(&FORMATTED, ["pvc-1"]), Some(1.7e9));
    assert_eq!(out.value(&USED, ["pvc-1"]), Some(400.0));
    assert!(out.value(&FIRST_SEEN, ["pvc-1"]) > Some(1.7e9));
    assert_eq!(out.value(&INFO, ["pvc-1", "sdb", "ext4", "a", "pvc-1"]), Some(1.0));
    let mut out = Batch::default();
    sampler.judge(&mounted("b", 1_700_003_600), &mut out);
    assert_eq!(out.value(&REFORMATTED, ["pvc-1"]), Some(1_700_003_600.0));
    let events = out.take_events();
    assert_eq!(events[0].kind, "volume_reformatted");
    let text = "volume pvc-1 (sdb, ext4) was formatted anew: another filesystem was on it before";
    assert_eq!(events[0].text, text);
    let mut out = Batch::default();
    sampler.judge(&[], &mut out);
    assert_eq!(out.series(&REFORMATTED), 1, "it stays while the volume is not mounted");
}

#[test]
fn a_backup_that_is_older_is_told_at_the_first_look() {
    let mut sampler = volumes(&[]);
    let made = Some(1_699_000_000);
    let volume = Volume { made, oldest: Some(1_699_900_000), ..Volume::default() };
    let longhorn = Longhorn { volumes: [("pvc-1".into(), volume)].into(), has_target: true };
    sampler.longhorn = Some((longhorn, Instant::now(), false));
    let mut out = Batch::default();
    sampler.judge(&mounted("a", 1_700_000_000), &mut out);
    let events = out.take_events();
    assert!(events[0].text.ends_with("a backup of 2023-11-13T18:26:40Z is older"), "{events:?}");
    assert_eq!(out.series(&REFORMATTED), 1);
}

#[test]
fn a_volume_is_named_by_longhorn_else_by_its_driver_else_by_its_persistent_volume_and_each_once() {
    let mut sampler = volumes(&[]);
    let handle = |name: &str| Ok(Seen { handle: Some(name.into()), ..Seen::default() });
    let devices = vec![
        device("sda", Some("own"), None),
        device("sdb", None, Some("pvc-b")),
        device("sdc", None, Some("pvc-c")),
        device("sdd", None, None),
        device("sde", None, None),
    ];
    let looked =
        vec![handle("x"), handle("vol-b"), Ok(Seen::default()), Ok(Seen::default()), handle("own")];
    let mut out = Batch::default();
    let mounted = sampler.named(devices, looked, &mut out);
    let names: Vec<_> = mounted.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(names, ["own", "vol-b", "pvc-c"]);
    assert_eq!((out.reasons(), out.dropped_count()), (vec!["parse"], 1));
    let mut out = Batch::default();
    let again = sampler.named(
        vec![device("sdb", None, Some("pvc-b"))],
        vec![Ok(Seen::default())],
        &mut out,
    );
    assert_eq!(again[0].name, "vol-b", "as it was called before");
}

#[test]
fn an_unanswered_look_hides_no_other_volume() {
    let mut sampler = volumes(&[]);
    let late = SampleError::Timeout { what: "/csi/sda".into(), after: Duration::from_secs(5) };
    let devices = vec![device("sda", Some("a"), None), device("sdb", Some("b"), None)];
    let mut out = Batch::default();
    let mounted = sampler.named(devices, vec![Err(late), Ok(Seen::default())], &mut out);
    assert_eq!((mounted.len(), mounted[0].name.as_str()), (1, "b"));
    assert_eq!(out.reasons(), ["timeout"]);
}

fn longhorn(count: usize, good: bool) -> (Longhorn, Instant, bool) {
    let volume = |n: usize| Volume {
        made: Some(1_600_000_000),
        backups: n as u64,
        newest: (n > 0).then_some(1_700_000_000),
        ..Volume::default()
    };
    let mut volumes: std::collections::BTreeMap<_, _> =
        (0..count).map(|n| (format!("v{n}"), volume(n))).collect();
    volumes.insert("dr".into(), Volume { standby: true, ..Volume::default() });
    (Longhorn { volumes, has_target: true }, Instant::now(), good)
}

#[test]
fn backups_are_told_of_volumes_that_should_have_some() {
    let mut sampler = volumes(&["v1", "scratch-*"]);
    sampler.longhorn = Some(longhorn(3, true));
    let mut out = Batch::default();
    sampler.backups(&mut out);
    assert_eq!(out.series(&BACKUPS), 2, "neither what is ignored nor what follows another cluster");
    assert_eq!((out.value(&BACKUPS, ["v0"]), out.value(&BACKUPS, ["v2"])), (Some(0.0), Some(2.0)));
    assert_eq!(out.value(&BACKUP_LAST, ["v0"]), None, "none is absent and not zero");
    assert_eq!(out.value(&BACKUP_DUE, ["v2"]), Some(1_700_000_000.0 + 8.0 * 86_400.0));
    sampler.longhorn.as_mut().unwrap().0.has_target = false;
    let mut out = Batch::default();
    sampler.backups(&mut out);
    assert!(out.all().is_empty(), "nobody backs anything up");
}

#[test]
fn while_the_datastore_is_silent_the_counts_are_absent_and_the_times_stay() {
    let mut sampler = volumes(&[]);
    sampler.longhorn = Some(longhorn(2, false));
    let mut out = Batch::default();
    sampler.backups(&mut out);
    assert_eq!((out.series(&BACKUPS), out.series(&BACKUP_DUE)), (0, 1));
}

#[test]
fn of_too_many_volumes_those_with_the_fewest_backups_are_told() {
    let mut sampler = volumes(&[]);
    sampler.longhorn = Some(longhorn(130, true));
    let mut out = Batch::default();
    sampler.backups(&mut out);
    assert_eq!((out.series(&BACKUPS), out.dropped_count()), (MAX_BACKED_UP, 30));
    assert!(out.value(&BACKUPS, ["v0"]).is_some() && out.value(&BACKUPS, ["v129"]).is_none());
}
