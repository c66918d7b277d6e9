//! METRICS.md: every metric, with its labels and help, what each sampler costs, and when an alert fires.

use crate::metric::Desc;
use crate::{samplers, self_metrics, thresholds};

/// The whole page, as it is committed.
pub fn markdown() -> String {
    let mut out = String::from(
        "# Metrics\n\nWritten by `controlplane-exporter catalog`; a test fails when this page is stale.\n\
         Prometheus adds `instance` and `job`. A figure that could not be read is absent, never zero.\n\
         Gauges vanish after three missed intervals (at least 60 s); counters, distributions, verdicts\n\
         (`*_up`), timestamps and what is marked *remembered* stay while the agent lives.\n",
    );
    section(
        &mut out,
        "The agent's samplers",
        "What the agent says about its samplers.",
        self_metrics::METRICS,
    );
    for (name, def) in samplers::ALL {
        section(&mut out, &format!("`{name}`"), def.about, def.metrics);
        out.push_str(&format!(
            "\nEvery {} by default; each call at most {}. Cost: {}.\n",
            humantime::format_duration(def.interval),
            humantime::format_duration(def.timeout),
            def.cost
        ));
    }
    alerts(&mut out);
    out
}

fn alerts(out: &mut String) {
    out.push_str(
        "\n## Thresholds of the alerts\n\nThe numbers in `alerts/*.rules.yaml`; alerts that fire on a yes or no are only there.\n\n\
         | alert | severity | figure | fires | for |\n|---|---|---|---|---|\n",
    );
    for row in thresholds::TABLE {
        let hold = if row.hold.is_zero() {
            "at once".to_owned()
        } else {
            humantime::format_duration(row.hold).to_string()
        };
        out.push_str(&format!(
            "| [{alert}](alerts/runbooks/{alert}.md) | {} | {} | {} | {hold} |\n",
            row.severity.as_str(),
            row.figure,
            row.condition(),
            alert = row.alert,
        ));
    }
}

fn section(out: &mut String, title: &str, about: &str, metrics: &[Desc]) {
    out.push_str(&format!(
        "\n## {title}\n\n{about}\n\n| metric | kind | labels | help |\n|---|---|---|---|\n"
    ));
    for m in metrics {
        let labels: Vec<_> = m.labels.iter().map(|label| format!("`{label}`")).collect();
        let remembered = m.stays
            && m.kind == crate::metric::Kind::Gauge
            && !m.name.ends_with("_up")
            && !m.name.ends_with("_timestamp_seconds");
        out.push_str(&format!(
            "| `{}` | {}{} | {} | {} |\n",
            m.name,
            m.kind.as_str(),
            if remembered { ", remembered" } else { "" },
            labels.join(", "),
            m.help.replace('|', "\\|")
        ));
    }
}
