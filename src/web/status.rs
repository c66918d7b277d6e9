//! The status of the agent as a page and as JSON.

use axum::Json;
use axum::extract::State;
use axum::response::Html;
use serde_json::{Value, json};
use std::time::{Duration, UNIX_EPOCH};

use super::App;

/// `/api/v1/status`: the node, the samplers, the newest events.
pub(super) async fn json(State(app): State<App>) -> Json<Value> {
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
pub(super) async fn page(State(app): State<App>) -> Html<String> {
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
    for (name, s) in app.store.statuses().all() {
        let verdict = match (s.state.as_str(), s.up) {
            ("running", Some(true)) => "ok",
            ("running", None) => "starting",
            ("running", Some(false)) => "failing",
            (state, _) => state,
        };
        let every = match s.interval {
            Duration::ZERO => String::new(),
            interval => humantime::format_duration(interval).to_string(),
        };
        rows.push_str(&format!(
            "<tr><th scope=row>{name}<td class={verdict}>{}<td>{every}<td>{}\n",
            verdict.replace('_', " "),
            escape(&s.why)
        ));
    }
    let mut events = String::new();
    for event in app.store.events().iter().rev().take(20) {
        let ago = UNIX_EPOCH.elapsed().map_or(0.0, |now| now.as_secs_f64() - event.time);
        events.push_str(&format!("<li>{ago:.0} s ago: {}\n", escape(&event.text)));
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
th, td {{ text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #8886; vertical-align: top; overflow-wrap: anywhere }}
.ok {{ color: light-dark(#176b2c, #7fd394) }} .failing, .no_permission {{ color: light-dark(#a4151b, #ff9a94); font-weight: bold }}
</style>
<h1>{host}</h1>
<p>{node}. <a href=\"{metrics}\">Figures</a>, <a href=\"/api/v1/status\">status as JSON</a>, version {version}.
<h2>Samplers</h2>
<table><thead><tr><th scope=col>Sampler<th scope=col>State<th scope=col>Every<th scope=col>Why<tbody>
{rows}</table>
<h2>Recent events</h2>
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

/// Text that stays text inside HTML.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
