//! Where the runbooks are, and how each begins.

/// Where the runbooks of the alerts are; a page is named like its alert, with `.md`.
pub const URL: &str =
    "https://github.com/controlplane-exporter/controlplane-exporter/blob/main/alerts/runbooks/";

/// Alerts and the commands of their runbooks' diagnoses, block by block; made by `build.rs`.
static COMMANDS: &[(&str, &[&str])] = include!(concat!(env!("OUT_DIR"), "/commands.rs"));
/// Where the runbooks look for the agent.
const AGENT: &str = "localhost:10379";

/// The shell commands with which the diagnosis of this alert's runbook begins. `agent` is where an agent answers
/// anybody, such as `localhost:10379`; without one, those that ask it are left out. `None` when nothing is left.
pub fn first_commands(alert: &str, agent: Option<&str>) -> Option<String> {
    let (_, blocks) = COMMANDS.iter().find(|(name, _)| *name == alert)?;
    if let Some(agent) = agent {
        return blocks.first().map(|block| block.replace(AGENT, agent));
    }
    let without = blocks.iter().map(|block| {
        block.lines().filter(|line| !line.contains(AGENT)).collect::<Vec<_>>().join("\n")
    });
    without.into_iter().find(|block| !block.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alerts() -> Vec<String> {
        let pages = std::fs::read_dir("alerts/runbooks").unwrap();
        let name = |page: std::io::Result<std::fs::DirEntry>| {
            page.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()
        };
        pages.map(name).filter(|name| name != "README").collect()
    }

    #[test]
    fn every_alert_has_a_first_command() {
        for alert in alerts() {
            let commands = first_commands(&alert, Some(AGENT));
            let commands = commands.unwrap_or_else(|| panic!("{alert} has none"));
            assert!(!commands.trim().is_empty() && !commands.contains("```"), "{alert}");
        }
        assert_eq!(first_commands("NoSuchAlert", Some(AGENT)), None);
    }

    #[test]
    fn without_an_agent_the_commands_ask_none_and_are_still_whole() {
        let mut left = 0;
        for alert in alerts() {
            let Some(commands) = first_commands(&alert, None) else { continue };
            left += 1;
            assert!(!commands.contains(AGENT), "{alert}: {commands}");
            let parsed = std::process::Command::new("bash").args(["-nc", &commands]).status();
            assert!(parsed.unwrap().success(), "{alert}: {commands}");
        }
        assert!(left > 30, "{left}");
        let down = "ControlPlaneEtcdMemberDown";
        assert!(first_commands(down, None).unwrap().starts_with("controlplane-exporter inspect"));
        let elsewhere = first_commands(down, Some("10.0.0.1:9")).unwrap();
        assert!(elsewhere.contains("curl -s 10.0.0.1:9/metrics"), "{elsewhere}");
    }
}
