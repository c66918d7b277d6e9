//! Rule files and Alertmanager configurations with every length of time divided by one factor.
//!
//! Lengths of time are: `for` and `keep_firing_for`, intervals, everything in brackets after a series, offsets,
//! the horizon of `predict_linear`, and the seconds that an age (`time() - …`, or an age in flight beside the
//! sampler's interval) is compared with. Thresholds stay. What looks like a length of time and was not
//! divided is an error, because it would make a replay slow or wrong without anybody noticing.

use regex::{Captures, Regex};
use std::sync::LazyLock;
use yaml_rust2::{Yaml, YamlEmitter, YamlLoader};

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a pattern of this file")
}

/// A duration as Prometheus and Alertmanager write it, in milliseconds.
fn milliseconds(text: &str) -> Option<f64> {
    static PART: LazyLock<Regex> = LazyLock::new(|| pattern(r"^(\d+)(ms|s|m|h|d|w|y)"));
    let mut rest = text;
    let mut sum = 0.0;
    while !rest.is_empty() {
        let part = PART.captures(rest)?;
        let number: f64 = part[1].parse().ok()?;
        sum += number
            * match &part[2] {
                "ms" => 1.0,
                "s" => 1e3,
                "m" => 60e3,
                "h" => 3600e3,
                "d" => 86_400e3,
                "w" => 7.0 * 86_400e3,
                _ => 365.0 * 86_400e3,
            };
        rest = &rest[part[0].len()..];
    }
    (!text.is_empty()).then_some(sum)
}

/// A duration divided by the factor, at least one millisecond; nothing stays nothing.
pub(crate) fn duration(text: &str, factor: f64) -> Option<String> {
    let all = milliseconds(text)?;
    let part = (all / factor).round();
    Some(format!("{}ms", if all > 0.0 { part.max(1.0) } else { 0.0 }))
}

fn number(text: &str, factor: f64) -> String {
    let value: f64 = text.parse().expect("digits");
    format!("{}", value / factor)
}

/// A `PromQL` expression with its lengths of time divided.
pub(crate) fn expression(text: &str, factor: f64) -> Result<String, String> {
    // Texts in quotes are set aside: nothing in them is a duration or a number.
    static QUOTED: LazyLock<Regex> =
        LazyLock::new(|| pattern(r#""(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'"#));
    static DURATION: LazyLock<Regex> = LazyLock::new(|| pattern(r"\b(?:\d+(?:ms|s|m|h|d|w|y))+\b"));
    static HORIZON: LazyLock<Regex> =
        LazyLock::new(|| pattern(r"(predict_linear\s*\([^()]*?,\s*)([0-9* ]*[0-9])(\s*\))"));
    static AGE: LazyLock<Regex> = LazyLock::new(|| {
        pattern(
            r"(time\(\)\s*-\s*(?:max by \([^()]*\) \(\s*)?(?:last_over_time\()?[a-z_:]+(?:\{[^{}]*\})?(?:\[[^\]]*\]\))?\s*\)?\s*(?:[<>]=?|==)\s*)(\d+(?:\.\d+)?)\b(\s*[-+*/^%]?)",
        )
    });
    static BESIDE_INTERVAL: LazyLock<Regex> =
        LazyLock::new(|| pattern(r"(_interval_seconds\s*\+\s*)(\d+(?:\.\d+)?)\b"));
    let mut texts = Vec::new();
    let bare = QUOTED.replace_all(text, |found: &Captures<'_>| {
        texts.push(found[0].to_owned());
        format!("§{}§", texts.len() - 1)
    });
    let bare = DURATION.replace_all(&bare, |found: &Captures<'_>| {
        duration(&found[0], factor).expect("a duration")
    });
    // Set aside as well, so that only what was not divided is left.
    let mut divided = Vec::new();
    let mut keep = |value: String| {
        divided.push(value);
        format!("¤{}¤", divided.len() - 1)
    };
    let bare = HORIZON.replace_all(&bare, |found: &Captures<'_>| {
        let product: f64 =
            found[2].split('*').map(|n| n.trim().parse::<f64>().expect("digits")).product();
        format!("{}{}{}", &found[1], keep(format!("{}", product / factor)), &found[3])
    });
    let bare = AGE.replace_all(&bare, |found: &Captures<'_>| {
        // Only a plain number is understood; the rest of a product would be forgotten.
        let calculated = !found[3].trim().is_empty();
        let value = if calculated { found[2].to_owned() } else { keep(number(&found[2], factor)) };
        format!("{}{value}{}", &found[1], &found[3])
    });
    let bare = BESIDE_INTERVAL.replace_all(&bare, |found: &Captures<'_>| {
        format!("{}{}", &found[1], keep(number(&found[2], factor)))
    });
    forgotten(&bare).map_or(Ok(()), |what| Err(format!("{what} is not divided in: {text}")))?;
    let mut whole = bare.into_owned();
    for (mark, all) in [('¤', &divided), ('§', &texts)] {
        for (at, value) in all.iter().enumerate() {
            whole = whole.replace(&format!("{mark}{at}{mark}"), value);
        }
    }
    Ok(whole)
}

/// What of an expression, all known lengths of time set aside, may still be one.
fn forgotten(bare: &str) -> Option<String> {
    static TIME: LazyLock<Regex> = LazyLock::new(|| pattern(r"\btime\s*\(\s*\)|\btimestamp\s*\("));
    static MARKED: LazyLock<Regex> = LazyLock::new(|| pattern("¤[0-9]+¤"));
    static LONG: LazyLock<Regex> =
        LazyLock::new(|| pattern(r"(?:^|[^\w.§¤])([6-9]\d|\d{3,}(?:\.\d+)?)(?:$|[^\w.§¤])"));
    static HORIZON: LazyLock<Regex> =
        LazyLock::new(|| pattern(r"predict_linear|holt_winters|deriv"));
    let ages = TIME.find_iter(bare).count();
    let marks = MARKED.find_iter(bare).count();
    if ages + HORIZON.find_iter(bare).count() > marks {
        return Some(format!("one of {ages} ages or a horizon"));
    }
    let long = LONG.captures(bare).filter(|_| ages > 0);
    long.map(|found| format!("the number {}", &found[1]))
}

/// Replaces what `change` gives another value for, wherever it is; its argument is the key.
fn walk(
    node: &mut Yaml,
    change: &mut impl FnMut(&str, &str) -> Result<Option<String>, String>,
) -> Result<(), String> {
    match node {
        Yaml::Array(all) => all.iter_mut().try_for_each(|entry| walk(entry, change)),
        Yaml::Hash(all) => {
            for (key, value) in all.iter_mut() {
                match (key.as_str(), &*value) {
                    (Some(key), Yaml::String(text)) => {
                        if let Some(new) = change(key, text)? {
                            *value = Yaml::String(new);
                        }
                    }
                    _ => walk(value, change)?,
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

fn transformed(
    text: &str,
    mut change: impl FnMut(&str, &str) -> Result<Option<String>, String>,
) -> Result<String, String> {
    let mut documents = YamlLoader::load_from_str(text).map_err(|error| error.to_string())?;
    let [document] = &mut documents[..] else { return Err("not one document".into()) };
    walk(document, &mut change)?;
    let mut out = String::new();
    YamlEmitter::new(&mut out).dump(document).map_err(|error| error.to_string())?;
    Ok(out + "\n")
}

fn divided(text: &str, factor: f64) -> Result<Option<String>, String> {
    duration(text, factor).map(Some).ok_or_else(|| format!("not a duration: {text:?}"))
}

/// A rule file.
pub(crate) fn rules(text: &str, factor: f64) -> Result<String, String> {
    transformed(text, |key, value| match key {
        "for" | "keep_firing_for" | "interval" | "query_offset" => divided(value, factor),
        "expr" => expression(value, factor).map(Some),
        _ => Ok(None),
    })
}

/// An Alertmanager configuration; `url` gives the address for each webhook there is.
pub(crate) fn alertmanager(
    text: &str,
    factor: f64,
    url: impl Fn(&str) -> String,
) -> Result<String, String> {
    let scaled = transformed(text, |key, value| match key {
        "group_wait" | "group_interval" | "repeat_interval" | "resolve_timeout"
        | "max_elapsed_time" => divided(value, factor),
        // `http://page.example/…` becomes the path `page`.
        "url" => {
            let host = value.split("://").nth(1).unwrap_or(value);
            Ok(Some(url(host.split(['.', '/', ':']).next().unwrap_or(host))))
        }
        _ => Ok(None),
    })?;
    if scaled.contains(".example") { Err("a receiver is not a webhook".into()) } else { Ok(scaled) }
}

/// The files of a folder of this repository whose names end so, sorted by name.
pub(crate) fn files(folder: &str, ending: &str) -> Vec<(String, String)> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let entries =
        std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut all: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().ends_with(ending))
        .map(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            (name, std::fs::read_to_string(&path).unwrap())
        })
        .collect();
    assert!(!all.is_empty(), "no *{ending} in {}", folder.display());
    all.sort();
    all
}

#[test]
fn every_kind_of_duration_is_divided_and_thresholds_stay() {
    for (before, after) in [
        ("increase(x[24h]) > 10", "increase(x[1440000ms]) > 10"),
        ("max_over_time(a[5m] offset 15m) >= 3", "max_over_time(a[5000ms] offset 15000ms) >= 3"),
        ("increase((max(y))[15m:1m]) >= 4", "increase((max(y))[15000ms:1000ms]) >= 4"),
        ("rate(x_5m[1h30m]) > 0.05", "rate(x_5m[90000ms]) > 0.05"),
        ("predict_linear(s[6h], 86400) > q", "predict_linear(s[360000ms], 1440) > q"),
        (
            "predict_linear(s{a=\"b\"}[4h], 4*60*60) < 0",
            "predict_linear(s{a=\"b\"}[240000ms], 240) < 0",
        ),
        ("time() - t_seconds < 3600\nunless b == 0", "time() - t_seconds < 60\nunless b == 0"),
        ("(time() - t{a=~\"x|5m\"} < 3600)", "(time() - t{a=~\"x|5m\"} < 60)"),
        ("time() - max by (job, unit) (t) < 3600", "time() - max by (job, unit) (t) < 60"),
        (
            "time() - max by (job, unit) (last_over_time(t[5m])) > 3600",
            "time() - max by (job, unit) (last_over_time(t[5000ms])) > 60",
        ),
        (
            "time() - s > 3 * controlplane_sampler_interval_seconds + 60",
            "time() - s > 3 * controlplane_sampler_interval_seconds + 1",
        ),
        ("x{event=\"3600s\"} > 1000", "x{event=\"3600s\"} > 1000"),
        (
            "a - b > 100 * 1024 * 1024 and 1 - b / a > 0.5",
            "a - b > 100 * 1024 * 1024 and 1 - b / a > 0.5",
        ),
        ("inflight_seconds > 30", "inflight_seconds > 30"),
    ] {
        assert_eq!(expression(before, 60.0).as_deref(), Ok(after), "{before}");
    }
}

#[test]
fn a_length_of_time_in_an_unknown_place_is_an_error() {
    for text in [
        "time() - max(t) < 3600",
        "3600 > time() - t",
        "time() - t < 60 * 60",
        "time() > t + 3600",
        "predict_linear(s[6h], horizon) > q",
        "predict_linear(rate(s[5m])[6h:1m], 86400) > q",
        "time() - a < 3600 or time() - max(b) < 600",
    ] {
        assert!(expression(text, 60.0).is_err(), "{text}: {:?}", expression(text, 60.0));
    }
}

#[test]
fn every_shipped_and_stock_rule_is_divided_and_is_still_a_rule() {
    let _turn = crate::lab::together();
    let folder = crate::lab::temp_dir("scaled");
    let mut all = files("alerts", ".rules.yaml");
    all.extend(files("tests/data", ".rules.yaml"));
    let mut paths = Vec::new();
    for (name, text) in &all {
        let scaled = rules(text, 30.0).unwrap_or_else(|error| panic!("{name}: {error}"));
        // Every duration is in milliseconds now, except where a text has one.
        let unscaled = pattern(r#"(?:for: "?|\[|offset )\d+[smhd]\b"#);
        assert!(!unscaled.is_match(&scaled), "{name}: {:?}", unscaled.find(&scaled));
        assert_eq!(scaled.matches("alert: ").count(), text.matches("- alert: ").count(), "{name}");
        let path = folder.path().join(name);
        std::fs::write(&path, scaled).unwrap();
        paths.push(path.display().to_string());
    }
    for version in [crate::lab::prometheus::Version::V2, crate::lab::prometheus::Version::V3] {
        let mut command = crate::lab::process::bound_command(version.program("promtool"));
        command.args(["check", "rules"]).args(&paths);
        let output = crate::lab::process::output(command, std::time::Duration::from_secs(30));
        assert!(output.status.success(), "{}{}", output.stdout, output.stderr);
    }
}

#[test]
fn an_alertmanager_configuration_is_divided_and_sends_to_us() {
    let _turn = crate::lab::together();
    let [(_, text)] = &files("alerts", "alertmanager.yaml")[..] else { panic!("not one file") };
    let scaled = alertmanager(text, 30.0, |name| format!("http://127.0.0.1:1/{name}")).unwrap();
    for (what, there) in [
        ("group_wait: 1000ms", true),
        ("repeat_interval: 1440000ms", true),
        ("http://127.0.0.1:1/page", true),
        ("http://127.0.0.1:1/ticket", true),
        ("30s", false),
        ("5m", false),
        ("12h", false),
    ] {
        assert_eq!(scaled.contains(what), there, "{what}:\n{scaled}");
    }
    assert!(
        alertmanager(
            "receivers: [{name: a, slack_configs: [{api_url: 'http://a.example'}]}]",
            2.0,
            str::to_owned
        )
        .is_err()
    );
    let folder = crate::lab::temp_dir("scaled");
    let path = folder.path().join("alertmanager.yaml");
    std::fs::write(&path, scaled).unwrap();
    crate::lab::process::run("amtool", ["check-config".as_ref(), path.as_os_str()]);
}
