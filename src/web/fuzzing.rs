//! See `crate::fuzzing`.

use std::path::Path;

use super::config::Settings;
use crate::fuzzing::SECRET;

/// Hashes are hashes, a rate is one, and no error repeats what may be a password.
pub fn web_config(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let file = Path::new("/etc/web.yml");
    if let Ok(settings) = Settings::parse(&text, file) {
        assert!(settings.users.values().all(|hash| hash.starts_with("$2")));
        assert!(settings.rate.is_none_or(|rate| !rate.interval.is_zero()));
    }
    if text.contains(SECRET) {
        return;
    }
    for secret in [
        format!("\nbasic_auth_users: {{user: {SECRET}}}\n"),
        format!("\ntls_server_config: {{key: {SECRET}, cert: {SECRET}}}\n"),
    ] {
        if let Err(error) = Settings::parse(&format!("{text}{secret}"), file) {
            assert!(!error.to_string().contains(SECRET), "{error}");
        }
    }
}
