//! What `/etc/os-release` says of the system.

/// The file.
pub(crate) const PATH: &str = "/etc/os-release";

/// The value of a key, its quotes taken off; `None` where there is none, or an empty one.
pub(crate) fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))?;
    let value = line.trim().trim_matches(['"', '\'']);
    (!value.is_empty()).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_read_with_and_without_quotes_and_a_longer_key_is_another_one() {
        let text = "VERSION_ID=\"12\"\nID=debian\nID_LIKE='a b'\nEMPTY=\n";
        assert_eq!(value(text, "ID"), Some("debian"));
        assert_eq!(value(text, "VERSION_ID"), Some("12"));
        assert_eq!(value(text, "ID_LIKE"), Some("a b"));
        assert_eq!((value(text, "EMPTY"), value(text, "VERSION")), (None, None));
    }
}
