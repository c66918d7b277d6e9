//! See `crate::fuzzing`.

use super::{Config, Flags};

/// What is accepted is the same again when it is printed as a file and read.
pub fn agent_config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let flags = Flags { file: Some("agent.yaml".into()), ..Flags::default() };
    let load = |text: &str| Config::layered(&flags, Some(text), std::collections::HashMap::new());
    match load(text) {
        Ok(config) => {
            let printed = config.to_yaml();
            let again = load(&printed).unwrap_or_else(|error| panic!("{error}\n{printed}"));
            assert_eq!(printed, again.to_yaml());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
