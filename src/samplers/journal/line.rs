//! What a line says, by the table: zap's JSON, logrus, klog, and what systemd and journald write.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::Duration;

use regex::bytes::Regex;
use serde::Deserialize;

use super::table::{From, Row, compile};
use crate::patterns::Patterns;

/// What a pattern captures where a line says how long something took.
const SECONDS: &str = "seconds";

/// A line that means something.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Hit<'t> {
    /// What it is.
    pub(super) row: &'t Row,
    /// How long what it tells of took, where it says so.
    pub(super) took: Option<Duration>,
}

/// What came of a message.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Found<'t> {
    /// What it means, with the line that says so.
    pub(super) hits: Vec<(Hit<'t>, String)>,
    /// Lines that look like JSON and are none.
    pub(super) unparsed: u64,
}

/// The table, compiled: all patterns are tested in one pass over a line, and only the row that won is matched again.
pub(super) struct Classifier {
    rows: Vec<Row>,
    set: Patterns,
    /// The row of each pattern of the set.
    of: Vec<usize>,
    /// The first row with this `msg`.
    msgs: HashMap<String, usize>,
    /// The first row with this `level`.
    levels: HashMap<String, usize>,
    ids: HashMap<String, usize>,
    single: Vec<OnceLock<Option<Regex>>>,
    not: Vec<Option<Regex>>,
}

/// The keys of a JSON line that are compared.
#[derive(Deserialize)]
struct Zap<'a> {
    #[serde(borrow, default)]
    level: Cow<'a, str>,
    #[serde(borrow, default)]
    msg: Cow<'a, str>,
}

impl Classifier {
    /// Compiles checked rows.
    ///
    /// # Errors
    ///
    /// When all of them together are too large.
    pub(super) fn new(rows: Vec<Row>) -> Result<Self, regex::Error> {
        let with_pattern = || rows.iter().enumerate().filter(|(_, row)| !row.pattern.is_empty());
        let patterns: Vec<_> = with_pattern().map(|(_, row)| &row.pattern).collect();
        let set = Patterns::new(&patterns)?;
        let of = with_pattern().map(|(n, _)| n).collect();
        let mut msgs = HashMap::new();
        let mut levels = HashMap::new();
        let mut ids = HashMap::new();
        for (n, row) in rows.iter().enumerate() {
            for msg in &row.msg {
                msgs.entry(msg.clone()).or_insert(n);
            }
            for level in &row.level {
                levels.entry(level.clone()).or_insert(n);
            }
            if !row.message_id.is_empty() {
                ids.entry(row.message_id.clone()).or_insert(n);
            }
        }
        let not = rows
            .iter()
            .map(|row| (!row.not.is_empty()).then(|| compile(&row.not)).transpose())
            .collect::<Result<_, _>>()?;
        let single = rows.iter().map(|_| OnceLock::new()).collect();
        Ok(Self { rows, set, of, msgs, levels, ids, single, not })
    }

    /// The rows, in order.
    pub(super) fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// What a message means. It may hold several lines; each is tested by itself.
    pub(super) fn message(&self, from: From, message_id: &str, message: &[u8]) -> Found<'_> {
        let mut found = Found::default();
        if let Some(row) = self.ids.get(message_id).map(|n| &self.rows[*n])
            && row.from == from
        {
            found.hits.push((Hit { row, took: None }, text(message)));
            return found;
        }
        for line in message.split(|byte| *byte == b'\n') {
            self.line(from, line.trim_ascii_end(), &mut found);
        }
        found
    }

    fn line<'t>(&'t self, from: From, line: &[u8], found: &mut Found<'t>) {
        if line.is_empty() {
            return;
        }
        if line[0] != b'{' {
            // k0s wraps the JSON lines of its children into logrus.
            if line.starts_with(b"time=")
                && let Some(inner) = wrapped(line)
            {
                return self.line(from, inner.as_bytes(), found);
            }
            if let Some(n) = self.by_pattern(from, line) {
                let took = self.took(n, line, |key| logrus(line, key));
                found.hits.push((Hit { row: &self.rows[n], took }, text(line)));
            }
            return;
        }
        let Ok(zap) = serde_json::from_slice::<Zap<'_>>(line) else {
            found.unparsed += 1;
            return;
        };
        let exact = [self.msgs.get(&*zap.msg), self.levels.get(&*zap.level)].into_iter().flatten();
        let exact = exact.copied().filter(|n| self.rows[*n].from == from);
        let pattern = self.by_pattern(from, zap.msg.as_bytes());
        let Some(n) = exact.chain(pattern).min() else { return };
        // Parsed in full only now: most lines mean nothing.
        let all: serde_json::Value = serde_json::from_slice(line).unwrap_or_default();
        let field = |key: &str| Some(all.get(key)?.as_str()?.to_owned());
        let took = self.took(n, zap.msg.as_bytes(), field);
        let mut said = zap.msg.into_owned();
        for key in [&*self.rows[n].seconds, "alarm", "error"] {
            if let Some(value) = (!key.is_empty()).then(|| field(key)).flatten() {
                said.push_str(&format!(", {key} {value}"));
            }
        }
        found.hits.push((Hit { row: &self.rows[n], took }, said));
    }

    fn by_pattern(&self, from: From, text: &[u8]) -> Option<usize> {
        let matches = self.set.matches(text);
        matches.into_iter().map(|at| self.of[at]).find(|n| {
            let not = self.not[*n].as_ref();
            self.rows[*n].from == from && not.is_none_or(|not| !not.is_match(text))
        })
    }

    fn took(
        &self,
        n: usize,
        text: &[u8],
        field: impl Fn(&str) -> Option<String>,
    ) -> Option<Duration> {
        let row = &self.rows[n];
        if !row.pattern.contains("?<seconds>") && row.seconds.is_empty() {
            return None;
        }
        let captured = || {
            let single = self.single[n].get_or_init(|| compile(&row.pattern).ok()).as_ref()?;
            let captures = single.captures(text)?;
            Some(String::from_utf8_lossy(captures.name(SECONDS)?.as_bytes()).into_owned())
        };
        let named = (!row.seconds.is_empty()).then(|| field(&row.seconds)).flatten();
        duration(&named.or_else(captured)?)
    }
}

/// The JSON line in a logrus line's `msg`.
fn wrapped(line: &[u8]) -> Option<String> {
    let start = line.windows(7).position(|w| w == b"msg=\"{\\")? + 4;
    // Go quotes as JSON does, but for characters that no log line holds.
    let mut values = serde_json::Deserializer::from_slice(&line[start..]).into_iter::<String>();
    values.next()?.ok()
}

/// The value of a key of a logrus line.
fn logrus(line: &[u8], key: &str) -> Option<String> {
    let line = std::str::from_utf8(line).ok()?;
    let (_, rest) = line.rsplit_once(&format!(" {key}="))?;
    Some(rest.split(' ').next()?.trim_matches('"').to_owned())
}

fn text(line: &[u8]) -> String {
    String::from_utf8_lossy(line).into_owned()
}

/// A length of time as Go prints it: `1.2s`, `680.988822ms`, `52.7µs`, `1m2.5s`.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('-').unwrap_or(text);
    let mut seconds = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        let after = &rest[end..];
        let end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let factor = match &after[..end] {
            "h" => 3_600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "µs" | "μs" | "us" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        seconds += number * factor;
        rest = &after[end..];
    }
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samplers::journal::table;

    fn classifier() -> Classifier {
        Classifier::new(table::with(&[]).unwrap()).unwrap()
    }

    fn ids(classifier: &Classifier, from: From, line: &str) -> Vec<String> {
        let found = classifier.message(from, "", line.as_bytes());
        found.hits.into_iter().map(|(hit, _)| hit.row.id.clone()).collect()
    }

    #[derive(Deserialize)]
    struct Sample {
        source: String,
        unit: Option<String>,
        line: String,
        expect: Option<String>,
    }

    fn samples() -> Vec<Sample> {
        let text = include_str!("../../../tests/data/journal-samples.jsonl");
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn every_line_that_was_seen_means_what_it_should_whoever_says_it() {
        let classifier = classifier();
        let samples = samples();
        assert!(samples.len() > 110 && samples.iter().all(|s| s.source == "journal"));
        for sample in samples {
            let program = match sample.unit.as_deref() {
                Some("systemd-journald.service") => From::Journald,
                _ => From::Program,
            };
            let mut found = ids(&classifier, program, &sample.line);
            found.extend(ids(&classifier, From::Systemd, &sample.line));
            let expected: Vec<String> = sample.expect.into_iter().collect();
            assert_eq!(found, expected, "{}", sample.line);
        }
    }

    #[test]
    fn every_row_has_a_line_that_was_seen() {
        let seen: Vec<_> = samples().into_iter().filter_map(|sample| sample.expect).collect();
        let without: Vec<_> = table::shipped()
            .iter()
            .filter(|row| !seen.contains(&row.id))
            .map(|row| &row.id)
            .collect();
        assert_eq!(without, Vec::<&String>::new());
    }

    #[test]
    fn what_a_line_quotes_is_not_what_it_says() {
        let classifier = classifier();
        let quoting = r#"{"level":"warn","msg":"apply request took too long","took":"157.2ms","request":"key:\"slow fdatasync\" no known leader"}"#;
        assert_eq!(ids(&classifier, From::Program, quoting), ["etcd_slow_apply"]);
        let other = r#"{"level":"warn","msg":"hello","error":"walpb: crc mismatch"}"#;
        assert_eq!(ids(&classifier, From::Program, other), Vec::<String>::new());
        // Cut in the middle by journald: it is no JSON any more, and not looked into.
        let cut = classifier.message(From::Program, "", br#"{"msg":"slow fdatasync","took":"#);
        assert_eq!((cut.hits.len(), cut.unparsed), (0, 1));
    }

    #[test]
    fn who_says_it_counts() {
        let classifier = classifier();
        let exit = "k3s.service: Main process exited, code=exited, status=1/FAILURE";
        assert_eq!(ids(&classifier, From::Systemd, exit), ["unit_process_exit"]);
        assert_eq!(ids(&classifier, From::Program, exit), Vec::<String>::new());
        let found = classifier.message(
            From::Systemd,
            "5eb03494b6584870a536b337290809b3",
            "übersetzt".as_bytes(),
        );
        assert_eq!(found.hits[0].0.row.id, "unit_restart_scheduled");
        let forged = classifier.message(From::Program, "5eb03494b6584870a536b337290809b3", b"x");
        assert_eq!(forged, Found::default());
    }

    #[test]
    fn the_time_that_a_line_gives_is_taken_from_each_format() {
        let classifier = classifier();
        let took = |line: &str| {
            let found = classifier.message(From::Program, "", line.as_bytes());
            found.hits[0].0.took.map(|took| took.as_secs_f64())
        };
        let zap = r#"{"level":"warn","msg":"slow fdatasync","took":"5.466372338s","expected-duration":"1s"}"#;
        assert_eq!(took(zap), Some(5.466_372_338));
        assert_eq!(
            took("sync duration of 1.034111027s, expected less than 1s"),
            Some(1.034_111_027)
        );
        let late = "failed to send out heartbeat on time (deadline exceeded for 546.767586ms)";
        assert_eq!(took(late), Some(0.546_767_586));
        let slow =
            r#"time="2025-06-11T07:00:12Z" level=warning msg="Slow SQL: SELECT" duration=6.2s"#;
        assert_eq!(took(slow), Some(6.2));
        let older = r#"time="x" level=info msg="Slow SQL (started: 2021-01-01 m=+5) (total time: 1m2.5s): SELECT 1""#;
        assert_eq!(took(older), Some(62.5));
        assert_eq!(took("Device /dev/sdb has errors which were corrected by fsck."), None);
        let nonsense = r#"{"msg":"slow fdatasync","took":"a while"}"#;
        assert_eq!(took(nonsense), None);
    }

    #[test]
    fn lengths_of_time_are_read_as_go_prints_them() {
        let cases = [
            ("1.2s", Some(1.2)),
            ("52.7µs", Some(52.7e-6)),
            ("1h0m0.5s", Some(3600.5)),
            ("-3.5s", Some(3.5)),
            ("", None),
            ("5", None),
            ("1.2.3s", None),
            ("5 parsecs", None),
        ];
        for (text, expected) in cases {
            assert_eq!(duration(text).map(|d| d.as_secs_f64()), expected, "{text}");
        }
    }

    #[test]
    fn lines_of_one_message_are_told_apart_and_long_or_binary_ones_do_no_harm() {
        let classifier = classifier();
        let two = "unexpected fault address 0x7f3a457f3008\nfatal error: fault\n[signal SIGBUS: bus error code=0x2 addr=0x7f3a457f3008 pc=0x9e2b65]\n";
        assert_eq!(ids(&classifier, From::Program, two), ["go_sigbus"]);
        let mut long = vec![b'x'; 48 << 10];
        long.extend(b" etcdserver: no leader");
        assert_eq!(classifier.message(From::Program, "", &long).hits.len(), 1);
        let binary = b"\x1b[31m\xff\xfe etcdserver: no leader\x1b[0m";
        assert_eq!(classifier.message(From::Program, "", binary).hits.len(), 1);
    }
}
