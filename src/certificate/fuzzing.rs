//! See `crate::fuzzing`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{BEGIN, END, names, not_after, parse, summaries, summary};

/// What is a certificate as DER is the same one as PEM.
pub fn certificate(bytes: &[u8]) {
    if let Some(names) = names(bytes) {
        assert!(names.len() <= bytes.len(), "{} names in {} bytes", names.len(), bytes.len());
    }
    let direct = parse(bytes).map(|certificate| summary(&certificate));
    let pem = format!("{BEGIN}\n{}\n{END}\n", STANDARD.encode(bytes));
    let through = summaries(&pem).ok().and_then(|all| all.first().copied());
    assert_eq!(direct, through);
    assert_eq!(direct.map(|found| found.not_after), not_after(pem.as_bytes()).ok());
}
