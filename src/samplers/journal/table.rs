//! The rows of `signatures.yaml` and of the section's `signatures`: what is looked for, checked when it is loaded.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use crate::patterns::Pattern;
use crate::severity::Severity;

const TABLE: &str = include_str!("signatures.yaml");
/// Rows that a configuration may add.
const MAX_OWN: usize = 50;

/// Who wrote a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum From {
    /// A process of a watched unit, or of a static pod.
    Program,
    /// PID 1, or systemd-coredump, about a watched unit.
    Systemd,
    /// journald itself.
    Journald,
}

/// One row: see the head of `signatures.yaml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Row {
    pub(super) id: String,
    #[serde(default = "program")]
    pub(super) from: From,
    pub(super) severity: Severity,
    #[serde(default)]
    pub(super) msg: Vec<String>,
    #[serde(default)]
    pub(super) level: Vec<String>,
    #[serde(default)]
    pub(super) pattern: String,
    #[serde(default)]
    pub(super) not: String,
    #[serde(default)]
    pub(super) message_id: String,
    #[serde(default)]
    pub(super) seconds: String,
    #[serde(default)]
    pub(super) home: Vec<String>,
    #[serde(default)]
    pub(super) alert: String,
    #[serde(default)]
    pub(super) timeline: bool,
    #[serde(default)]
    pub(super) meaning: String,
}

fn program() -> From {
    From::Program
}

impl Row {
    /// Whether it belongs to the story of a failure.
    pub(super) fn is_told(&self) -> bool {
        self.timeline || self.severity > Severity::Info
    }

    /// Whether the series for this unit exists from the start.
    pub(super) fn is_at_home_in(&self, unit: &str) -> bool {
        self.home.iter().any(|word| unit.contains(word.as_str()))
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        let id = &self.id;
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if !id.starts_with(|c: char| c.is_ascii_lowercase())
            || !id.chars().all(plain)
            || id.len() > 60
        {
            return Err((
                "id",
                format!("{id:?} is not of lower-case letters, digits and _, at most 60 of them"),
            ));
        }
        let exact = [&self.msg, &self.level].iter().any(|values| !values.is_empty());
        if self.pattern.is_empty() && self.message_id.is_empty() && !exact {
            let what = "one of pattern, msg, level and message_id is needed";
            return Err(("pattern", what.into()));
        }
        for (key, pattern) in [("pattern", &self.pattern), ("not", &self.not)] {
            if let Err(error) = Pattern::new(pattern) {
                let last = error.to_string();
                let last = last.lines().last().unwrap_or_default().trim_start_matches("error: ");
                return Err((key, format!("{pattern:?} is no pattern: {last}")));
            }
        }
        if self.pattern.len() == 1
            || Pattern::new(&self.pattern)
                .is_ok_and(|p| !self.pattern.is_empty() && p.is_match(b""))
        {
            return Err(("pattern", format!("{:?} fits every line", self.pattern)));
        }
        Ok(())
    }
}

#[derive(Debug, Deserialize)]
struct Table {
    signatures: Vec<Row>,
}

static SHIPPED: LazyLock<Vec<Row>> = LazyLock::new(|| {
    let file = config::File::from_str(TABLE, config::FileFormat::Yaml);
    let table = config::Config::builder().add_source(file).build();
    let table = table.and_then(config::Config::try_deserialize::<Table>);
    // A test reads it, so this does not happen.
    table.map(|table| table.signatures).unwrap_or_default()
});

/// The rows that are shipped.
pub(super) fn shipped() -> &'static [Row] {
    &SHIPPED
}

/// The configuration's rows, which come first, and those that are shipped.
///
/// # Errors
///
/// The key below `signatures` that does not make sense, and why.
pub(super) fn with(own: &[Row]) -> Result<Vec<Row>, (String, String)> {
    if own.len() > MAX_OWN {
        return Err(("signatures".into(), format!("at most {MAX_OWN} rows")));
    }
    let mut taken: BTreeSet<&str> = shipped().iter().map(|row| row.id.as_str()).collect();
    for (n, row) in own.iter().enumerate() {
        row.check().map_err(|(key, what)| (format!("signatures[{n}].{key}"), what))?;
        if !taken.insert(&row.id) {
            return Err((format!("signatures[{n}].id"), format!("{} is taken", row.id)));
        }
    }
    Ok(own.iter().chain(shipped()).cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(yaml: &str) -> Row {
        let file = config::File::from_str(yaml, config::FileFormat::Yaml);
        config::Config::builder().add_source(file).build().unwrap().try_deserialize().unwrap()
    }

    #[test]
    fn every_shipped_row_is_sound_and_says_what_it_means() {
        let rows = shipped();
        assert!(rows.len() > 80, "{}", rows.len());
        let ids: BTreeSet<_> = rows.iter().map(|row| &row.id).collect();
        assert_eq!(ids.len(), rows.len());
        for row in rows {
            row.check().unwrap();
            assert!(row.meaning.ends_with('.') && row.meaning.len() < 120, "{}", row.id);
            let alerts = row.severity >= Severity::Error || row.id.starts_with("volume_");
            assert!(row.alert.is_empty() || alerts, "{}", row.id);
            assert!(row.home.is_empty() || !row.alert.is_empty(), "{}", row.id);
        }
    }

    #[test]
    fn a_row_of_the_configuration_that_does_not_make_sense_is_refused_by_its_key() {
        let cases = [
            ("id: Bad\nseverity: error\npattern: abc", "signatures[0].id", "lower-case"),
            ("id: etcd_corrupt\nseverity: error\npattern: abc", "signatures[0].id", "taken"),
            ("id: a\nseverity: error", "signatures[0].pattern", "is needed"),
            ("id: a\nseverity: error\npattern: 'a('", "signatures[0].pattern", "unclosed group"),
            ("id: a\nseverity: error\npattern: 'a*'", "signatures[0].pattern", "fits every line"),
            ("id: a\nseverity: error\npattern: abc\nnot: '['", "signatures[0].not", "no pattern"),
            (
                "id: a\nseverity: error\npattern: '(a{1000}){1000}'",
                "signatures[0].pattern",
                "size limit",
            ),
        ];
        for (yaml, key, what) in cases {
            let (found, text) = with(&[row(yaml)]).unwrap_err();
            assert_eq!(found, key, "{yaml}: {text}");
            assert!(text.contains(what), "{yaml}: {text}");
        }
        let own = row("id: a\nseverity: error\npattern: abc");
        let all = with(std::slice::from_ref(&own)).unwrap();
        assert_eq!((&all[0], all.len()), (&own, shipped().len() + 1));
    }
}
