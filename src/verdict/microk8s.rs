//! What is judged on a node of MicroK8s or Canonical Kubernetes: dqlite, its files, kine's socket (that of k3s and k0s
//! as well), and the files of arguments.

use std::time::Duration;

use super::court::{Court, Figure, by_table, limit, rows};
use super::topics::{Quorum, QuorumState, down};
use super::{Health, Measure, Topic, Verdict, bytes, length, percent};
use crate::thresholds::Unit;

const TOPIC: Topic = Topic::Datastore;

impl Court<'_> {
    /// The local dqlite member, the voters, and its files.
    pub(super) fn dqlite(&mut self) {
        let Some(up) = self.number("controlplane_dqlite_up", &[]).map(|up| up > 0.5) else {
            return;
        };
        let voters = self.number("controlplane_dqlite_voters_listed", &[]);
        let quorum = Quorum::new(voters, self.number("controlplane_dqlite_voters_reachable", &[]));
        let leader = self.number("controlplane_dqlite_has_leader", &[]).map(|known| known > 0.5);
        let leads = self.number("controlplane_dqlite_is_leader", &[]) == Some(1.0);
        let (health, figure) = match (up, leader) {
            (false, _) => (down(voters, quorum.as_ref()), self.silence("dqlite")),
            (true, Some(false)) => (Health::Critical, "answers, knows no leader".into()),
            (true, Some(true)) if leads => (Health::Ok, "answers, is the leader".into()),
            (true, Some(true)) => (Health::Ok, "answers, follows a leader".into()),
            (true, None) => {
                (Health::Unknown, "answers, and no voter could be asked for the leader".into())
            }
        };
        let alert = if up { "ControlPlaneDqliteNoLeader" } else { "ControlPlaneDqliteMemberDown" };
        self.say(TOPIC, health, alert, "dqlite member", figure);
        if let Some(quorum) = quorum {
            let (health, alert) = match quorum.state() {
                QuorumState::Lost => (Health::Critical, "ControlPlaneDqliteQuorumLost"),
                QuorumState::TwoVoters | QuorumState::AtRisk => {
                    (Health::Warning, "ControlPlaneDqliteQuorumAtRisk")
                }
                QuorumState::Safe => (Health::Ok, "ControlPlaneDqliteQuorumAtRisk"),
            };
            self.say(TOPIC, health, alert, "voting members", quorum.to_string());
        }
        self.dqlite_files(up);
        self.dqlite_snapshot();
        if let Some(end) =
            self.number("controlplane_dqlite_certificate_not_after_timestamp_seconds", &[])
        {
            let left = (end - self.now).max(0.0);
            self.measure(
                TOPIC,
                "ControlPlaneDqliteCertificateExpires",
                "time until the certificate ends",
                "certificate that all dqlite members share, until it ends",
                Figure::new("certificate_left", left, length(left)),
            );
        }
    }

    /// What the files say; only while they can be read, since what is remembered of them says nothing about now.
    fn dqlite_files(&mut self, up: bool) {
        if self.number("controlplane_dqlite_directory_bytes", &[]).is_none() {
            return;
        }
        let spare = self.number("controlplane_dqlite_role", &["spare"]) == Some(1.0);
        let written = self.number("controlplane_dqlite_cluster_file_timestamp_seconds", &[]);
        if written.is_some() && up {
            self.since(
                TOPIC,
                "ControlPlaneDqliteClusterFileFrozen",
                "age of cluster.yaml",
                "cluster.yaml, written every 30 s with a leader",
                written,
            );
        }
        let open = self.number("controlplane_dqlite_segments", &["open"]);
        if open == Some(0.0) && up && !spare {
            let figure = "no segment is open: the member writes nothing".into();
            let alert = "ControlPlaneDqliteLogStopped";
            self.say(TOPIC, Health::Critical, alert, "dqlite's log", figure);
        }
        let differ = ["log_live", "log_cluster_file"].iter().any(|between| {
            self.number("controlplane_dqlite_membership_differences", &[between]) > Some(0.0)
        });
        let unlisted = ["live", "log", "cluster_file"].iter().find(|source| {
            self.number("controlplane_dqlite_own_member_listed", &[source]) == Some(0.0)
        });
        let alert = "ControlPlaneDqliteMembershipMismatch";
        if let Some(source) = unlisted.filter(|_| !spare) {
            let figure = format!("this one is not listed in {}", source.replace('_', " "));
            self.say(TOPIC, Health::Warning, alert, "dqlite's lists of members", figure);
        } else if differ && !spare {
            let figure = "its log, cluster.yaml and its answer disagree".into();
            self.say(TOPIC, Health::Warning, alert, "dqlite's lists of members", figure);
        }
        let debris = self.number("controlplane_dqlite_snapshot_unpaired_bytes", &["meta"]);
        if let Some(debris) = debris.filter(|bytes| *bytes > 0.0) {
            let alert = "ControlPlaneDqliteSnapshotDebris";
            let figure = format!("{} that nothing removes", bytes(debris));
            self.say(TOPIC, Health::Warning, alert, "dqlite snapshots without .meta", figure);
        }
        let corrupt = self.number("controlplane_dqlite_segments", &["corrupt"]);
        if let Some(corrupt) = corrupt.filter(|count| *count > 0.0) {
            let alert = "ControlPlaneDqliteSegmentCorrupt";
            let what = "damaged segments that dqlite moved aside";
            self.say(TOPIC, Health::Warning, alert, what, format!("{corrupt}"));
        }
    }

    fn dqlite_snapshot(&mut self) {
        let alert = "ControlPlaneDqliteSnapshotLarge";
        if let Some(size) = self.number("controlplane_dqlite_snapshot_bytes", &[]) {
            let figure = Figure::new("snapshot_bytes", size, bytes(size));
            self.measure(TOPIC, alert, "newest snapshot", "newest dqlite snapshot", figure);
        }
        let number = |name| self.number(name, &[]);
        let (Some(free), Some(pages), Some(page)) = (
            number("controlplane_dqlite_database_free_pages"),
            number("controlplane_dqlite_database_pages").filter(|pages| *pages > 0.0),
            number("controlplane_dqlite_database_page_bytes"),
        ) else {
            return;
        };
        let (share, amount) = (
            rows(alert, "free share of the database's pages"),
            rows(alert, "free pages of the database"),
        );
        // Both must be passed, so the better one counts.
        let health = by_table(&share, free / pages).min(by_table(&amount, free * page));
        let amount = amount.first().map(|row| row.condition()).unwrap_or_default();
        self.verdicts.push(Verdict {
            topic: TOPIC,
            health,
            what: "free pages of dqlite's database, which each snapshot holds".into(),
            figure: format!("{}, {}", bytes(free * page), percent(free / pages)),
            limit: format!("{}, and {amount}", limit(&share)),
            alert: alert.into(),
            // Judged by two figures at once, so the one has no limits of its own.
            measure: Some(Measure {
                name: "free_pages".into(),
                value: free * page,
                unit: Unit::Bytes.symbol().into(),
                warning: String::new(),
                critical: String::new(),
            }),
        });
    }

    /// kine or k8s-dqlite on its socket.
    pub(super) fn kine(&mut self) {
        let Some(up) = self.number("controlplane_kine_up", &[]) else { return };
        let alert = "ControlPlaneKineNotAnswering";
        let success = "controlplane_kine_request_last_success_timestamp_seconds";
        let read = self.number(success, &["read"]);
        let late = read.is_none_or(|time| {
            by_table(&rows(alert, "time since a read succeeded"), self.now - time) > Health::Ok
        });
        let ago = || read.map_or("never".into(), |time| format!("{} ago", length(self.now - time)));
        let (health, figure) = match (up > 0.5, late) {
            (false, _) => (Health::Critical, self.silence("kine")),
            (true, true) => (Health::Critical, format!("answers; a read succeeded {}", ago())),
            (true, false) => (Health::Ok, "answers".to_owned()),
        };
        self.say(TOPIC, health, alert, "kine's socket", figure);
        let reads = self
            .all("controlplane_kine_request_duration_seconds")
            .into_iter()
            .find(|series| series.labels[0] == "read");
        let recent = reads.and_then(|reads| self.recent(&reads, Duration::from_mins(5)));
        if let Some(p90) = recent.and_then(|recent| recent.quantile(0.9)) {
            self.measure(
                TOPIC,
                "ControlPlaneKineReadsSlow",
                "reads, p90 of 5 minutes",
                "reads through kine, p90 of 5 minutes",
                Figure::new("read_p90", p90, length(p90)),
            );
        }
    }

    /// Files of arguments: what the next restart brings.
    pub(super) fn args(&mut self) {
        let named = self.all("controlplane_args_unknown_flag_info");
        for series in self.all("controlplane_args_unknown_flags") {
            let file = series.labels[0].as_str();
            let count = series.value.as_number();
            let flags: Vec<_> = named
                .iter()
                .filter(|flag| flag.labels[0] == file)
                .map(|flag| flag.labels[1].as_str())
                .collect();
            let (health, figure) = match () {
                () if count < 0.5 => (Health::Ok, "none".to_owned()),
                () if flags.len() as f64 >= count => (Health::Critical, flags.join(" ")),
                () => (Health::Critical, format!("{count}: {} …", flags.join(" "))),
            };
            self.verdicts.push(Verdict {
                topic: Topic::Units,
                health,
                what: format!("flags in args/{file} that its program does not know"),
                figure,
                limit: String::new(),
                alert: "ControlPlaneArgsUnknownFlags".into(),
                measure: Some(Measure {
                    name: "unknown_flags".into(),
                    value: count,
                    unit: Unit::Count.symbol().into(),
                    warning: String::new(),
                    critical: "0".into(),
                }),
            });
        }
        for series in self.all("controlplane_args_changed_since_start") {
            if series.value.as_number() > 0.5 {
                let file = &series.labels[0];
                self.say(
                    Topic::Units,
                    Health::Ok,
                    "ControlPlaneArgsChanged",
                    &format!("args/{file}"),
                    "changed since its service has started: it bites at the next restart".into(),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::Metric;
    use crate::sample::{Batch, Histogram};
    use crate::store::Store;
    use crate::verdict::judge;
    use crate::verdict::topics::tests::{MINUTE, about, store};
    use std::time::SystemTime;

    static UP: Metric<0> = Metric::gauge("controlplane_dqlite_up", "Up.", []);
    static LEADER: Metric<0> = Metric::gauge("controlplane_dqlite_has_leader", "Leader.", []);
    static VOTERS: Metric<0> = Metric::gauge("controlplane_dqlite_voters_listed", "Voters.", []);
    static REACHED: Metric<0> = Metric::gauge("controlplane_dqlite_voters_reachable", "Seen.", []);
    static BYTES: Metric<0> = Metric::gauge("controlplane_dqlite_directory_bytes", "All.", []);
    static FILE: Metric<0> =
        Metric::gauge("controlplane_dqlite_cluster_file_timestamp_seconds", "Time.", []);
    static CERTIFICATE: Metric<0> =
        Metric::gauge("controlplane_dqlite_certificate_not_after_timestamp_seconds", "End.", []);
    static SNAPSHOT: Metric<0> = Metric::gauge("controlplane_dqlite_snapshot_bytes", "Size.", []);
    static PAGES: Metric<0> = Metric::gauge("controlplane_dqlite_database_pages", "Pages.", []);
    static FREE: Metric<0> = Metric::gauge("controlplane_dqlite_database_free_pages", "Free.", []);
    static PAGE: Metric<0> = Metric::gauge("controlplane_dqlite_database_page_bytes", "Page.", []);
    static SEGMENTS: Metric<1> = Metric::gauge("controlplane_dqlite_segments", "Log.", ["state"]);
    static ROLE: Metric<1> = Metric::gauge("controlplane_dqlite_role", "Role.", ["role"]);
    static DEBRIS: Metric<1> =
        Metric::gauge("controlplane_dqlite_snapshot_unpaired_bytes", "Debris.", ["missing"]);
    static DIFFER: Metric<1> =
        Metric::gauge("controlplane_dqlite_membership_differences", "Differ.", ["between"]);
    static LISTED: Metric<1> =
        Metric::gauge("controlplane_dqlite_own_member_listed", "Listed.", ["source"]);

    fn put(sampler: &'static str, fill: impl FnOnce(&mut Batch)) -> Store {
        let (store, mut batch) = (store(), Batch::default());
        fill(&mut batch);
        store.put(sampler, batch, MINUTE);
        store
    }

    /// A dqlite member with these figures.
    fn dqlite(figures: &[(&'static Metric<0>, f64)]) -> Store {
        put("dqlite", |batch| {
            for (metric, value) in figures {
                batch.push(metric, [], *value);
            }
        })
    }

    fn now() -> f64 {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        since.unwrap_or_default().as_secs_f64()
    }

    #[test]
    fn dqlite_is_judged_by_leader_and_quorum() {
        let member = |up, leader| {
            let figures = [(&UP, up), (&LEADER, leader), (&VOTERS, 5.0), (&REACHED, 4.0)];
            let (health, _, alert) = about(&dqlite(&figures), "dqlite member");
            (health, alert)
        };
        let leader = "ControlPlaneDqliteNoLeader".to_owned();
        assert_eq!(member(1.0, 1.0), (Health::Ok, leader.clone()));
        assert_eq!(member(1.0, 0.0), (Health::Critical, leader));
        let down = "ControlPlaneDqliteMemberDown".to_owned();
        assert_eq!(member(0.0, 1.0), (Health::Warning, down), "four of five still answer");
        assert_eq!(about(&dqlite(&[(&UP, 0.0)]), "dqlite member").0, Health::Critical);
        assert_eq!(about(&dqlite(&[(&UP, 1.0)]), "dqlite member").0, Health::Unknown);
        let quorum = |voters, reached| {
            let figures = [(&UP, 1.0), (&VOTERS, voters), (&REACHED, reached)];
            let (health, _, alert) = about(&dqlite(&figures), "voting members");
            (health, alert)
        };
        assert_eq!(quorum(3.0, 3.0).0, Health::Ok);
        assert_eq!(quorum(3.0, 2.0), (Health::Warning, "ControlPlaneDqliteQuorumAtRisk".into()));
        assert_eq!(quorum(3.0, 1.0), (Health::Critical, "ControlPlaneDqliteQuorumLost".into()));
    }

    #[test]
    fn a_frozen_cluster_file_counts_while_it_can_be_read_and_somebody_writes_it() {
        let frozen = |age: f64, rest: &[(&'static Metric<0>, f64)]| {
            let figures = [&[(&FILE, now() - age)], rest].concat();
            let verdicts = judge(&dqlite(&figures));
            verdicts.into_iter().find(|v| v.what.contains("cluster.yaml")).map(|v| v.health)
        };
        let well = [(&UP, 1.0), (&BYTES, 1e6)];
        assert_eq!(frozen(60.0, &well), Some(Health::Ok));
        assert_eq!(frozen(100.0, &well), Some(Health::Warning));
        assert_eq!(frozen(100.0, &[(&UP, 1.0)]), None, "the directory cannot be read");
        assert_eq!(frozen(100.0, &[(&UP, 0.0), (&BYTES, 1e6)]), None, "nobody writes it");
    }

    #[test]
    fn snapshots_are_judged_by_their_size_and_by_the_free_pages_in_them() {
        let of = |size, pages, free, what| {
            let figures =
                [(&UP, 1.0), (&SNAPSHOT, size), (&PAGES, pages), (&FREE, free), (&PAGE, 4096.0)];
            let (health, figure, _) = about(&dqlite(&figures), what);
            (health, figure)
        };
        let (health, figure) = of(237e6, 268_790.0, 257_710.0, "free pages");
        assert_eq!((health, &*figure), (Health::Warning, "1.1 GB, 96 %"));
        assert_eq!(of(237e6, 1.0, 0.0, "newest").0, Health::Warning);
        assert_eq!(of(12.7e6, 6_450.0, 0.0, "newest").0, Health::Ok);
        assert_eq!(of(1e6, 100.0, 96.0, "free pages").0, Health::Ok, "too little to bother");
    }

    #[test]
    fn a_member_that_writes_no_log_is_critical_and_a_spare_need_not_write() {
        let of = |open: f64, role: &str| {
            let store = put("dqlite", |batch| {
                batch.push(&UP, [], 1.0);
                batch.push(&BYTES, [], 1e6);
                batch.push(&ROLE, [role], 1.0);
                batch.push(&SEGMENTS, ["open"], open);
            });
            judge(&store).into_iter().find(|verdict| verdict.what == "dqlite's log")
        };
        let stopped = of(0.0, "voter").unwrap();
        assert_eq!(stopped.health, Health::Critical);
        assert_eq!(stopped.alert, "ControlPlaneDqliteLogStopped");
        assert_eq!((of(3.0, "voter"), of(0.0, "spare")), (None, None));
    }

    #[test]
    fn debris_damage_and_lists_that_disagree_are_warnings() {
        let of = |fill: &dyn Fn(&mut Batch), what: &str| {
            let store = put("dqlite", |batch| {
                batch.push(&UP, [], 1.0);
                batch.push(&BYTES, [], 1e6);
                fill(batch);
            });
            let found = judge(&store).into_iter().find(|verdict| verdict.what.contains(what));
            found.map(|verdict| (verdict.health, verdict.figure))
        };
        let debris = of(&|batch| batch.push(&DEBRIS, ["meta"], 26e9), "without .meta").unwrap();
        assert_eq!(debris, (Health::Warning, "26.0 GB that nothing removes".into()));
        let corrupt = of(&|batch| batch.push(&SEGMENTS, ["corrupt"], 2.0), "damaged").unwrap();
        assert_eq!(corrupt, (Health::Warning, "2".into()));
        let differ = |between: &'static str| {
            of(&move |batch: &mut Batch| batch.push(&DIFFER, [between], 1.0), "lists of members")
        };
        assert!(differ("log_live").is_some() && differ("snapshot_live").is_none());
        let unlisted = of(&|batch| batch.push(&LISTED, ["cluster_file"], 0.0), "lists of members");
        assert_eq!(unlisted.unwrap().1, "this one is not listed in cluster file");
    }

    #[test]
    fn the_shared_certificate_is_judged_by_the_days_that_are_left() {
        let of = |days: f64| {
            let figures = [(&UP, 1.0), (&CERTIFICATE, now() + days * 86_400.0)];
            about(&dqlite(&figures), "certificate").0
        };
        assert_eq!(
            (of(3_000.0), of(89.0), of(13.0)),
            (Health::Ok, Health::Warning, Health::Critical)
        );
        assert_eq!(of(-1.0), Health::Critical);
    }

    static KINE_UP: Metric<0> = Metric::gauge("controlplane_kine_up", "Up.", []);
    static KINE_READ: Metric<1> = Metric::gauge(
        "controlplane_kine_request_last_success_timestamp_seconds",
        "Last.",
        ["request"],
    );
    static KINE_TIME: Metric<1> =
        Metric::histogram("controlplane_kine_request_duration_seconds", "Time.", ["request"]);

    #[test]
    fn kine_is_judged_by_whether_reads_succeed_and_how_long_they_take() {
        let of = |up: f64, age: Option<f64>| {
            let store = put("kine", |batch| {
                batch.push(&KINE_UP, [], up);
                if let Some(age) = age {
                    batch.push(&KINE_READ, ["read"], now() - age);
                }
            });
            about(&store, "kine's socket")
        };
        assert_eq!(of(1.0, Some(10.0)).0, Health::Ok);
        assert_eq!(of(0.0, Some(10.0)).0, Health::Critical);
        let (health, figure, _) = of(1.0, Some(600.0));
        assert_eq!((health, &*figure), (Health::Critical, "answers; a read succeeded 10 min ago"));
        assert_eq!(of(1.0, None).1, "answers; a read succeeded never");
        let slow = put("kine", |batch| {
            let mut times = Histogram::new(&[0.1, 0.4, 1.0]);
            times.observe(0.9);
            batch.push(&KINE_UP, [], 1.0);
            batch.histogram(&KINE_TIME, ["read"], &times);
        });
        assert_eq!(about(&slow, "reads through kine").0, Health::Critical);
    }

    static UNKNOWN: Metric<1> =
        Metric::gauge("controlplane_args_unknown_flags", "Flags.", ["file"]);
    static NAMED: Metric<2> =
        Metric::info("controlplane_args_unknown_flag_info", "Flag.", ["file", "flag"]);
    static CHANGED: Metric<1> =
        Metric::gauge("controlplane_args_changed_since_start", "Changed.", ["file"]);

    #[test]
    fn flags_that_end_a_service_are_named() {
        let of = |count: f64, flags: &[&str]| {
            let store = put("args", |batch| {
                batch.push(&UNKNOWN, ["k8s-dqlite"], count);
                for flag in flags {
                    batch.info(&NAMED, ["k8s-dqlite", flag]);
                }
                batch.push(&CHANGED, ["kubelet"], 1.0);
            });
            let changed = about(&store, "args/kubelet");
            assert_eq!((changed.0, &*changed.2), (Health::Ok, "ControlPlaneArgsChanged"));
            let (health, figure, _) = about(&store, "args/k8s-dqlite");
            (health, figure)
        };
        assert_eq!(of(0.0, &[]), (Health::Ok, "none".into()));
        assert_eq!(of(2.0, &["--a", "--b"]), (Health::Critical, "--a --b".into()));
        assert_eq!(of(30.0, &["--a"]), (Health::Critical, "30: --a …".into()));
    }
}
