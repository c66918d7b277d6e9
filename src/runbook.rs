//! Where the runbooks are, and how each begins.

/// Where the runbooks of the alerts are; a page is named like its alert, with `.md`.
pub const URL: &str =
    "https://github.com/controlplane-exporter/controlplane-exporter/blob/main/alerts/runbooks/";

/// Alerts and the first commands of their runbooks; made by `build.rs`.
static FIRST_COMMANDS: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/first_commands.rs"));

/// The shell commands with which the diagnosis of this alert's runbook begins.
pub fn first_command(alert: &str) -> Option<&'static str> {
    FIRST_COMMANDS.iter().find(|(name, _)| *name == alert).map(|(_, command)| *command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_alert_has_a_first_command() {
        for page in std::fs::read_dir("alerts/runbooks").unwrap() {
            let path = page.unwrap().path();
            let alert = path.file_stem().unwrap().to_str().unwrap();
            if alert != "README" {
                let command = first_command(alert).unwrap_or_else(|| panic!("{alert} has none"));
                assert!(!command.trim().is_empty() && !command.contains("```"), "{alert}");
            }
        }
        assert_eq!(first_command("NoSuchAlert"), None);
    }
}
