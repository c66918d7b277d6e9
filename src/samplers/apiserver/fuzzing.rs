//! See `crate::fuzzing`.

use super::checks::failing;

/// The words come from a closed set, whatever the server says.
pub fn apiserver_checks(bytes: &[u8]) {
    let words = failing(&String::from_utf8_lossy(bytes));
    assert!(words.len() <= 14, "{words:?}");
}
