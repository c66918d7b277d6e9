//! I5: etcd full and fragmented, nearly all of it free pages, because nobody compacted it while a crash loop wrote.
//!
//! The quota here is 160 MiB where it was 8 GiB there, and the hours of growth pass in a minute or two.

use super::{Incident, SECOND, agent, etcd, full, interval, minutes};
use crate::lab;
use crate::lab::agent::{Agent, Scrape};
use crate::lab::etcd::{Cluster, Etcd, Options};
use crate::lab::prometheus::Version;

const QUOTA: u64 = 160 << 20;
const SIZE: &str = "controlplane_etcd_db_size_bytes";
const IN_USE: &str = "controlplane_etcd_db_size_in_use_bytes";

fn share(scrape: &Scrape) -> f64 {
    scrape.value(SIZE, &[]).unwrap_or_default() / QUOTA as f64
}

/// Writes the same objects again and again until the database takes this share of its quota.
#[track_caller]
fn grow(cluster: &Cluster, until: f64) {
    for _ in 0..500 {
        let left = until * QUOTA as f64 - cluster.db_size(0) as f64;
        if left <= 0.0 {
            return;
        }
        if left > 16e6 {
            cluster.put_large(0, "/registry/pods/crashing-", 4);
        } else {
            cluster.put_many("/registry/pods/crashing-", 10, 40_000);
        }
        // etcd commits, and tells the new size, a tenth of a second later.
        std::thread::sleep(SECOND * 3 / 20);
    }
    panic!("the database does not grow to {until} of its quota: {}", cluster.db_size(0));
}

#[expect(clippy::too_many_lines, reason = "the incident is one story")]
#[test]
fn i5_a_full_and_fragmented_database_pages_long_before_the_alarm() {
    let _turn = lab::alone();
    let (factor, members) = if full() { (60.0, 3) } else { (120.0, 1) };
    let options = Options { quota: Some(QUOTA), ..Options::default() };
    let cluster = Cluster::start_with(Etcd::V35, members, options);
    let every = |seconds| interval(SECOND * seconds, factor);
    let (pki, leaf) = (&cluster.pki, &cluster.pki.client);
    let agents: Vec<_> = (0..members)
        .map(|i| {
            Agent::start(&format!(
                "host: {{distribution: kubeadm, role: server, datastore: etcd, datastore_dir: '{data}',\n  \
                   processes: [k3s-server], container_dirs: []}}\n\
                 exporter: {{interval: {five}}}\n\
                 etcd: {{endpoints: ['{url}'], ca_file: {ca}, cert_file: {cert}, key_file: {key},\n  \
                   interval: {fifteen}, timeout: 2s, quota_bytes: {QUOTA}}}\n\
                 registry_keys: {{interval: {minute}}}\nsystemd: {{enabled: false}}\nsnap: {{enabled: false}}\n\
                 kernel: {{enabled: false}}\nfilesystem: {{enabled: false}}\nfdatasync: {{enabled: false}}\n",
                data = cluster.data_dir(i).display(),
                url = cluster.client_url(i),
                ca = pki.ca.display(),
                cert = leaf.cert.display(),
                key = leaf.key.display(),
                five = every(5),
                fifteen = every(15),
                minute = every(60),
            ))
        })
        .collect();
    let targets: Vec<_> = (0..members)
        .flat_map(|i| [agent(i + 1, &agents[i]), etcd(i + 1, cluster.metrics_port(i))])
        .collect();
    let mut i5 = Incident::start("i5", Version::V2, factor, &targets);
    let one = &agents[0];
    one.wait_until("a healthy cluster", "controlplane_etcd", 30 * SECOND, |s| {
        s.value("controlplane_etcd_quota_bytes", &[]) == Some(QUOTA as f64)
    });
    cluster.put_many("/registry/configmaps/kept-", 60, 20_000);

    // A crash loop writes, and nothing compacts.
    let fault = i5.fault(
        "a crash loop writes without end and nothing compacts",
        "2024-12-15 03:17, by the alarm",
        || grow(&cluster, 0.3),
    );
    let writer = cluster.keep_writing(0, "/registry/pods/crashing-slowly-", 20_000, SECOND / 20);
    i5.signal(fault, "controlplane_etcd_revision", &[one], "controlplane_etcd", |s| {
        s.sum("controlplane_etcd_revision", &[]) > 120.0
            && s.value("controlplane_etcd_compact_revision", &[]) == Some(1.0)
    });
    i5.pages(
        fault,
        &[
            ("ControlPlaneEtcdCompactionStalled", "warning", ""),
            ("ControlPlaneEtcdQuotaForecast", "warning", "cp-1"),
        ],
        minutes(4 * 60),
    );
    i5.stock(fault, &["etcdExcessiveDatabaseGrowth"], "");
    assert!(share(&one.scrape()) < 0.65, "it was to be foretold before the quota's first tier");
    drop(writer);

    for (tier, severity) in [(0.65, "warning"), (0.8, "critical")] {
        grow(&cluster, tier - 0.02);
        let fault = i5.fault(
            &format!("the database passes {:.0} % of its quota", tier * 100.0),
            "2024-12-15 03:17, by the alarm",
            || grow(&cluster, tier + 0.02),
        );
        i5.signal(fault, SIZE, &[one], "controlplane_etcd_db", |s| share(s) > tier);
        i5.pages(fault, &[("ControlPlaneEtcdQuotaLow", severity, "cp-1")], minutes(60));
        i5.stock(fault, &["etcdDatabaseQuotaLowSpace", "etcdExcessiveDatabaseGrowth"], "");
    }
    i5.inhibited(
        "ControlPlaneEtcdQuotaForecast",
        "cp-1:10379",
        "ControlPlaneEtcdQuotaLow",
        minutes(30),
    );

    // Compaction frees the pages, and the file stays as large as it was.
    grow(&cluster, 0.994);
    let revision = cluster.on_member(0, |mut client| async move {
        Ok(client.status().await?.header().map_or(0, etcd_client::ResponseHeader::revision))
    });
    let revision = revision.unwrap();
    // Freed pages count as used until the next commit: some small writes go on, as they do in a cluster.
    let leases = cluster.keep_writing(0, "/registry/leases/l", 100, SECOND / 10);
    let fault = i5.fault(
        "a compaction leaves nearly the whole file as free pages",
        "after the alarm: 156 MB of 8.1 GB were in use",
        || drop(cluster.etcdctl(&["compact", &revision.to_string(), "--physical"])),
    );
    let free = i5.signal(fault, IN_USE, &[one], "controlplane_etcd_db", |s| {
        s.sum(IN_USE, &[]) < 0.06 * s.sum(SIZE, &[])
    });
    i5.pages(fault, &[("ControlPlaneEtcdDatabaseFragmented", "warning", "cp-1")], minutes(60));
    i5.stock(fault, &["etcdDatabaseHighFragmentationRatio"], "");
    drop(leases);
    let used = 100.0 * free.sum(IN_USE, &[]) / free.sum(SIZE, &[]);
    i5.notes.push(format!("After the compaction {used:.1} % of the file were in use."));

    // The next larger write is refused: the quota counts the file, not what is in use.
    let before = i5.started.elapsed().as_secs_f64() * factor;
    let large = "x".repeat(1_400_000);
    let fault = i5.fault(
        "a write is refused: alarm NOSPACE",
        "2024-12-15 03:17, two minutes after the first line in the log",
        || {
            let refused = (0..20).any(|_| {
                let large = large.clone();
                let put = cluster.on_member(0, |mut client| async move {
                    client.put("/registry/large", large, None).await
                });
                put.is_err_and(|error| error.contains("space exceeded"))
            });
            assert!(refused, "the quota refused nothing");
        },
    );
    i5.signal(fault, "controlplane_etcd_alarm", &[one], "controlplane_etcd_alarm", |s| {
        s.sum("controlplane_etcd_alarm", &[("alarm", "NOSPACE")]) > 0.5
    });
    i5.pages(fault, &[("ControlPlaneEtcdAlarm", "critical", "")], minutes(10));
    i5.stock(fault, &["etcdDatabaseQuotaLowSpace", "etcdHighNumberOfFailedGRPCRequests"], "");
    i5.inhibited("ControlPlaneEtcdQuotaLow", "cp-1:10379", "ControlPlaneEtcdAlarm", minutes(10));
    let first =
        i5.webhook.first(i5.started, |n| n.label("alertname") == "ControlPlaneEtcdQuotaLow");
    let early = before - first.unwrap().arrived.duration_since(i5.started).as_secs_f64() * factor;
    assert!(early > 0.0, "the alarm came before the first tier's page");
    i5.notes.push(format!(
        "The first page of the quota came {} before the alarm.",
        super::human(early)
    ));

    crate::page::look(one, "i5");
    let repaired = i5.repair("one member after the other is defragmented, the alarm disarmed");
    for i in 0..members {
        cluster.etcdctl(&["defrag", &format!("--endpoints={}", cluster.client_url(i))]);
    }
    cluster.etcdctl(&["alarm", "disarm"]);
    for name in ["ControlPlaneEtcdAlarm", "ControlPlaneEtcdDatabaseFragmented"] {
        i5.resolved(name, repaired, minutes(40));
    }
    i5.finish("I5: etcd full and fragmented");
}
