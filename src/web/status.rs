//! The status of the agent as a page and as JSON.

use std::time::SystemTime;

use axum::Json;
use axum::extract;
use axum::response::Html;

use super::{App, timeline};
use crate::runbook;
use crate::samplers;
use crate::self_metrics::State;
use crate::status::{self, Status};
use crate::timeline::moment;
use crate::verdict::{self, Health, Topic, Verdict};

/// `/api/v1/status`.
pub(super) async fn json(extract::State(app): extract::State<App>) -> Json<Status> {
    let facts = app.facts.borrow().clone();
    Json(Status::of(&app.store, (*facts).clone(), app.is_ready()))
}

/// Colours say the same as the symbol and the word beside them. Every one of them has a contrast of at least
/// 4.5 to its background, in both schemes.
const STYLE: &str = "
:root { color-scheme: light dark; font: clamp(1rem, .6rem + .6vw, 1.6rem)/1.45 system-ui, sans-serif; --line: light-dark(#c9ced6, #3b414a); --soft: light-dark(#51585f, #aab2bd) }
body { max-width: 90rem; margin: 0 auto; padding: 1rem; background: light-dark(#fff, #14171b); color: light-dark(#16191d, #e8ebef) }
h1 { font-size: 1.6rem; margin: 0 } h2 { font-size: 1.1rem; margin: 1.6rem 0 .3rem }
p { margin: .4rem 0 } .soft, time { color: var(--soft) }
a { color: light-dark(#0b57a4, #8fc1ff) } td > a { display: block }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-top: 1px solid var(--line); vertical-align: top; font-weight: normal }
thead th { color: var(--soft); border: 0; font-size: .85rem }
h1, p, th, td, li { overflow-wrap: anywhere; font-variant-numeric: tabular-nums }
.health { white-space: nowrap; width: 6rem; font-weight: 600 } tbody th { width: 40% }
.samplers tbody th, .samplers td:nth-child(3) { width: 8rem; white-space: nowrap }
.ok { color: light-dark(#176b2c, #7fd394) } .unknown { color: light-dark(#6b3fa0, #cdb4f6) }
.warning { color: light-dark(#8a5200, #f5c26b) } .critical { color: light-dark(#a4151b, #ff9a94) }
.verdict { border: 2px solid; border-radius: .4rem; padding: .5rem .8rem; margin: .8rem 0; font-weight: 600; font-size: 1.15rem }
ul { padding-left: 1.2rem } .events { list-style: none; padding: 0; margin: 0 } .events li { padding: .25rem 0; border-top: 1px solid var(--line) }
.events li > * { display: block } @media (min-width: 64rem) { .events li { display: grid; grid-template-columns: 19rem 16rem 1fr; column-gap: .9rem } }
summary { padding: .4rem 0; color: var(--soft) }
@media (min-width: 64rem) { .topics { columns: 2; column-gap: 3rem; margin-top: 1.6rem } .topics section { break-inside: avoid; padding-bottom: 1.6rem } .topics h2 { margin-top: 0 } }
@media (max-width: 40rem) { thead { display: none } tr { display: grid; grid-template-columns: 6.8rem 1fr; border-top: 1px solid var(--line); padding: .3rem 0 } th, td { border: 0; padding: 0 } td + th ~ td { grid-column: 2 } td:empty { display: none } tbody th, .samplers tbody th, .samplers td:nth-child(3), .health { width: auto } table:not(.samplers) th + td { font-weight: 600 } td > .soft, td > a { font-weight: normal } }
";

/// `/`: how this node is, for a person; every figure of it is also in the JSON.
///
/// `/?refresh=30` loads itself again. Only who asks for it gets that: it takes the page away from under a
/// reader's finger, and starts a screen reader anew.
pub(super) async fn page(
    extract::State(app): extract::State<App>,
    extract::RawQuery(query): extract::RawQuery,
) -> Html<String> {
    let facts = app.facts.borrow().clone();
    let verdicts = status::verdicts(&app.store, &facts, app.is_ready());
    let events = app.store.events();
    let host = escape(if facts.hostname.is_empty() { "this node" } else { &facts.hostname });
    let overall = overall(&verdicts, app.is_ready());
    let notes: String = facts.notes.iter().map(|n| format!("<li>{}\n", escape(n))).collect();
    let notes = if notes.is_empty() {
        String::new()
    } else {
        format!("<h2>Notes of detection</h2>\n<ul>\n{notes}</ul>\n")
    };
    let (refresh, again) = match refresh(query.as_deref().unwrap_or_default()) {
        Some(seconds) => (
            format!("<meta http-equiv=refresh content={seconds}>\n"),
            format!("reloads every {seconds} s (<a href=\"?\">stop</a>)"),
        ),
        None => {
            (String::new(), format!("<a href=\"?refresh={REFRESH}\">reload every {REFRESH} s</a>"))
        }
    };
    Html(format!(
        "<!doctype html>
<html lang=en>
<meta charset=utf-8>
<meta name=viewport content=\"width=device-width\">
<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">
{refresh}<title>{title}: {host}</title>
<link rel=icon href=\"{icon}\">
<style>{STYLE}</style>
<main>
<h1>{host}</h1>
<p>{node}</p>
<p class=soft>made {now} UTC · {again}</p>
{overall}
{wrong}
{beginning}<div class=topics>
{topics}</div>
{timeline}<h2>All samplers</h2>
<table class=samplers><thead><tr><th scope=col class=health>State<th scope=col>Sampler<th scope=col>Every<th scope=col>Why<tbody>
{samplers}</table>
{notes}</main>
<footer><p class=soft>controlplane-exporter {version} · <a href=\"{metrics}\">all figures</a> · <a href=\"/api/v1/status\">this page as JSON</a> · <a href=\"/api/v1/timeline\">the timeline as JSON</a></p></footer>
",
        title = verdict::worst(&verdicts).as_str(),
        icon = icon(verdict::worst(&verdicts)),
        node = escape(&facts.to_string()),
        wrong = wrong(&verdicts),
        topics = topics(&app, &verdicts),
        beginning = timeline::beginning(&events, verdict::worst(&verdicts) == Health::Ok),
        timeline = timeline::section(&events),
        samplers = samplers(&app),
        version = env!("CARGO_PKG_VERSION"),
        metrics = app.telemetry_path,
        now = moment(SystemTime::now()),
    ))
}

/// Seconds between two looks of a page that nobody touches.
const REFRESH: u64 = 15;

/// The seconds after which the page is to load itself again, if it is to.
fn refresh(query: &str) -> Option<u64> {
    let asked = query.split('&').find(|pair| pair.split('=').next() == Some("refresh"))?;
    let seconds = asked.split_once('=').and_then(|(_, value)| value.parse().ok());
    Some(seconds.unwrap_or(REFRESH).clamp(5, 3600))
}

/// The picture on a browser's tab: a shape and a colour for each health. Without it the browser asks for one.
fn icon(health: Health) -> String {
    let (fill, shape) = match health {
        Health::Ok => ("176b2c", "M4 8l3 3 5-6"),
        Health::Unknown => ("6b3fa0", "M5 6q0-3 3-3t3 3q0 2-3 3v1m0 2v1"),
        Health::Warning => ("8a5200", "M8 3v6m0 3v1"),
        Health::Critical => ("a4151b", "M4 4l8 8m0-8l-8 8"),
    };
    format!(
        "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'>\
         <rect width='16' height='16' rx='3' fill='%23{fill}'/>\
         <path d='{shape}' fill='none' stroke='%23fff' stroke-width='2'/></svg>"
    )
}

/// A symbol and a word, so that colour is never the only sign.
fn badge(health: Health, word: &str) -> String {
    let symbol = match health {
        Health::Ok => "\u{2714}",
        Health::Unknown => "?",
        Health::Warning => "\u{25b2}",
        Health::Critical => "\u{2716}",
    };
    format!("<span aria-hidden=true>{symbol}</span> {word}")
}

/// The one line for whoever looks from across the room.
fn overall(verdicts: &[Verdict], ready: bool) -> String {
    let health = verdict::worst(verdicts);
    let count = verdicts.iter().filter(|v| v.health == health).count();
    let (all, needs) = (verdicts.len(), if count == 1 { "needs" } else { "need" });
    let text = match health {
        _ if !ready => "the first look is not done yet".to_owned(),
        Health::Ok => format!("all {all} checks of this node are well"),
        Health::Unknown if verdicts.is_empty() => "there is nothing here to judge".into(),
        Health::Unknown => format!("{count} of {all} checks could not be made"),
        Health::Warning => format!("{count} of {all} checks {needs} a look"),
        Health::Critical => format!("{count} of {all} checks {needs} somebody now"),
    };
    let word = health.as_str();
    format!("<p class=\"verdict {word}\" role=status>{}: {text}</p>", badge(health, word))
}

fn row(verdict: &Verdict, runbook: bool) -> String {
    let link = if runbook && verdict.health != Health::Ok && !verdict.alert.is_empty() {
        let name = verdict.alert.replace("ControlPlane", "ControlPlane<wbr>");
        let (url, alert) = (runbook::URL, &verdict.alert);
        format!(" <a href=\"{url}{alert}.md\">what to do: {name}</a>")
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
        badge(verdict.health, verdict.health.as_str()),
        broken(&verdict.what),
        unbroken(&verdict.figure),
    )
}

/// A figure whose unit stays on its line.
fn unbroken(text: &str) -> String {
    [" %", " ms", " min", " s"]
        .iter()
        .fold(broken(text), |text, unit| text.replace(unit, &unit.replace(' ', "\u{a0}")))
}

/// Text with paths, which are best broken after a folder, though not after their first slash.
fn broken(text: &str) -> String {
    escape(text).replace('/', "/<wbr>").replace(" /<wbr>", " /").replace(":/<wbr>/<wbr>", "://")
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
        let rows: String = verdicts
            .iter()
            .filter(|v| v.topic == topic)
            .map(|v| row(v, v.health == Health::Unknown))
            .collect();
        let body = if rows.is_empty() {
            if topic == Topic::Samplers {
                continue;
            }
            let why = topic.samplers().iter().filter_map(|name| statuses.get(name));
            let why: Vec<_> = why.filter(|s| !s.why.is_empty()).map(|s| s.why.as_str()).collect();
            let why = if why.is_empty() { "no figure".into() } else { why.join("; ") };
            format!("<p class=soft>nothing to judge: {}</p>", broken(&why))
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
            (State::Running, Some(true)) => ("ok", badge(Health::Ok, "ok")),
            (State::Running, None) => ("unknown", badge(Health::Unknown, "starting")),
            (State::Running, Some(false)) => ("unknown", badge(Health::Unknown, "failing")),
            (State::NoPermission, _) => ("unknown", badge(Health::Unknown, "no permission")),
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
            broken(&s.why)
        ));
    }
    rows
}

/// Text that stays text inside HTML.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
