//! The status page as a person sees it: the real agent's page in a real browser, held against axe-core's rules.
//!
//! The tests of the incidents call [`look`] while their fault is there. The images stay in `target/tmp/page`.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use regex::Regex;
use serde_json::Value;

use crate::lab;
use crate::lab::agent::{Agent, Options};
use crate::lab::apiserver::ApiServer;
use crate::lab::browser::{Browser, Page, View};
use crate::lab::disk::{Kind, SlowDisk};
use crate::lab::etcd::{self, Cluster, Etcd};
use crate::lab::fuse::{Fault, Operation};
use crate::lab::process::{bound_command, output, run};
use crate::lab::systemd::Container;

const SECOND: Duration = Duration::from_secs(1);
/// A phone and a wall.
const WIDTHS: [u32; 2] = [390, 1600];

/// Where the images stay.
fn images() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("page");
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// What axe-core calls serious or critical, as text; also what it could not decide, but for the contrast of a mere
/// symbol, which stands beside a word of the same colour.
fn barriers(page: &mut Page<'_>) -> Vec<String> {
    let library = std::fs::read_to_string(lab::cached("axe-core/axe.min.js")).unwrap();
    page.evaluate(&format!("{library}; 0"));
    let found = page.evaluate(
        "axe.run(document).then(({violations, incomplete, passes}) => ({
           passes: passes.length,
           wrong: [...violations, ...incomplete].flatMap(({id, impact, help, nodes}) =>
             nodes.filter(({html}) => violations.some((one) => one.id === id)
               || !/^<span aria-hidden=.true.>.<.span>$/.test(html))
             .map((node) => ({id, impact, help, html: node.html, why: node.failureSummary})))}))",
    );
    assert!(found["passes"].as_u64().unwrap() > 10, "axe-core looked at nothing: {found}");
    let wrong = found["wrong"].as_array().unwrap().iter();
    let grave = |one: &&Value| {
        ["serious", "critical"].contains(&one["impact"].as_str().unwrap_or("serious"))
    };
    wrong.filter(grave).map(Value::to_string).collect()
}

/// What is wrong with a page besides: it asks somebody else, complains, or must be scrolled sideways.
fn faults(page: &mut Page<'_>, origin: &str) -> Vec<String> {
    let requests = page.requests();
    assert!(!requests.is_empty(), "no request was seen");
    let others =
        requests.iter().filter(|url| !url.starts_with(origin) && !url.starts_with("data:"));
    let mut all: Vec<_> = others.map(|url| format!("it asks {url}")).collect();
    all.extend(page.complaints());
    // Not `innerWidth`: a phone shows the whole of a page that is too wide, only smaller.
    let wanted = page.evaluate("document.documentElement.scrollWidth").as_u64().unwrap();
    if wanted > u64::from(page.view.width) {
        all.push(format!("it wants {wanted} of {} pixels", page.view.width));
    }
    all
}

/// Looks at the page of an agent as it is now: on a phone and on a wall, in both schemes.
#[track_caller]
pub(crate) fn look(agent: &Agent, name: &str) {
    let origin = format!("http://{}/", agent.address());
    let mut browser = Browser::start();
    let mut wrong = Vec::new();
    for dark in [false, true] {
        for width in WIDTHS {
            let scheme = if dark { "dark" } else { "light" };
            let what = format!("{name}-{width}-{scheme}");
            let mut page = browser.open(&origin, View { width, dark, scripts: true });
            page.picture(&images().join(format!("{what}.png")));
            let mut found = faults(&mut page, &origin);
            found.extend(barriers(&mut page));
            wrong.extend(found.iter().map(|text| format!("{what}: {text}")));
        }
    }
    // What a page enlarged to four times its size has left of a screen.
    let mut page = browser.open(&origin, View { width: 320, dark: false, scripts: true });
    wrong.extend(faults(&mut page, &origin).iter().map(|text| format!("{name}-320: {text}")));
    assert!(wrong.is_empty(), "the page of {name} has these faults:\n{}", wrong.join("\n"));
}

#[track_caller]
pub(crate) fn ready(agent: &Agent) {
    agent.wait_until("the first round", "controlplane_sampler_up", 30 * SECOND, |_| {
        agent.get("/-/ready").is_ok_and(|ready| ready.status == 200)
    });
}

fn fixture(case: &str) -> Agent {
    let rootfs = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/host").join(case);
    let agent = Agent::start_with(Options { rootfs: Some(rootfs), ..Options::default() });
    ready(&agent);
    agent
}

#[test]
fn a_node_with_nothing_detected_can_be_read_by_everybody() {
    let _turn = lab::together();
    let agent = fixture("empty");
    let status = status(&agent);
    assert_ne!(status["health"], "ok", "nothing found is not well: {status}");
    let all = status["verdicts"].as_array().unwrap();
    let nothing = all.iter().find(|one| one["topic"] == "datastore");
    let nothing = nothing.unwrap_or_else(|| panic!("no verdict: {status}"));
    assert_eq!(nothing["health"], "unknown", "{nothing}");
    let page = agent.get("/").unwrap().text();
    assert!(page.contains("set host.distribution"), "{page}");
    look(&agent, "empty");
}

#[test]
fn a_k3s_node_can_be_read_by_everybody() {
    let _turn = lab::together();
    let agent = fixture("k3s-etcd");
    look(&agent, "k3s");
}

/// Where k3s has its datastore.
const K3S_DB: &str = "/var/lib/rancher/k3s/server/db";

/// For [`Options::through`]: a host of its own on which this folder is that of k3s' datastore.
fn on_k3s_host(name: &str, folder: &Path) -> Vec<String> {
    let script = format!(
        "hostname {name} && mount -t tmpfs none /var/lib && mkdir -p {K3S_DB} && \
         mount --bind {} {K3S_DB} && exec \"$0\" \"$@\"",
        folder.display()
    );
    ["unshare", "--uts", "--mount", "sh", "-c", &script].map(str::to_owned).into()
}

/// Three members and an API server; the member of this node lies on a disk in memory, and systemd runs its unit.
struct Healthy {
    agent: Agent,
    _api: ApiServer,
    cluster: Cluster,
    container: Container,
    disk: SlowDisk,
    _data: tempfile::TempDir,
}

impl Healthy {
    /// The kernel's log counts for this device, and room on this path.
    fn start(disk: SlowDisk, device: &str, room: &str) -> Self {
        let path = disk.mount().path();
        let container = Container::boot();
        container.install_unit("k3s.service", "[Service]\nExecStart=/bin/sleep 9999\n");
        container.systemctl(&["start", "k3s.service"]);
        let data = lab::temp_dir("members");
        symlink(path, data.path().join("m0")).unwrap();
        let options =
            etcd::Options { data_root: Some(data.path().to_owned()), ..etcd::Options::default() };
        let cluster = Cluster::start_with(Etcd::V35, 3, options);
        let (pki, leaf) = (&cluster.pki, &cluster.pki.client);
        let api = ApiServer::start(pki, &pki.server);
        let config = format!(
            "host: {{distribution: k3s, role: server, version: v1.34.6+k3s1, datastore: etcd,\n  \
               datastore_dir: '{K3S_DB}/etcd', processes: [k3s-server], container_dirs: [], devices: [{device}]}}\n\
             etcd: {{endpoints: ['{url}'], ca_file: {ca}, cert_file: {cert}, key_file: {key},\n  \
               interval: 500ms, timeout: 2s, expected_members: 3, quota_bytes: 2147483648}}\n\
             apiserver: {{url: '{api}', ca_file: {ca}, cert_file: {cert}, key_file: {key}, interval: 500ms}}\n\
             registry_keys: {{interval: 1s}}\n\
             fdatasync: {{paths: ['{K3S_DB}'], interval: 500ms}}\n\
             systemd: {{units: [k3s.service], bus: '{bus}', interval: 500ms}}\n\
             filesystem: {{paths: ['{room}'], interval: 1s}}\n\
             snap: {{enabled: false}}\n",
            url = cluster.client_url(0),
            api = api.url(),
            ca = pki.ca.display(),
            cert = leaf.cert.display(),
            key = leaf.key.display(),
            bus = container.bus_address(),
        );
        let through = on_k3s_host("cp-1", path);
        let agent = Agent::start_with(Options { config, through, ..Options::default() });
        ready(&agent);
        Self { agent, _api: api, cluster, container, disk, _data: data }
    }
}

fn status(agent: &Agent) -> Value {
    serde_json::from_str(&agent.get("/api/v1/status").unwrap().text()).unwrap()
}

#[test]
fn a_healthy_node_says_so_to_everybody_and_keeps_its_key() {
    let _turn = lab::alone();
    let node = Healthy::start(SlowDisk::sized(Kind::Ext4, 512 << 20), "vdz", K3S_DB);
    // This machine's own kernel may have news, its clock may be kept by nobody, and a loaded machine is slow.
    lab::wait_for("verdicts that are all well", 30 * SECOND, || {
        let status = status(&node.agent);
        let all = status["verdicts"].as_array().unwrap();
        let slow = ["ControlPlaneDiskSyncSlow", "ControlPlaneEtcdRequestsSlow"];
        let ill = all.iter().find(|one| {
            let loaded =
                one["health"] == "warning" && slow.iter().any(|name| one["alert"] == **name);
            let machine =
                one["topic"] == "kernel" || one["alert"] == "ControlPlaneClockUnsynchronised";
            one["health"] != "ok" && !machine && !loaded
        });
        let topics = ["disk", "space", "units", "datastore", "api"];
        let known = topics.iter().all(|topic| all.iter().any(|one| one["topic"] == **topic));
        match ill {
            Some(one) => Err(one.to_string()),
            None if !known => Err(format!("a topic without a verdict: {all:?}")),
            None => Ok(()),
        }
    });
    look(&node.agent, "healthy");
    let key = std::fs::read_to_string(&node.cluster.pki.client.key).unwrap();
    let line = key.lines().nth(1).unwrap();
    assert!(line.len() > 40, "no key: {line}");
    for path in ["/", "/api/v1/status", "/api/v1/timeline", "/metrics"] {
        let text = node.agent.get(path).unwrap().text();
        assert!(!text.contains(line) && !text.contains("PRIVATE KEY"), "{path} shows the key");
    }
}

#[test]
#[ignore = "takes the README's picture of the page, docs/status.png, for a person to look at"]
fn the_picture_of_a_node_in_trouble() {
    let _turn = lab::alone();
    let disk = SlowDisk::sized(Kind::Ext4, 512 << 20);
    let device = disk.device().name();
    // Devices of mounts are those that the first process of this machine knows.
    let mut node = Healthy::start(disk, &device, "/");
    node.cluster.put_many("/registry/longhorn.io/orphans/longhorn-system/orphan-", 1_200, 800);
    node.disk.set_delay(SECOND / 8);
    node.disk.file().faults().set(Operation::Read, Fault { errno: Some(5), ..Fault::default() });
    let device = node.disk.device().device().display().to_string();
    let mut read = bound_command(lab::program("dd"));
    read.args([&format!("if={device}"), "of=/dev/null", "bs=4k", "count=1", "iflag=direct"]);
    read.arg("skip=50000");
    assert!(!output(read, 20 * SECOND).status.success(), "a bad sector was read");
    node.disk.file().faults().set(Operation::Read, Fault::default());
    node.cluster.kill(2);
    node.container.systemctl(&["kill", "--signal=BUS", "k3s.service"]);
    let wanted = [
        "ControlPlaneKernelIOErrors",
        "ControlPlaneDiskSyncSlow",
        "ControlPlaneUnitDied",
        "ControlPlaneLonghornOrphans",
        "ControlPlaneEtcdQuorumAtRisk",
    ];
    lab::wait_for("the trouble", 60 * SECOND, || {
        let status = status(&node.agent);
        let all = status["verdicts"].as_array().unwrap();
        let ill = |name: &str| all.iter().any(|v| v["alert"] == name && v["health"] != "ok");
        match wanted.iter().find(|name| !ill(name)) {
            Some(name) => Err(format!("{name} is well: {all:?}")),
            None => Ok(()),
        }
    });
    // The picture ends with a section, and not within a row.
    let mut browser = Browser::start();
    let url = format!("http://{}/", node.agent.address());
    let mut page = browser.open(&url, View { width: 1600, dark: false, scripts: true });
    page.evaluate("document.querySelectorAll('.topics ~ *, footer').forEach((e) => e.remove()); 0");
    page.picture(&images().join("status.png"));
}

#[test]
fn no_password_of_an_address_and_no_line_of_a_broken_file_reaches_a_page() {
    let _turn = lab::together();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/host/k3s-etcd");
    // A list of etcd's addresses, a database's, and a file that ends within a quoted text.
    let etcd =
        "token: PLANTED\ndatastore-endpoint: http://root:PLANTED@127.0.0.1:1,http://127.0.0.1:2\n";
    let sql = "datastore-endpoint: \"postgres://root:PLANTED@127.0.0.1:1/k3s?password=PLANTED\"\n";
    let broken = "token: \"PLANTED\nagent-token: PLANTED\n";
    for file in [etcd, sql, broken] {
        let root = lab::temp_dir("rootfs");
        run("cp", ["-a".as_ref(), fixture.join(".").as_os_str(), root.path().as_os_str()]);
        std::fs::write(root.path().join("etc/rancher/k3s/config.yaml"), file).unwrap();
        let rootfs = Some(root.path().to_owned());
        let agent = Agent::start_with(Options { rootfs, ..Options::default() });
        ready(&agent);
        for path in ["/", "/metrics", "/api/v1/status", "/api/v1/timeline"] {
            let text = agent.get(path).unwrap().text();
            assert!(!text.contains("PLANTED"), "{path} of {file}: {text}");
        }
        assert!(!agent.log().contains("PLANTED"), "{file}: {}", agent.log());
    }
}

/// The page's text; figures change from one moment to the next.
fn words(browser: &mut Browser, url: &str, scripts: bool) -> String {
    let mut page = browser.open(url, View { width: 1600, dark: false, scripts });
    let text = page.evaluate("document.body.innerText");
    let text = text.as_str().unwrap();
    Regex::new(r"\b[0-9]+([.:][0-9]+)*( (ms|min|s|GB|MB|days|hours)\b)?")
        .unwrap()
        .replace_all(text, "N")
        .into_owned()
}

#[test]
fn the_page_is_one_file_that_reads_the_same_without_scripts() {
    let _turn = lab::together();
    let agent = fixture("k3s-etcd");
    let html = agent.get("/").unwrap().text();
    for part in ["<script", "<iframe", "<img", "@import", "url(", " onclick=", " src="] {
        assert!(!html.contains(part), "the page has {part}");
    }
    let url = format!("http://{}/", agent.address());
    let mut browser = Browser::start();
    let with = words(&mut browser, &url, true);
    assert!(with.contains("What is wrong, causes first") && with.contains("k3s-"), "{with}");
    assert_eq!(words(&mut browser, &url, false), with);
}

#[test]
fn a_page_on_a_wall_loads_itself_again_and_one_in_a_hand_does_not() {
    let _turn = lab::together();
    let agent = fixture("empty");
    let url = format!("http://{}/", agent.address());
    let view = View { width: 1600, dark: true, scripts: true };
    let mut browser = Browser::start();
    let mut page = browser.open(&format!("{url}?refresh=60"), view);
    let found = barriers(&mut page);
    // The one thing that it does is the one thing that axe-core finds.
    assert!(found.len() == 1 && found[0].contains("\"meta-refresh\""), "{found:?}");
    assert_eq!(page.evaluate("document.querySelector('a').innerText"), "stop");
    drop(page);
    let mut page = browser.open(&format!("{url}?refresh=5"), view);
    page.evaluate("document.title = 'old'");
    lab::wait_for("a new page", 20 * SECOND, || {
        let title = page.evaluate("document.readyState === 'complete' && document.title");
        if title == "old" { Err("the old one") } else { Ok(()) }.map_err(str::to_owned)
    });
    drop(page);
    for (query, seconds) in [("?refresh", 15), ("?a=b&refresh=1", 5), ("?refresh=x", 15)] {
        let html = agent.get(&format!("/{query}")).unwrap().text();
        assert!(html.contains(&format!("<meta http-equiv=refresh content={seconds}>")), "{query}");
    }
    let html = agent.get("/?x=refresh").unwrap().text();
    assert!(!html.contains("http-equiv=refresh"), "{html}");
    assert!(html.contains("<a href=\"?refresh=15\">"), "{html}");
}

#[test]
fn a_page_that_is_spoilt_is_noticed() {
    let _turn = lab::together();
    let agent = fixture("empty");
    let origin = format!("http://{}/", agent.address());
    let mut browser = Browser::start();
    let view = View { width: 390, dark: false, scripts: true };
    for (spoils, sign) in [
        ("document.querySelector('h1').style.color = '#ddd'", "color-contrast"),
        ("document.querySelector('h1').style.width = '900px'", "pixels"),
        ("console.warn('a word')", "a word"),
        ("setTimeout(() => { throw new Error('a fault') })", "a fault"),
        (
            "document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:1/'}))",
            "Content Security Policy",
        ),
    ] {
        let mut page = browser.open(&origin, view);
        let clean = faults(&mut page, &origin);
        assert!(clean.is_empty(), "{clean:?}");
        page.evaluate(&format!("{spoils}; 0"));
        lab::wait_for(spoils, 5 * SECOND, || {
            let mut found = faults(&mut page, &origin);
            found.extend(barriers(&mut page));
            let hit = found.iter().any(|text| text.contains(sign));
            hit.then_some(()).ok_or_else(|| format!("{found:?}"))
        });
    }
    // The page itself lets nothing out, so another one shows that this would be seen.
    let mut page = browser.open("data:text/html,<img src='http://127.0.0.1:1/'>", view);
    assert!(faults(&mut page, "data:").iter().any(|text| text == "it asks http://127.0.0.1:1/"));
}
