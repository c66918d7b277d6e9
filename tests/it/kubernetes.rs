//! The chart, the manifests, the scrape configurations and the pages about them: each held against the
//! program it is for.

mod page;
mod pod;
mod prometheus;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::time::Duration;

use regex::Regex;
use serde_json::Value;
use yaml_rust2::{Yaml, YamlLoader};

use crate::lab;
use crate::lab::process::{Output, bound_command, output, run};

/// The oldest Kubernetes that the chart wants, the one after which `Endpoints` is discouraged, the newest.
const VERSIONS: &str = "1.25,1.33,1.37";
const NAME: &str = "controlplane-exporter";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn chart() -> PathBuf {
    root().join("deploy/helm").join(NAME)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The files of a folder whose name ends so, sorted.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_str().is_some_and(|path| path.ends_with(ending)))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no {}/*{ending}", folder.display());
    files
}

/// Whether the committed file says so; with `UPDATE_GOLDEN` it is written first.
#[track_caller]
fn assert_committed(path: &Path, wanted: &str) {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, wanted).unwrap();
    }
    let found = read(path);
    if found != wanted {
        let differs = found.lines().zip(wanted.lines()).find(|(found, wanted)| found != wanted);
        panic!("{} is stale: run `make golden`; first difference: {differs:?}", path.display());
    }
}

/// Helm with nothing of the user's.
fn helm(args: &[&str]) -> Output {
    let home = lab::temp_dir("helm");
    let mut command = bound_command(lab::cached("kube-tools/helm/helm"));
    command.args(args).env_clear().env("HOME", home.path());
    output(command, Duration::from_secs(30))
}

#[track_caller]
fn helm_template(namespace: &str, args: &[&str]) -> String {
    let chart = chart();
    let mut all = vec!["template", NAME, chart.to_str().unwrap(), "--namespace", namespace];
    all.extend(args);
    let out = helm(&all);
    assert!(out.status.success(), "{args:?}: {}", out.stderr);
    out.stdout
}

/// The examples of values by name.
fn examples() -> Vec<(String, PathBuf)> {
    let named = |path: PathBuf| {
        let file = path.file_name().unwrap().to_str().unwrap();
        (file.trim_end_matches("-values.yaml").to_owned(), path.clone())
    };
    files(&chart().join("ci"), "-values.yaml").into_iter().map(named).collect()
}

fn rendered(example: &Path) -> String {
    helm_template(NAME, &["--values", example.to_str().unwrap()])
}

/// What is wrong with files of Kubernetes objects, or the objects.
fn objects_of(files: &[PathBuf]) -> Result<Vec<Value>, String> {
    let mut command = bound_command(lab::program("python3"));
    command.env("PYTHONPATH", lab::cached("kubernetes-validate"));
    command.arg("-B").arg(root().join("tests/scripts/kubernetes_objects.py")).arg(VERSIONS);
    command.args(files);
    let out = output(command, Duration::from_mins(2));
    match out.status.code() {
        Some(0) => Ok(serde_json::from_str(&out.stdout).unwrap()),
        Some(1) => Err(out.stdout),
        _ => panic!("kubernetes_objects.py: {}\n{}", out.status, out.stderr),
    }
}

/// The objects in this text, each valid for every version and for the operator.
#[track_caller]
fn valid(text: &str) -> Vec<Value> {
    let folder = lab::temp_dir("objects");
    let file = folder.path().join("objects.yaml");
    std::fs::write(&file, text).unwrap();
    let objects = objects_of(&[file]).unwrap_or_else(|wrong| panic!("{wrong}"));
    assert!(!objects.is_empty());
    operators(&objects).unwrap_or_else(|wrong| panic!("{wrong}"));
    objects
}

/// What the types of the Prometheus Operator say against those of the objects that are its own.
fn operators(objects: &[Value]) -> Result<(), String> {
    // The compiler takes a second, and many tests render the same object.
    static GOOD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let own = |object: &&Value| string(&object["apiVersion"]).starts_with("monitoring.coreos.com/");
    let good = |object: &&Value| GOOD.lock().unwrap().contains(&object.to_string());
    let own: Vec<&Value> = objects.iter().filter(own).filter(|object| !good(object)).collect();
    if own.is_empty() {
        return Ok(());
    }
    let folder = lab::temp_dir("operator");
    let list = folder.path().join("list.json");
    std::fs::write(&list, serde_json::to_string(&own).unwrap()).unwrap();
    let work = folder.path().join("work");
    std::fs::create_dir(&work).unwrap();
    let mut command = bound_command(lab::program("node"));
    command.arg(root().join("tests/scripts/operator_objects.mjs"));
    command.arg(lab::cached("operator-models")).arg(&work);
    command.stdin(Stdio::from(std::fs::File::open(&list).unwrap()));
    let out = output(command, Duration::from_mins(1));
    match out.status.code() {
        Some(0) => {
            GOOD.lock().unwrap().extend(own.iter().map(ToString::to_string));
            Ok(())
        }
        Some(1) => Err(out.stdout),
        _ => panic!("operator_objects.mjs: {}\n{}", out.status, out.stderr),
    }
}

#[track_caller]
fn string(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[track_caller]
fn only<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let mut found = objects.iter().filter(|object| object["kind"] == kind);
    let first = found.next().unwrap_or_else(|| panic!("no {kind}"));
    assert!(found.next().is_none(), "more than one {kind}");
    first
}

fn container(objects: &[Value]) -> &Value {
    &only(objects, "DaemonSet")["spec"]["template"]["spec"]["containers"][0]
}

#[test]
fn helm_lints_the_chart_with_every_example_of_values() {
    let _turn = lab::together();
    let chart = chart();
    for (name, path) in examples() {
        let out =
            helm(&["lint", chart.to_str().unwrap(), "--values", path.to_str().unwrap(), "--quiet"]);
        assert!(out.status.success(), "{name}: {}{}", out.stdout, out.stderr);
        let said = out.stdout.lines().filter(|line| line.starts_with('['));
        // A Prometheus Operator discovers through Endpoints unless it is told otherwise.
        let fine = |line: &&str| name == "hosts" && line.contains("v1 Endpoints is deprecated");
        let complaints: Vec<&str> = said.filter(|line| !fine(line)).collect();
        assert!(complaints.is_empty(), "{name}: {complaints:?}");
    }
    let folder = lab::temp_dir("package");
    let to = folder.path().to_str().unwrap();
    let out = helm(&["package", chart.to_str().unwrap(), "--destination", to]);
    assert!(out.status.success(), "{}", out.stderr);
    let version = env!("CARGO_PKG_VERSION");
    let packed = run("tar", ["-tzf", &format!("{to}/{NAME}-{version}.tgz")]);
    assert!(packed.contains("values.schema.json") && !packed.contains("/ci/"), "{packed}");
}

#[test]
fn helm_renders_every_example_as_committed() {
    let _turn = lab::together();
    // The bodies of boards and rules are compared with their originals elsewhere.
    let board = Regex::new(r"(?m)^(  controlplane-\w+\.json: \|\n)(?:    .*\n)+").unwrap();
    let groups = Regex::new(r"(?m)^(  groups:\n)(?:    .*\n|\n)+").unwrap();
    for (name, path) in examples() {
        let text = rendered(&path);
        let text = board.replace_all(&text, "$1    {…}\n");
        let text = groups.replace_all(&text, "$1    […]\n");
        let golden = root().join(format!("tests/golden/helm/{name}.yaml"));
        assert_committed(&golden, &text);
    }
}

#[test]
fn every_object_of_the_chart_fits_kubernetes_and_the_operator() {
    let _turn = lab::together();
    let mut kinds = BTreeSet::new();
    for (name, path) in examples() {
        let objects = valid(&rendered(&path));
        kinds.extend(objects.iter().map(|object| string(&object["kind"]).to_owned()));
        let mut seen = BTreeSet::new();
        for object in &objects {
            let id = format!("{} {}", object["kind"], object["metadata"]["name"]);
            assert!(seen.insert(id.clone()), "{name}: two of {id}");
        }
    }
    let all = [
        "ConfigMap",
        "DaemonSet",
        "EndpointSlice",
        "Endpoints",
        "NetworkPolicy",
        "PodMonitor",
        "PrometheusRule",
        "Service",
        "ServiceAccount",
        "ServiceMonitor",
    ];
    assert_eq!(kinds, all.map(str::to_owned).into(), "an object that no example renders");
}

#[test]
fn a_wrong_object_is_refused() {
    let _turn = lab::together();
    let service =
        "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {ports: [{port: 1}]}\n";
    valid(service);
    let folder = lab::temp_dir("wrong");
    let file = folder.path().join("wrong.yaml");
    for wrong in [
        service.replace("port: 1", "prot: 1"),
        service.replace("port: 1", "port: one"),
        service.replace("name: x", "name: x, name: y"),
        service.replace("kind: Service", "kind: Sevrice"),
    ] {
        std::fs::write(&file, &wrong).unwrap();
        assert!(objects_of(std::slice::from_ref(&file)).is_err(), "{wrong}");
    }
    let monitor: Value = serde_json::json!({
        "apiVersion": "monitoring.coreos.com/v1", "kind": "PodMonitor", "metadata": {"name": "x"},
        "spec": {"selector": {}, "podMetricsEndpoints": [{"port": "metrics", "interval": "15s"}]},
    });
    operators(std::slice::from_ref(&monitor)).unwrap();
    for (key, value) in [("prot", "x"), ("interval", "15 s")] {
        let mut wrong = monitor.clone();
        wrong["spec"]["podMetricsEndpoints"][0][key] = value.into();
        assert!(operators(&[wrong]).is_err(), "{key}: {value}");
    }
}

#[test]
fn values_that_mean_nothing_are_refused_by_name() {
    let _turn = lab::together();
    for (setting, word) in [
        ("hostNetwrok=true", "hostNetwrok"),
        ("service.port=0", "port"),
        ("service.portName=Metrics", "portName"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("image.digest=abc", "digest"),
        ("syncProbe.enabled=true", "syncProbe.path"),
        ("syncProbe.path=var/lib/etcd", "path"),
        ("endpoints={server-1}", "endpoints"),
        ("prometheusRules.rules.EtcdNoLeader.enabled=false", "EtcdNoLeader"),
        ("extraArgs={-v}", "extraArgs"),
        ("livenessProbe.httpGet.scheme=tcp", "scheme"),
    ] {
        let chart = chart();
        let out = helm(&["template", NAME, chart.to_str().unwrap(), "--set", setting]);
        assert!(!out.status.success(), "{setting} was taken");
        assert!(out.stderr.contains(word), "{setting}: {}", out.stderr);
    }
}

/// The paths of all values: maps are gone into as far as the chart's own file does.
fn value_paths(yaml: &Yaml, path: &str, found: &mut BTreeSet<String>) {
    match yaml.as_hash() {
        Some(hash) if !hash.is_empty() => {
            for (key, value) in hash {
                let key = key.as_str().unwrap();
                let below = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
                value_paths(value, &below, found);
            }
        }
        _ => {
            found.insert(path.to_owned());
        }
    }
}

#[test]
fn the_readme_of_the_chart_has_every_value_and_no_other() {
    let values = YamlLoader::load_from_str(&read(&chart().join("values.yaml"))).unwrap();
    let mut wanted = BTreeSet::new();
    value_paths(&values[0], "", &mut wanted);
    let readme = read(&chart().join("README.md"));
    let row = Regex::new(r"(?m)^\| (`[^|]+`) \|").unwrap();
    let name = Regex::new(r"`([^`]+)`").unwrap();
    let mut named = BTreeSet::new();
    for found in row.captures_iter(&readme) {
        named.extend(name.captures_iter(&found[1]).map(|name| name[1].to_owned()));
    }
    // `a.*` stands for all that begin so.
    let covers = |name: &str, path: &str| match name.strip_suffix(".*") {
        Some(start) => path.starts_with(&format!("{start}.")),
        None => path == name,
    };
    for path in &wanted {
        assert!(named.iter().any(|name| covers(name, path)), "README.md does not have {path}");
    }
    for name in &named {
        assert!(wanted.iter().any(|path| covers(name, path)), "README.md has {name}");
    }
}

#[test]
fn the_chart_carries_the_rules_and_boards_of_this_repository() {
    for (from, ending, to) in
        [("alerts", ".rules.yaml", "files/rules"), ("dashboards", ".json", "files/dashboards")]
    {
        let to = chart().join(to);
        let mut wanted = BTreeSet::new();
        for file in files(&root().join(from), ending) {
            let name = file.file_name().unwrap().to_owned();
            assert_committed(&to.join(&name), &read(&file));
            wanted.insert(name);
        }
        let found: BTreeSet<_> =
            files(&to, "").iter().map(|path| path.file_name().unwrap().to_owned()).collect();
        assert_eq!(found, wanted, "{}", to.display());
    }
}

/// Group, alert, severity and the rest of each rule of a list of groups.
fn rules(groups: &Value) -> Vec<(String, Value)> {
    let of = |group: &Value| {
        let name = string(&group["name"]).to_owned();
        list(&group["rules"]).iter().map(|rule| (name.clone(), rule.clone())).collect::<Vec<_>>()
    };
    list(groups).iter().flat_map(of).collect()
}

#[test]
fn the_rendered_rules_are_those_of_alerts_but_for_what_the_values_change() {
    let _turn = lab::together();
    let shipped = objects_of(&[root().join("alerts/prometheusrule.yaml")]).unwrap();
    let shipped = rules(&shipped[0]["spec"]["groups"]);
    assert!(shipped.len() > 50);
    let plain = valid(&helm_template(NAME, &["--set", "prometheusRules.enabled=true"]));
    assert_eq!(rules(&only(&plain, "PrometheusRule")["spec"]["groups"]), shipped);
    // With what the example `everything` says: one alert less, another place of runbooks, a label more.
    let changed = valid(&rendered(&chart().join("ci/everything-values.yaml")));
    let mut wanted = shipped;
    wanted.retain(|(_, rule)| rule["alert"] != "ControlPlaneEtcdTwoVoters");
    for (_, rule) in &mut wanted {
        rule["labels"]["team"] = "platform".into();
        let page = format!("https://runbooks.example/controlplane/{}.md", string(&rule["alert"]));
        rule["annotations"]["runbook_url"] = page.into();
    }
    assert_eq!(rules(&only(&changed, "PrometheusRule")["spec"]["groups"]), wanted);
}

#[test]
fn the_rendered_boards_are_those_of_dashboards() {
    let _turn = lab::together();
    let objects = valid(&helm_template(NAME, &["--set", "dashboards.enabled=true"]));
    let mut found = BTreeMap::new();
    for object in objects.iter().filter(|object| object["kind"] == "ConfigMap") {
        assert_eq!(object["metadata"]["labels"]["grafana_dashboard"], "1");
        for (name, text) in object["data"].as_object().unwrap() {
            found.insert(name.clone(), serde_json::from_str::<Value>(string(text)).unwrap());
        }
    }
    let wanted = files(&root().join("dashboards"), ".json").into_iter().map(|path| {
        let name = format!("controlplane-{}", path.file_name().unwrap().to_str().unwrap());
        (name, serde_json::from_str(&read(&path)).unwrap())
    });
    assert_eq!(found, wanted.collect());
}

#[test]
fn a_pod_lands_on_any_kind_of_control_plane_node_and_nowhere_else() {
    let _turn = lab::together();
    let objects = valid(&helm_template(NAME, &[]));
    let spec = &only(&objects, "DaemonSet")["spec"]["template"]["spec"];
    let terms = &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        ["nodeSelectorTerms"];
    // Terms are alternatives; what stands in one term must hold together.
    let labels: Vec<&str> = list(terms)
        .iter()
        .map(|term| {
            let wanted = list(&term["matchExpressions"]);
            assert!(wanted.len() == 1 && wanted[0]["operator"] == "Exists", "{term}");
            string(&wanted[0]["key"])
        })
        .collect();
    assert_eq!(
        labels,
        [
            "node-role.kubernetes.io/control-plane",
            "node-role.kubernetes.io/etcd",
            "node-role.kubernetes.io/master",
            "node.kubernetes.io/microk8s-controlplane",
        ]
    );
    assert_eq!(spec["tolerations"], serde_json::json!([{"operator": "Exists"}]));
    assert_eq!(spec["automountServiceAccountToken"], false);
}

#[test]
fn a_pod_has_no_right_that_no_value_gave_it() {
    let _turn = lab::together();
    let rights = |settings: &[&str]| {
        let mut args = Vec::new();
        args.extend(settings.iter().flat_map(|setting| ["--set", setting]));
        let objects = valid(&helm_template(NAME, &args));
        let pod = &only(&objects, "DaemonSet")["spec"]["template"]["spec"];
        let own = &container(&objects)["securityContext"];
        let writable: Vec<String> = list(&container(&objects)["volumeMounts"])
            .iter()
            .filter(|mount| mount["readOnly"] != true)
            .map(|mount| string(&mount["mountPath"]).to_owned())
            .collect();
        assert_eq!(own["readOnlyRootFilesystem"], true);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        (
            pod["securityContext"]["runAsUser"].as_u64().unwrap(),
            own["privileged"] == true,
            own["capabilities"].clone(),
            writable,
        )
    };
    let none = serde_json::json!({"drop": ["ALL"]});
    let one = serde_json::json!({"drop": ["ALL"], "add": ["DAC_READ_SEARCH"]});
    // The datastore's directory may be another user's.
    let two = serde_json::json!({"drop": ["ALL"], "add": ["DAC_READ_SEARCH", "DAC_OVERRIDE"]});
    let run = "/run/controlplane-exporter".to_owned();
    assert_eq!(rights(&[]), (65534, false, none, vec![run.clone()]));
    let files = ["rootFiles.enabled=true"];
    assert_eq!(rights(&files), (0, false, one, vec![run.clone()]));
    let probe = ["syncProbe.enabled=true", "syncProbe.path=/var/lib/etcd"];
    let both = vec![run.clone(), "/host/var/lib/etcd".to_owned()];
    assert_eq!(rights(&probe), (0, false, two, both));
    assert_eq!(rights(&["kernelLog.enabled=true"]), (0, true, Value::Null, vec![run]));
}

/// The variables of the pod that these values give, by name.
fn variables(values: &str, settings: &[&str]) -> BTreeMap<String, String> {
    let folder = lab::temp_dir("values");
    let file = folder.path().join("values.yaml");
    std::fs::write(&file, values).unwrap();
    let mut args = vec!["--values", file.to_str().unwrap()];
    args.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    let objects = valid(&helm_template(NAME, &args));
    let with_value = |variable: &Value| {
        Some((string(&variable["name"]).to_owned(), variable["value"].as_str()?.to_owned()))
    };
    list(&container(&objects)["env"]).iter().filter_map(with_value).collect()
}

#[test]
fn samplers_that_could_only_fail_are_off() {
    let _turn = lab::together();
    let off = |settings: &[&str]| -> Vec<String> {
        let switch = Regex::new("^CONTROLPLANE_EXPORTER__([A-Z_]+)__ENABLED$").unwrap();
        let name = |(variable, value): (String, String)| {
            assert_eq!(value, "false", "{variable}");
            switch.captures(&variable).unwrap()[1].to_lowercase()
        };
        variables("", settings).into_iter().map(name).collect()
    };
    let without = |names: &[&str]| -> Vec<String> {
        let all = [
            "args",
            "certificate",
            "dqlite",
            "etcd_snapshot",
            "etcd",
            "journal",
            "kernel",
            "kine",
            "registry_keys",
            "snap",
            "volume",
        ];
        all.into_iter().filter(|name| !names.contains(name)).map(str::to_owned).collect()
    };
    assert_eq!(off(&[]), without(&[]));
    assert_eq!(off(&["config.kine.endpoint=/run/kine.sock"]), without(&["kine"]));
    // MicroK8s opens the files of these to a group.
    let of_the_group = without(&["args", "dqlite", "kine"]);
    assert_eq!(off(&["securityContext.supplementalGroups={998}"]), of_the_group);
    assert_eq!(off(&["securityContext.runAsGroup=998"]), of_the_group);
    assert_eq!(off(&["rootFiles.enabled=true"]), ["kernel"]);
    assert_eq!(off(&["kernelLog.enabled=true"]), [""; 0]);
}

#[test]
fn variables_arrive_as_they_were_written() {
    let _turn = lab::together();
    let values = "rootFiles: {enabled: true}\nkernelLog: {enabled: true}\nenv:\n  \
        WHOLE: 8589934592\n  PART: 0.25\n  SWITCH: false\n  TIME: 30s\n  TEXT: \"1e3\"\n";
    let found = variables(values, &["env.SET=8589934592"]);
    let wanted = [
        ("PART", "0.25"),
        ("SET", "8589934592"),
        ("SWITCH", "false"),
        ("TEXT", "1e3"),
        ("TIME", "30s"),
        ("WHOLE", "8589934592"),
    ];
    assert_eq!(found, wanted.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
}

#[test]
fn agents_on_hosts_get_a_service_and_no_pod() {
    let _turn = lab::together();
    let objects = valid(&rendered(&chart().join("ci/hosts-values.yaml")));
    assert!(objects.iter().all(|object| object["kind"] != "DaemonSet"));
    let service = only(&objects, "Service");
    assert_eq!(service["spec"]["selector"], Value::Null, "it would replace the addresses");
    let endpoints = only(&objects, "Endpoints");
    assert_eq!(endpoints["metadata"]["name"], service["metadata"]["name"]);
    let mirrored = "endpointslice.kubernetes.io/skip-mirror";
    assert_eq!(endpoints["metadata"]["labels"][mirrored], "true", "each would be there twice");
    let mut addresses = BTreeSet::new();
    for slice in objects.iter().filter(|object| object["kind"] == "EndpointSlice") {
        let of = &slice["metadata"]["labels"]["kubernetes.io/service-name"];
        assert_eq!(of, &service["metadata"]["name"]);
        for endpoint in list(&slice["endpoints"]) {
            addresses.insert(string(&endpoint["addresses"][0]));
        }
    }
    assert_eq!(addresses, ["10.0.0.1", "10.0.0.2", "2001:db8::3"].into());
}

#[test]
fn the_notes_say_what_an_installation_does_not_watch() {
    let _turn = lab::together();
    let chart = chart();
    let notes = |settings: &[&str]| {
        let mut args = vec!["install", NAME, chart.to_str().unwrap(), "--dry-run=client"];
        args.extend(settings.iter().flat_map(|setting| ["--set", setting]));
        let out = helm(&args);
        assert!(out.status.success(), "{}", out.stderr);
        out.stdout.split_once("NOTES:").unwrap().1.to_owned()
    };
    let plain = notes(&[]);
    assert_eq!(plain.matches("NOT WATCHED").count(), 3, "{plain}");
    assert!(plain.contains("Nothing scrapes it") && plain.contains("No alert rules"), "{plain}");
    let full = notes(&[
        "kernelLog.enabled=true",
        "syncProbe.enabled=true",
        "syncProbe.path=/var/lib/etcd",
        "prometheus.podMonitor.enabled=true",
        "prometheusRules.enabled=true",
    ]);
    assert!(!full.contains("NOT WATCHED") && !full.contains("Nothing scrapes"), "{full}");
    let hosts = notes(&["endpoints={10.0.0.1,2001:db8::3}"]);
    assert!(hosts.contains("'http://10.0.0.1:10379/-/ready'"), "{hosts}");
    assert!(hosts.contains("'http://[2001:db8::3]:10379/-/ready'"), "{hosts}");
}

/// A flat manifest: what the chart renders, without the marks of Helm, in a namespace that allows it.
fn manifest(values: &str, opening: &str) -> String {
    let values = root().join("deploy/kubernetes").join(values);
    let text = helm_template(NAME, &["--values", values.to_str().unwrap()]);
    let marks = ["# Source:", "helm.sh/chart:", "app.kubernetes.io/managed-by:"];
    let kept = |line: &&str| !marks.iter().any(|mark| line.trim_start().starts_with(mark));
    let body: String = text.lines().filter(kept).map(|line| format!("{line}\n")).collect();
    format!(
        "{opening}\
         apiVersion: v1\n\
         kind: Namespace\n\
         metadata:\n\
         \x20 name: {NAME}\n\
         \x20 labels:\n\
         \x20   # The pods use the host's network and mount its files.\n\
         \x20   pod-security.kubernetes.io/enforce: privileged\n\
         {body}"
    )
}

#[test]
fn the_flat_manifests_are_what_the_chart_renders() {
    let _turn = lab::together();
    let where_to = "\
        # kubectl apply -f it, or put it where your distribution applies files by itself:\n\
        # k3s and RKE2: /var/lib/rancher/{k3s,rke2}/server/manifests, the same file on every server.\n\
        #   Taking it away there deletes nothing; that takes kubectl delete -f.\n\
        # k0s: /var/lib/k0s/manifests/controlplane-exporter/; taking it away deletes the objects.\n";
    let plain = format!(
        "# Written from the chart by `make golden`. Agents without any right: no etcd whose key belongs to root, no kernel \
         log,\n# no sync probe. docs/install.md has the table of what needs what.\n{where_to}"
    );
    let full = format!(
        "# Written from the chart by `make golden`. Agents in privileged containers: everything but the sync probe.\n\
         {where_to}"
    );
    for (file, values, opening) in [
        ("controlplane-exporter.yaml", "values.yaml", plain),
        ("controlplane-exporter-privileged.yaml", "values-privileged.yaml", full),
    ] {
        let text = manifest(values, &opening);
        assert_committed(&root().join("deploy/kubernetes").join(file), &text);
        let objects = valid(&text);
        assert_eq!(objects[0]["kind"], "Namespace");
        for object in &objects[1..] {
            assert_eq!(object["metadata"]["namespace"], NAME, "{object}");
        }
    }
}

#[test]
fn every_manifest_fits_kubernetes_and_has_a_name_that_k3s_takes() {
    let _turn = lab::together();
    let name = Regex::new(r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?\.yaml$").unwrap();
    let folder = root().join("deploy/kubernetes");
    let mut all = files(&folder, ".yaml");
    all.extend(files(&folder.join("monitoring"), ".yaml"));
    for path in &all {
        let file = path.file_name().unwrap().to_str().unwrap();
        assert!(name.is_match(file), "{file}: no RFC 1123 name");
    }
    all.retain(|path| !path.file_name().unwrap().to_str().unwrap().starts_with("values"));
    all.extend(files(&root().join("dashboards/configmaps"), ".yaml"));
    all.push(root().join("alerts/prometheusrule.yaml"));
    let objects = objects_of(&all).unwrap_or_else(|wrong| panic!("{wrong}"));
    operators(&objects).unwrap_or_else(|wrong| panic!("{wrong}"));
    // What the Helm controller hands to the chart must fit it.
    let chart = only(&objects, "HelmChart");
    let known = ["chart", "version", "targetNamespace", "createNamespace", "valuesContent"];
    for key in chart["spec"].as_object().unwrap().keys() {
        assert!(known.contains(&key.as_str()), "helmchart.yaml: {key}");
    }
    let values = lab::temp_dir("values");
    let file = values.path().join("values.yaml");
    std::fs::write(&file, string(&chart["spec"]["valuesContent"])).unwrap();
    valid(&helm_template(NAME, &["--values", file.to_str().unwrap()]));
    let version = read(&self::chart().join("Chart.yaml"));
    assert!(version.contains(&format!("\nversion: {}\n", string(&chart["spec"]["version"]))));
    assert!(version.contains(&format!("\nappVersion: {}\n", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn kubectl_takes_the_folder_as_a_kustomization() {
    let _turn = lab::together();
    let home = lab::temp_dir("kubectl");
    let mut command = bound_command(lab::cached("kube-tools/kubectl/kubectl"));
    command.arg("kustomize").arg(root().join("deploy/kubernetes"));
    command.env_clear().env("HOME", home.path());
    let out = output(command, Duration::from_secs(30));
    assert!(out.status.success(), "{}", out.stderr);
    let built = valid(&out.stdout);
    let written = valid(&read(&root().join("deploy/kubernetes/controlplane-exporter.yaml")));
    let names = |objects: &[Value]| -> BTreeSet<String> {
        objects.iter().map(|o| format!("{} {}", o["kind"], o["metadata"]["name"])).collect()
    };
    assert_eq!(names(&built), names(&written));
}

/// Without what means the same when it is not written.
fn bare(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let bare = fields.iter().map(|(name, value)| (name.clone(), bare(value)));
            let empty = |value: &Value| match value {
                Value::Object(fields) => fields.is_empty(),
                other => *other == Value::Null || *other == false || *other == 0,
            };
            bare.filter(|(_, value)| !empty(value)).collect()
        }
        Value::Array(items) => items.iter().map(bare).collect(),
        other => other.clone(),
    }
}

#[test]
fn kubectl_reads_the_pods_as_its_own_types() {
    let _turn = lab::together();
    let home = lab::temp_dir("kubectl");
    for file in ["controlplane-exporter.yaml", "controlplane-exporter-privileged.yaml"] {
        // Offline it decodes the DaemonSet, changes it, and writes it out again.
        let path = root().join("deploy/kubernetes").join(file);
        let daemonset = valid(&read(&path)).into_iter().find(|o| o["kind"] == "DaemonSet").unwrap();
        let input = home.path().join("daemonset.json");
        std::fs::write(&input, daemonset.to_string()).unwrap();
        let mut command = bound_command(lab::cached("kube-tools/kubectl/kubectl"));
        command.args(["set", "image", "--local", "--output=json", "--filename"]).arg(&input);
        command.arg(format!("{NAME}=registry.example/agent:1"));
        command.env_clear().env("HOME", home.path());
        let out = output(command, Duration::from_secs(30));
        assert!(out.status.success(), "{file}: {}", out.stderr);
        let mut changed: Value = serde_json::from_str(&out.stdout).unwrap();
        let image = &mut changed["spec"]["template"]["spec"]["containers"][0]["image"];
        assert_eq!(image, "registry.example/agent:1");
        *image = daemonset["spec"]["template"]["spec"]["containers"][0]["image"].clone();
        let template = |object: &Value| bare(&object["spec"]["template"]);
        assert_eq!(template(&changed), template(&daemonset), "{file}: kubectl drops something");
    }
}

#[test]
fn the_agent_takes_the_arguments_and_the_configuration_that_the_chart_gives_it() {
    let _turn = lab::together();
    let objects = valid(&rendered(&chart().join("ci/everything-values.yaml")));
    let folder = lab::temp_dir("arguments");
    let config = folder.path().join("config.yaml");
    let with_config = |object: &&Value| {
        object["data"].get("config.yaml").is_some() && object["kind"] == "ConfigMap"
    };
    let map = objects.iter().find(with_config).unwrap();
    std::fs::write(&config, string(&map["data"]["config.yaml"])).unwrap();
    std::fs::write(folder.path().join("web-config.yaml"), "http_server_config: {http2: true}\n")
        .unwrap();
    let container = container(&objects);
    let mut command = bound_command(env!("CARGO_BIN_EXE_controlplane-exporter"));
    command.arg("config");
    for argument in list(&container["args"]) {
        let argument = string(argument)
            .replace("/etc/controlplane-exporter/config.yaml", config.to_str().unwrap())
            .replace("/etc/controlplane-exporter-web", folder.path().to_str().unwrap());
        command.arg(argument);
    }
    for variable in list(&container["env"]) {
        if let Some(value) = variable["value"].as_str() {
            command.env(string(&variable["name"]), value);
        }
    }
    let out = output(command, Duration::from_secs(10));
    assert!(out.status.success(), "{}", out.stderr);
    for part in ["expected_members: 3", "rootfs: /host", "level: debug", "interval: 1s"] {
        assert!(out.stdout.contains(part), "{part}: {}", out.stdout);
    }
}
