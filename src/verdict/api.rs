//! The API server as its own checks say it, and the ways to it.

use std::time::Duration;

use super::court::{Court, Figure, rows};
use super::{Health, Topic, length};

impl Court<'_> {
    /// Whether it answers, what it says of itself, and how long it takes.
    pub(super) fn api(&mut self) {
        let states = self.all("controlplane_apiserver_state");
        for series in self.all("controlplane_apiserver_up") {
            let target = series.labels[0].as_str();
            let of = |endpoint: &str| {
                let found = states.iter().find(|s| {
                    s.labels[0] == target && s.labels[1] == endpoint && s.value.as_number() > 0.5
                });
                found.map_or("unreachable", |s| s.labels[2].as_str()).to_owned()
            };
            if target == "local" {
                self.local_api(series.value.as_number() > 0.5, &of("livez"), &of("readyz"));
                continue;
            }
            let state = of("url");
            let health = match state.as_str() {
                "ok" | "unauthorised" => Health::Ok,
                _ => Health::Critical,
            };
            let what = format!("URL {target}");
            self.say(Topic::Api, health, "ControlPlaneApiserverUrlFailing", &what, state);
        }
        self.api_time();
    }

    fn local_api(&mut self, up: bool, livez: &str, readyz: &str) {
        let alert = "ControlPlaneApiserverDown";
        if !up {
            let figure = self.silence("apiserver");
            self.say(Topic::Api, Health::Warning, alert, "API server", figure);
            return;
        }
        let mut failing: Vec<String> = self
            .all("controlplane_apiserver_failing_check_info")
            .into_iter()
            .filter(|series| series.labels[0] == "local")
            .map(|series| series.labels[2].clone())
            .collect();
        failing.sort_unstable();
        failing.dedup();
        let failing =
            if failing.is_empty() { String::new() } else { format!(": {}", failing.join(", ")) };
        let (health, alert, figure) = match (livez, readyz) {
            ("failing", _) | (_, "failing") => {
                let which = if livez == "failing" { "not alive" } else { "not ready" };
                let figure = format!("{which}{failing}");
                (Health::Warning, "ControlPlaneApiserverNotReady", figure)
            }
            (_, "ok") => (Health::Ok, alert, "ready".to_owned()),
            (_, "unauthorised") => (
                Health::Ok,
                alert,
                "answers; says nothing of itself without authorisation".to_owned(),
            ),
            (_, other) => (Health::Unknown, alert, format!("answers {other}")),
        };
        self.say(Topic::Api, health, alert, "API server", figure);
    }

    fn api_time(&mut self) {
        let alert = "ControlPlaneApiserverSlow";
        let times = self.all("controlplane_apiserver_request_duration_seconds");
        let local = times.into_iter().find(|s| s.labels[0] == "local" && s.labels[1] == "livez");
        let recent = local.and_then(|series| self.recent(&series, Duration::from_mins(10)));
        if let Some(p90) = recent.and_then(|recent| recent.quantile(0.9)) {
            let table = rows(alert, "answers of the API server, p90 of 10 minutes");
            let what = "answers of the API server, p90 of 10 minutes";
            self.measure_by(
                &table,
                Topic::Api,
                alert,
                what,
                Figure::new("api_p90", p90, length(p90)),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::topics::tests::{MINUTE, about, store};
    use super::*;
    use crate::metric::Metric;
    use crate::sample::{Batch, Histogram};

    static UP: Metric<1> = Metric::gauge("controlplane_apiserver_up", "Up.", ["target"]);
    static STATE: Metric<3> =
        Metric::gauge("controlplane_apiserver_state", "State.", ["target", "type", "state"]);
    static FAILING: Metric<3> = Metric::info(
        "controlplane_apiserver_failing_check_info",
        "Failing.",
        ["target", "type", "check"],
    );
    static TIMES: Metric<2> = Metric::histogram(
        "controlplane_apiserver_request_duration_seconds",
        "Times.",
        ["target", "type"],
    );

    fn judged(up: bool, readyz: &str, url: &str) -> [(Health, String, String); 2] {
        let store = store();
        let mut batch = Batch::default();
        batch.push(&UP, ["local"], up);
        batch.push(&UP, ["balancer"], true);
        batch.push(&STATE, ["local", "livez", "ok"], true);
        batch.push(&STATE, ["local", "readyz", "ok"], readyz == "ok");
        if readyz != "ok" {
            batch.push(&STATE, ["local", "readyz", readyz], true);
        }
        if readyz == "failing" {
            batch.info(&FAILING, ["local", "readyz", "etcd"]);
        }
        batch.push(&STATE, ["balancer", "url", url], true);
        store.put("apiserver", batch, MINUTE);
        [about(&store, "API server"), about(&store, "URL balancer")]
    }

    #[test]
    fn an_api_server_is_judged_by_what_it_says_of_itself() {
        let [(health, figure, _), (url, ..)] = judged(true, "ok", "ok");
        assert_eq!((health, figure.as_str(), url), (Health::Ok, "ready", Health::Ok));
        let [(health, figure, alert), (url, _, of_url)] = judged(true, "failing", "failing");
        assert_eq!((health, figure.as_str()), (Health::Warning, "not ready: etcd"));
        assert_eq!(alert, "ControlPlaneApiserverNotReady");
        assert_eq!((url, of_url.as_str()), (Health::Critical, "ControlPlaneApiserverUrlFailing"));
        let [(health, figure, _), (url, ..)] = judged(true, "unauthorised", "unauthorised");
        assert_eq!((health, url), (Health::Ok, Health::Ok));
        assert!(figure.contains("without authorisation"), "{figure}");
        let [(health, _, alert), _] = judged(false, "unreachable", "unreachable");
        assert_eq!((health, alert.as_str()), (Health::Warning, "ControlPlaneApiserverDown"));
    }

    #[test]
    fn slow_answers_are_judged_by_the_last_ten_minutes() {
        let store = store();
        let mut times = Histogram::new(&[0.5, 1.0, 2.5]);
        (0..10).for_each(|_| times.observe(2.0));
        let mut batch = Batch::default();
        batch.push(&UP, ["local"], true);
        batch.histogram(&TIMES, ["local", "livez"], &times);
        store.put("apiserver", batch, MINUTE);
        let (health, _, alert) = about(&store, "p90 of 10 minutes");
        assert_eq!((health, alert.as_str()), (Health::Warning, "ControlPlaneApiserverSlow"));
    }
}
