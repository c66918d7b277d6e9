//! See `crate::fuzzing`.

use super::{dashed, flags, managed_blocks};
use crate::host::words_of_file;

/// Words are no longer than the file, and what is shown of them are names of flags.
pub fn arguments(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    assert!(managed_blocks(&text) <= text.lines().count());
    let Ok(words) =
        words_of_file(&text, |name| (name == "SNAP_DATA").then(|| "/var/snap/m/1".into()))
    else {
        return;
    };
    let length: usize = words.iter().map(String::len).sum();
    assert!(length <= 3 * text.len(), "{length} of {}", text.len());
    let flags = flags(&words);
    assert!(flags.len() <= words.len());
    for flag in flags {
        assert!(!flag.contains('='), "{flag}");
        let shown = dashed(flag);
        assert!(shown.len() <= 82 && shown.is_ascii() && !shown.contains('\n'), "{shown}");
    }
}
