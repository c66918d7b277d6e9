//! The timeline as JSON, and as two parts of the page.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use serde::Serialize;

use super::App;
use super::status::escape;
use crate::timeline::{self, Event};

/// The page shows so many events of an episode's beginning.
const FIRST: usize = 8;
/// The page shows so many of the newest events at once, and the older ones when they are asked for.
const NEWEST: usize = 30;

/// The answer of `/api/v1/timeline`.
#[derive(Debug, Serialize)]
pub(super) struct Answer {
    events: Vec<Event>,
}

/// `/api/v1/timeline`: the newest first; `?order=oldest` begins with what happened first, and `?since=` with a time in
/// Unix seconds leaves out what was before it.
pub(super) async fn json(
    State(app): State<App>,
    RawQuery(query): RawQuery,
) -> Result<Json<Answer>, (StatusCode, &'static str)> {
    let wanted = Wanted::parse(query.as_deref().unwrap_or_default())
        .map_err(|what| (StatusCode::BAD_REQUEST, what))?;
    Ok(Json(Answer { events: wanted.of(app.store.events()) }))
}

/// What is asked for.
#[derive(Debug, Default, PartialEq)]
struct Wanted {
    oldest_first: bool,
    since: f64,
}

impl Wanted {
    fn parse(query: &str) -> Result<Self, &'static str> {
        let mut wanted = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=').unwrap_or((pair, "")) {
                ("order", "newest") => wanted.oldest_first = false,
                ("order", "oldest") => wanted.oldest_first = true,
                ("order", _) => return Err("order is newest or oldest\n"),
                ("since", time) => {
                    let seconds = time.parse().ok().filter(|seconds: &f64| seconds.is_finite());
                    let wrong = "since is a time in Unix seconds, such as 1700000000\n";
                    wanted.since = seconds.ok_or(wrong)?;
                }
                _ => return Err("the parameters are order (newest or oldest) and since\n"),
            }
        }
        Ok(wanted)
    }

    /// From the events in order of time.
    fn of(&self, mut events: Vec<Event>) -> Vec<Event> {
        events.retain(|event| event.time >= self.since);
        if !self.oldest_first {
            events.reverse();
        }
        events
    }
}

/// How the trouble of now began, for whoever is woken by it; nothing when there is none to tell of.
pub(super) fn beginning(events: &[Event], well: bool) -> String {
    let episode = timeline::episode(events);
    if !timeline::is_told(episode, well) {
        return String::new();
    }
    let shown: Vec<_> = timeline::firsts(episode).into_iter().take(FIRST).collect();
    let rows: String = shown.iter().map(|event| row(event)).collect();
    let more = match episode.len() - shown.len() {
        0 => String::new(),
        more => format!(
            "<p class=soft>and {more} more, in the <a href=\"#timeline\">timeline</a></p>\n"
        ),
    };
    format!("<h2>What happened first, in UTC</h2>\n<ol class=events>\n{rows}</ol>\n{more}")
}

/// Everything that is known to have happened.
pub(super) fn section(events: &[Event]) -> String {
    let heading = "<h2 id=timeline>Timeline, in UTC, the newest first</h2>\n";
    if events.is_empty() {
        return format!(
            "{heading}<p class=soft>nothing has happened that this agent knows of</p>\n"
        );
    }
    let list = |events: &[Event]| -> String {
        format!("<ol class=events>\n{}</ol>\n", events.iter().rev().map(row).collect::<String>())
    };
    let (older, newest) = events.split_at(events.len().saturating_sub(NEWEST));
    let older = if older.is_empty() {
        String::new()
    } else {
        let (count, list) = (older.len(), list(older));
        format!("<details><summary>{count} older</summary>\n{list}</details>\n")
    };
    format!("{heading}{}{older}", list(newest))
}

fn row(event: &Event) -> String {
    let at = event.at();
    format!(
        "<li><time datetime={}>{} <span>({})</span></time> <span class=soft>{}: {}</span> <span>{}</span>\n",
        humantime::format_rfc3339_seconds(at),
        timeline::moment(at),
        event.ago(),
        escape(&event.source),
        escape(&event.kind).replace('_', "_<wbr>"),
        escape(&event.text)
    )
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    /// Events of the last minutes, one each second.
    fn events(count: u32) -> Vec<Event> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let event = |n: u32| Event {
            time: now - f64::from(count - n),
            source: "kernel".into(),
            kind: format!("kind_{}", n.min(9)),
            text: format!("event <{n}>"),
        };
        (0..count).map(event).collect()
    }

    #[test]
    fn the_order_and_the_first_moment_are_asked_for_and_a_wrong_value_is_told() {
        let asked = |query| {
            let all = [10.0, 20.0, 30.0].map(|time| Event { time, ..events(1).remove(0) });
            Wanted::parse(query).map(|wanted| {
                wanted.of(all.into()).iter().map(|event| event.time).collect::<Vec<_>>()
            })
        };
        assert_eq!(asked(""), Ok(vec![30.0, 20.0, 10.0]));
        assert_eq!(asked("order=newest"), asked(""));
        assert_eq!(asked("order=oldest"), Ok(vec![10.0, 20.0, 30.0]));
        assert_eq!(asked("since=20&order=oldest"), Ok(vec![20.0, 30.0]));
        assert_eq!(asked("since=20.5"), Ok(vec![30.0]));
        assert_eq!(asked("since=1e12"), Ok(vec![]));
        for wrong in [
            "order=first",
            "order",
            "order=",
            "since=",
            "since=now",
            "since=NaN",
            "since=inf",
            "limit=3",
        ] {
            let error = asked(wrong).unwrap_err();
            assert_eq!(error.lines().count(), 1, "{wrong}");
            assert!(error.contains(wrong.split('=').next().unwrap()) || wrong == "limit=3");
        }
    }

    #[test]
    fn the_beginning_comes_oldest_first_and_says_how_much_there_is_more() {
        let html = beginning(&events(10), false);
        let at = |n: u32| html.find(&format!("event &lt;{n}&gt;"));
        assert!(at(0).is_some() && at(0) < at(7) && at(8).is_none(), "{html}");
        assert!(html.contains("and 2 more, in"), "{html}");
        assert!(!beginning(&events(8), false).contains("more, in"));
        let mut noise = events(8);
        for event in &mut noise {
            event.kind = "noise".into();
        }
        let html = beginning(&noise, false);
        assert!(html.contains("event &lt;0&gt;") && html.contains("and 7 more, in"), "{html}");
        assert_eq!(beginning(&[], false), "");
    }

    #[test]
    fn the_timeline_comes_newest_first_and_folds_what_is_old() {
        let html = section(&events(33));
        let at = |n: u32| html.find(&format!("event &lt;{n}&gt;"));
        let fold = html.find("<summary>3 older</summary>");
        assert!(at(32) < at(3) && at(3) < fold && fold < at(2) && at(2) < at(0), "{html}");
        assert!(!section(&events(30)).contains("<details>"));
        assert!(section(&[]).contains("nothing has happened"));
    }

    #[test]
    fn a_row_says_when_how_long_ago_who_and_what() {
        let mut event = events(1).remove(0);
        (event.time, event.text) = (1_700_000_000.0, "<b> & \"c\"".into());
        let html = row(&event);
        for part in [
            "datetime=2023-11-14T22:13:20Z>2023-11-14 22:13:20 ",
            " days ago)",
            "kernel: kind_<wbr>0",
            "&lt;b&gt; &amp; &quot;c&quot;",
        ] {
            assert!(html.contains(part), "{part}: {html}");
        }
    }
}
