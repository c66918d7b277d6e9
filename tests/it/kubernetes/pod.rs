//! The chart's pod, run by crun: user, capabilities, mounts and arguments come from the rendered `DaemonSet`,
//! the node is this machine with a real etcd whose keys belong to root.
//!
//! What a kubelet makes of these fields is made of them here, and nothing else. There is no device cgroup, so
//! the kernel's log is kept from the container by its capabilities alone.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::{NAME, container, list, only, string, valid};
use crate::lab;
use crate::lab::agent::Scrape;
use crate::lab::etcd::{Cluster, Etcd};
use crate::lab::http;
use crate::lab::process::{Daemon, bound_command, output, run};

/// The node's address: another than the one on which the pod listens beside it.
const HOST_IP: &str = "127.0.0.2";

/// A running pod, ended when dropped.
struct Pod {
    daemon: Daemon,
    address: SocketAddr,
    name: String,
    folder: tempfile::TempDir,
}

impl Drop for Pod {
    fn drop(&mut self) {
        let mut command = bound_command(lab::program("crun"));
        command.arg(format!("--root={}", self.folder.path().join("state").display()));
        command.args(["delete", "--force", &self.name]);
        output(command, Duration::from_secs(10));
    }
}

/// The container's own files: the agent, which the tests build for this machine's libraries, and those.
fn root_filesystem(at: &Path) {
    for folder in ["proc", "sys", "dev", "host", "usr/lib", "usr/lib64", "tmp"] {
        std::fs::create_dir_all(at.join(folder)).unwrap();
    }
    for folder in ["run/controlplane-exporter", "etc/controlplane-exporter"] {
        std::fs::create_dir_all(at.join(folder)).unwrap();
    }
    for name in ["lib", "lib64"] {
        std::os::unix::fs::symlink(format!("usr/{name}"), at.join(name)).unwrap();
    }
    std::fs::write(at.join(NAME), "").unwrap();
}

/// What the container runtime is told for this `DaemonSet`.
fn bundle(objects: &[Value], config: &Path, rootfs: &Path) -> Value {
    let pod = &only(objects, "DaemonSet")["spec"]["template"]["spec"];
    let container = container(objects);
    let security = &container["securityContext"];
    let id = |name: &str| pod["securityContext"][name].as_u64().unwrap();
    let privileged = security["privileged"] == true;
    let capabilities: Vec<String> = if privileged {
        ["CAP_SYSLOG", "CAP_SYS_ADMIN", "CAP_DAC_READ_SEARCH", "CAP_DAC_OVERRIDE", "CAP_IPC_LOCK"]
            .map(ToOwned::to_owned)
            .into()
    } else {
        assert_eq!(security["capabilities"]["drop"], json!(["ALL"]));
        let added = list(&security["capabilities"]["add"]);
        added.iter().map(|name| format!("CAP_{}", string(name))).collect()
    };
    // The kernel takes them from a user who is not root; only the bounding set remains.
    let held = if id("runAsUser") == 0 { capabilities.clone() } else { Vec::new() };
    let volumes: BTreeMap<&str, &Value> =
        list(&pod["volumes"]).iter().map(|volume| (string(&volume["name"]), volume)).collect();
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc"}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}),
        json!({"destination": format!("/{NAME}"), "type": "bind", "options": ["bind", "ro"],
               "source": env!("CARGO_BIN_EXE_controlplane-exporter")}),
        json!({"destination": "/usr/lib", "type": "bind", "source": "/usr/lib", "options": ["rbind", "ro"]}),
        json!({"destination": "/usr/lib64", "type": "bind", "source": "/usr/lib64", "options": ["rbind", "ro"]}),
    ];
    for mount in list(&container["volumeMounts"]) {
        let volume = volumes[string(&mount["name"])];
        let access = if mount["readOnly"] == true { "ro" } else { "rw" };
        let propagation =
            if mount["mountPropagation"] == "HostToContainer" { "rslave" } else { "rprivate" };
        let source = if volume["emptyDir"].is_object() {
            mounts.push(
                json!({"destination": mount["mountPath"], "type": "tmpfs", "source": "tmpfs",
                               "options": ["mode=1777"]}),
            );
            continue;
        } else if volume["configMap"].is_object() {
            json!(config)
        } else {
            volume["hostPath"]["path"].clone()
        };
        mounts.push(json!({"destination": mount["mountPath"], "type": "bind", "source": source,
                           "options": ["rbind", access, propagation]}));
    }
    let args =
        list(&container["args"]).iter().map(|arg| string(arg).replace("$(HOST_IP)", HOST_IP));
    let args: Vec<String> = std::iter::once(format!("/{NAME}")).chain(args).collect();
    let variable = |variable: &Value| {
        let value = variable["value"].as_str().unwrap_or(HOST_IP);
        format!("{}={value}", string(&variable["name"]))
    };
    let env: Vec<String> = list(&container["env"]).iter().map(variable).collect();
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": id("runAsUser"), "gid": id("runAsGroup")},
            "args": args,
            "env": env,
            "cwd": "/",
            "noNewPrivileges": security["allowPrivilegeEscalation"] == false,
            "capabilities": {"bounding": capabilities, "effective": held, "permitted": held},
        },
        "root": {"path": rootfs, "readonly": security["readOnlyRootFilesystem"] == true},
        "mounts": mounts,
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}],
            "rootfsPropagation": "rslave",
        },
    })
}

impl Pod {
    /// What the chart renders with these values and this setting, on this machine.
    #[track_caller]
    fn start(values_text: &str, setting: &str) -> Self {
        let folder = lab::temp_dir("pod");
        let at = folder.path();
        let port = lab::free_port();
        let values = at.join("values.yaml");
        std::fs::write(&values, format!("service: {{port: {port}}}\n{values_text}")).unwrap();
        let args = ["--values", values.to_str().unwrap(), "--set", setting];
        let objects = valid(&super::helm_template(NAME, &args));
        let mounted = at.join("config");
        std::fs::create_dir(&mounted).unwrap();
        let map = only(&objects, "ConfigMap");
        std::fs::write(mounted.join("config.yaml"), string(&map["data"]["config.yaml"])).unwrap();
        let rootfs = at.join("rootfs");
        root_filesystem(&rootfs);
        // A ConfigMap's files and an image's are for everybody.
        run("chmod", ["-R", "a+rX", mounted.to_str().unwrap(), rootfs.to_str().unwrap()]);
        let bundle = bundle(&objects, &mounted, &rootfs);
        std::fs::write(at.join("config.json"), bundle.to_string()).unwrap();
        let name = format!("cpe-{}-{port}", std::process::id());
        // crun looks at the cgroups even when it is to leave them alone, and refuses mixed versions of them.
        let mut command = bound_command(lab::program("unshare"));
        let hide = "mount -t tmpfs none /sys/fs/cgroup && exec \"$@\"";
        command.args(["--mount", "--propagation=slave", "sh", "-c", hide, "sh", "crun"]);
        command.arg(format!("--root={}", at.join("state").display()));
        command.args(["--cgroup-manager=disabled", "run", "--bundle"]).arg(at).arg(&name);
        let daemon = Daemon::start("pod", command, &at.join("pod.log"));
        Self { daemon, address: SocketAddr::from(([127, 0, 0, 1], port)), name, folder }
    }

    /// Waits until the first round is done and a scrape is as it should be.
    #[track_caller]
    fn wait_until(&mut self, is_so: impl Fn(&Scrape) -> bool) {
        lab::wait_for("the pod's figures", Duration::from_secs(20), || {
            self.daemon.check_alive().unwrap_or_else(|end| panic!("the pod does not start: {end}"));
            let ready = http::get(self.address, "/-/ready")?;
            if ready.status != 200 {
                return Err(ready.text());
            }
            let scrape = Scrape::parse(&http::get(self.address, "/metrics")?.text())?;
            if is_so(&scrape) {
                return Ok(());
            }
            let seen = scrape.with_prefix("controlplane_sampler_");
            Err(format!("{seen}\n{}", self.daemon.describe()))
        });
    }
}

#[test]
fn each_value_of_the_chart_lets_the_pod_see_what_it_says() {
    let _turn = lab::together();
    lab::need_root("a container with another user");
    let cluster = Cluster::start(Etcd::V35, 1);
    let key = cluster.pki.client.key.to_str().unwrap();
    run("chmod", ["0600", key]);
    // On the machine's disk: the probe refuses memory.
    let data = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = |path: &Path| path.display().to_string();
    // As k0s and RKE2 with its CIS profile leave it: another user's, and closed to everybody else.
    run("chown", ["4711", data.path().to_str().unwrap()]);
    let values = format!(
        "config:\n\
         \x20 host: {{distribution: etcd, datastore: etcd, datastore_dir: {}}}\n\
         \x20 filesystem: {{paths: [/]}}\n\
         env:\n\
         \x20 CONTROLPLANE_EXPORTER__ETCD__ENDPOINTS: {}\n\
         \x20 CONTROLPLANE_EXPORTER__ETCD__CA_FILE: {}\n\
         \x20 CONTROLPLANE_EXPORTER__ETCD__CERT_FILE: {}\n\
         \x20 CONTROLPLANE_EXPORTER__ETCD__KEY_FILE: {}\n",
        path(data.path()),
        cluster.client_url(0),
        path(&cluster.pki.ca),
        path(&cluster.pki.client.cert),
        path(&cluster.pki.client.key),
    );
    let probe = format!("syncProbe.enabled=true,syncProbe.path={}", path(data.path()));
    // What is seen: etcd's own answer, a sync, the kernel's log.
    for (setting, etcd, sync, kernel) in [
        ("rootFiles.enabled=false", false, false, false),
        ("rootFiles.enabled=true", true, false, false),
        (&probe, true, true, false),
        ("kernelLog.enabled=true", true, false, true),
        (&format!("kernelLog.enabled=true,{probe}"), true, true, true),
    ] {
        let mut pod = Pod::start(&values, setting);
        pod.wait_until(|scrape| {
            let state = |sampler, on| {
                let state = if on { "running" } else { "off" };
                let labels = [("sampler", sampler), ("state", state)];
                scrape.value("controlplane_sampler_state_info", &labels) == Some(1.0)
            };
            let up = scrape.value("controlplane_etcd_up", &[]);
            let syncs = scrape.sum("controlplane_fdatasync_duration_seconds_count", &[]);
            let failing = scrape.all("controlplane_sampler_up", &[]);
            let none_fails = failing.iter().all(|sample| sample.value > 0.0);
            state("etcd", etcd)
                && state("kernel", kernel)
                && state("filesystem", true)
                && state("fdatasync", true)
                && none_fails
                && up == etcd.then_some(1.0)
                && (syncs > 0.0) == sync
        });
        let node = SocketAddr::new(HOST_IP.parse().unwrap(), pod.address.port());
        assert_eq!(http::get(node, "/-/healthy").unwrap().status, 200, "{setting}");
    }
}
