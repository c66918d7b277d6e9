//! The sampler against a stand-in that speaks D-Bus over a real socket and gives the answers that
//! a healthy systemd rarely gives. The common ones are asked of a real one, in `tests/it`.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use proptest::prelude::*;
use serde_json::json;
use zbus::connection::Builder;
use zbus::message::Header;
use zbus::{Connection, DynamicType, Guid, Message, MessageStream, OwnedObjectPath, Variant};

use super::*;
use crate::host::Installation;
use crate::sampler::{self, Driver};

const SYSTEMD: &str = ":1.5";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const SERVICE: &str = "org.freedesktop.systemd1.Service";

/// One unit as the stand-in knows it.
#[derive(Clone)]
struct Unit {
    name: &'static str,
    id: String,
    load: &'static str,
    active: &'static str,
    restarts: Variant<'static>,
    /// Code, status, time.
    exit: (i32, i32, u64),
}

impl Unit {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            id: name.to_owned(),
            load: "loaded",
            active: "active",
            restarts: Variant::U32(0),
            exit: (0, 0, 0),
        }
    }

    fn path(&self) -> String {
        path(&self.id)
    }
}

fn path(id: &str) -> String {
    format!("/org/freedesktop/systemd1/unit/{}", id.replace('.', "_2e").replace('-', "_2d"))
}

#[derive(Default)]
struct World {
    units: Vec<Unit>,
    /// Methods that are not answered.
    silent: Vec<&'static str>,
    /// Methods that are answered with a text, whatever was asked.
    nonsense: Vec<&'static str>,
    /// Methods at which the stand-in hangs up.
    hangs_up: Vec<&'static str>,
    /// Everything that was called, by member and first argument of `Get`.
    calls: Vec<String>,
    connections: Vec<Connection>,
}

/// A stand-in for systemd, and for the bus before it.
struct Fake {
    folder: tempfile::TempDir,
    private: bool,
    world: Arc<Mutex<World>>,
}

impl Fake {
    fn new(private: bool, units: Vec<Unit>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("systemd")).unwrap();
        let fake = Self { folder, private, world: Arc::default() };
        fake.world.lock().unwrap().units = units;
        let listener = tokio::net::UnixListener::bind(fake.path()).unwrap();
        let world = Arc::clone(&fake.world);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&world)));
            }
        });
        fake
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join(if self.private { "systemd/private" } else { "bus" })
    }

    fn change(&self, change: impl FnOnce(&mut World)) {
        change(&mut self.world.lock().unwrap());
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.world.lock().unwrap().calls)
    }

    fn connection(&self) -> Connection {
        self.world.lock().unwrap().connections.last().unwrap().clone()
    }

    /// Signals that a service's main process has ended.
    async fn exits(&self, sender: &str, id: &str, exit: (i32, i32, u64)) {
        let changed = HashMap::from([
            ("ExecMainCode", Variant::I32(exit.0)),
            ("ExecMainStatus", Variant::I32(exit.1)),
            ("ExecMainExitTimestamp", Variant::U64(exit.2)),
        ]);
        let signal =
            Message::signal(path(id), "org.freedesktop.DBus.Properties", "PropertiesChanged");
        let body = (SERVICE, changed, Vec::<&str>::new());
        let signal = signal.sender(sender).build(&body).unwrap();
        self.connection().send(&signal).await.unwrap();
    }

    /// A sampler that asks this stand-in.
    fn sampler(&self, units: &[&str]) -> Systemd {
        let address = format!("unix:path={}", self.path().display());
        let facts = Facts::default();
        let units: Vec<String> = units.iter().map(ToString::to_string).collect();
        let target = Target::parse(&address).unwrap();
        Systemd {
            wanted: Wanted::new(&units, &facts).unwrap(),
            trackers: TRACKERS.of(target.to_string()),
            target,
            timeout: Duration::from_secs(5),
            bus: None,
        }
    }
}

async fn serve(stream: tokio::net::UnixStream, world: Arc<Mutex<World>>) {
    let stream = stream.into_std().unwrap();
    let connection =
        Builder::unix_stream(stream).server(Guid::generate()).p2p().build().await.unwrap();
    let mut calls = MessageStream::from(&connection);
    world.lock().unwrap().connections.push(connection.clone());
    while let Some(Ok(call)) = calls.next().await {
        let header = call.header();
        let member = header.member().unwrap().to_string();
        let known = |list: &[&str]| list.contains(&member.as_str());
        let (silent, nonsense, hangs_up) = {
            let world = world.lock().unwrap();
            (known(&world.silent), known(&world.nonsense), known(&world.hangs_up))
        };
        if hangs_up {
            drop(connection.close().await);
            return;
        }
        if nonsense {
            answer(&connection, &header, &"nonsense").await;
        } else if !silent {
            reply(&connection, &call, &world).await;
        }
    }
}

async fn answer<B: serde::Serialize + DynamicType>(to: &Connection, call: &Header<'_>, body: &B) {
    let reply = Message::method_return(call).sender(SYSTEMD).build(body).unwrap();
    // The other end may have given up.
    drop(to.send(&reply).await);
}

async fn reply(to: &Connection, call: &Message, world: &Mutex<World>) {
    let header = call.header();
    let member = header.member().unwrap().as_str();
    let mut called = member.to_owned();
    let units = world.lock().unwrap().units.clone();
    let unit = units.iter().find(|unit| unit.path() == header.path().unwrap().as_str());
    let body = call.body();
    match member {
        "Hello" => answer(to, &header, &":1.9").await,
        "ListUnitsByNames" => {
            let (names,): (Vec<String>,) = body.deserialize().unwrap();
            let asked = names.iter().filter_map(|n| units.iter().find(|u| u.name == n));
            answer(to, &header, &asked.map(line).collect::<Vec<_>>()).await;
        }
        "ListUnitsByPatterns" => {
            let all = units.iter().map(line).collect::<Vec<_>>();
            answer(to, &header, &all).await;
        }
        "Get" => {
            let (interface, name): (&str, &str) = body.deserialize().unwrap();
            called = format!("Get {name}");
            let unit = unit.unwrap();
            let value = match (interface, name) {
                (UNIT, "StateChangeTimestamp") => Variant::U64(1_700_000_000_500_000),
                (SERVICE, "NRestarts") => unit.restarts.try_clone().unwrap(),
                (SERVICE, "Result") => Variant::from("start-limit-hit"),
                other => panic!("{other:?} was asked"),
            };
            if value == Variant::Bool(false) {
                let error = "org.freedesktop.DBus.Error.UnknownProperty";
                drop(to.reply_error(&header, error, &"no such property").await);
            } else {
                answer(to, &header, &value).await;
            }
        }
        "GetAll" => {
            let unit = unit.unwrap();
            let all = HashMap::from([
                ("NRestarts", unit.restarts.try_clone().unwrap()),
                ("ExecMainCode", Variant::I32(unit.exit.0)),
                ("ExecMainStatus", Variant::I32(unit.exit.1)),
                ("ExecMainExitTimestamp", Variant::U64(unit.exit.2)),
            ]);
            answer(to, &header, &all).await;
        }
        _ => answer(to, &header, &()).await,
    }
    world.lock().unwrap().calls.push(called);
}

type Line =
    (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

fn line(unit: &Unit) -> Line {
    let text = str::to_owned;
    let path = OwnedObjectPath::try_from(unit.path()).unwrap();
    let no_job = OwnedObjectPath::try_from("/").unwrap();
    let (load, active) = (text(unit.load), text(unit.active));
    (unit.id.clone(), text(""), load, active, text(""), text(""), path, 0, text(""), no_job)
}

async fn run(sampler: &mut Systemd) -> Batch {
    let mut out = Batch::default();
    sampler.sample(&mut out).await.unwrap();
    out
}

/// Runs until the condition holds: signals take their way beside the answers.
async fn run_until(sampler: &mut Systemd, condition: impl Fn(&Batch) -> bool) -> Batch {
    let started = Instant::now();
    loop {
        let out = run(sampler).await;
        if condition(&out) {
            return out;
        }
        assert!(started.elapsed() < Duration::from_secs(5), "{out:?}");
    }
}

#[tokio::test]
async fn a_unit_that_does_not_exist_is_a_verdict_and_costs_no_further_call() {
    let missing = Unit { load: "not-found", active: "inactive", ..Unit::new("gone.service") };
    let fake = Fake::new(true, vec![Unit::new("a.service"), missing]);
    let out = run(&mut fake.sampler(&["a.service", "gone.service"])).await;
    assert_eq!(out.value(&LOADED, ["a.service"]), Some(1.0));
    assert_eq!(out.value(&LOADED, ["gone.service"]), Some(0.0));
    assert_eq!(out.value(&EXPECTED, ["gone.service"]), Some(1.0));
    assert_eq!(out.value(&STATE, ["gone.service", "inactive"]), Some(1.0));
    assert_eq!((out.series(&NRESTARTS), out.series(&SINCE)), (1, 1));
    assert_eq!(out.value(&SINCE, ["a.service"]), Some(1_700_000_000.5));
    let calls = ["Subscribe", "ListUnitsByNames", "Get StateChangeTimestamp", "GetAll"];
    assert_eq!(fake.calls(), calls);
    assert_eq!(out.reasons(), [""; 0]);
}

#[tokio::test]
async fn all_properties_of_a_service_are_read_at_the_first_look_only() {
    let fake = Fake::new(true, vec![Unit::new("a.service"), Unit::new("a.socket")]);
    let mut sampler = fake.sampler(&["a.service", "a.socket"]);
    run(&mut sampler).await;
    fake.calls();
    let out = run(&mut sampler).await;
    let calls = ["ListUnitsByNames", "Get StateChangeTimestamp", "Get StateChangeTimestamp"];
    let mut called = fake.calls();
    called.retain(|call| call != "Get NRestarts");
    assert_eq!(called, calls);
    assert_eq!(out.series(&NRESTARTS), 1);
    assert_eq!(out.value(&STATE, ["a.socket", "active"]), Some(1.0));
}

#[tokio::test]
async fn a_systemd_that_does_not_count_restarts_leaves_the_figure_out() {
    // `false` stands for a property that systemd does not know.
    let old = Unit { restarts: Variant::Bool(false), ..Unit::new("a.service") };
    let odd = Unit { restarts: Variant::from("many"), ..Unit::new("b.service") };
    let fake = Fake::new(true, vec![old, odd]);
    let mut sampler = fake.sampler(&["a.service", "b.service"]);
    for _ in 0..2 {
        let out = run(&mut sampler).await;
        assert_eq!((out.series(&NRESTARTS), out.series(&RESTARTS)), (0, 0));
        assert_eq!(out.value(&LOADED, ["a.service"]), Some(1.0));
        assert_eq!(out.reasons(), [""; 0]);
    }
}

#[tokio::test]
async fn an_alias_keeps_the_name_it_was_asked_by() {
    let alias = Unit { id: "real.service".to_owned(), ..Unit::new("alias.service") };
    let fake = Fake::new(true, vec![alias]);
    let out = run(&mut fake.sampler(&["alias.service"])).await;
    assert_eq!(out.value(&LOADED, ["alias.service"]), Some(1.0));
    assert_eq!(out.series(&LOADED), 1);
}

#[tokio::test]
async fn more_units_than_the_cap_are_counted_as_dropped() {
    let mut units: Vec<Unit> = Vec::new();
    for i in 0..MAX_UNITS + 6 {
        units.push(Unit { id: format!("many-{i}.service"), ..Unit::new("many") });
    }
    units.push(Unit::new("named.service"));
    let fake = Fake::new(true, units);
    let out = run(&mut fake.sampler(&["*.service", "named.service"])).await;
    assert_eq!(out.series(&LOADED), MAX_UNITS);
    // The named one comes first, and is not counted twice.
    assert_eq!(out.value(&EXPECTED, ["named.service"]), Some(1.0));
    assert_eq!(out.dropped_count(), 7);
}

#[tokio::test]
async fn an_exit_is_kept_when_the_next_process_has_long_started() {
    let fake = Fake::new(true, vec![Unit::new("a.service"), Unit::new("b.service")]);
    let mut sampler = fake.sampler(&["a.service"]);
    run(&mut sampler).await;
    // Over the private socket systemd tells of all units, watched or not.
    fake.exits(SYSTEMD, "b.service", (1, 9, 7_000_000)).await;
    for at in [5_000_000, 5_000_000, 6_500_000] {
        fake.exits(SYSTEMD, "a.service", (2, 7, at)).await;
    }
    let killed = ["a.service", "killed", "BUS"];
    let mut out =
        run_until(&mut sampler, |out| out.value(&LAST_EXIT_TIME, ["a.service"]) == Some(6.5)).await;
    assert_eq!(out.value(&LAST_EXIT, killed), Some(1.0));
    assert!(!out.take_events().is_empty());
    let mut later = run(&mut sampler).await;
    assert_eq!(later.value(&LAST_EXIT, killed), Some(1.0));
    assert_eq!(later.series(&LAST_EXIT), 1);
    assert_eq!(later.take_events(), []);
}

#[tokio::test]
async fn a_flood_of_exits_is_counted_and_the_properties_are_read_again() {
    let fake = Fake::new(true, vec![Unit::new("a.service")]);
    let mut sampler = fake.sampler(&["a.service"]);
    run(&mut sampler).await;
    for at in 1..=5_000 {
        fake.exits(SYSTEMD, "a.service", (1, 1, at * 1_000_000)).await;
    }
    fake.change(|world| world.units[0].exit = (1, 0, 6_000_000_000));
    let mut dropped = 0;
    let mut last = Batch::default();
    let started = Instant::now();
    while last.value(&LAST_EXIT_TIME, ["a.service"]) != Some(6_000.0) {
        assert!(started.elapsed() < Duration::from_secs(10), "{last:?}");
        last = run(&mut sampler).await;
        dropped += last.dropped_count();
    }
    assert!(dropped > 0);
    assert_eq!(last.value(&LAST_EXIT, ["a.service", "exited", "0"]), Some(1.0));
}

#[tokio::test]
async fn only_systemd_itself_may_tell_of_exits_over_the_bus() {
    let fake = Fake::new(false, vec![Unit::new("a.service")]);
    let mut sampler = fake.sampler(&["a.service"]);
    run(&mut sampler).await;
    assert_eq!(fake.calls()[..4], ["Hello", "Subscribe", "ListUnitsByNames", "AddMatch"]);
    fake.exits(SYSTEMD, "a.service", (1, 3, 5_000_000)).await;
    fake.exits(":1.66", "a.service", (2, 9, 6_000_000)).await;
    let out = run_until(&mut sampler, |out| out.series(&LAST_EXIT) > 0).await;
    assert_eq!(out.value(&LAST_EXIT, ["a.service", "exited", "3"]), Some(1.0));
    run(&mut sampler).await;
    let out = run(&mut sampler).await;
    assert_eq!(out.value(&LAST_EXIT, ["a.service", "exited", "3"]), Some(1.0));
}

#[tokio::test]
async fn a_silent_peer_costs_one_timeout_and_its_connection_is_closed() {
    for silent in ["Subscribe", "ListUnitsByNames", "GetAll"] {
        let fake = Fake::new(true, vec![Unit::new("a.service"), Unit::new("b.service")]);
        fake.change(|world| world.silent = vec![silent]);
        let mut sampler = fake.sampler(&["a.service", "b.service"]);
        sampler.timeout = Duration::from_millis(500);
        let started = Instant::now();
        let error = sampler.sample(&mut Batch::default()).await.unwrap_err();
        assert_eq!(error.reason(), "timeout");
        assert!(started.elapsed() < Duration::from_millis(950), "{:?}", started.elapsed());
        let given_up = fake.connection();
        tokio::time::timeout(Duration::from_secs(5), given_up.closed()).await.unwrap();
        fake.change(|world| world.silent.clear());
        assert_eq!(run(&mut sampler).await.series(&LOADED), 2);
    }
}

#[tokio::test]
async fn a_peer_that_never_greets_costs_one_timeout() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bus");
    let _listener = tokio::net::UnixListener::bind(&path).unwrap();
    let fake = Fake::new(false, Vec::new());
    let mut sampler = fake.sampler(&["a.service"]);
    sampler.target = Target::parse(&format!("unix:path={}", path.display())).unwrap();
    sampler.timeout = Duration::from_millis(100);
    let error = sampler.sample(&mut Batch::default()).await.unwrap_err();
    assert_eq!(error.reason(), "timeout");
    assert_eq!(error.to_string(), format!("{}: no answer within 100ms", path.display()));
}

#[tokio::test]
async fn counts_go_on_over_a_new_connection() {
    let fake = Fake::new(true, vec![Unit::new("a.service")]);
    let mut sampler = fake.sampler(&["a.service"]);
    run(&mut sampler).await;
    fake.change(|world| world.units[0].restarts = Variant::U32(4));
    assert_eq!(run(&mut sampler).await.value(&RESTARTS, ["a.service"]), Some(4.0));
    fake.change(|world| world.hangs_up = vec!["ListUnitsByNames"]);
    let error = sampler.sample(&mut Batch::default()).await.unwrap_err();
    assert_eq!(error.reason(), "call");
    fake.change(|world| {
        world.hangs_up.clear();
        world.units[0].restarts = Variant::U32(6);
        world.units[0].exit = (1, 5, 9_000_000);
    });
    let mut out = run(&mut sampler).await;
    assert_eq!(out.value(&RESTARTS, ["a.service"]), Some(6.0));
    assert_eq!(out.value(&NRESTARTS, ["a.service"]), Some(6.0));
    // What happened in between is read from the properties.
    assert_eq!(out.value(&LAST_EXIT, ["a.service", "exited", "5"]), Some(1.0));
    let texts: Vec<String> = out.take_events().into_iter().map(|event| event.text).collect();
    assert_eq!(texts, ["a.service exited with status 5"], "restarts were told a moment ago");
}

#[tokio::test]
async fn a_sampler_that_is_built_anew_knows_the_count_and_the_last_exit() {
    let fake = Fake::new(true, vec![Unit::new("a.service")]);
    let mut sampler = fake.sampler(&["a.service"]);
    fake.change(|world| world.units[0].exit = (2, 7, 9_000_000));
    run(&mut sampler).await;
    fake.change(|world| {
        world.units[0].restarts = Variant::U32(4);
        // The next process runs: systemd has forgotten.
        world.units[0].exit = (0, 0, 0);
    });
    run(&mut sampler).await;
    drop(sampler);
    fake.change(|world| world.units[0].restarts = Variant::U32(5));
    let out = run(&mut fake.sampler(&["a.service", "b.service"])).await;
    assert_eq!(out.value(&RESTARTS, ["a.service"]), Some(5.0));
    assert_eq!(out.value(&LAST_EXIT, ["a.service", "killed", "BUS"]), Some(1.0));
}

proptest! {
    #[test]
    fn a_name_is_refused_or_one_that_systemd_takes(text in "\\PC{0,40}|[a-z@.*?\\[-]{0,20}") {
        if let Ok(name) = full_name(&text) {
            prop_assert!(is_glob(&name) || name.contains('.'));
            prop_assert!(name.is_ascii() && !name.contains(['/', ' ', '"', '\'']));
            prop_assert_eq!(full_name(&name), Ok(name.clone()), "it stays as it is");
        }
    }
}

#[tokio::test]
async fn nonsense_is_a_failure_and_not_the_end() {
    let fake = Fake::new(true, vec![Unit::new("a.service")]);
    let mut sampler = fake.sampler(&["a.service"]);
    fake.change(|world| world.nonsense = vec!["ListUnitsByNames"]);
    let error = sampler.sample(&mut Batch::default()).await.unwrap_err();
    assert_eq!(error.reason(), "call");
    // A part of the answer that makes no sense hides no other part.
    fake.change(|world| world.nonsense = vec!["GetAll"]);
    let out = run(&mut sampler).await;
    assert_eq!((out.reasons(), out.series(&LOADED)), (vec!["call"], 1));
    // It is asked again until it is answered.
    fake.change(|world| {
        world.nonsense.clear();
        world.units[0].exit = (1, 5, 9_000_000);
    });
    let out = run(&mut sampler).await;
    assert_eq!(out.value(&LAST_EXIT, ["a.service", "exited", "5"]), Some(1.0));
    fake.calls();
    run(&mut sampler).await;
    assert!(!fake.calls().contains(&"GetAll".to_owned()));
}

#[tokio::test]
async fn a_failed_unit_is_an_event_once_and_names_systemds_reason() {
    let fake = Fake::new(true, vec![Unit::new("a.service")]);
    let mut sampler = fake.sampler(&["a.service"]);
    run(&mut sampler).await;
    fake.change(|world| world.units[0].active = "failed");
    let events = run(&mut sampler).await.take_events();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].kind, "unit_failed");
    assert_eq!(events[0].text, "a.service has failed: start-limit-hit");
    assert!((events[0].time - 1_700_000_000.5).abs() < 1e-6);
    assert_eq!(run(&mut sampler).await.take_events(), []);
}

#[tokio::test]
async fn a_socket_that_is_not_there_or_not_listened_on_is_told_by_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("systemd/private");
    let fake = Fake::new(true, Vec::new());
    let mut sampler = fake.sampler(&["a.service"]);
    for (address, made) in [(path.clone(), false), (folder.path().join("bus"), false), (path, true)]
    {
        if made {
            std::fs::create_dir(folder.path().join("systemd")).unwrap();
            drop(std::os::unix::net::UnixListener::bind(&address).unwrap());
        }
        sampler.target = Target::parse(&format!("unix:path={}", address.display())).unwrap();
        let error = sampler.sample(&mut Batch::default()).await.unwrap_err();
        assert_eq!(error.reason(), if made { "call" } else { "not_found" }, "{error}");
        assert!(error.to_string().contains(address.to_str().unwrap()), "{error}");
    }
}

fn options(own: serde_json::Value) -> sampler::Options {
    let own = own.as_object().unwrap().clone();
    let (interval, timeout) = (SAMPLER.interval, SAMPLER.timeout);
    sampler::Options { interval, timeout, own }
}

fn with_units(units: &[(&str, bool)]) -> Facts {
    let units = units
        .iter()
        .map(|(name, expected)| json!({"name": name, "expected": expected}))
        .collect::<Vec<_>>();
    let installation: Installation = serde_json::from_value(json!({
        "distribution": "k3s", "role": "server", "running": true, "evidence": [],
        "datastore": "sqlite", "units": units, "processes": [], "container_dirs": [], "snaps": [],
    }))
    .unwrap();
    Facts { installations: vec![installation], ..Facts::default() }
}

#[test]
fn without_units_there_is_nothing_to_do_and_detected_units_are_enough() {
    let host = Host::at("/");
    let built = (SAMPLER.build)(&options(json!({})), &host).unwrap();
    assert!(matches!(built, Build::NotApplicable(why) if why.contains("systemd.units")));
    let host = host.with_facts(with_units(&[("k3s.service", true)]));
    let built = (SAMPLER.build)(&options(json!({})), &host).unwrap();
    assert!(matches!(built, Build::Run(Driver::Async(_))));
}

#[test]
fn what_systemd_would_refuse_is_refused_by_key() {
    let host = Host::at("/");
    for (own, key) in [
        (json!({"units": ["a b"]}), "units"),
        (json!({"units": [""]}), "units"),
        (json!({"units": ["k3s@.service"]}), "units"),
        (json!({"units": [".service"]}), "units"),
        (json!({"units": ["x".repeat(256)]}), "units"),
        (json!({"units": ["a"], "bus": "sytem"}), "bus"),
        (json!({"unit": ["a"]}), "unit"),
    ] {
        let error = (SAMPLER.build)(&options(own.clone()), &host).err().unwrap();
        assert_eq!(error.key, key, "{own}");
    }
}

#[test]
fn names_globs_and_detected_units_are_told_apart() {
    let all =
        with_units(&[("k3s.service", true), ("k3s-agent.service", false), ("a@.service", true)]);
    let wanted = Wanted::new(&[], &all).unwrap();
    assert_eq!(wanted.names, ["k3s.service", "k3s-agent.service"]);
    assert!(wanted.expects("k3s.service") && !wanted.expects("k3s-agent.service"));

    let units = ["etcd", "k3s*.service", "k3s-agent.service", "getty@tty1.service", "etcd.service"];
    let wanted = Wanted::new(&units.map(str::to_owned), &all).unwrap();
    assert_eq!(wanted.names, ["etcd.service", "k3s-agent.service", "getty@tty1.service"]);
    assert_eq!(wanted.patterns, ["k3s*.service"]);
    // Configured by name, but the role says no; matched by a glob, and the role says yes.
    assert!(wanted.expects("etcd.service") && !wanted.expects("k3s-agent.service"));
    assert!(wanted.expects("k3s.service") && !wanted.expects("k3s-other.service"));
}

#[test]
fn the_system_bus_lies_below_the_root_and_an_address_is_used_as_it_stands() {
    let host = Host::at("/host");
    let target = |bus: &str| {
        let options = Options { bus: bus.to_owned(), ..Options::default() };
        options.target(&host).unwrap().to_string()
    };
    assert_eq!(target("system"), "/host/run/dbus/system_bus_socket");
    assert_eq!(target("unix:path=/run/systemd/private"), "/run/systemd/private");
    assert_eq!(target("unix:abstract=x"), "unix:abstract=x");
}
