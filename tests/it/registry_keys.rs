//! Sampler `registry_keys` against real etcd: exact counts, whatever their number and whoever is slow.

use std::time::Duration;

use crate::lab;
use crate::lab::agent::Agent;
use crate::lab::etcd::{Cluster, Etcd, Listen, Options};

const SECOND: Duration = Duration::from_secs(1);
const KEYS: &str = "controlplane_registry_keys";
const SUCCESS: &str = "controlplane_registry_keys_last_success_timestamp_seconds";
const ORPHANS: &str = "/registry/longhorn.io/orphans/longhorn-system/orphan-";

/// A cluster of one with plain HTTP or a socket, and the address to reach it at.
fn server(version: Etcd, listen: Listen) -> (Cluster, String) {
    let cluster = Cluster::start_with(version, 1, Options { listen, ..Options::default() });
    let address = match listen {
        Listen::Unix => cluster.socket(0).display().to_string(),
        _ => cluster.client_url(0),
    };
    (cluster, address)
}

#[test]
fn orphans_are_counted_with_the_endpoints_of_section_etcd() {
    let _turn = lab::together();
    for version in [Etcd::V34, Etcd::V35] {
        let (cluster, address) = server(version, Listen::Plain);
        cluster.put_many(ORPHANS, 20_000, 10);
        cluster.put_many("/registry/pods/kube-system/p", 3, 10);
        let agent = Agent::start(&format!(
            "etcd: {{endpoints: '{address}'}}\n\
             registry_keys: {{interval: 500ms, prefixes: {{secrets: '', things: /registry/pods/kube-}}}}"
        ));
        let orphans = [("resource", "orphans.longhorn.io")];
        let scrape = agent.wait_value(KEYS, &orphans, 20_000.0, 10 * SECOND);
        assert_eq!(scrape.value(KEYS, &[("resource", "pods")]), Some(3.0));
        assert_eq!(scrape.value(KEYS, &[("resource", "things")]), Some(3.0));
        assert_eq!(scrape.value(KEYS, &[("resource", "leases")]), Some(0.0));
        assert_eq!(scrape.value(KEYS, &[("resource", "secrets")]), None);
        assert!(scrape.value(SUCCESS, &orphans).is_some_and(|time| time > 1.7e9));
    }
}

#[test]
fn a_prefix_counted_in_many_ranges_has_the_same_sum() {
    let _turn = lab::together();
    let (cluster, address) = server(Etcd::V35, Listen::Plain);
    cluster.put_many(ORPHANS, 60_000, 10);
    cluster.put_many("/registry/longhorn.io/orphans/another/o", 7, 10);
    let agent = Agent::start(&format!(
        "registry_keys: {{endpoints: '{address}', interval: 200ms, timeout: 5s}}\n\
         etcd: {{enabled: false}}"
    ));
    let orphans = [("resource", "orphans.longhorn.io")];
    agent.wait_value(KEYS, &orphans, 60_007.0, 10 * SECOND);
    let first = agent.scrape().value(SUCCESS, &orphans).unwrap();
    cluster.put_many("/registry/longhorn.io/orphans/longhorn-system/zz", 3, 10);
    // A count of 60,000 keys rests 500 times as long as it took.
    let scrape = agent.wait_value(KEYS, &orphans, 60_010.0, 120 * SECOND);
    assert!(scrape.value(SUCCESS, &orphans).unwrap() > first + 2.0, "it was counted too soon");
}

#[test]
fn counts_come_through_a_socket_as_kine_has_it() {
    let _turn = lab::together();
    let (cluster, address) = server(Etcd::V35, Listen::Unix);
    cluster.put_many("/registry/leases/kube-node-lease/n", 42, 10);
    let agent =
        Agent::start(&format!("registry_keys: {{endpoints: '{address}', interval: 500ms}}"));
    agent.wait_value(KEYS, &[("resource", "leases")], 42.0, 10 * SECOND);
}

#[test]
fn a_hung_server_takes_the_counts_away_and_leaves_the_time_of_the_last() {
    let _turn = lab::together();
    let (cluster, address) = server(Etcd::V35, Listen::Plain);
    let agent = Agent::start(&format!(
        "registry_keys: {{endpoints: '{address}', interval: 500ms, timeout: 1s}}"
    ));
    let pods = [("resource", "pods")];
    agent.wait_value(KEYS, &pods, 0.0, 10 * SECOND);
    cluster.stop(0);
    let scrape =
        agent.wait_until("no counts", KEYS, 10 * SECOND, |scrape| scrape.all(KEYS, &[]).is_empty());
    assert_eq!(scrape.all(SUCCESS, &[]).len(), 11);
    cluster.cont(0);
    agent.wait_value(KEYS, &pods, 0.0, 10 * SECOND);
}
