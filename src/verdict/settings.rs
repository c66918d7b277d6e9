//! How the node is set up, as far as one node can judge it: what differs between nodes only the rules see.

use super::court::Court;
use super::{Health, Topic, length};

impl Court<'_> {
    /// Clock, pools, files that wait for a restart, and the versions.
    pub(super) fn settings(&mut self) {
        let topic = Topic::Settings;
        if let Some(synchronised) = self.number("controlplane_settings_clock_synchronised", &[]) {
            let (health, word) = if synchronised > 0.5 {
                (Health::Ok, "synchronised")
            } else {
                (Health::Warning, "nothing keeps it right")
            };
            let error = self.number("controlplane_settings_clock_max_error_seconds", &[]);
            let figure = match error {
                Some(error) => format!("{word}, at most {} off", length(error)),
                None => word.to_owned(),
            };
            self.say(topic, health, "ControlPlaneClockUnsynchronised", "clock", figure);
        }
        for series in self.all("controlplane_settings_zfs_pool_info") {
            let [pool, state] = &series.labels[..] else { continue };
            let health = match state.as_str() {
                "ONLINE" => Health::Ok,
                "DEGRADED" | "other" => Health::Warning,
                _ => Health::Critical,
            };
            let what = format!("ZFS pool {pool}");
            self.say(topic, health, "ControlPlaneZfsPoolUnhealthy", &what, state.clone());
        }
        for series in self.all("controlplane_settings_changed_since_start") {
            if series.value.as_number() > 0.5 {
                self.say(
                    topic,
                    Health::Ok,
                    "ControlPlaneSettingsChanged",
                    &series.labels[0],
                    "changed since its program has started: it bites at the next restart".into(),
                );
            }
        }
        let versions: Vec<String> = self
            .all("controlplane_settings_version_info")
            .iter()
            .map(|series| format!("{} {}", series.labels[0], series.labels[1]))
            .collect();
        if !versions.is_empty() {
            let alert = "ControlPlaneVersionSkew";
            self.say(topic, Health::Ok, alert, "versions", versions.join(", "));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::topics::tests::{MINUTE, about, store};
    use super::*;
    use crate::metric::Metric;
    use crate::sample::Batch;

    static CLOCK: Metric<0> =
        Metric::gauge("controlplane_settings_clock_synchronised", "Clock.", []);
    static ERROR: Metric<0> =
        Metric::gauge("controlplane_settings_clock_max_error_seconds", "Error.", []);
    static POOL: Metric<2> =
        Metric::info("controlplane_settings_zfs_pool_info", "Pool.", ["pool", "state"]);
    static CHANGED: Metric<1> =
        Metric::gauge("controlplane_settings_changed_since_start", "Changed.", ["path"]);
    static VERSION: Metric<2> =
        Metric::info("controlplane_settings_version_info", "Version.", ["component", "version"]);

    #[test]
    fn clock_and_pools_are_judged_and_the_rest_is_told() {
        let store = store();
        let judged = |synchronised: bool, state: &str| {
            let mut batch = Batch::default();
            batch.push(&CLOCK, [], synchronised);
            batch.push(&ERROR, [], 0.25);
            batch.info(&POOL, ["rpool", state]);
            batch.push(&CHANGED, ["/etc/rancher/k3s/config.yaml"], true);
            batch.push(&CHANGED, ["/etc/default/k3s"], false);
            batch.info(&VERSION, ["kubernetes", "v1.33.1"]);
            batch.info(&VERSION, ["kernel", "6.1"]);
            store.put("settings", batch, MINUTE);
        };
        judged(true, "ONLINE");
        let (health, figure, alert) = about(&store, "clock");
        assert_eq!((health, figure.as_str()), (Health::Ok, "synchronised, at most 250 ms off"));
        assert_eq!(alert, "ControlPlaneClockUnsynchronised");
        assert_eq!(about(&store, "ZFS pool rpool").0, Health::Ok);
        let (health, _, alert) = about(&store, "/etc/rancher/k3s/config.yaml");
        assert_eq!((health, alert.as_str()), (Health::Ok, "ControlPlaneSettingsChanged"));
        assert_eq!(about(&store, "versions").1, "kubernetes v1.33.1, kernel 6.1");
        judged(false, "DEGRADED");
        assert_eq!(about(&store, "clock").0, Health::Warning);
        assert_eq!(about(&store, "ZFS pool rpool").0, Health::Warning);
        judged(true, "SUSPENDED");
        let (health, figure, alert) = about(&store, "ZFS pool rpool");
        assert_eq!((health, figure.as_str()), (Health::Critical, "SUSPENDED"));
        assert_eq!(alert, "ControlPlaneZfsPoolUnhealthy");
    }
}
