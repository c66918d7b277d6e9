//! Sampler `certificate` on real files: what page, check and metrics say of a certificate that has ended, and that no key
//! leaves its reader.

use std::fs;
use std::time::Duration;

use crate::lab;
use crate::lab::agent::Agent;
use crate::lab::pki::Pki;
use crate::lab::process::{bound_command, output};

const SECOND: Duration = Duration::from_secs(1);
const END: &str = "controlplane_certificate_not_after_timestamp_seconds";

#[test]
fn an_ended_certificate_is_on_the_page_and_in_the_check_and_its_renewal_ends_it() {
    let _turn = lab::together();
    let pki = Pki::new();
    let folder = lab::temp_dir("certificates");
    let file = folder.path().join("server.crt");
    fs::copy(&pki.server.cert, &file).unwrap();
    // A chain, and a pair in one file, as kubelet has it.
    let pair = folder.path().join("kubelet-client-current.pem");
    let read = |path| fs::read_to_string(path).unwrap();
    let key = read(&pki.client.key);
    fs::write(&pair, read(&pki.client.cert) + &read(&pki.ca) + &key).unwrap();
    // Not that of another test's etcd.
    let agent = Agent::start(&format!(
        "host: {{distribution: microk8s, role: server, datastore: unknown}}\n\
         certificate: {{paths: ['{}'], interval: 200ms}}\nsnap: {{enabled: false}}\nsystemd: {{enabled: false}}\n",
        folder.path().display()
    ));
    let path = file.display().to_string();
    let labels = [("path", path.as_str()), ("role", "server")];
    let ahead = agent
        .wait_until("two certificates", END, 10 * SECOND, |scrape| scrape.all(END, &[]).len() == 2);
    let ends = ahead.value(END, &labels).unwrap();
    fs::copy(&pki.server_expired.cert, &file).unwrap();
    agent.wait_until("an ended one", END, 10 * SECOND, |scrape| {
        scrape.value(END, &labels).is_some_and(|end| end < ends)
    });
    for page in ["/", "/api/v1/status"] {
        let text = agent.get(page).unwrap().text().replace("<wbr>", "");
        assert!(text.contains("ControlPlaneCertificateExpired"), "{page}: {text}");
        assert!(text.contains(&path), "{page}: {text}");
    }
    let mut command = bound_command(env!("CARGO_BIN_EXE_controlplane-exporter"));
    command.args(["check", "--profile=units", "--format=nagios"]);
    command.env("CONTROLPLANE_EXPORTER__WEB__SOCKET", agent.socket());
    let said = output(command, 10 * SECOND);
    assert_eq!(said.status.code(), Some(2), "{}", said.stdout);
    assert!(said.stdout.contains("certificate_expiry=0s"), "{}", said.stdout);

    // A broken one is named, and the others stay.
    fs::write(&file, "-----BEGIN CERTIFICATE-----\n").unwrap();
    let failed = "controlplane_sampler_failures_total";
    let scrape = agent.wait_until("a broken file", failed, 10 * SECOND, |scrape| {
        scrape.sum(failed, &[("sampler", "certificate"), ("reason", "parse")]) >= 1.0
    });
    assert_eq!(scrape.all(END, &[]).len(), 1, "{}", scrape.text);
    assert!(agent.get("/").unwrap().text().replace("<wbr>", "").contains(&path));
    fs::copy(&pki.server.cert, &file).unwrap();
    let end = agent.wait_value(END, &labels, ends, 10 * SECOND);
    let secret = key.lines().nth(1).unwrap();
    let pages = ["/", "/api/v1/status"].map(|page| agent.get(page).unwrap().text());
    for text in pages.into_iter().chain([said.stdout, end.text, agent.log()]) {
        assert!(!text.contains(secret) && !text.contains("PRIVATE KEY"), "{text}");
    }
}
