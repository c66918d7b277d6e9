//! What a line says, by the table: zap's JSON, logrus, klog, and what systemd and journald write. What
//! k0s' children say comes in lines of k0s', and is taken out of them.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::Duration;

use serde::Deserialize;

use super::table::{From, Row};
use crate::patterns::{Pattern, Patterns};

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
    single: Vec<OnceLock<Option<Pattern>>>,
    not: Vec<Option<Pattern>>,
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
            .map(|row| (!row.not.is_empty()).then(|| Pattern::new(&row.not)).transpose())
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
        if let Some(n) = self.ids.get(message_id).copied()
            && self.rows[n].from == from
            && !self.is_other(n, message)
        {
            found.hits.push((Hit { row: &self.rows[n], took: None }, text(message)));
            return found;
        }
        for line in message.split(|byte| *byte == b'\n') {
            self.line(from, line.trim_ascii_end(), &mut found);
        }
        found
    }

    fn line<'t>(&'t self, from: From, line: &[u8], found: &mut Found<'t>) {
        if let Some(said) = wrapped(line) {
            // k0s calls all of it information; what it means, the child's own words tell.
            let hits = found.hits.len();
            self.bare(from, said.trim_ascii_end(), found);
            // What JSON only quotes would be found in the whole line.
            if found.hits.len() > hits || said.starts_with(b"{") {
                return;
            }
        }
        self.bare(from, line, found);
    }

    /// A line as it is, whatever it wraps.
    fn bare<'t>(&'t self, from: From, line: &[u8], found: &mut Found<'t>) {
        if line.is_empty() {
            return;
        }
        if line[0] != b'{' {
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
        let mut rows = matches.into_iter().map(|at| self.of[at]);
        rows.find(|n| self.rows[*n].from == from && !self.is_other(*n, text))
    }

    /// Whether a text is what the row of this number says that it is not.
    fn is_other(&self, n: usize, text: &[u8]) -> bool {
        self.not[n].as_ref().is_some_and(|not| not.is_match(text))
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
            let single = self.single[n].get_or_init(|| Pattern::new(&row.pattern).ok()).as_ref()?;
            single.captures(text)?.name(SECONDS)
        };
        let named = (!row.seconds.is_empty()).then(|| field(&row.seconds)).flatten();
        duration(&named.or_else(captured)?)
    }
}

/// What a child of k0s has said: the `msg` of a logrus line that names the child too, by `component`. k0s' own parts have
/// such lines as well; others' have not, and their `msg` stays where patterns look for it.
fn wrapped(line: &[u8]) -> Option<Vec<u8>> {
    const MSG: &[u8] = b" msg=\"";
    if !line.starts_with(b"time=") {
        return None;
    }
    let rest = &line[find(line, MSG)? + MSG.len()..];
    let mut escaped = false;
    let end = rest.iter().position(|byte| {
        let ends = *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        ends
    })?;
    let (quoted, fields) = rest.split_at(end);
    find(fields, b" component=")?;
    unquoted(quoted)
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|part| part == what)
}

/// What stands between the quotes of a string as Go writes it.
fn unquoted(quoted: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(quoted.len());
    let mut rest = quoted;
    while let Some(at) = rest.iter().position(|byte| *byte == b'\\') {
        plain.extend(&rest[..at]);
        let (kind, after) = rest[at + 1..].split_first()?;
        let digits = match kind {
            b'x' => 2,
            b'u' => 4,
            b'U' => 8,
            _ => 0,
        };
        let (digits, after) = after.split_at_checked(digits)?;
        rest = after;
        match kind {
            b'a' => plain.push(0x07),
            b'b' => plain.push(0x08),
            b'f' => plain.push(0x0c),
            b'n' => plain.push(b'\n'),
            b'r' => plain.push(b'\r'),
            b't' => plain.push(b'\t'),
            b'v' => plain.push(0x0b),
            b'x' => plain.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?),
            b'u' | b'U' => {
                let number = u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
                plain.extend(char::from_u32(number)?.encode_utf8(&mut [0; 4]).as_bytes());
            }
            other => plain.push(*other),
        }
    }
    plain.extend(rest);
    Some(plain)
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
    fn a_reload_that_fails_is_not_the_end_of_the_main_process_though_systemd_numbers_them_alike() {
        let classifier = classifier();
        let found = |text: &str| {
            let id = "98e322203f7a4ed290d09fe03c09fe15";
            let found = classifier.message(From::Systemd, id, text.as_bytes());
            found.hits.into_iter().map(|(hit, _)| hit.row.id.clone()).collect::<Vec<_>>()
        };
        let end = "code=exited, status=1/FAILURE";
        assert_eq!(
            found(&format!("etcd.service: Main process exited, {end}")),
            ["unit_process_exit"]
        );
        assert_eq!(found("etcd.service: übersetzt"), ["unit_process_exit"]);
        assert_eq!(found(&format!("etcd.service: Control process exited, {end}")), [""; 0]);
    }

    /// k8s-dqlite began as kine, and the engine of dqlite is SQLite.
    #[test]
    fn an_error_of_sqlite_is_kine_s_unless_dqlite_says_it() {
        let classifier = classifier();
        let cases = [
            (
                r#"level=error msg="error in txn: exec (try: 0): disk I/O error""#,
                "dqlite_query_error",
            ),
            (r#"level=error msg="[go-dqlite] append: disk I/O error""#, "dqlite_io_error"),
            (
                r#"level=fatal msg="server failed to start" error="setup: disk I/O error""#,
                "dqlite_fatal",
            ),
            (r#"level=fatal msg="Transaction commit failed: disk I/O error""#, "kine_tx_fatal"),
            (
                r#"level=error msg="Compact failed: failed to compact: database or disk is full""#,
                "kine_io_error",
            ),
        ];
        for (said, expected) in cases {
            let line = format!("time=\"2025-07-25T19:37:43Z\" {said}");
            assert_eq!(ids(&classifier, From::Program, &line), [expected], "{line}");
        }
        for nothing in [
            r#"time="x" level=error msg="failed to setup db: disk I/O error""#,
            r#"time="x" level=warning msg="Startup VACUUM failed (non-fatal): database or disk is full""#,
            r#"time="x" level=error msg="a container failed" error="app: disk I/O error""#,
            r#"I0725 19:37:43.123456 1 prober.go:120] "Probe failed" output="app: disk I/O error""#,
        ] {
            assert_eq!(ids(&classifier, From::Program, nothing), [""; 0], "{nothing}");
        }
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

    /// Composed from the formats of klog, kine and zap, and from that of k0s' lines for what its children write.
    #[test]
    fn what_the_children_of_k0s_say_means_the_same_through_it() {
        let classifier = classifier();
        let cases = [
            (
                r#"time="2025-07-25 19:37:43" level=info msg="E0725 19:37:43.123456       1 server.go:244] \"leaderelection lost\"" component=kube-controller-manager stream=stderr"#,
                "leaderelection_lost",
            ),
            (
                r#"time="2025-07-25 19:37:41" level=info msg="I0725 19:37:41.123456       1 leaderelection.go:297] \"Failed to renew lease\" lock=\"kube-system/kube-scheduler\" err=\"context deadline exceeded\"" component=kube-scheduler stream=stderr"#,
                "lease_renew_failed",
            ),
            (
                r#"time="2025-07-25 19:37:43" level=info msg="time=\"2025-07-25T19:37:43Z\" level=fatal msg=\"Transaction commit failed: disk I/O error\"" component=kine stream=stderr"#,
                "kine_tx_fatal",
            ),
            (
                r#"time="2025-07-25 19:37:43" level=info msg="time=\"2025-07-25T19:37:43Z\" level=fatal msg=\"building kine: unable to open database file\"" component=kine stream=stderr"#,
                "k3s_fatal",
            ),
            (
                r#"time="2025-07-25 19:37:43" level=info msg="I0725 19:37:43.290709    1533 mount_linux.go:577] Disk \"/dev/sdb\" appears to be unformatted, attempting to format as type: \"ext4\" with options: [-F -m0 /dev/sdb]" component=kubelet stream=stderr"#,
                "volume_formatting",
            ),
            (
                r#"time="2025-07-25 19:37:43" level=info msg="E0725 19:37:43.290709    1533 nestedpendingoperations.go:348] Error: MountVolume.MountDevice failed for volume \"pvc-1\" : rpc error" component=kubelet stream=stderr"#,
                "volume_mount_failed",
            ),
            (
                r#"time="2025-07-25 19:37:43" level=info msg="{\"level\":\"warn\",\"msg\":\"apply request took too long\",\"took\":\"157.2ms\",\"request\":\"key:\\\"no known leader\\\"\"}" component=etcd stream=stderr"#,
                "etcd_slow_apply",
            ),
        ];
        for (line, expected) in cases {
            assert_eq!(ids(&classifier, From::Program, line), [expected], "{line}");
            assert_eq!(ids(&classifier, From::Systemd, line), Vec::<String>::new(), "{line}");
        }
        let slow = r#"time="2025-07-25 19:37:43" level=info msg="time=\"2025-07-25T19:37:43Z\" level=warning msg=\"Slow SQL: SELECT 1\" duration=6.2s" component=kine stream=stderr"#;
        let found = classifier.message(From::Program, "", slow.as_bytes());
        let (hit, said) = &found.hits[0];
        assert_eq!((&*hit.row.id, hit.took), ("kine_slow_sql", Some(Duration::from_millis(6_200))));
        assert!(
            said.starts_with(r#"time="2025-07-25T19:37:43Z" level=warning msg="Slow"#),
            "{said}"
        );
    }

    #[test]
    fn of_a_line_that_wraps_another_the_inner_one_comes_first_and_json_alone() {
        let classifier = classifier();
        let found = |line: &str| ids(&classifier, From::Program, line);
        // What k0s says itself.
        let own = r#"time="2025-07-25 19:37:43" level=fatal msg="failed to start" component=k0s"#;
        assert_eq!(found(own), ["k3s_fatal"]);
        // Nobody's child: the programs' own patterns look for `msg`, and what it quotes is no line.
        let nobody = r#"time="2025-07-25 19:37:43" level=info msg="E0725 19:37:43.123456       1 server.go:244] \"leaderelection lost\"""#;
        assert_eq!(found(nobody), Vec::<String>::new());
        let k3s = r#"time="2025-07-25T19:37:43Z" level=fatal msg="leaderelection lost for k3s""#;
        assert_eq!(found(k3s), ["leaderelection_lost"]);
        let quoting = r#"time="2025-07-25 19:37:43" level=info msg="{\"level\":\"warn\",\"msg\":\"hello\",\"error\":\"walpb: crc mismatch\"}" component=etcd stream=stderr"#;
        assert_eq!(found(quoting), Vec::<String>::new());
        // Divided by k0s, for its length.
        let cut = br#"time="2025-07-25 19:37:43" level=info msg="{\"msg\":\"slow fdatasync\",\"took\":" chunk=1 component=etcd stream=stderr"#;
        let cut = classifier.message(From::Program, "", cut);
        assert_eq!((cut.hits.len(), cut.unparsed), (0, 1));
        // Cut by journald, before its end.
        let endless = r#"time="2025-07-25 19:37:43" level=info msg="etcdserver: no leader \"#;
        assert_eq!(found(endless), ["etcd_no_leader"]);
    }

    #[test]
    fn strings_are_unquoted_as_go_quotes_them() {
        let cases: [(&[u8], Option<&[u8]>); 8] = [
            (b"", Some(b"")),
            (b"plain \xc2\xb5", Some(b"plain \xc2\xb5")),
            (br#"a\t\"b\"\n\\n"#, Some(b"a\t\"b\"\n\\n")),
            (
                br"\a\b\f\r\v\xff\u00b5\U0001f600",
                Some(b"\x07\x08\x0c\r\x0b\xff\xc2\xb5\xf0\x9f\x98\x80"),
            ),
            (br"a\", None),
            (br"\xf", None),
            (br"\xzz", None),
            (br"\ud800", None),
        ];
        for (quoted, expected) in cases {
            let name = String::from_utf8_lossy(quoted);
            assert_eq!(unquoted(quoted).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn a_restart_of_which_systemd_says_two_lines_is_one() {
        let classifier = classifier();
        // The first line is systemd 239's, and that of 237 and 238.
        for first in ["Service RestartSec=5s expired", "Service hold-off time over"] {
            let lines = format!(
                "k3s.service: {first}, scheduling restart.\n\
                 k3s.service: Scheduled restart job, restart counter is at 1."
            );
            assert_eq!(ids(&classifier, From::Systemd, &lines), ["unit_restart_scheduled"]);
        }
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
