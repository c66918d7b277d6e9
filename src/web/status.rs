//! The status of the agent as a page and as JSON.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract;
use axum::response::Html;
use serde_json::{Value, json};

use super::App;
use crate::host::Facts;
use crate::samplers;
use crate::self_metrics::State;
use crate::thresholds::RUNBOOKS;
use crate::verdict::{self, Health, Topic, Verdict};

/// `/api/v1/status`: the node, the verdicts, the samplers, the newest events.
pub(super) async fn json(extract::State(app): extract::State<App>) -> Json<Value> {
    Json(status(&app))
}

fn status(app: &App) -> Value {
    let verdicts = verdict::judge(&app.store);
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
        "health": verdict::worst(&verdicts),
        "verdicts": verdicts,
        "samplers": samplers,
        "events": app.store.events(),
    })
}

/// Colours say the same as the symbol and the word beside them. Every one of them has a contrast of at least
/// 4.5 to its background, in both schemes.
const STYLE: &str = "
:root { color-scheme: light dark; font: 16px/1.45 system-ui, sans-serif; --line: light-dark(#c9ced6, #3b414a); --soft: light-dark(#51585f, #aab2bd) }
body { max-width: 75rem; margin: 0 auto; padding: 1rem; background: light-dark(#fff, #14171b); color: light-dark(#16191d, #e8ebef) }
h1 { font-size: 1.6rem; margin: 0 } h2 { font-size: 1.1rem; margin: 1.6rem 0 .3rem }
p { margin: .4rem 0 } .soft, time { color: var(--soft) }
a { color: light-dark(#0b57a4, #8fc1ff) }
table { border-collapse: collapse; width: 100%; table-layout: fixed }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-top: 1px solid var(--line); vertical-align: top; font-weight: normal }
thead th { color: var(--soft); border: 0; font-size: .85rem }
th, td, li { overflow-wrap: anywhere; font-variant-numeric: tabular-nums }
.health { white-space: nowrap; width: 6.5rem; font-weight: 600 } tbody th { width: 46% }
.samplers tbody th { width: 9rem } .samplers td:nth-child(3) { width: 8rem }
.ok { color: light-dark(#176b2c, #7fd394) } .unknown { color: light-dark(#6b3fa0, #cdb4f6) }
.warning { color: light-dark(#8a5200, #f5c26b) } .critical { color: light-dark(#a4151b, #ff9a94) }
.verdict { border: 2px solid; border-radius: .4rem; padding: .5rem .8rem; margin: .8rem 0; font-weight: 600; font-size: 1.15rem }
ul { padding-left: 1.2rem } .events { list-style: none; padding: 0 } .events li { padding: .25rem 0; border-top: 1px solid var(--line) }
@media (min-width: 64rem) { .topics { display: grid; grid-template-columns: 1fr 1fr; column-gap: 3rem; align-items: start } }
@media (max-width: 40rem) { thead { display: none } tr { display: grid; grid-template-columns: 7.5rem 1fr; border-top: 1px solid var(--line); padding: .3rem 0 } th, td { border: 0; padding: 0 } td + th ~ td { grid-column: 2 } td:empty { display: none } tbody th, .samplers tbody th, .samplers td:nth-child(3), .health { width: auto } }
";

/// `/`: how this node is, for a person; every figure of it is also in the JSON.
pub(super) async fn page(extract::State(app): extract::State<App>) -> Html<String> {
    let facts = app.facts.borrow().clone();
    let verdicts = verdict::judge(&app.store);
    let host = escape(if facts.hostname.is_empty() { "this node" } else { &facts.hostname });
    let overall = overall(&verdicts, app.is_ready());
    let notes: String = facts.notes.iter().map(|n| format!("<li>{}\n", escape(n))).collect();
    let notes = if notes.is_empty() {
        String::new()
    } else {
        format!("<h2>Notes of detection</h2>\n<ul>\n{notes}</ul>\n")
    };
    Html(format!(
        "<!doctype html>
<html lang=en>
<meta charset=utf-8>
<meta name=viewport content=\"width=device-width\">
<meta http-equiv=refresh content=15>
<title>{title}: {host}</title>
<style>{STYLE}</style>
<main>
<h1>{host}</h1>
<p>{node}</p>
{overall}
{wrong}
<div class=topics>
{topics}</div>
<h2>What happened, in UTC, the newest first</h2>
<ul class=events>
{events}</ul>
<h2>Samplers</h2>
<table class=samplers><thead><tr><th scope=col class=health>State<th scope=col>Sampler<th scope=col>Every<th scope=col>Why<tbody>
{samplers}</table>
{notes}</main>
<footer><p class=soft>controlplane-exporter {version} · <a href=\"{metrics}\">all figures</a> · <a href=\"/api/v1/status\">this page as JSON</a> · made {now} UTC, again every 15 s</footer>
",
        title = verdict::worst(&verdicts).as_str(),
        node = escape(&node(&facts)),
        wrong = wrong(&verdicts),
        topics = topics(&app, &verdicts),
        events = events(&app),
        samplers = samplers(&app),
        version = env!("CARGO_PKG_VERSION"),
        metrics = app.telemetry_path,
        now = moment(SystemTime::now()),
    ))
}

/// What this node was found to be.
fn node(facts: &Facts) -> String {
    facts.primary().map_or("No Kubernetes control plane was found on this node.".to_owned(), |n| {
        format!(
            "{} {}, {}, datastore {}",
            n.distribution,
            n.version.as_deref().unwrap_or("(version unknown)"),
            n.role.as_str(),
            n.datastore.as_str()
        )
    })
}

/// A symbol and a word, so that colour is never the only sign.
fn badge(health: Health) -> String {
    let symbol = match health {
        Health::Ok => "\u{2714}",
        Health::Unknown => "?",
        Health::Warning => "\u{25b2}",
        Health::Critical => "\u{2716}",
    };
    format!("<span aria-hidden=true>{symbol}</span> {}", health.as_str())
}

/// The one line for whoever looks from across the room.
fn overall(verdicts: &[Verdict], ready: bool) -> String {
    let health = verdict::worst(verdicts);
    let count = |health| verdicts.iter().filter(|v| v.health == health).count();
    let text = match health {
        _ if !ready => "the first look is not done yet".to_owned(),
        Health::Ok => format!("all {} checks of this node are well", verdicts.len()),
        Health::Unknown if verdicts.is_empty() => "there is nothing here to judge".into(),
        Health::Unknown => {
            format!("{} of {} checks could not be made", count(health), verdicts.len())
        }
        Health::Warning => format!("{} of {} checks need a look", count(health), verdicts.len()),
        Health::Critical => {
            format!("{} of {} checks need somebody now", count(health), verdicts.len())
        }
    };
    format!("<p class=\"verdict {}\" role=status>{}: {text}</p>", health.as_str(), badge(health))
}

fn row(verdict: &Verdict, runbook: bool) -> String {
    let link = if runbook && verdict.health != Health::Ok {
        format!(" <a href=\"{RUNBOOKS}{0}.md\">what to do: {0}</a>", verdict.alert)
    } else {
        String::new()
    };
    let limit = if verdict.limit.is_empty() {
        String::new()
    } else {
        format!("<br><span class=soft>{}</span>", unbroken(&verdict.limit))
    };
    format!(
        "<tr><td class=\"health {}\">{}<th scope=row>{}<td>{}{limit}{link}\n",
        verdict.health.as_str(),
        badge(verdict.health),
        escape(&verdict.what),
        unbroken(&verdict.figure),
    )
}

/// A figure whose unit stays on its line.
fn unbroken(text: &str) -> String {
    [" %", " ms", " min", " s"]
        .iter()
        .fold(escape(text), |text, unit| text.replace(unit, &unit.replace(' ', "\u{a0}")))
}

/// What is not well, before everything else, causes first.
fn wrong(verdicts: &[Verdict]) -> String {
    let rows: String =
        verdicts.iter().filter(|v| v.health > Health::Unknown).map(|v| row(v, true)).collect();
    if rows.is_empty() {
        return String::new();
    }
    format!("<h2>What is wrong, causes first</h2>\n<table><tbody>\n{rows}</table>\n")
}

/// Every check by topic; a topic that is not watched says why.
fn topics(app: &App, verdicts: &[Verdict]) -> String {
    let statuses = app.store.statuses().all();
    let mut out = String::new();
    for topic in Topic::ALL {
        let rows: String =
            verdicts.iter().filter(|v| v.topic == topic).map(|v| row(v, false)).collect();
        let body = if rows.is_empty() {
            if topic == Topic::Samplers {
                continue;
            }
            let why = topic.samplers().iter().filter_map(|name| statuses.get(name));
            let why: Vec<_> = why.filter(|s| !s.why.is_empty()).map(|s| s.why.as_str()).collect();
            let why = if why.is_empty() { "no figure yet".into() } else { why.join("; ") };
            format!("<p class=soft>no figures: {}</p>", escape(&why))
        } else {
            format!("<table><tbody>\n{rows}</table>")
        };
        out.push_str(&format!("<section><h2>{}</h2>\n{body}\n</section>\n", topic.title()));
    }
    out
}

fn samplers(app: &App) -> String {
    let mut rows = String::new();
    let statuses = app.store.statuses().all();
    for (name, s) in samplers::ALL.iter().filter_map(|(name, _)| Some((name, statuses.get(name)?)))
    {
        let (class, word) = match (s.state, s.up) {
            (State::Running, Some(true)) => ("ok", badge(Health::Ok)),
            (State::Running, None) => ("unknown", "starting".into()),
            (State::Running, Some(false)) => ("critical", "failing".into()),
            (State::NoPermission, _) => ("critical", "no permission".into()),
            (State::Off, _) => ("soft", "off".into()),
            (State::NotApplicable, _) => ("soft", "not here".into()),
        };
        let every = match s.state {
            State::Running | State::NoPermission => {
                format!("every {}", humantime::format_duration(s.interval))
            }
            State::Off | State::NotApplicable => String::new(),
        };
        rows.push_str(&format!(
            "<tr><td class=\"health {class}\">{word}<th scope=row>{name}<td>{every}<td>{}\n",
            escape(&s.why)
        ));
    }
    rows
}

fn events(app: &App) -> String {
    let mut events = String::new();
    for event in app.store.events().iter().rev().take(40) {
        // A date is printed up to the year 9999 only; the time of a garbled record may be later.
        let seconds = event.time.clamp(0.0, 253_402_300_799.0);
        let at = UNIX_EPOCH + Duration::try_from_secs_f64(seconds).unwrap_or_default();
        let ago = verdict::length(at.elapsed().unwrap_or_default().as_secs_f64().round());
        events.push_str(&format!(
            "<li><time datetime={}>{} ({ago} ago)</time> {}\n",
            humantime::format_rfc3339_seconds(at),
            moment(at),
            escape(&event.text)
        ));
    }
    if events.is_empty() {
        events = "<li>nothing since the agent started\n".into();
    }
    events
}

/// Date and time of day.
fn moment(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string().replace(['T', 'Z'], " ").trim_end().to_owned()
}

/// Text that stays text inside HTML.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
