//! What is judged because time goes by: certificates, and snapshots of etcd.

use super::court::{Court, Figure, by_table, rows};
use super::{Health, Topic, length};

impl Court<'_> {
    /// The certificate that ends first, and whether a restart is due. That of dqlite is judged with dqlite.
    pub(super) fn certificates(&mut self) {
        let alert = "ControlPlaneCertificateExpires";
        let mut all = self.all("controlplane_certificate_not_after_timestamp_seconds");
        all.retain(|series| series.labels[1] != "dqlite");
        let left: Vec<f64> = all.iter().map(|series| series.value.as_number() - self.now).collect();
        let first = all.iter().zip(&left).min_by(|(_, a), (_, b)| a.total_cmp(b));
        let Some((first, ends)) = first else { return };
        let table = rows(alert, "time until the certificate ends");
        let soon = left.iter().filter(|left| by_table(&table, **left) > Health::Ok).count();
        let more =
            if soon > 1 { format!("; {soon} end soon or have ended") } else { String::new() };
        let path = &first.labels[0];
        let (alert, figure) = if *ends < 0.0 {
            ("ControlPlaneCertificateExpired", format!("ended {} ago{more}", length(-ends)))
        } else {
            (alert, format!("{}{more}", length(*ends)))
        };
        let what = format!("first certificate to end, {path}");
        let figure = Figure::new("certificate_expiry", ends.max(0.0), figure);
        self.measure_by(&table, Topic::Units, alert, &what, figure);
        let due = self.all("controlplane_certificate_restart_due");
        let due = due.iter().filter(|series| series.value.as_number() > 0.5).count();
        if due > 0 {
            self.say(
                Topic::Units,
                Health::Ok,
                "ControlPlaneCertificateRestartDue",
                "certificates that wait for a restart",
                format!("{due}: a restart brings new ones into use"),
            );
        }
    }

    /// The snapshots that k3s and RKE2 make of their etcd.
    pub(super) fn snapshots(&mut self) {
        let Some(files) = self.number("controlplane_etcd_snapshot_files", &[]) else { return };
        let written = self.number("controlplane_etcd_snapshot_timestamp_seconds", &[]);
        if let Some(age) = written.map(|written| (self.now - written).max(0.0)) {
            self.measure(
                Topic::Datastore,
                "ControlPlaneEtcdSnapshotOld",
                "age of the newest snapshot",
                "newest snapshot of etcd",
                Figure::new("snapshot_age", age, format!("{} ago, {files} in all", length(age))),
            );
            return;
        }
        let alert = "ControlPlaneEtcdSnapshotMissing";
        let made = self.number("controlplane_etcd_snapshot_datastore_timestamp_seconds", &[]);
        let late = rows(alert, "age of the datastore");
        let health = made.map_or(Health::Ok, |made| by_table(&late, (self.now - made).max(0.0)));
        let none = if files > 0.0 {
            format!("{files}, all dated in the future")
        } else {
            "none".to_owned()
        };
        let figure = match made {
            Some(made) => format!("{none}; the data is {} old", length((self.now - made).max(0.0))),
            None => none,
        };
        self.say(Topic::Datastore, health, alert, "snapshots of etcd", figure);
    }
}

#[cfg(test)]
mod tests {
    use super::super::topics::tests::{MINUTE, about, store};
    use super::*;
    use crate::metric::Metric;
    use crate::sample::Batch;
    use std::time::{SystemTime, UNIX_EPOCH};

    const DAY: f64 = 86_400.0;

    #[test]
    fn the_first_certificate_to_end_is_judged_and_dqlites_is_not() {
        static END: Metric<2> = Metric::gauge(
            "controlplane_certificate_not_after_timestamp_seconds",
            "End.",
            ["path", "role"],
        );
        static DUE: Metric<1> =
            Metric::gauge("controlplane_certificate_restart_due", "Due.", ["path"]);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let store = store();
        let judged = |days: &[f64], due: bool| {
            let mut batch = Batch::default();
            batch.push(&END, ["/cluster.crt", "dqlite"], now + DAY);
            for (n, days) in days.iter().enumerate() {
                batch.push(&END, [&format!("/{n}.crt"), "server"], now + days * DAY + 1.0);
                batch.push(&DUE, [&format!("/{n}.crt")], due);
            }
            store.put("certificate", batch, MINUTE);
        };
        let first = "first certificate to end, /0.crt";
        judged(&[31.0, 365.0], false);
        let (health, figure, alert) = about(&store, first);
        assert_eq!((health, figure.as_str()), (Health::Ok, "31 days"));
        assert_eq!(alert, "ControlPlaneCertificateExpires");
        judged(&[20.0, 21.0, 365.0], true);
        let (health, figure, _) = about(&store, first);
        let expected = "20 days; 2 end soon or have ended";
        assert_eq!((health, figure.as_str()), (Health::Warning, expected));
        let (health, figure, _) = about(&store, "wait for a restart");
        assert_eq!(health, Health::Ok);
        assert!(figure.starts_with("3: "), "{figure}");
        judged(&[6.0], false);
        assert_eq!(about(&store, first).0, Health::Critical);
        judged(&[-3.0], false);
        let (health, figure, alert) = about(&store, first);
        assert_eq!((health, figure.as_str()), (Health::Critical, "ended 3 days ago"));
        assert_eq!(alert, "ControlPlaneCertificateExpired");
    }

    #[test]
    fn the_newest_snapshot_is_judged_by_its_age_and_none_by_that_of_the_datastore() {
        static FILES: Metric<0> = Metric::gauge("controlplane_etcd_snapshot_files", "Files.", []);
        static NEWEST: Metric<0> =
            Metric::gauge("controlplane_etcd_snapshot_timestamp_seconds", "Newest.", []);
        static MADE: Metric<0> =
            Metric::gauge("controlplane_etcd_snapshot_datastore_timestamp_seconds", "Made.", []);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let store = store();
        let judged = |files: u32, hours: f64| {
            let mut batch = Batch::default();
            batch.push(&FILES, [], files);
            batch.push(if files > 0 { &NEWEST } else { &MADE }, [], now - hours * 3600.0);
            store.put("etcd_snapshot", batch, MINUTE);
        };
        judged(5, 25.0);
        let (health, figure, _) = about(&store, "newest snapshot of etcd");
        assert_eq!((health, figure.as_str()), (Health::Ok, "25 h ago, 5 in all"));
        judged(5, 27.0);
        let (health, _, alert) = about(&store, "newest snapshot of etcd");
        assert_eq!((health, alert.as_str()), (Health::Warning, "ControlPlaneEtcdSnapshotOld"));
        judged(0, 25.0);
        assert_eq!(about(&store, "snapshots of etcd").0, Health::Ok);
        judged(0, 27.0);
        let (health, figure, alert) = about(&store, "snapshots of etcd");
        assert_eq!((health, figure.as_str()), (Health::Warning, "none; the data is 27 h old"));
        assert_eq!(alert, "ControlPlaneEtcdSnapshotMissing");
    }
}
