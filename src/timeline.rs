//! The timeline: what happened on this node, in order, and where the trouble of now began.
//!
//! It is kept in memory only, 200 events of all samplers together. After a start it is whatever the samplers tell of
//! the time before: the kernel's log is read from its beginning, systemd knows how a unit ended, and their events have
//! the time of what they tell of. So an event may come after a later one, and is put in its place.
//!
//! When it is full, the oldest event goes of those kinds that has most: a disk that fails ten thousand times must not
//! push out the one line that says why.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::verdict;

/// So many events are kept.
pub const EVENTS: usize = 200;
/// No event's text is longer than this many bytes.
pub const TEXT_BYTES: usize = 300;
/// So long without an event ends an episode.
pub const GAP: Duration = Duration::from_mins(30);
/// An episode is worth showing for so long after its last event, though the node is well again.
const RECENT: Duration = Duration::from_hours(2);

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When, in Unix seconds.
    pub time: f64,
    /// The sampler that tells of it.
    #[serde(default)]
    pub source: String,
    /// Which kind of thing (`block_io_error`, `unit_exit`, `leader_changed`).
    pub kind: String,
    /// One line for a person.
    pub text: String,
}

impl Event {
    /// When it was. A date can be printed up to the year 9999 only; the time of a garbled record may be later.
    pub fn at(&self) -> SystemTime {
        let seconds = self.time.clamp(0.0, 253_402_300_799.0);
        UNIX_EPOCH + Duration::try_from_secs_f64(seconds).unwrap_or_default()
    }

    /// How long it is ago, for a person.
    pub fn ago(&self) -> String {
        match self.at().elapsed().unwrap_or_default().as_secs_f64().round() {
            seconds if seconds < 1.0 => "just now".to_owned(),
            seconds => format!("{} ago", verdict::length(seconds)),
        }
    }
}

/// Date and time of day in UTC.
pub fn moment(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string().replace(['T', 'Z'], " ").trim_end().to_owned()
}

/// A text as one line that is safe to print: nothing but single spaces between its words, no control characters, and
/// at most [`TEXT_BYTES`] bytes.
pub fn line(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control());
    let mut line = words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    if line.len() > TEXT_BYTES {
        line.truncate(line.floor_char_boundary(TEXT_BYTES - "…".len()));
        line.push('…');
    }
    line
}

/// Leaves at most so many events: the oldest one goes of that source and kind that has most. Returns how many went.
pub fn thin(events: &mut Vec<Event>, most: usize) -> usize {
    let excess = events.len().saturating_sub(most);
    for _ in 0..excess {
        let mut counts: HashMap<(&str, &str), usize> = HashMap::new();
        for event in &*events {
            *counts.entry((&event.source, &event.kind)).or_default() += 1;
        }
        let largest = counts.values().max();
        let is_of_it = |event: &Event| counts.get(&(&*event.source, &*event.kind)) == largest;
        let oldest = events.iter().position(is_of_it);
        events.remove(oldest.unwrap_or_default());
    }
    excess
}

/// The events of now: those since the last [`GAP`] without any.
pub fn episode(events: &[Event]) -> &[Event] {
    let quiet = |pair: &[Event]| pair[1].time - pair[0].time >= GAP.as_secs_f64();
    let begin = events.windows(2).rposition(quiet).map_or(0, |before| before + 1);
    &events[begin..]
}

/// How an episode went: its first event of each source and kind, in order. What repeats itself would hide what follows
/// from it.
pub fn firsts(episode: &[Event]) -> Vec<&Event> {
    let mut seen = HashSet::new();
    episode.iter().filter(|event| seen.insert((&event.source, &event.kind))).collect()
}

/// Whether it is worth saying how this episode began: the node is not well, or was not a short time ago.
pub fn is_told(episode: &[Event], well: bool) -> bool {
    let Some(last) = episode.last() else { return false };
    !well || last.at().elapsed().unwrap_or_default() < RECENT
}

/// The ring of events, in order of time.
#[derive(Debug, Default)]
pub struct Timeline(Vec<Event>);

impl Timeline {
    /// Takes what a sampler tells. Returns what is new in it: the same event, of the same time, told again by a sampler
    /// that keeps nothing in mind, is there once.
    pub fn add(&mut self, source: &str, events: Vec<Event>) -> Vec<Event> {
        let mut new = Vec::new();
        for mut event in events {
            source.clone_into(&mut event.source);
            if !self.0.contains(&event) {
                let place = self.0.partition_point(|known| known.time <= event.time);
                self.0.insert(place, event.clone());
                new.push(event);
            }
        }
        thin(&mut self.0, EVENTS);
        new.retain(|event| self.0.contains(event));
        new
    }

    /// All of them, the newest last.
    pub fn all(&self) -> &[Event] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(time: f64, kind: &str, text: &str) -> Event {
        Event { time, source: String::new(), kind: kind.to_owned(), text: text.to_owned() }
    }

    fn texts(events: &[Event]) -> Vec<&str> {
        events.iter().map(|event| event.text.as_str()).collect()
    }

    #[test]
    fn an_event_that_is_told_late_is_put_in_its_place() {
        let mut timeline = Timeline::default();
        timeline.add("etcd", vec![event(20.0, "etcd_down", "b"), event(30.0, "etcd_up", "d")]);
        timeline.add("kernel", vec![event(10.0, "io", "a"), event(20.0, "io", "c")]);
        assert_eq!(texts(timeline.all()), ["a", "b", "c", "d"], "those of one moment as they came");
        let sources: Vec<_> = timeline.all().iter().map(|e| e.source.as_str()).collect();
        assert_eq!(sources, ["kernel", "etcd", "kernel", "etcd"]);
    }

    #[test]
    fn an_event_that_is_told_again_is_there_once() {
        let mut timeline = Timeline::default();
        let mut add = |source, text| timeline.add(source, vec![event(1.0, "k", text)]).len();
        assert_eq!([add("a", "x"), add("a", "x"), add("a", "y"), add("b", "x")], [1, 0, 1, 1]);
        let twice = vec![event(2.0, "k", "x"), event(2.0, "k", "x")];
        assert_eq!(timeline.add("a", twice).len(), 1);
        assert_eq!(timeline.all().len(), 4);
    }

    #[test]
    fn what_is_noisy_pushes_out_itself_and_not_the_cause() {
        let mut timeline = Timeline::default();
        timeline.add("kernel", vec![event(1.0, "ata_link_down", "the cause")]);
        timeline.add("kernel", vec![event(2.0, "block_io_error", "the first of many")]);
        timeline.add("systemd", vec![event(3.0, "unit_exit", "an effect")]);
        for n in 0..1_000 {
            timeline.add("kernel", vec![event(f64::from(n) + 10.0, "block_io_error", "noise")]);
        }
        assert_eq!(timeline.all().len(), EVENTS);
        assert_eq!(texts(&timeline.all()[..3]), ["the cause", "an effect", "noise"]);
        assert!((timeline.all()[EVENTS - 1].time - 1_009.0).abs() < 1e-9, "the newest is there");
    }

    #[test]
    fn of_kinds_with_as_many_the_oldest_goes() {
        let mut events: Vec<_> =
            (0..6).map(|n| event(f64::from(n), &format!("k{}", n % 3), &n.to_string())).collect();
        assert_eq!(thin(&mut events, 4), 2);
        assert_eq!(texts(&events), ["2", "3", "4", "5"]);
        assert_eq!(thin(&mut events, 4), 0);
    }

    #[test]
    fn what_has_no_room_is_no_news_each_time_it_is_told() {
        let mut timeline = Timeline::default();
        let noise = |n: i32| event(f64::from(n), "noise", "x");
        timeline.add("a", (1_000..1_300).map(noise).collect());
        assert_eq!(timeline.add("a", vec![noise(1)]), [], "older than all of its kind");
        assert_eq!(timeline.add("a", vec![noise(2_000)]).len(), 1);
    }

    #[test]
    fn an_episode_begins_after_half_an_hour_without_events() {
        let minutes = |all: &[f64]| -> Vec<Event> {
            all.iter().map(|m| event(m * 60.0, "k", &m.to_string())).collect()
        };
        let of = |all: &[f64]| texts(episode(&minutes(all))).len();
        assert_eq!(of(&[]), 0);
        assert_eq!(of(&[7.0]), 1);
        assert_eq!(of(&[0.0, 29.0, 58.0, 87.0]), 4, "however long it lasts");
        assert_eq!(of(&[0.0, 29.9, 59.9]), 1, "30 minutes end it");
        assert_eq!(of(&[0.0, 10.0, 100.0, 110.0, 200.0, 201.0]), 2);
    }

    #[test]
    fn what_happened_first_is_the_first_of_each_kind() {
        let kinds = ["io", "io", "abort", "io", "down", "abort"];
        let events: Vec<_> = (0..).zip(kinds).map(|(n, k)| event(n.into(), k, k)).collect();
        let mut other = event(9.0, "io", "of another source");
        other.source = "journal".into();
        let all = [events, vec![other]].concat();
        let told: Vec<_> = firsts(&all).iter().map(|event| (event.time, &*event.text)).collect();
        let expected = [(0.0, "io"), (2.0, "abort"), (4.0, "down"), (9.0, "of another source")];
        assert_eq!(told, expected);
    }

    #[test]
    fn the_beginning_is_told_while_the_node_is_ill_and_two_hours_after() {
        let ago = |span: Duration| {
            let time = (SystemTime::now() - span).duration_since(UNIX_EPOCH).unwrap();
            vec![event(time.as_secs_f64(), "k", "x")]
        };
        let (old, young) = (ago(Duration::from_mins(121)), ago(Duration::from_mins(119)));
        assert!(is_told(&old, false) && !is_told(&old, true));
        assert!(is_told(&young, false) && is_told(&young, true));
        assert!(!is_told(&[], false), "nothing has happened");
    }

    #[test]
    fn a_text_is_one_line_without_control_characters_and_not_too_long() {
        assert_eq!(line("a\n  b\0c\u{1b}[31m\t\td\u{85}e "), "a b c [31m d e");
        let long = line(&"é".repeat(TEXT_BYTES));
        assert!(long.len() <= TEXT_BYTES && long.ends_with("é…"), "{long}");
        assert_eq!(line(&"x".repeat(TEXT_BYTES)).len(), TEXT_BYTES);
    }

    #[test]
    fn times_read_as_a_person_says_them() {
        assert_eq!(moment(event(1_700_000_000.9, "", "").at()), "2023-11-14 22:13:20");
        for odd in [f64::INFINITY, f64::NAN, -1.0] {
            assert!(moment(event(odd, "", "").at()).len() >= 19, "{odd}");
        }
        let ago = |seconds| {
            let at = SystemTime::now() - Duration::from_secs(seconds);
            event(at.duration_since(UNIX_EPOCH).unwrap().as_secs_f64(), "", "").ago()
        };
        assert_eq!([ago(0), ago(300), ago(7_200)], ["just now", "5 min ago", "2 h ago"]);
    }
}
