//! How a check's finding is printed.

use std::collections::BTreeMap;
use std::io::IsTerminal;

use super::{Profile, Range, SaidBy, Seen};
use crate::runbook;
use crate::self_metrics::State;
use crate::timeline;
use crate::verdict::{Health, Measure, Verdict};

/// Bytes to which the first line of a plugin is filled up, so that it fits on a phone's notification.
const LINE: usize = 100;
/// No first line is much longer, whatever its first finding says; `-v` says all of it.
const LONGEST: usize = 150;
/// A person is shown so many events of how it began, and so many bytes of each.
const FIRST: usize = 5;
const EVENT: usize = 100;

/// For a monitoring system: one line with performance data; more lines with a `verbosity` of 1 (what
/// is wrong), 2 (everything) or 3 (and how it was found).
pub fn nagios(seen: &Seen, profile: Profile, verbosity: u8) -> String {
    let verdicts = &seen.status.verdicts;
    let health = seen.status.health;
    let mut line = format!("{} {}: ", profile.service(), word(health));
    let mut wrong: Vec<&Verdict> = verdicts.iter().filter(|v| v.health > Health::Ok).collect();
    if wrong.is_empty() {
        line.push_str(&format!("all {} checks are well", verdicts.len()));
    } else {
        // The worst first, and causes first among those.
        wrong.sort_by_key(|v| std::cmp::Reverse(v.health));
        let mut said = 0;
        for verdict in &wrong {
            let text = phrase(verdict);
            if said > 0 && line.len() + text.len() > LINE {
                break;
            }
            line.push_str(if said > 0 { "; " } else { "" });
            line.push_str(&cut(&text, LONGEST.saturating_sub(line.len())));
            said += 1;
        }
        if said < wrong.len() {
            line.push_str(&format!("; {} more", wrong.len() - said));
        }
    }
    let perfdata = perfdata(verdicts);
    let mut out = one_line(&line);
    if !perfdata.is_empty() {
        out.push_str(&format!(" | {perfdata}"));
    }
    out.push('\n');
    let more = match verbosity {
        0 => Vec::new(),
        1 => wrong,
        _ => verdicts.iter().collect(),
    };
    for verdict in more {
        let limit = limit(verdict);
        let text = format!("{}: {}{limit}", word(verdict.health), phrase(verdict));
        out.push_str(&format!("{}\n", one_line(&text)));
        if verdict.health > Health::Ok && !verdict.alert.is_empty() {
            out.push_str(&format!("  {}{}.md\n", runbook::URL, verdict.alert));
        }
    }
    if verbosity > 2 {
        out.push_str(&format!("{}\n", one_line(&source(seen))));
    }
    if verbosity > 0 {
        for note in &seen.notes {
            out.push_str(&format!("{}\n", one_line(note)));
        }
    }
    out
}

/// The finding, as one JSON object.
pub fn json(seen: &Seen) -> String {
    let object = serde_json::json!({
        "health": seen.status.health,
        "exit_code": super::exit_code(seen.status.health),
        "by_agent": seen.by == SaidBy::Agent,
        "notes": seen.notes,
        "node": seen.status.node,
        "verdicts": seen.status.verdicts,
        "samplers": seen.status.samplers,
    });
    format!("{object:#}\n")
}

/// For a person: a line per topic, or more where something is wrong, causes first; then how to begin.
pub fn text(seen: &Seen, profile: Profile, verbosity: u8) -> String {
    let paint = Paint(colourful());
    let status = &seen.status;
    let name =
        if status.node.hostname.is_empty() { "this node" } else { status.node.hostname.as_str() };
    let mut out = format!("{}  {}\n{}\n", paint.bold(name), status.node, source(seen));
    for note in &seen.notes {
        out.push_str(&format!("{note}\n"));
    }
    out.push('\n');
    let begin = status
        .verdicts
        .iter()
        .find(|v| v.health > Health::Unknown)
        .or_else(|| status.verdicts.iter().find(|v| v.health == Health::Unknown));
    for topic in crate::verdict::Topic::ALL {
        let (well, wrong): (Vec<&Verdict>, Vec<&Verdict>) = status
            .verdicts
            .iter()
            .filter(|verdict| verdict.topic == topic)
            .partition(|verdict| verdict.health == Health::Ok);
        let title = topic.title();
        for verdict in &wrong {
            let mark = if begin.is_some_and(|begin| std::ptr::eq(begin, *verdict)) {
                paint.bold("  <- it begins here")
            } else {
                String::new()
            };
            let badge = paint.badge(verdict.health);
            out.push_str(&format!("  {badge}  {title:<10} {}{mark}\n", phrase(verdict)));
            if !verdict.limit.is_empty() {
                out.push_str(&format!("{:26}{}\n", "", paint.faint(&verdict.limit)));
            }
        }
        if verbosity > 0 {
            for verdict in &well {
                let badge = paint.badge(Health::Ok);
                out.push_str(&format!("  {badge}  {title:<10} {}\n", phrase(verdict)));
            }
        } else if !well.is_empty() {
            let rest = if wrong.is_empty() { "" } else { "other " };
            let checks = if well.len() == 1 { "check is" } else { "checks are" };
            let badge = paint.badge(Health::Ok);
            let count = well.len();
            out.push_str(&format!("  {badge}  {title:<10} {count} {rest}{checks} well\n"));
        } else if wrong.is_empty() && profile.topics().contains(&topic) {
            // Those that run and have no figure have a verdict of their own.
            for sampler in status.samplers.iter().filter(|s| {
                topic.samplers().contains(&s.name.as_ref()) && s.state != State::Running
            }) {
                let line = format!("  -            {title:<10} {}: {}", sampler.name, sampler.why);
                out.push_str(&format!("{}\n", paint.faint(&line)));
            }
        }
    }
    let overall = paint.health(status.health, word(status.health));
    let Some(begin) = begin else {
        out.push_str(&format!("\n{overall}: all {} checks are well.\n", status.verdicts.len()));
        return out;
    };
    out.push_str(&beginning(seen, &paint));
    let wrong = status.verdicts.iter().filter(|v| v.health > Health::Ok).count();
    let all = status.verdicts.len();
    let first = if begin.alert.is_empty() { begin.what.as_str() } else { &begin.alert };
    let first = paint.bold(first);
    out.push_str(&format!("\n{overall}: {wrong} of {all} checks are not well. Begin with {first}"));
    if begin.alert.is_empty() {
        out.push_str(".\n");
        return out;
    }
    let page = format!("{}{}.md", runbook::URL, begin.alert);
    let Some(commands) = runbook::first_commands(&begin.alert, seen.figures.as_deref()) else {
        out.push_str(&format!(": {page}\n"));
        return out;
    };
    out.push_str(":\n\n");
    for line in commands.lines() {
        out.push_str(&format!("  {line}\n"));
    }
    out.push_str(&format!("\nThen go on with {page}\n"));
    out
}

/// How the trouble of now began, from the events of a running agent. A round of the check's own knows nothing of before.
fn beginning(seen: &Seen, paint: &Paint) -> String {
    let episode = timeline::episode(&seen.status.events);
    if seen.by != SaidBy::Agent || episode.is_empty() {
        return String::new();
    }
    let mut out = format!("\n{}\n", paint.bold("What happened first, in UTC"));
    let shown: Vec<_> = timeline::firsts(episode).into_iter().take(FIRST).collect();
    for event in &shown {
        let ago = format!("({})", event.ago());
        let time = paint.faint(&format!("{} {ago:<13}", timeline::moment(event.at())));
        let text = cut(&event.text, EVENT);
        out.push_str(&format!("  {time}  {:<10} {text}\n", event.source));
    }
    let more = episode.len() - shown.len();
    if more > 0 {
        out.push_str(&format!("  {}\n", paint.faint(&format!("and {more} more"))));
    }
    out
}

/// How it was found out.
fn source(seen: &Seen) -> String {
    match seen.by {
        SaidBy::Agent => format!("as the running agent sees it (version {})", seen.status.version),
        SaidBy::OwnRound => "as one round of samples shows it, taken now".to_owned(),
        SaidBy::Nobody => "asked from afar, without an answer".to_owned(),
    }
}

fn phrase(verdict: &Verdict) -> String {
    if verdict.figure.is_empty() {
        verdict.what.clone()
    } else {
        format!("{}: {}", verdict.what, verdict.figure)
    }
}

/// At most `most` bytes of this, after a whole word if one ends in the second half.
fn cut(text: &str, most: usize) -> String {
    const MORE: &str = "...";
    if text.len() <= most {
        return text.to_owned();
    }
    let mut end = most.saturating_sub(MORE.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let words = text[..end].rfind(' ').filter(|space| *space > end / 2);
    let kept = text[..words.unwrap_or(end)].trim_end_matches([' ', ',', ';', ':']);
    format!("{kept}{MORE}")
}

fn limit(verdict: &Verdict) -> String {
    if verdict.limit.is_empty() { String::new() } else { format!(" ({})", verdict.limit) }
}

fn word(health: Health) -> &'static str {
    match health {
        Health::Ok => "OK",
        Health::Warning => "WARNING",
        Health::Critical => "CRITICAL",
        Health::Unknown => "UNKNOWN",
    }
}

/// A bar would begin performance data, and a line break another line.
fn one_line(text: &str) -> String {
    text.replace('|', "/").replace(|c: char| c.is_control(), " ")
}

/// One figure of each name: the worst of all paths, devices and units, so that there are as many
/// tomorrow as today.
fn perfdata(verdicts: &[Verdict]) -> String {
    let mut worst: BTreeMap<&str, (Health, &Measure)> = BTreeMap::new();
    for verdict in verdicts {
        let Some(measure) = &verdict.measure else { continue };
        let low_is_bad = [&measure.critical, &measure.warning]
            .iter()
            .find_map(|range| range.parse::<Range>().ok())
            .is_some_and(|range| range.low_is_bad());
        let beats = |(health, other): &(Health, &Measure)| {
            let further =
                if low_is_bad { measure.value < other.value } else { measure.value > other.value };
            verdict.health > *health || (verdict.health == *health && further)
        };
        if worst.get(&*measure.name).is_none_or(beats) {
            worst.insert(&measure.name, (verdict.health, measure));
        }
    }
    let items: Vec<_> = worst.into_values().map(|(_, measure)| item(measure)).collect();
    items.join(" ")
}

fn item(measure: &Measure) -> String {
    let max = if measure.unit == "%" { "100" } else { "" };
    let whole = format!(
        "{}={}{};{};{};0;{max}",
        measure.name,
        number(measure.value),
        measure.unit,
        measure.warning,
        measure.critical
    );
    whole.trim_end_matches(';').to_owned()
}

/// A number to a millionth, as short as it goes.
fn number(value: f64) -> String {
    if value.fract() == 0.0 {
        return format!("{value}");
    }
    format!("{value:.6}").trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Whether standard output is a terminal that may have colours.
fn colourful() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    std::io::stdout().is_terminal() && !set("NO_COLOR")
}

/// Colours, or none.
struct Paint(bool);

impl Paint {
    fn with(&self, code: &str, text: &str) -> String {
        if self.0 { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    fn bold(&self, text: &str) -> String {
        self.with("1", text)
    }

    fn faint(&self, text: &str) -> String {
        self.with("2", text)
    }

    fn health(&self, health: Health, text: &str) -> String {
        let code = match health {
            Health::Ok => "32",
            Health::Warning => "33",
            Health::Critical => "1;31",
            Health::Unknown => "35",
        };
        self.with(code, text)
    }

    /// A symbol and a word, so that colour is never the only sign.
    fn badge(&self, health: Health) -> String {
        let symbol = match health {
            Health::Ok => '\u{2714}',
            Health::Unknown => '?',
            Health::Warning => '\u{25b2}',
            Health::Critical => '\u{2716}',
        };
        self.health(health, &format!("{symbol} {:<9}", health.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Facts;
    use crate::status::Status;
    use crate::store::Store;
    use crate::verdict::{self, Topic};

    fn verdict(topic: Topic, health: Health, what: &str, figure: &str) -> Verdict {
        Verdict::new(topic, health, "ControlPlaneDiskSyncStuck", what, figure)
    }

    fn measured(name: &'static str, value: f64, warning: &str, critical: &str) -> Verdict {
        let measure = Measure {
            name: name.into(),
            value,
            unit: "s".into(),
            warning: warning.into(),
            critical: critical.into(),
        };
        Verdict { measure: Some(measure), ..verdict(Topic::Disk, Health::Ok, name, "") }
    }

    fn seen(verdicts: Vec<Verdict>) -> Seen {
        let mut status = Status::of(&Store::default(), Facts::default(), true);
        status.health = verdict::worst(&verdicts);
        status.verdicts = verdicts;
        let figures = Some("localhost:10379".to_owned());
        Seen { status, by: SaidBy::Agent, figures, notes: Vec::new() }
    }

    fn first_line(verdicts: Vec<Verdict>) -> String {
        let out = nagios(&seen(verdicts), Profile::All, 0);
        assert_eq!(out.lines().count(), 1, "{out}");
        out
    }

    #[test]
    fn the_line_names_the_worst_first_and_causes_before_effects() {
        let line = first_line(vec![
            verdict(Topic::Kernel, Health::Warning, "a warning", ""),
            verdict(Topic::Disk, Health::Critical, "sync in flight", "42 s"),
            verdict(Topic::Datastore, Health::Critical, "etcd member", "does not answer"),
            verdict(Topic::Samplers, Health::Unknown, "systemd", "fails"),
        ]);
        assert_eq!(
            line,
            "CONTROLPLANE CRITICAL: sync in flight: 42 s; etcd member: does not answer; a warning; \
             systemd: fails\n"
        );
    }

    #[test]
    fn a_long_list_is_cut_and_the_rest_counted() {
        let many = (0..9).map(|i| {
            let what = format!("filesystem number {i} of this node");
            verdict(Topic::Space, Health::Warning, &what, "full")
        });
        let line = first_line(many.collect());
        assert!(line.len() < 130 && line.ends_with("; 7 more\n"), "{line}");
    }

    #[test]
    fn a_long_finding_is_cut_after_a_word_and_said_in_full_when_asked() {
        let why = "no permission: /var/lib/rancher/k3s/server/tls/etcd/client.key: Permission denied (os error 13) \
                   (key_file); it takes root or CAP_DAC_READ_SEARCH, and `controlplane-exporter inspect` says how";
        let found = || {
            vec![
                verdict(Topic::Samplers, Health::Unknown, "etcd", why),
                verdict(Topic::Samplers, Health::Unknown, "registry_keys", why),
            ]
        };
        assert_eq!(
            first_line(found()),
            "CONTROLPLANE UNKNOWN: etcd: no permission: /var/lib/rancher/k3s/server/tls/etcd/client.key: Permission \
             denied (os error 13) (key_file); it takes...; 1 more\n"
        );
        assert!(
            nagios(&seen(found()), Profile::All, 1).contains(&format!("registry_keys: {why}\n"))
        );
        // Without a space, and in letters of two bytes.
        assert_eq!(cut(&"é".repeat(10), 9), "ééé...");
        assert_eq!(cut("short", 5), "short");
        assert_eq!(cut("no room", 0), "...");
    }

    #[test]
    fn a_name_with_a_bar_or_a_line_break_begins_no_performance_data() {
        let line = first_line(vec![verdict(Topic::Units, Health::Warning, "a|b\nc", "x")]);
        assert_eq!(line, "CONTROLPLANE WARNING: a/b c: x\n");
    }

    #[test]
    fn performance_data_has_each_name_once_with_its_worst_value() {
        let line = first_line(vec![
            measured("sync_p90", 0.0125, "0.05", "0.25"),
            measured("sync_p90", 0.5, "0.05", "0.25"),
            measured("space_left", 40.0, "20:", "10:"),
            measured("space_left", 30.0, "20:", "10:"),
            measured("restarts", 3.0, "", ""),
        ]);
        let (text, data) = line.trim_end().split_once(" | ").unwrap();
        assert_eq!(text, "CONTROLPLANE OK: all 5 checks are well");
        assert_eq!(data, "restarts=3s;;;0 space_left=30s;20:;10:;0 sync_p90=0.5s;0.05;0.25;0");
    }

    #[test]
    fn numbers_are_as_short_as_they_can_be() {
        assert_eq!(
            [0.0, 2.0, 0.0125, 21.568_502_3, 1e9].map(number),
            ["0", "2", "0.0125", "21.568502", "1000000000"]
        );
    }

    #[test]
    fn a_person_sees_where_it_begins_and_the_first_command() {
        let text = text(
            &seen(vec![
                verdict(Topic::Kernel, Health::Ok, "I/O errors since boot", "none"),
                verdict(Topic::Disk, Health::Warning, "sync in flight in /db", "6.0 s"),
                verdict(Topic::Datastore, Health::Critical, "etcd member", "does not answer"),
            ]),
            Profile::All,
            0,
        );
        let marked: Vec<_> =
            text.lines().filter(|line| line.contains("<- it begins here")).collect();
        assert_eq!(marked.len(), 1, "{text}");
        assert!(marked[0].contains("Disk") && marked[0].contains("sync in flight in /db: 6.0 s"));
        assert!(text.contains(
            "CRITICAL: 2 of 3 checks are not well. Begin with ControlPlaneDiskSyncStuck"
        ));
        assert!(text.contains("  for i in 1 2 3 4; do curl"), "{text}");
        assert!(text.contains("ControlPlaneDiskSyncStuck.md"));
        assert!(!text.contains('\u{1b}'), "no colours where there is no terminal");
    }

    #[test]
    fn a_person_is_told_what_happened_first_and_a_plugin_is_not() {
        let wrong = verdict(Topic::Datastore, Health::Critical, "etcd member", "does not answer");
        let mut ill = seen(vec![wrong]);
        let event = |n: f64| timeline::Event {
            time: 1_700_000_000.0 + n,
            source: "kernel".into(),
            kind: format!("kind_{n}"),
            text: format!("event {n} {}", "x".repeat(EVENT)),
        };
        // A day of quiet, and then seven events.
        ill.status.events = (1..=8).map(|n| event(f64::from(n))).collect();
        ill.status.events[0].time -= 86_400.0;
        let shown = text(&ill, Profile::All, 0);
        let lines: Vec<_> = shown.lines().filter(|line| line.contains("event ")).collect();
        assert_eq!(lines.len(), FIRST, "{shown}");
        assert!(
            lines[0].contains("  2023-11-14 22:13:22 (") && lines[0].contains("kernel     event 2")
        );
        assert!(lines.iter().all(|line| line.len() <= 150 && line.ends_with("...")), "{shown}");
        assert!(shown.contains("\n  and 2 more\n"), "{shown}");
        let order = ["does not answer", "What happened first", "event 2", "CRITICAL: 1 of 1"];
        assert!(order.windows(2).all(|pair| shown.find(pair[0]) < shown.find(pair[1])), "{shown}");
        assert!(!nagios(&ill, Profile::All, 3).contains("event"));

        ill.by = SaidBy::OwnRound;
        assert!(!text(&ill, Profile::All, 0).contains("What happened first"));
        let mut well = seen(vec![verdict(Topic::Disk, Health::Ok, "syncs", "")]);
        well.status.events = ill.status.events;
        assert!(!text(&well, Profile::All, 0).contains("What happened first"));
    }

    #[test]
    fn without_an_agents_open_port_no_command_asks_it() {
        let show = |alert: &'static str, figures: Option<&str>| {
            let wrong = Verdict::new(Topic::Datastore, Health::Critical, alert, "etcd member", "x");
            let figures = figures.map(str::to_owned);
            text(&Seen { figures, ..seen(vec![wrong]) }, Profile::All, 0)
        };
        let alone = show("ControlPlaneEtcdMemberDown", None);
        assert!(!alone.contains("localhost:10379"), "{alone}");
        assert!(alone.contains("\n  controlplane-exporter inspect"), "{alone}");
        let other = show("ControlPlaneEtcdMemberDown", Some("localhost:9999"));
        assert!(other.contains("curl -s localhost:9999/metrics"), "{other}");
        let none = show("ControlPlaneEtcdTwoVoters", None);
        assert!(
            none.ends_with("ControlPlaneEtcdTwoVoters.md\n") && !none.contains("Then"),
            "{none}"
        );
    }

    #[test]
    fn what_has_no_alert_yet_leads_to_no_page() {
        let none = Verdict {
            alert: "".into(),
            ..verdict(Topic::Datastore, Health::Critical, "dqlite member", "knows no leader")
        };
        let text = text(&seen(vec![none.clone()]), Profile::All, 0);
        assert!(
            text.ends_with("CRITICAL: 1 of 1 checks are not well. Begin with dqlite member.\n"),
            "{text}"
        );
        assert!(!nagios(&seen(vec![none]), Profile::All, 2).contains(".md"));
    }

    #[test]
    fn colours_say_nothing_that_words_do_not() {
        let plain = Paint(false).badge(Health::Critical);
        let coloured = Paint(true).badge(Health::Critical);
        assert!(coloured.contains(&plain) && plain.contains("critical"));
    }
}
