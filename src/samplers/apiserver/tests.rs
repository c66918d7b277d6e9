use super::*;
use crate::host::{Distribution, Facts, Role};
use crate::sampler;

/// What these keys make on a server of this distribution.
fn build(node: Option<Installation>, own: &serde_json::Value) -> Result<Vec<String>, String> {
    let facts = Facts { installations: node.into_iter().collect(), ..Facts::default() };
    let host = Host::at("/nowhere").with_facts(facts);
    let options = sampler::Options {
        interval: SAMPLER.interval,
        timeout: SAMPLER.timeout,
        own: own.as_object().cloned().unwrap_or_default(),
    };
    match (SAMPLER.build)(&options, &host) {
        Ok(Build::Run(_)) => {
            let own: Options = options.parse().unwrap();
            let targets = own.targets(&host, SAMPLER.timeout).map_err(|e| e.what)?;
            Ok(targets.into_iter().map(|target| target.name).collect())
        }
        Ok(Build::NotApplicable(why)) => Err(why),
        Err(error) => Err(format!("{}: {}", error.key, error.what)),
    }
}

fn server() -> Installation {
    let mut node = Installation::new(Distribution::K3s);
    node.role = Role::Server;
    node.api_url = Some("https://127.0.0.1:6443".to_owned());
    node
}

#[test]
fn a_server_is_watched_without_configuration_and_a_worker_is_not() {
    let none = serde_json::json!({});
    assert_eq!(build(Some(server()), &none).unwrap(), [LOCAL]);
    let why = build(Some(Installation::new(Distribution::K3s)), &none).unwrap_err();
    assert!(why.starts_with("this k3s node has no API server; set apiserver.url"), "{why}");
    assert!(build(None, &none).unwrap_err().starts_with("no Kubernetes"));
    let urls = serde_json::json!({"urls": {"balancer": "https://lb.example:6443/healthz"}});
    assert_eq!(build(None, &urls).unwrap(), ["balancer"]);
    assert_eq!(build(Some(server()), &urls).unwrap(), [LOCAL, "balancer"]);
}

#[test]
fn keys_that_make_no_sense_are_refused_by_their_name() {
    for (own, expected) in [
        (serde_json::json!({"url": "127.0.0.1:6443"}), "url: "),
        (serde_json::json!({"urls": {"lb": "https://u:hunter2@lb/"}}), "urls.lb: "),
        (serde_json::json!({"urls": {"local": "https://lb/"}}), "urls.local: "),
        (serde_json::json!({"urls": {"The LB": "https://lb/"}}), "urls.The LB: "),
        (serde_json::json!({"cert_file": "/c.crt"}), "key_file: "),
        (serde_json::json!({"key_file": "/c.key"}), "cert_file: "),
        (serde_json::json!({"ca_file": "ca.crt"}), "ca_file: "),
        (serde_json::json!({"urls_ca_file": "ca.crt"}), "urls_ca_file: "),
    ] {
        let error = build(Some(server()), &own).unwrap_err();
        assert!(error.starts_with(expected) && !error.contains("hunter2"), "{error}");
    }
    let many: serde_json::Map<_, _> =
        (0..9).map(|n| (format!("u{n}"), serde_json::json!("https://lb/"))).collect();
    let error = build(None, &serde_json::json!({ "urls": many })).unwrap_err();
    assert_eq!(error, "urls: at most 8");
}

#[test]
fn each_status_is_one_state() {
    for (status, state) in [
        (200, "ok"),
        (204, "ok"),
        (302, "unexpected"),
        (401, "unauthorised"),
        (403, "unauthorised"),
        (404, "unexpected"),
        (500, "failing"),
        (503, "failing"),
    ] {
        assert_eq!(State::of(status).as_str(), state, "{status}");
    }
}

#[test]
fn a_server_elsewhere_is_not_shown_this_nodes_certificate() {
    let facts = Facts { installations: vec![server()], ..Facts::default() };
    let host = Host::at("/nowhere").with_facts(facts);
    let shown = |url: &str| {
        let own = Options { url: Some(url.to_owned()), ..Options::default() };
        own.targets(&host, SAMPLER.timeout).unwrap()[0].shown.is_some()
    };
    assert!(shown("https://127.0.0.1:7443"));
    assert!(!shown("https://api.example:6443"));
}

#[test]
fn a_sampler_that_is_built_anew_for_the_same_url_counts_on() {
    let urls = BTreeMap::from([("lb".to_owned(), "https://counts.example/".to_owned())]);
    for failures in [1.0, 2.0] {
        let own = Options { urls: urls.clone(), ..Options::default() };
        let targets = own.targets(&Host::at("/nowhere"), SAMPLER.timeout).unwrap();
        let mut out = Batch::default();
        let late = Err(request::Failure::late(SAMPLER.timeout));
        targets[0].judge(vec![(late, SAMPLER.timeout)], &mut out);
        assert_eq!(out.value(&FAILURES, ["lb", "url", "timeout"]), Some(failures));
    }
}

#[test]
fn an_agent_without_a_descriptor_left_says_nothing_of_the_target() {
    let urls = BTreeMap::from([("lb".to_owned(), "https://nothing.example/".to_owned())]);
    let own = Options { urls, ..Options::default() };
    let targets = own.targets(&Host::at("/nowhere"), SAMPLER.timeout).unwrap();
    let target = &targets[0];
    let failed = |reason| -> [Timed; 1] {
        let text = "connecting: Too many open files (os error 24)".to_owned();
        [(Err(request::Failure { reason, text }), Duration::ZERO)]
    };
    let error = target.exhausted(&failed(Reason::Exhausted)).unwrap();
    assert_eq!(error.reason(), "call");
    assert!(error.to_string().starts_with("calling lb: connecting: Too many"), "{error}");
    assert!(target.exhausted(&failed(Reason::Refused)).is_none());
}
