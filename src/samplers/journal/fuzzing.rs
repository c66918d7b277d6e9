//! See `crate::fuzzing`.

use std::sync::LazyLock;

use super::cells::{Figures, Source};
use super::export::{Entry, FIELD_BYTES, Parser};
use super::line::Classifier;
use super::table::{self, From, Row};
use super::{pods, secret};
use crate::fuzzing::{self, SECRET};
use crate::sample::Batch;

static CLASSIFIER: LazyLock<Classifier> = LazyLock::new(|| {
    let rows = table::with(&[]).expect("the table is sound");
    Classifier::new(rows).expect("the table compiles")
});

fn entries(pieces: &[&[u8]]) -> Vec<Entry> {
    let (mut parser, mut entries) = (Parser::default(), Vec::new());
    for piece in pieces {
        parser.feed(piece, |entry| entries.push(entry));
    }
    entries
}

/// It does not matter where the pieces end, fields are bounded, and so are the figures.
pub fn journal_export(bytes: &[u8]) {
    let whole = entries(&[bytes]);
    let (first, second) = bytes.split_at(bytes.len() / 3);
    assert_eq!(whole, entries(&[first, second]));
    let mut figures = Figures::default();
    for entry in &whole {
        assert!(entry.message.len() <= FIELD_BYTES);
        figures.take(Source::Journal, entry, &CLASSIFIER, false);
    }
    let mut out = Batch::default();
    figures.export(&[Source::Journal], std::time::Duration::from_secs(1), |_| None, &mut out);
    assert!(out.all().len() < 1_000, "{} series", out.all().len());
    assert!(out.take_events().len() <= whole.len() * 2 + 32);
}

/// There are no more hits than lines, and no secret is quoted that has the name of one.
pub fn journal_line(bytes: &[u8]) {
    let lines = bytes.split(|byte| *byte == b'\n').count();
    for from in [From::Program, From::Systemd, From::Journald] {
        let found = CLASSIFIER.message(from, "", bytes);
        assert!(found.hits.len() + usize::try_from(found.unparsed).unwrap_or(usize::MAX) <= lines);
    }
    let text = String::from_utf8_lossy(bytes);
    if !text.contains(SECRET) {
        let hidden = secret::hide(&format!("{text} password={SECRET}"));
        assert!(!hidden.contains(SECRET), "{hidden}");
    }
}

/// What is accepted as a row compiles with the table, and does not fit a line without anything.
pub fn journal_signatures(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    // As the loader of the configuration does it.
    if text.contains('\0') || text.contains('*') && text.contains('&') {
        return;
    }
    let file = config::File::from_str(&format!("rows:\n{text}"), config::FileFormat::Yaml);
    let Ok(read) = config::Config::builder().add_source(file).build() else { return };
    let Ok(rows) = read.get::<Vec<Row>>("rows") else { return };
    let Ok(rows) = table::with(&rows) else { return };
    let Ok(classifier) = Classifier::new(rows) else { return };
    for line in
        ["", "etcdserver: no leader", r#"{"level":"warn","msg":"slow fdatasync","took":"1.2s"}"#]
    {
        let found = classifier.message(From::Program, "", line.as_bytes());
        assert!(found.hits.len() <= usize::from(!line.is_empty()), "{line}");
    }
}

/// What the reader of pods hands on is read again whole: as many entries as lines that end, at most.
pub fn cri_log(bytes: &[u8]) {
    let mut out = Vec::new();
    pods::Open::beginning(fuzzing::file(bytes), bytes.len() as u64)
        .drain("etcd", &mut out)
        .expect("memory takes it");
    let ends = bytes.split(|byte| *byte == b'\n').count() - 1;
    let found = entries(&[&out]);
    assert!(found.len() <= ends, "{} in {ends} lines", found.len());
    for entry in found {
        assert_eq!(entry.by, "etcd");
        assert!(entry.history, "it was there before");
        let (_, offset) = entry.cursor.split_once(':').expect("a cursor");
        assert!(offset.parse::<usize>().is_ok_and(|offset| offset <= bytes.len()), "{offset}");
    }
}
