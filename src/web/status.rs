//! The status of the agent as a page and as JSON.

use std::time::{Duration, UNIX_EPOCH};

use axum::Json;
use axum::extract;
use axum::response::Html;
use serde_json::{Value, json};

use super::App;
use crate::samplers;
use crate::self_metrics::State;

/// `/api/v1/status`: the node, the samplers, the newest events.
pub(super) async fn json(extract::State(app): extract::State<App>) -> Json<Value> {
    Json(status(&app))
}

fn status(app: &App) -> Value {
    let facts = app.facts.borrow().clone();
    let samplers: Vec<Value> = app
        .store
        .statuses()
        .all()
        .iter()
        .map(|(name, s)| {
            json!({
                "name": name,
                "state": s.state,
                "up": s.up,
                "why": s.why,
                "interval_seconds": s.interval.as_secs_f64(),
                "runs": s.runs,
                "duration_seconds": s.duration.as_secs_f64(),
                "inflight_seconds": s.inflight.map(|i| i.elapsed().as_secs_f64()),
                "last_success": s.last_success
                    .and_then(|t| t.duration_since(UNIX_EPOCH).ok())
                    .map(|t| t.as_secs_f64()),
            })
        })
        .collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "node": &*facts,
        "samplers": samplers,
        "events": app.store.events(),
    })
}

/// `/`: a first simple page; every figure of it is also in the JSON.
pub(super) async fn page(extract::State(app): extract::State<App>) -> Html<String> {
    let facts = app.facts.borrow().clone();
    let node = facts.primary().map_or("no Kubernetes control plane was found".to_owned(), |n| {
        format!(
            "{} {}, {}, datastore {}",
            n.distribution,
            n.version.as_deref().unwrap_or("(version unknown)"),
            n.role.as_str(),
            n.datastore.as_str()
        )
    });
    let mut rows = String::new();
    let statuses = app.store.statuses().all();
    for (name, s) in samplers::ALL.iter().filter_map(|(name, _)| Some((name, statuses.get(name)?)))
    {
        let verdict = match (s.state.as_str(), s.up) {
            ("running", Some(true)) => "ok",
            ("running", None) => "starting",
            ("running", Some(false)) => "failing",
            (state, _) => state,
        };
        let every = match s.state {
            State::Running | State::NoPermission => {
                humantime::format_duration(s.interval).to_string()
            }
            State::Off | State::NotApplicable => String::new(),
        };
        rows.push_str(&format!(
            "<tr><th scope=row>{name}<td class={verdict}>{}<td>{every}<td>{}\n",
            verdict.replace('_', " "),
            escape(&s.why)
        ));
    }
    let mut events = String::new();
    for event in app.store.events().iter().rev().take(20) {
        let at = UNIX_EPOCH + Duration::try_from_secs_f64(event.time).unwrap_or_default();
        let time = humantime::format_rfc3339_seconds(at);
        let (time, ago) = (time.to_string(), at.elapsed().unwrap_or_default());
        events.push_str(&format!(
            "<li><time datetime={time}>{} ({} ago)</time> {}\n",
            time.replace(['T', 'Z'], " ").trim_end(),
            coarse(ago),
            escape(&event.text)
        ));
    }
    if events.is_empty() {
        events = "<li>none since the agent started\n".into();
    }
    let notes: String = facts.notes.iter().map(|n| format!("<li>{}\n", escape(n))).collect();
    let metrics = &app.telemetry_path;
    Html(format!(
        "<!doctype html>
<html lang=en>
<meta charset=utf-8>
<meta name=viewport content=\"width=device-width\">
<meta http-equiv=refresh content=15>
<title>{host}: controlplane-exporter</title>
<style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }}
body {{ max-width: 60rem; margin: 1rem auto; padding: 0 1rem }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{ text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #8886; vertical-align: top; white-space: nowrap }}
td:last-child, li {{ white-space: normal; overflow-wrap: anywhere }}
@media (max-width: 40rem) {{ tr {{ display: grid; grid-template-columns: 1fr 7rem 4rem; border-bottom: 1px solid #8886 }} th, td {{ border: 0 }} :is(th, td):last-child {{ grid-column: 1 / -1 }} thead th:last-child, td:empty {{ display: none }} }}
time {{ opacity: .75; font-variant-numeric: tabular-nums }}
.ok {{ color: light-dark(#176b2c, #7fd394) }} .failing, .no_permission {{ color: light-dark(#a4151b, #ff9a94); font-weight: bold }}
</style>
<h1>{host}</h1>
<p>{node}. <a href=\"{metrics}\">Figures</a>, <a href=\"/api/v1/status\">status as JSON</a>, version {version}.
<h2>Samplers</h2>
<table><thead><tr><th scope=col>Sampler<th scope=col>State<th scope=col>Every<th scope=col>Why<tbody>
{rows}</table>
<h2>Recent events, in UTC</h2>
<ul>
{events}</ul>
{notes}
",
        host = escape(if facts.hostname.is_empty() { "this node" } else { &facts.hostname }),
        node = escape(&node),
        version = env!("CARGO_PKG_VERSION"),
        notes = if notes.is_empty() {
            String::new()
        } else {
            format!("<h2>Notes of detection</h2>\n<ul>\n{notes}</ul>")
        },
    ))
}

/// A length of time as a person says it: its largest unit only.
fn coarse(length: Duration) -> String {
    let seconds = length.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Text that stays text inside HTML.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
