//! The port as others see it: formats, TLS, passwords, limits, and what is done about those who take their time.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Signal, getrlimit, setrlimit};

use crate::lab;
use crate::lab::agent::{Agent, Options, Scrape};
use crate::lab::http;
use crate::lab::pki::{Leaf, Pki};
use crate::lab::process::{self, Output, bound_command};
use crate::lab::prometheus::{Prometheus, Version};

const SECOND: Duration = Duration::from_secs(1);
const RELOAD_OK: &str = "controlplane_exporter_web_config_last_reload_successful";
const RELOADED: &str = "controlplane_exporter_web_config_last_reload_success_timestamp_seconds";
const SYNC: &str = "controlplane_fdatasync_duration_seconds";
const PROTOBUF: &str =
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";

/// A bcrypt hash as htpasswd makes it.
fn hash(password: &str, cost: u32) -> String {
    let parts = bcrypt::hash_with_result(password, cost).unwrap();
    parts.format_for_version(bcrypt::Version::TwoY)
}

/// A folder with certificates and a web configuration file.
struct Web {
    pki: Pki,
}

impl Web {
    fn new(text: &str) -> Self {
        let web = Self { pki: Pki::new() };
        web.write(text);
        web
    }

    /// With the server's certificate, and `rest` below it in the same section.
    fn tls(rest: &str) -> Self {
        Self::new(&Self::server(rest))
    }

    fn server(rest: &str) -> String {
        format!("tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n{rest}")
    }

    fn file(&self) -> PathBuf {
        self.pki.folder().join("web.yml")
    }

    fn write(&self, text: &str) {
        std::fs::write(self.file(), text).unwrap();
    }

    fn options(&self) -> Options {
        let args = vec!["--web.config.file".into(), self.file().display().to_string()];
        // Nothing else is to be watched.
        let rootfs = Some(self.pki.folder().to_owned());
        Options { rootfs, args, ..Options::default() }
    }

    fn agent(&self) -> Agent {
        Agent::start_with(self.options())
    }

    /// A request over TLS; the words are further arguments of curl.
    fn curl(&self, address: SocketAddr, path: &str, more: &[&str]) -> Answer {
        curl(&self.pki.ca, &format!("https://{address}{path}"), more)
    }
}

/// What curl saw.
#[derive(Debug)]
struct Answer {
    /// 0 when there was no answer.
    status: u16,
    http: String,
    output: Output,
}

fn curl(ca: &Path, url: &str, more: &[&str]) -> Answer {
    let mut command = bound_command(lab::program("curl"));
    command
        .args(["-q", "--silent", "--show-error", "--path-as-is", "--max-time", "20", "--cacert"])
        .arg(ca);
    command.args(["--write-out", "%{stderr}\n%{http_code} %{http_version}"]).args(more).arg(url);
    let output = process::output(command, 30 * SECOND);
    let last = output.stderr.lines().last().unwrap_or_default();
    let (status, http) = last.split_once(' ').unwrap_or_default();
    Answer { status: status.parse().unwrap_or(0), http: http.to_owned(), output }
}

fn with_cert(leaf: &Leaf) -> [String; 4] {
    let text = |path: &Path| path.display().to_string();
    ["--cert".into(), text(&leaf.cert), "--key".into(), text(&leaf.key)]
}

/// Whether openssl gets through a handshake, with what it printed.
fn handshake(address: SocketAddr, more: &[&str]) -> (bool, String) {
    let mut command = bound_command(lab::program("openssl"));
    command
        .args(["s_client", "-brief", "-connect", &address.to_string()])
        .args(more)
        .stdin(Stdio::null());
    let output = process::output(command, 20 * SECOND);
    let text = format!("{}{}", output.stdout, output.stderr);
    (output.status.success() && text.contains("CONNECTION ESTABLISHED"), text)
}

fn basic(user: &str, password: &str) -> String {
    use base64::Engine;
    let both = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    format!("Basic {both}")
}

fn ask(agent: &Agent, method: &str, path: &str, authorization: &str) -> http::Response {
    let headers = [("Authorization", authorization)];
    let headers = if authorization.is_empty() { &headers[..0] } else { &headers[..] };
    http::request(agent.address(), method, path, headers, 20 * SECOND).unwrap()
}

fn scrape(agent: &Agent, authorization: &str) -> Scrape {
    let response = ask(agent, "GET", "/metrics", authorization);
    assert_eq!(response.status, 200, "{}", response.text());
    Scrape::parse(&response.text()).unwrap()
}

#[test]
fn prometheus_2_and_3_take_native_histograms_beside_the_classic_ones() {
    let _turn = lab::together();
    let folder = lab::temp_dir("native");
    let config = format!("fdatasync: {{paths: ['{}'], interval: 100ms}}", folder.path().display());
    let agent = Agent::start(&config);
    agent.wait_until("syncs", SYNC, 20 * SECOND, |scrape| {
        scrape.sum(&format!("{SYNC}_count"), &[]) > 5.0
    });

    let headers = [("Accept", PROTOBUF), ("Accept-Encoding", "gzip")];
    let answer = http::request(agent.address(), "GET", "/metrics", &headers, 5 * SECOND).unwrap();
    assert_eq!(answer.header("content-type"), Some(PROTOBUF));
    assert_eq!(answer.header("vary"), Some("Accept, Accept-Encoding"));
    assert_eq!(answer.header("content-encoding"), Some("gzip"));

    for version in [Version::V2, Version::V3] {
        // Only the newer one can be told to take both.
        let both =
            if version == Version::V3 { ", always_scrape_classic_histograms: true" } else { "" };
        let config = format!(
            "global: {{scrape_interval: 1s}}\nscrape_configs: [{{job_name: agent{both}, \
             static_configs: [{{targets: ['{}']}}]}}]\n",
            agent.address()
        );
        let flags = ["--enable-feature=native-histograms".to_owned()];
        let prometheus = Prometheus::start_with(version, &config, &[], &flags);
        let quantile = |metric: &str| format!("histogram_quantile(0.9, rate({metric}[1m]))");
        let found = |answer: &[crate::lab::prometheus::Series]| {
            answer.len() == 1 && answer[0].value > 0.0 && answer[0].value < 60.0
        };
        let native = prometheus.wait_for(&quantile(SYNC), 30 * SECOND, found)[0].value;
        // Both count the same values; the native buckets are finer than the classic ones.
        let counted = prometheus.query(&format!("histogram_count({SYNC})"));
        assert_eq!(counted.len(), 1, "{version:?}: {counted:?}");
        let text = agent.scrape();
        assert!(counted[0].value <= text.sum(&format!("{SYNC}_count"), &[]), "{counted:?}");
        assert!(prometheus.query("controlplane_sampler_up").len() > 3, "{version:?}");
        assert_eq!(prometheus.query("up == 1").len(), 1, "{version:?}");
        if version == Version::V3 {
            let classic =
                prometheus.wait_for(&quantile(&format!("{SYNC}_bucket")), 30 * SECOND, found)[0]
                    .value;
            assert!(native < classic * 4.0 && classic < native * 4.0, "{native} {classic}");
            let counts = format!("histogram_count({SYNC}) == on(path) {SYNC}_count");
            prometheus.wait_for(&counts, 10 * SECOND, |answer| answer.len() == 1);
        }
    }
}

#[test]
fn tls_1_2_and_1_3_are_spoken_and_nothing_older() {
    let _turn = lab::together();
    let old = ["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"];
    for (rest, wanted) in [
        ("", [false, true, true]),
        ("  min_version: TLS13\n", [false, false, true]),
        ("  max_version: TLS12\n", [false, true, false]),
    ] {
        let web = Web::tls(rest);
        let agent = web.agent();
        for (args, wanted) in [&old[..], &["-tls1_2"], &["-tls1_3"]].into_iter().zip(wanted) {
            let (got, text) = handshake(agent.address(), args);
            assert_eq!(got, wanted, "{rest}{args:?}: {text}");
        }
        assert_eq!(web.curl(agent.address(), "/-/healthy", &[]).output.stdout, "healthy\n");
    }
}

#[test]
fn only_the_named_suites_and_curves_are_spoken() {
    let _turn = lab::together();
    let web = Web::tls(
        "  max_version: TLS12\n  cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256]\n  curve_preferences: [CurveP384]\n",
    );
    let agent = web.agent();
    // The certificate is one of P-256, so a client of TLS 1.2 has to name that, too.
    for (args, wanted) in [
        (&["-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"][..], true),
        (&["-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384"], false),
        (&["-curves", "P-256:P-384"], true),
        (&["-curves", "X25519:P-256"], false),
    ] {
        let (got, text) = handshake(agent.address(), args);
        assert_eq!(got, wanted, "{args:?}: {text}");
        assert!(!got || text.contains("secp384r1"), "{args:?}: {text}");
    }
}

#[test]
fn http_2_and_1_are_spoken_over_tls_and_2_can_be_switched_off() {
    let _turn = lab::together();
    let web = Web::tls(
        "http_server_config: {headers: {X-Frame-Options: deny, Strict-Transport-Security: max-age=1}}\n",
    );
    let agent = web.agent();
    let two = web.curl(agent.address(), "/metrics", &["--http2", "--dump-header", "-"]);
    assert_eq!((two.status, two.http.as_str()), (200, "2"), "{two:?}");
    assert!(two.output.stdout.contains("x-frame-options: deny\r\n"), "{}", two.output.stdout);
    assert!(
        two.output.stdout.contains("strict-transport-security: max-age=1\r\n"),
        "{}",
        two.output.stdout
    );
    assert!(two.output.stdout.contains(RELOAD_OK), "{}", two.output.stdout);
    let one = web.curl(agent.address(), "/metrics", &["--http1.1"]);
    assert_eq!((one.status, one.http.as_str()), (200, "1.1"), "{one:?}");
    let none = web.curl(agent.address(), "/nothing", &["--http2"]);
    assert_eq!(none.status, 404, "{none:?}");
    let huge = format!("X-Big: {}", "a".repeat(100_000));
    let huge = web.curl(agent.address(), "/metrics", &["--http2", "--header", &huge]);
    assert_ne!(huge.status, 200, "{huge:?}");

    let web = Web::tls("http_server_config: {http2: false}\n");
    let agent = web.agent();
    let one = web.curl(agent.address(), "/metrics", &["--http2"]);
    assert_eq!((one.status, one.http.as_str()), (200, "1.1"), "{one:?}");
}

#[test]
fn plain_http_on_a_tls_port_is_told_so() {
    let _turn = lab::together();
    let web = Web::tls("");
    let agent = web.agent();
    let response = agent.get("/metrics").unwrap();
    assert_eq!(response.status, 400);
    assert!(response.text().contains("HTTP request to an HTTPS server"), "{}", response.text());
}

#[test]
fn a_client_needs_a_valid_certificate_of_the_right_ca_where_one_is_required() {
    let _turn = lab::together();
    let mutual = "  client_ca_file: ca.crt\n  client_auth_type: RequireAndVerifyClientCert\n";
    let optional = "  client_ca_file: ca.crt\n  client_auth_type: VerifyClientCertIfGiven\n";
    for (rest, without) in [(mutual, 0), (optional, 200)] {
        let web = Web::tls(rest);
        let agent = web.agent();
        let code = |more: &[String]| {
            let more: Vec<&str> = more.iter().map(String::as_str).collect();
            web.curl(agent.address(), "/metrics", &more).status
        };
        assert_eq!(code(&[]), without, "{rest}: without one");
        assert_eq!(code(&with_cert(&web.pki.client)), 200, "{rest}: a good one");
        assert_eq!(code(&with_cert(&web.pki.client_expired)), 0, "{rest}: an expired one");
        assert_eq!(code(&with_cert(&web.pki.other_client)), 0, "{rest}: one of another CA");
        for tls in ["1.2", "1.3"] {
            let mut more = with_cert(&web.pki.other_client).to_vec();
            more.extend(["--tlsv1.2".into(), "--tls-max".into(), tls.into()]);
            assert_eq!(code(&more), 0, "{rest}: one of another CA over TLS {tls}");
        }
    }
}

#[test]
fn a_list_of_names_lets_in_only_those_on_it() {
    let _turn = lab::together();
    let mutual = "  client_ca_file: ca.crt\n  client_auth_type: RequireAndVerifyClientCert\n  client_allowed_sans: ";
    for (names, wanted) in [
        ("[one, localhost]", 200),
        ("['127.0.0.1']", 200),
        ("['::1']", 200),
        ("[one, local]", 0),
        ("[]", 0),
    ] {
        let web = Web::tls(&format!("{mutual}{names}\n"));
        let agent = web.agent();
        let code = |leaf: &Leaf| {
            let more = with_cert(leaf);
            web.curl(agent.address(), "/metrics", &more.each_ref().map(String::as_str)).status
        };
        // It has names, and the usage of a client.
        assert_eq!(code(&web.pki.server), wanted, "{names}");
        assert_eq!(code(&web.pki.client), 0, "{names}: one without names");
        // Half of a file, caught while an editor writes it, may end before the list.
        let (half, _) = mutual.split_once("  client_allowed_sans").unwrap();
        web.write(&Web::server(half));
        agent.signal(Signal::HUP);
        lab::wait_for("the refusal", 10 * SECOND, || {
            let text =
                "the list of names (client_allowed_sans) can be taken away by a restart only";
            if agent.log().contains(text) { Ok(()) } else { Err(agent.log()) }
        });
        assert_eq!(code(&web.pki.client), 0, "{names}: one without names, later");
    }
}

#[test]
fn a_certificate_that_signed_itself_can_be_its_own_ca() {
    let _turn = lab::together();
    let web =
        Web::tls("  client_ca_file: own.crt\n  client_auth_type: RequireAndVerifyClientCert\n");
    for name in ["own", "stranger"] {
        let at = web.pki.folder().join(name);
        let file = |end: &str| at.with_extension(end).display().to_string();
        let args = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=own -keyout";
        let (key, cert) = (file("key"), file("crt"));
        process::run("openssl", args.split(' ').chain([&*key, "-out", &*cert]));
    }
    let agent = web.agent();
    let leaf = |name: &str| {
        let at = web.pki.folder().join(name);
        with_cert(&Leaf { cert: at.with_extension("crt"), key: at.with_extension("key") })
    };
    for (name, wanted) in [("own", 200), ("stranger", 0)] {
        let answer =
            web.curl(agent.address(), "/metrics", &leaf(name).each_ref().map(String::as_str));
        assert_eq!(answer.status, wanted, "{name}: {answer:?}\n{}", agent.log());
    }
}

#[test]
fn every_page_is_behind_the_password_and_the_unix_socket_is_not() {
    let _turn = lab::together();
    let web = Web::new(&format!("basic_auth_users: {{alice: {}}}", hash("fine", 5)));
    let agent = web.agent();
    let good = basic("alice", "fine");
    let pages = [
        ("GET", "/", 200),
        ("GET", "/metrics", 200),
        ("GET", "/api/v1/status", 200),
        ("GET", "/api/v1/timeline", 200),
        ("GET", "/-/healthy", 200),
        ("POST", "/-/reload", 200),
        ("GET", "/-/reload", 405),
        ("GET", "/nothing", 404),
        ("GET", "/../../../etc/passwd", 404),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404),
        ("GET", "/metrics/../../etc/passwd", 404),
        ("GET", "//etc/passwd", 404),
        ("GET", "/api/v1/status/..%2f..%2fetc/passwd", 404),
    ];
    for (method, path, status) in pages {
        for bad in ["", &basic("alice", "fone"), &basic("bob", "fine"), "Bearer fine"] {
            let response = ask(&agent, method, path, bad);
            assert_eq!(response.status, 401, "{method} {path} {bad:?}");
            assert_eq!(response.header("www-authenticate"), Some("Basic"));
            assert_eq!(response.text(), "Unauthorized\n");
        }
        let response = ask(&agent, method, path, &good);
        assert_eq!(response.status, status, "{method} {path}: {}", response.text());
        assert!(!response.text().contains("root:"), "{path}");
    }
    let mut socket = UnixStream::connect(agent.config_file().with_file_name("agent.sock")).unwrap();
    socket
        .write_all(b"GET /api/v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
}

fn resident_kib(agent: &Agent) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn a_thousand_wrong_passwords_cost_no_memory_and_hold_up_nobody_who_is_known() {
    let _turn = lab::together();
    let web = Web::new(&format!("basic_auth_users: {{alice: {}}}", hash("fine", 6)));
    let agent = web.agent();
    let good = basic("alice", "fine");
    scrape(&agent, &good);
    let guess = |from: u32, to: u32| {
        for n in from..to {
            let user = if n % 2 == 0 { "alice" } else { "mallory" };
            let status = ask(&agent, "GET", "/metrics", &basic(user, &format!("guess {n}"))).status;
            assert!([401, 503].contains(&status), "{status}");
        }
    };
    guess(0, 100);
    let before = resident_kib(&agent);
    std::thread::scope(|scope| {
        let guessing: Vec<_> =
            (1..=9).map(|part| scope.spawn(move || guess(part * 100, part * 100 + 100))).collect();
        let mut scrapes = 0;
        while !guessing.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            let started = Instant::now();
            scrape(&agent, &good);
            assert!(started.elapsed() < 3 * SECOND, "{:?}", started.elapsed());
            scrapes += 1;
        }
        assert!(scrapes > 2, "{scrapes}");
    });
    let after = resident_kib(&agent);
    assert!(after < before + 3 * 1024, "{before} KiB before, {after} KiB after");
}

#[test]
fn too_many_requests_are_told_so() {
    let _turn = lab::together();
    let web = Web::new("rate_limit: {interval: 1h, burst: 5}");
    let agent = web.agent();
    let statuses: Vec<u16> = (0..8).map(|_| agent.get("/-/healthy").unwrap().status).collect();
    let refused = statuses.iter().filter(|status| **status == 429).count();
    // The laboratory itself has asked once or more.
    assert!((4..=7).contains(&refused) && statuses.ends_with(&[429, 429]), "{statuses:?}");
}

#[test]
fn who_does_not_end_a_handshake_or_begin_a_request_is_cut_off() {
    let _turn = lab::together();
    let web = Web::tls("");
    let agent = web.agent();
    let started = Instant::now();
    let connect = |first: &[u8]| {
        let mut stream = TcpStream::connect(agent.address()).unwrap();
        stream.set_read_timeout(Some(20 * SECOND)).unwrap();
        stream.write_all(first).unwrap();
        stream
    };
    let waiting =
        [("silent", connect(b"")), ("a record's beginning", connect(&[22, 3, 1, 1, 0, 1]))];
    // These end the handshake, and then say nothing.
    let spoken: Vec<_> = ["h2", "http/1.1"]
        .map(|protocol| {
            let mut command = bound_command(lab::program("openssl"));
            command.args([
                "s_client",
                "-quiet",
                "-alpn",
                protocol,
                "-connect",
                &agent.address().to_string(),
            ]);
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
            (protocol, process::spawn(command))
        })
        .into();
    // One byte now and then buys no time.
    let mut dripping = connect(&[22, 3, 1, 2, 0]);
    while started.elapsed() < 9 * SECOND {
        dripping.write_all(&[1]).unwrap();
        std::thread::sleep(SECOND / 4);
    }
    for (what, mut stream) in waiting.into_iter().chain([("drips", dripping)]) {
        let mut rest = Vec::new();
        // A reset is an end as well.
        stream.read_to_end(&mut rest).ok();
        let after = started.elapsed();
        assert!(after > 9 * SECOND && after < 14 * SECOND, "{what}: {after:?}");
    }
    for (protocol, mut child) in spoken {
        let ended = lab::wait_for("the end of a silent connection", 10 * SECOND, || {
            child.try_wait().unwrap().ok_or_else(|| format!("{protocol} is still there"))
        });
        let after = started.elapsed();
        assert!(after > 9 * SECOND && after < 18 * SECOND, "{protocol}: {ended} after {after:?}");
    }
}

#[test]
fn a_thousand_idle_connections_are_bounded_and_gone_after_ten_seconds() {
    let _turn = lab::together();
    // Of this test program, for its side of the connections.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, rustix::process::Rlimit { current: limit.maximum, ..limit })
        .unwrap();
    for web in [None, Some(Web::tls(""))] {
        let agent = web.as_ref().map_or_else(|| Agent::start(""), Web::agent);
        let idle: Vec<_> = (0..1_000).map(|_| TcpStream::connect(agent.address())).collect();
        assert!(idle.iter().filter(|stream| stream.is_ok()).count() > 900);
        let open = || std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count();
        lab::wait_for("its connections", 7 * SECOND, || {
            if open() >= 400 { Ok(()) } else { Err(format!("{} descriptors", open())) }
        });
        std::thread::sleep(SECOND);
        assert!(open() < 700, "{} descriptors", open());
        // The node's own check has its own door.
        let socket = agent.config_file().with_file_name("agent.sock");
        let mut check = UnixStream::connect(socket).unwrap();
        check.write_all(b"GET /-/healthy HTTP/1.0\r\n\r\n").unwrap();
        let mut text = String::new();
        check.read_to_string(&mut text).unwrap();
        assert!(text.ends_with("healthy\n"), "{text}");
        lab::wait_for("an answer", 20 * SECOND, || match &web {
            None => agent.get("/metrics").map(|response| assert_eq!(response.status, 200)),
            Some(web) => {
                let answer = web.curl(agent.address(), "/metrics", &["--max-time", "5"]);
                if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
            }
        });
        drop(idle);
    }
}

#[test]
fn a_burst_of_clients_is_kept_until_the_agent_lets_them_in() {
    let _turn = lab::together();
    let agent = Agent::start("");
    agent.signal(Signal::STOP);
    let mut burst: Vec<_> = (0..400)
        .map(|_| TcpStream::connect_timeout(&agent.address(), 5 * SECOND))
        .enumerate()
        .map(|(n, client)| client.unwrap_or_else(|error| panic!("client {n}: {error}")))
        .collect();
    agent.signal(Signal::CONT);
    for client in &mut burst {
        client.set_read_timeout(Some(10 * SECOND)).unwrap();
        exchange(client);
    }
}

/// What one request over a kept connection is answered with, headers and all.
fn exchange(stream: &mut (impl Read + Write)) -> String {
    stream.write_all(b"GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut text = String::new();
    let mut part = [0; 1024];
    while !text.ends_with("healthy\n") {
        let n = stream.read(&mut part).unwrap();
        assert!(n > 0, "closed after {text:?}");
        text.push_str(std::str::from_utf8(&part[..n]).unwrap());
    }
    text
}

#[test]
fn six_hundred_idle_clients_lock_nobody_out_of_the_port_nor_of_the_socket() {
    let _turn = lab::together();
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, rustix::process::Rlimit { current: limit.maximum, ..limit })
        .unwrap();
    let agent = Agent::start("");
    let tcp = || {
        let stream = TcpStream::connect(agent.address()).unwrap();
        stream.set_read_timeout(Some(10 * SECOND)).unwrap();
        stream
    };
    let unix = || {
        let stream = UnixStream::connect(agent.socket()).unwrap();
        stream.set_read_timeout(Some(10 * SECOND)).unwrap();
        stream
    };
    // Each asks once and stays.
    let mut ports: Vec<_> = (0..600)
        .map(|_| {
            let mut stream = tcp();
            exchange(&mut stream);
            stream
        })
        .collect();
    let sockets: Vec<_> = (0..600)
        .map(|_| {
            let mut stream = unix();
            exchange(&mut stream);
            stream
        })
        .collect();
    for _ in 0..20 {
        let started = Instant::now();
        assert_eq!(agent.get("/metrics").unwrap().status, 200);
        exchange(&mut unix());
        assert!(started.elapsed() < 2 * SECOND, "{:?}", started.elapsed());
    }
    // Those that came last are still there, and the count is what it was.
    exchange(ports.last_mut().unwrap());
    let open = std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count();
    assert!((1_000..1_200).contains(&open), "{open} descriptors");
    drop(sockets);
}

#[test]
fn half_a_request_behind_a_whole_one_is_cut_off_like_any_other() {
    let _turn = lab::together();
    let agent = Agent::start("");
    let whole = "GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n";
    let started = Instant::now();
    let begin = |text: String| {
        let mut stream = TcpStream::connect(agent.address()).unwrap();
        stream.set_read_timeout(Some(16 * SECOND)).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    };
    let mut half = begin(format!("{whole}{}", &whole[..20]));
    let mut idle = begin(whole.to_owned());
    let mut text = String::new();
    half.read_to_string(&mut text).unwrap();
    let after = started.elapsed();
    assert!(text.ends_with("healthy\n"), "{text}");
    assert!(after > 9 * SECOND && after < 14 * SECOND, "{after:?}");
    // An idle one may stay.
    exchange(&mut idle);
}

/// A client that asks for the figures so many times and never reads an answer.
fn deaf(agent: &Agent, requests: usize) -> TcpStream {
    use rustix::net::{AddressFamily, SocketType, connect, socket, sockopt};
    let stream = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    sockopt::set_socket_recv_buffer_size(&stream, 4096).unwrap();
    connect(&stream, &agent.address()).unwrap();
    let mut stream = TcpStream::from(stream);
    let all = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(requests);
    stream.write_all(all.as_bytes()).unwrap();
    stream
}

#[test]
fn one_request_more_than_web_max_requests_is_told_so_and_the_health_is_not_counted() {
    let _turn = lab::together();
    let web = Web::tls("");
    let mut options = web.options();
    options.args.push("--web.max-requests=1".into());
    let agent = Agent::start_with(options);
    let answers = |wanted: u16| {
        lab::wait_for(&format!("an answer {wanted}"), 10 * SECOND, || {
            let answer = web.curl(agent.address(), "/metrics", &[]);
            if answer.status == wanted { Ok(answer) } else { Err(answer.status.to_string()) }
        })
    };
    answers(200);
    // A client of HTTP/2 that asks for the figures and takes no byte of a body: its windows are of size 0.
    let frames: [&[u8]; 6] = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        &[0, 0, 6, 4, 0, 0, 0, 0, 0],
        &[0, 4, 0, 0, 0, 0],
        &[0, 0, 15, 1, 5, 0, 0, 0, 1],
        b"\x82\x87\x04\x08/metrics",
        b"\x01\x01x",
    ];
    let mut command = bound_command(lab::program("openssl"));
    command.args(["s_client", "-quiet", "-alpn", "h2", "-connect", &agent.address().to_string()]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut holds = process::spawn(command);
    let mut to = holds.stdin.take().unwrap();
    to.write_all(&frames.concat()).unwrap();
    let refused = answers(503);
    assert!(refused.output.stdout.contains("web.max_requests"), "{refused:?}");
    for (path, status) in [("/", 503), ("/metrics", 503), ("/-/healthy", 200)] {
        assert_eq!(web.curl(agent.address(), path, &[]).status, status, "{path}");
    }
    holds.kill().unwrap();
    holds.wait().unwrap();
    answers(200);
}

#[test]
fn who_never_reads_is_cut_off_and_holds_up_nobody() {
    let _turn = lab::together();
    let agent = Agent::start("");
    // Its connections that are established (01), and not given up by it.
    let here = format!(" 0100007F:{:04X} ", agent.address().port());
    let connections = || {
        let all = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let open = |line: &&str| {
            let state = line.split_whitespace().nth(3);
            line.find(&here).is_some_and(|at| at < 10) && state == Some("01")
        };
        all.lines().filter(open).count()
    };
    let started = Instant::now();
    let streams: Vec<_> = (0..8).map(|_| deaf(&agent, 200)).collect();
    lab::wait_for("eight connections", 5 * SECOND, || {
        if connections() >= 8 { Ok(()) } else { Err(connections().to_string()) }
    });
    lab::wait_for("the end of those that do not read", 45 * SECOND, || {
        let asked = Instant::now();
        assert_eq!(agent.get("/metrics")?.status, 200);
        assert!(asked.elapsed() < 2 * SECOND, "{:?}", asked.elapsed());
        std::thread::sleep(SECOND / 5);
        if connections() == 0 { Ok(()) } else { Err(connections().to_string()) }
    });
    assert!(started.elapsed() > 10 * SECOND, "{:?}", started.elapsed());
    drop(streams);
}

#[test]
fn a_reload_takes_both_files_or_neither() {
    let _turn = lab::together();
    let good = "http_server_config: {headers: {X-Frame-Options: deny}}\n";
    let web = Web::new(good);
    let off = [("sampler", "snap"), ("state", "off")];
    let agent =
        Agent::start_with(Options { config: "log: {level: info}\n".into(), ..web.options() });
    let is_off = || agent.scrape().value("controlplane_sampler_state_info", &off).is_some();
    let ok = || agent.scrape().value("controlplane_exporter_config_last_reload_successful", &[]);
    let reload = || ask(&agent, "POST", "/-/reload", "");
    agent.write_config("snap: {enabled: false}\n");
    web.write("http_server_config: {nonsense: 1}\n");
    let refused = reload();
    assert_eq!(refused.status, 500, "{}", refused.text());
    assert!(refused.text().starts_with("kept the old configuration: "), "{}", refused.text());
    assert!(refused.text().contains("nonsense"), "{}", refused.text());
    // What is applied is seen within the time that a body is used again.
    std::thread::sleep(SECOND);
    assert!(!is_off() && ok() == Some(0.0), "the good file was taken although the answer said no");
    web.write(good);
    let taken = reload();
    assert_eq!((taken.status, taken.text().as_str()), (200, "reloaded\n"));
    assert!(is_off() && ok() == Some(1.0), "answered before it was applied");
    // A web configuration that alone is wrong keeps nothing else out.
    web.write("http_server_config: {nonsense: 1}\n");
    assert_eq!(reload().status, 500);
    assert_eq!(ok(), Some(1.0));
}

/// An agent that reads a configuration file for which nobody answers, as on a disk that hangs: a reload takes the three
/// seconds after which it gives up.
fn slow_to_reload() -> Agent {
    let agent = Agent::start("snap: {enabled: false}\n");
    std::fs::remove_file(agent.config_file()).unwrap();
    process::run("mkfifo", [agent.config_file().to_str().unwrap()]);
    agent
}

#[test]
fn six_hundred_clients_that_want_a_reload_share_two_and_hold_up_nobody() {
    let _turn = lab::together();
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, rustix::process::Rlimit { current: limit.maximum, ..limit })
        .unwrap();
    let agent = slow_to_reload();
    let started = Instant::now();
    let clients: Vec<_> = (0..600)
        .map(|_| {
            let mut stream = TcpStream::connect(agent.address()).unwrap();
            stream.set_read_timeout(Some(10 * SECOND)).unwrap();
            stream.write_all(b"POST /-/reload HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            stream
        })
        .collect();
    for _ in 0..10 {
        let asked = Instant::now();
        assert_eq!(agent.get("/-/healthy").unwrap().status, 200);
        // A reload takes three.
        assert!(asked.elapsed() < 2 * SECOND, "{:?}", asked.elapsed());
    }
    let answers: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            let mut part = [0; 1024];
            let n = client.read(&mut part).unwrap_or_default();
            String::from_utf8_lossy(&part[..n]).into_owned()
        })
        .collect();
    let told = |answer: &&String| {
        answer.starts_with("HTTP/1.1 503 ") && answer.contains("a reload is under way; ask again")
    };
    let told = answers.iter().filter(told).count();
    assert!(told > 400, "{told} were told to ask again");
    // Those of the reload under way, and those that waited for the next.
    let reloaded = answers.iter().filter(|answer| answer.starts_with("HTTP/1.1 500 ")).count();
    assert!((2..60).contains(&reloaded), "{reloaded} had a reload's answer");
    assert!(started.elapsed() < 12 * SECOND, "{:?}", started.elapsed());
    let reloads = agent.log().matches("the old one stays").count();
    assert!((2..=3).contains(&reloads), "{reloads} reloads\n{}", agent.log());
}

#[test]
fn who_stops_the_agent_does_not_wait_for_a_reload() {
    let _turn = lab::together();
    let mut agent = slow_to_reload();
    let address = agent.address();
    let waiting = std::thread::spawn(move || {
        drop(http::request(address, "POST", "/-/reload", &[], 10 * SECOND));
    });
    std::thread::sleep(SECOND / 2);
    // It waits for the one under way to end, and for its own: five seconds and more.
    agent.signal(Signal::HUP);
    std::thread::sleep(SECOND / 4);
    assert_eq!(agent.stop(4 * SECOND).code(), Some(0));
    waiting.join().unwrap();
}

/// The answer to one request for the figures over a kept connection.
fn figures(stream: &mut TcpStream) -> Scrape {
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let (mut bytes, mut part) = (Vec::new(), [0; 4096]);
    loop {
        let n = stream.read(&mut part).unwrap();
        assert!(n > 0, "closed after {} bytes", bytes.len());
        bytes.extend_from_slice(&part[..n]);
        let Ok(text) = std::str::from_utf8(&bytes) else { continue };
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if body.len() == length.unwrap().parse::<usize>().unwrap() {
            return Scrape::parse(body).unwrap();
        }
    }
}

#[test]
fn an_agent_without_a_descriptor_left_does_not_call_its_target_down() {
    const UP: &str = "controlplane_apiserver_up";
    let _turn = lab::together();
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let target = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // The agent may have hung up.
            let request = stream.read(&mut [0; 1024]);
            drop(request);
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").ok();
        }
    });
    let config = format!(
        "apiserver: {{urls: {{balancer: 'http://{target}/'}}, interval: 200ms, timeout: 1s}}\n"
    );
    let through = ["prlimit", "--nofile=64:64"].map(str::to_owned).into();
    let agent = Agent::start_with(Options { config, through, ..Options::default() });
    let name = [("target", "balancer")];
    agent.wait_value(UP, &name, 1.0, 10 * SECOND);
    let mut kept = TcpStream::connect(agent.address()).unwrap();
    kept.set_read_timeout(Some(10 * SECOND)).unwrap();
    figures(&mut kept);
    let many: Vec<_> = (0..150).map(|_| TcpStream::connect(agent.address()).unwrap()).collect();
    // Not even the last verdict stays.
    lab::wait_for("a run that failed", 9 * SECOND, || {
        let scrape = figures(&mut kept);
        let verdict = scrape.value(UP, &name);
        assert_ne!(verdict, Some(0.0));
        let ran = scrape.value("controlplane_sampler_up", &[("sampler", "apiserver")]);
        if (ran, verdict) == (Some(0.0), None) { Ok(()) } else { Err(format!("{ran:?}")) }
    });
    drop(many);
    agent.wait_value(UP, &name, 1.0, 15 * SECOND);
}

#[test]
fn the_limit_of_open_files_is_raised_as_far_as_it_may_be() {
    let _turn = lab::together();
    for (given, wanted) in [("1024:4096", 4_096.0), ("1024:9000", 8_192.0), ("64:64", 64.0)] {
        let through = vec!["prlimit".to_owned(), format!("--nofile={given}")];
        let agent = Agent::start_with(Options { through, ..Options::default() });
        agent.wait_value("process_max_fds", &[], wanted, 10 * SECOND);
    }
}

#[test]
fn headers_of_sixteen_kibibytes_are_too_long_and_those_of_a_token_are_not() {
    let _turn = lab::together();
    let agent = Agent::start("");
    let status = |length: usize| {
        let long = "a".repeat(length);
        let headers = [("X-Big", long.as_str())];
        http::request(agent.address(), "GET", "/-/healthy", &headers, 5 * SECOND).unwrap().status
    };
    assert_eq!((status(8_000), status(17_000)), (200, 431));
    let web = Web::tls("");
    let agent = web.agent();
    let status = |length: usize| {
        let header = format!("X-Big: {}", "a".repeat(length));
        web.curl(agent.address(), "/-/healthy", &["--http2", "--header", &header]).status
    };
    assert_eq!(status(6_000), 200);
    assert_ne!(status(9_000), 200);
}

#[test]
fn a_mebibyte_of_headers_is_refused_and_nothing_breaks() {
    let _turn = lab::together();
    let agent = Agent::start("");
    let mut stream = TcpStream::connect(agent.address()).unwrap();
    stream.set_read_timeout(Some(10 * SECOND)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n").unwrap();
    let line = format!("X-Big: {}\r\n", "a".repeat(1_000));
    for _ in 0..1_024 {
        // The agent may have hung up already.
        if stream.write_all(line.as_bytes()).is_err() {
            break;
        }
    }
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok();
    let text = String::from_utf8_lossy(&answer);
    assert!(text.starts_with("HTTP/1.1 431 "), "{text:?}");
    agent.scrape();
}

/// Waits until the agent has read its files by itself.
fn until_reread(agent: &Agent, good: &str, wanted: f64) {
    lab::wait_for(&format!("{RELOAD_OK} {wanted}"), 25 * SECOND, || {
        let scrape = scrape(agent, good);
        if scrape.value(RELOAD_OK, &[]) == Some(wanted) {
            Ok(())
        } else {
            Err(scrape.with_prefix(RELOAD_OK))
        }
    });
}

#[test]
fn passwords_change_without_a_restart_and_a_wrong_file_keeps_the_last_good_one() {
    let _turn = lab::together();
    let users = |password: &str| format!("basic_auth_users: {{alice: {}}}", hash(password, 4));
    let web = Web::new(&users("old"));
    let agent = web.agent();
    let (old, new) = (basic("alice", "old"), basic("alice", "new"));
    let first = scrape(&agent, &old);
    assert_eq!(first.value(RELOAD_OK, &[]), Some(1.0));
    let time = first.value(RELOADED, &[]).unwrap();

    // The agent finds out by itself; whoever was let in before is out.
    web.write(&users("new"));
    lab::wait_for("the new password", 25 * SECOND, || {
        let status = ask(&agent, "GET", "/metrics", &new).status;
        if status == 200 { Ok(()) } else { Err(status.to_string()) }
    });
    assert_eq!(ask(&agent, "GET", "/metrics", &old).status, 401);
    assert!(scrape(&agent, &new).value(RELOADED, &[]).unwrap() > time);

    // A reload does not wait for that, and says what is wrong.
    for (text, what) in [
        ("basic_auth_users: {alice: secret123}", "basic_auth_users.alice"),
        ("basic_auth_user: {}", "basic_auth_user: unknown key"),
        ("", "passwords can be taken away by a restart only"),
        ("a: [", "web.yml"),
    ] {
        web.write(text);
        let answer = ask(&agent, "POST", "/-/reload", &new);
        assert_eq!(answer.status, 500);
        assert!(
            answer.text().contains(what) && !answer.text().contains("secret123"),
            "{}",
            answer.text()
        );
        assert_eq!(scrape(&agent, &new).value(RELOAD_OK, &[]), Some(0.0), "{text}");
    }
    std::fs::remove_file(web.file()).unwrap();
    assert!(ask(&agent, "POST", "/-/reload", &new).text().contains("No such file"));
    assert_eq!(ask(&agent, "GET", "/metrics", "").status, 401);
    web.write(&users("new"));
    until_reread(&agent, &new, 1.0);
    assert_eq!(agent.log().matches("web.yml: No such file").count(), 1, "{}", agent.log());
}

#[test]
fn certificates_change_without_a_restart_and_a_missing_one_keeps_the_last_good_one() {
    let _turn = lab::together();
    let web = Web::tls("");
    let agent = web.agent();
    let status = |ca: &Path| curl(ca, &format!("https://{}/metrics", agent.address()), &[]);
    let gauge = || Scrape::parse(&status(&web.pki.ca).output.stdout).unwrap().value(RELOAD_OK, &[]);
    assert_eq!(gauge(), Some(1.0));
    let reload = |what: &str, wanted: u16| {
        let answer = web.curl(agent.address(), "/-/reload", &["--request", "POST"]);
        assert_eq!(answer.status, wanted, "{what}: {answer:?}");
        answer.output.stdout
    };

    let other = Pki::new();
    std::fs::remove_file(&web.pki.server.key).unwrap();
    assert!(reload("no key", 500).contains("tls_server_config.key_file"));
    assert_eq!(gauge(), Some(0.0));
    std::fs::copy(&other.server.key, &web.pki.server.key).unwrap();
    assert!(reload("another key", 500).contains("the key is not that of the certificate"));
    assert_eq!(gauge(), Some(0.0));
    web.write("");
    assert!(reload("no TLS", 500).contains("TLS can be taken away by a restart only"));
    web.write(&Web::server(""));

    // Now the certificate comes, too.
    std::fs::copy(&other.server.cert, &web.pki.server.cert).unwrap();
    lab::wait_for("the new certificate", 25 * SECOND, || {
        let answer = status(&other.ca);
        if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
    });
    assert_eq!(status(&web.pki.ca).status, 0, "the old CA knows nothing of it");
    let text = status(&other.ca).output.stdout;
    assert_eq!(Scrape::parse(&text).unwrap().value(RELOAD_OK, &[]), Some(1.0));
}

#[test]
fn no_password_and_no_key_is_shown_anywhere() {
    let _turn = lab::together();
    let web = Web::new("");
    let text = |path: &Path| std::fs::read_to_string(path).unwrap();
    let indented =
        |text: &str| text.lines().map(|line| format!("    {line}\n")).collect::<String>();
    let (cert, key) = (text(&web.pki.server.cert), text(&web.pki.server.key));
    let hash = hash("plainsecret", 4);
    web.write(&format!(
        "tls_server_config:\n  cert: |\n{}  key: |\n{}basic_auth_users: {{alice: {hash}}}\n",
        indented(&cert),
        indented(&key)
    ));
    let mut options = web.options();
    options.args.push("--log.level=debug".into());
    let agent = Agent::start_with(options);
    let mut shown = String::new();
    for path in ["/", "/metrics", "/api/v1/status", "/api/v1/timeline"] {
        let answer = web.curl(agent.address(), path, &["--user", "alice:plainsecret"]);
        assert_eq!(answer.status, 200, "{answer:?}");
        shown.push_str(&answer.output.stdout);
    }
    web.curl(agent.address(), "/metrics", &["--user", "alice:wrongsecret"]);
    web.write("basic_auth_users: {alice: hashsecret}");
    let reload = web.curl(
        agent.address(),
        "/-/reload",
        &["--user", "alice:plainsecret", "--request", "POST"],
    );
    assert_eq!(reload.status, 500, "{reload:?}");
    shown.push_str(&reload.output.stdout);
    shown.push_str(&agent.log());
    for command in ["config", "inspect"] {
        let mut program = Command::new(env!("CARGO_BIN_EXE_controlplane-exporter"));
        let output = program.args(&web.options().args).arg(command).output().unwrap();
        shown.push_str(&String::from_utf8_lossy(&output.stdout));
        shown.push_str(&String::from_utf8_lossy(&output.stderr));
    }
    assert!(shown.contains("web.yml"), "{shown}");
    let line = key.lines().nth(1).unwrap();
    for secret in ["plainsecret", "wrongsecret", "hashsecret", &hash[7..], line] {
        assert!(!shown.contains(secret), "{secret}");
    }
}

#[test]
fn a_wrong_web_configuration_is_an_error_at_start_with_file_and_key() {
    let _turn = lab::together();
    let web = Web::new("");
    let file = web.file().display().to_string();
    let garbled = web.pki.folder().join("garbled.crt");
    std::fs::write(&garbled, "-----BEGIN CERTIFICATE-----\nAAAA\n").unwrap();
    let tls = |cert: &str, key: &str, rest: &str| {
        format!("tls_server_config: {{cert_file: {cert}, key_file: {key}{rest}}}")
    };
    let mutual = ", client_auth_type: RequireAndVerifyClientCert, client_ca_file: ";
    for (text, what) in [
        (
            "tls_server_config: {cert_filse: a}".to_owned(),
            "tls_server_config.cert_filse: unknown key",
        ),
        (tls("none.crt", "server.key", ""), "tls_server_config.cert_file: "),
        (tls("server.crt", "none.key", ""), "/none.key: No such file"),
        (tls("server.crt", "client.key", ""), "tls_server_config.key_file: the key is not that"),
        (tls("server.key", "server.key", ""), "tls_server_config.cert_file: holds no certificate"),
        (
            tls("garbled.crt", "server.key", ""),
            "tls_server_config.cert_file: holds no certificate in PEM form: it is cut off",
        ),
        (tls("server.crt", "server.crt", ""), "tls_server_config.key_file: holds no private key"),
        (
            tls("server.crt", "server.key", &format!("{mutual}none.crt")),
            "tls_server_config.client_ca_file: ",
        ),
        (
            tls("server.crt", "server.key", &format!("{mutual}/dev/null")),
            "tls_server_config.client_ca_file: holds no certificate",
        ),
        (
            tls(
                "server.crt",
                "server.key",
                ", max_version: TLS12, cipher_suites: [TLS_AES_128_GCM_SHA256]",
            ),
            "tls_server_config.cipher_suites: ",
        ),
        ("basic_auth_users: {a: b}".to_owned(), "basic_auth_users.a: is no bcrypt hash"),
    ] {
        web.write(&text);
        for command in [&[][..], &["config"]] {
            let mut program = Command::new(env!("CARGO_BIN_EXE_controlplane-exporter"));
            program
                .args(&web.options().args)
                .args(["--web.listen-address", "127.0.0.1:0"])
                .args(command);
            let output = program.output().unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{text} {command:?}: {stderr}");
            assert!(
                stderr.contains(&file) && stderr.contains(what),
                "{text} {command:?}: {stderr}"
            );
        }
    }
}

#[test]
fn prometheus_scrapes_with_a_certificate_and_a_password() {
    let _turn = lab::together();
    let web = Web::tls(&format!(
        "  client_ca_file: ca.crt\n  client_auth_type: RequireAndVerifyClientCert\nbasic_auth_users: {{alice: {}}}\n",
        hash("fine", 10)
    ));
    let agent = web.agent();
    let (ca, cert, key) = (&web.pki.ca, &web.pki.client.cert, &web.pki.client.key);
    for (version, password, up) in
        [(Version::V2, "fine", 1), (Version::V3, "fine", 1), (Version::V3, "fone", 0)]
    {
        let config = format!(
            "global: {{scrape_interval: 1s}}\nscrape_configs: [{{job_name: agent, scheme: https, \
             tls_config: {{ca_file: '{}', cert_file: '{}', key_file: '{}'}}, \
             basic_auth: {{username: alice, password: {password}}}, static_configs: [{{targets: ['{}']}}]}}]\n",
            ca.display(),
            cert.display(),
            key.display(),
            agent.address()
        );
        let prometheus = Prometheus::start_with(version, &config, &[], &[]);
        // A scrape has a second here, and on a busy machine the first password may take longer.
        let seen = format!("up == {up} and count_over_time(up[1m]) > 2");
        prometheus.wait_for(&seen, 30 * SECOND, |answer| answer.len() == 1);
        let never = prometheus.query("max_over_time(up[1m]) == 0").len();
        assert_eq!(never, 1 - up, "{version:?} {password}");
    }
}

#[test]
fn the_shipped_example_is_taken_as_it_is_and_with_all_it_offers() {
    let _turn = lab::together();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/web-config.yaml");
    let text = std::fs::read_to_string(path).unwrap();
    // What is offered stands behind `#` without a space; what explains it has one.
    let all: String = text
        .lines()
        .map(|line| match line.trim_start().strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') => line.replacen('#', "", 1) + "\n",
            _ => format!("{line}\n"),
        })
        .collect();
    assert_ne!(all, text);
    for (text, wanted) in [(&text, 200), (&all, 0)] {
        let web = Web::new(text);
        let agent = web.agent();
        assert_eq!(
            web.curl(agent.address(), "/metrics", &[]).status,
            wanted,
            "{text}\n{}",
            agent.log()
        );
        let mine = with_cert(&web.pki.server);
        let known = web.curl(agent.address(), "/metrics", &mine.each_ref().map(String::as_str));
        // All of it asks for a password as well.
        assert_eq!(known.status, if wanted == 200 { 200 } else { 401 }, "{text}\n{known:?}");
    }
}
