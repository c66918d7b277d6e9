//! Sampler `apiserver` against something that answers over real TLS as an API server does, and in every way that one can
//! fail. It is no API server; its texts are those that kube-apiserver 1.33 prints.

use std::time::Duration;

use crate::lab;
use crate::lab::agent::{Agent, Options};
use crate::lab::apiserver::{ApiServer, Mood};
use crate::lab::pki::{Leaf, Pki};
use crate::lab::process::{bound_command, output};

const SECOND: Duration = Duration::from_secs(1);
const UP: &str = "controlplane_apiserver_up";
const STATE: &str = "controlplane_apiserver_state";
const FAILURES: &str = "controlplane_apiserver_request_failures_total";
const CHECK: &str = "controlplane_apiserver_failing_check_info";

fn agent(server: &ApiServer, pki: &Pki, client: Option<&Leaf>, more: &str) -> Agent {
    let pair = client.map_or(String::new(), |leaf| {
        format!(", cert_file: {}, key_file: {}", leaf.cert.display(), leaf.key.display())
    });
    let config = format!(
        "apiserver: {{url: '{}', ca_file: {}{pair}, interval: 300ms, timeout: 1s{more}}}\n\
         snap: {{enabled: false}}\nsystemd: {{enabled: false}}\nkernel: {{enabled: false}}\n",
        server.url(),
        pki.ca.display()
    );
    Agent::start_with(Options { config, ..Options::default() })
}

fn state(endpoint: &'static str, state: &'static str) -> [(&'static str, &'static str); 3] {
    [("target", "local"), ("type", endpoint), ("state", state)]
}

#[test]
fn a_server_that_is_well_fails_its_checks_and_is_well_again() {
    let _turn = lab::together();
    let pki = Pki::new();
    let server = ApiServer::start(&pki, &pki.server);
    let agent = agent(&server, &pki, Some(&pki.client), "");
    let scrape = agent.wait_value(STATE, &state("readyz", "ok"), 1.0, 10 * SECOND);
    for endpoint in ["livez", "healthz"] {
        assert_eq!(scrape.value(STATE, &state(endpoint, "ok")), Some(1.0), "{}", scrape.text);
        assert_eq!(scrape.value(STATE, &state(endpoint, "failing")), Some(0.0));
    }
    assert_eq!(scrape.value(UP, &[("target", "local")]), Some(1.0));
    assert!(scrape.all(CHECK, &[]).is_empty());
    assert!(server.asked().iter().all(|(_, known)| *known), "{:?}", server.asked());

    server.set(Mood::NoEtcd);
    let scrape = agent.wait_value(STATE, &state("readyz", "failing"), 1.0, 10 * SECOND);
    let check = |name| [("target", "local"), ("type", "readyz"), ("check", name)];
    for name in ["etcd", "etcd-readiness", "poststarthook"] {
        assert_eq!(scrape.value(CHECK, &check(name)), Some(1.0), "{name}: {}", scrape.text);
    }
    let page = agent.get("/").unwrap().text();
    assert!(page.contains("ControlPlaneApiserverNotReady"), "{page}");
    let timeline = agent.get("/api/v1/timeline").unwrap().text();
    assert!(timeline.contains("readyz: etcd, etcd-readiness, poststarthook"), "{timeline}");
    let mut check = bound_command(env!("CARGO_BIN_EXE_controlplane-exporter"));
    check.args(["check", "--profile=api"]);
    check.env("CONTROLPLANE_EXPORTER__WEB__SOCKET", agent.socket());
    let said = output(check, 10 * SECOND);
    assert_eq!(said.status.code(), Some(1), "{}{}", said.stdout, said.stderr);
    assert!(said.stdout.contains("etcd-readiness"), "{}", said.stdout);

    server.set(Mood::Well);
    let scrape = agent.wait_value(STATE, &state("readyz", "ok"), 1.0, 10 * SECOND);
    assert!(scrape.all(CHECK, &[]).is_empty(), "{}", scrape.text);
}

#[test]
fn without_a_certificate_it_is_up_and_unauthorised() {
    let _turn = lab::together();
    let pki = Pki::new();
    let server = ApiServer::start(&pki, &pki.server);
    let agent = agent(&server, &pki, None, "");
    let scrape = agent.wait_value(STATE, &state("livez", "unauthorised"), 1.0, 10 * SECOND);
    assert_eq!(scrape.value(UP, &[("target", "local")]), Some(1.0));
    assert_eq!(scrape.value(STATE, &state("livez", "ok")), Some(0.0));
}

#[test]
fn a_key_that_is_not_there_takes_the_certificate_away_and_not_the_question() {
    let _turn = lab::together();
    let pki = Pki::new();
    let server = ApiServer::start(&pki, &pki.server);
    let mut leaf = pki.client.clone();
    leaf.key = pki.folder().join("absent.key");
    let agent = agent(&server, &pki, Some(&leaf), "");
    agent.wait_value(STATE, &state("livez", "unauthorised"), 1.0, 10 * SECOND);
    let status = agent.get("/api/v1/status").unwrap().text();
    assert!(status.contains("absent.key"), "{status}");
}

#[test]
fn whatever_hangs_breaks_or_never_ends_is_told_by_its_reason_and_holds_nothing_up() {
    let _turn = lab::together();
    let pki = Pki::new();
    let server = ApiServer::start(&pki, &pki.server);
    let agent = agent(&server, &pki, Some(&pki.client), "");
    agent.wait_value(STATE, &state("readyz", "ok"), 1.0, 10 * SECOND);
    let failed = |reason| [("target", "local"), ("type", "livez"), ("reason", reason)];
    for (mood, reason) in [
        (Mood::Mute, "tls_timeout"),
        (Mood::MuteAfterTls, "timeout"),
        (Mood::Slow(3 * SECOND), "timeout"),
        (Mood::Broken, "reset"),
    ] {
        let before = agent.scrape().value(FAILURES, &failed(reason)).unwrap_or_default();
        server.set(mood);
        let scrape = agent.wait_until(&format!("{mood:?}"), FAILURES, 10 * SECOND, |scrape| {
            scrape.value(FAILURES, &failed(reason)).is_some_and(|now| now > before)
                && scrape.value(STATE, &state("livez", "unreachable")) == Some(1.0)
        });
        assert_eq!(scrape.value(UP, &[("target", "local")]), Some(0.0), "{mood:?}");
    }
    let status = agent.get("/api/v1/status").unwrap().text();
    assert!(status.contains("ControlPlaneApiserverDown"), "{status}");
    server.set(Mood::Endless);
    agent.wait_value(STATE, &state("livez", "ok"), 1.0, 10 * SECOND);
    server.set(Mood::Redirect);
    agent.wait_value(STATE, &state("livez", "unexpected"), 1.0, 10 * SECOND);
    server.set(Mood::Well);
    agent.wait_value(STATE, &state("readyz", "ok"), 1.0, 10 * SECOND);
}

#[test]
fn certificates_that_do_not_hold_are_told_apart() {
    let _turn = lab::together();
    let pki = Pki::new();
    let cases = [
        (&pki.server_expired, Some(&pki.client), "tls_expired"),
        (&pki.server_wrong_host, Some(&pki.client), "tls_untrusted"),
        (&pki.server, Some(&pki.other_client), "tls_rejected"),
    ];
    for (own, client, reason) in cases {
        let server = ApiServer::start(&pki, own);
        let agent = agent(&server, &pki, client, "");
        let failed = [("target", "local"), ("type", "readyz"), ("reason", reason)];
        agent.wait_until(reason, "controlplane_apiserver", 10 * SECOND, |scrape| {
            scrape.value(FAILURES, &failed) >= Some(1.0)
                && scrape.value(UP, &[("target", "local")]) == Some(0.0)
        });
    }
}

#[test]
fn another_url_is_asked_as_it_is_without_the_nodes_certificate() {
    let _turn = lab::together();
    let pki = Pki::new();
    let (server, balancer) =
        (ApiServer::start(&pki, &pki.server), ApiServer::start(&pki, &pki.server));
    let more = format!(
        ", urls: {{balancer: '{}/healthz?x=y', gone: 'http://127.0.0.1:1/'}}",
        balancer.url()
    );
    let agent = agent(&server, &pki, Some(&pki.client), &more);
    let of = |target, state| [("target", target), ("type", "url"), ("state", state)];
    let scrape = agent.wait_value(STATE, &of("balancer", "unauthorised"), 1.0, 10 * SECOND);
    assert_eq!(scrape.value(STATE, &state("readyz", "ok")), Some(1.0), "{}", scrape.text);
    assert_eq!(scrape.value(STATE, &of("gone", "unreachable")), Some(1.0), "{}", scrape.text);
    assert_eq!(scrape.value(UP, &[("target", "gone")]), Some(0.0));
    let asked = balancer.asked();
    assert!(asked.iter().all(|(path, known)| path == "/healthz?x=y" && !known), "{asked:?}");
}
