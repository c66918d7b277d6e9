//! The figures in the formats that Prometheus asks for: text 0.0.4, OpenMetrics 1.0 and protobuf,
//! plain or gzip. The content types are those of the specification, byte for byte. Only protobuf carries native
//! histograms, and it carries the classic buckets beside them, for servers that want only those.

use std::fmt::Write as _;
use std::io::Write as _;

use prometheus_client::encoding::prometheus_protobuf::{self, prometheus_data_model as model};
use prometheus_client::registry::Registry;

const PROTOBUF: &str =
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";

/// A format of `/metrics`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text 0.0.4, for whoever asks for nothing better.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' own messages, each after its length.
    Protobuf,
}

/// What a client asked for, and gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Negotiated {
    /// The format.
    pub format: Format,
    /// The escaping scheme, echoed if it is a known one.
    pub escaping: Option<&'static str>,
}

impl Negotiated {
    /// The format with the highest `q` that the agent speaks; text 0.0.4 when there is none.
    pub fn from_accept(accept: &str) -> Self {
        let mut best = (0.0, Self { format: Format::Text, escaping: None });
        for item in accept.split(',') {
            let mut parts = item.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            let (mut q, mut version, mut escaping) = (1.0, "", None);
            let (mut proto, mut encoding) = ("", "");
            for parameter in parts {
                match parameter.split_once('=') {
                    Some(("q", value)) => q = value.parse().unwrap_or(0.0),
                    Some(("version", value)) => version = value,
                    Some(("proto", value)) => proto = value,
                    Some(("encoding", value)) => encoding = value,
                    Some(("escaping", value)) => {
                        escaping = ["underscores", "dots", "values", "allow-utf-8"]
                            .into_iter()
                            .find(|known| *known == value);
                    }
                    _ => {}
                }
            }
            let format = match (media, version) {
                ("application/openmetrics-text", "1.0.0" | "0.0.1" | "") => Format::OpenMetrics,
                ("application/vnd.google.protobuf", _)
                    if (proto, encoding) == ("io.prometheus.client.MetricFamily", "delimited") =>
                {
                    Format::Protobuf
                }
                ("text/plain", "0.0.4" | "" | "1.0.0") | ("text/*" | "*/*", _) => Format::Text,
                _ => continue,
            };
            if q > best.0 {
                best = (q, Self { format, escaping });
            }
        }
        best.1
    }

    /// The value of `Content-Type`.
    pub fn content_type(&self) -> String {
        let mut text = match self.format {
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Protobuf => PROTOBUF,
        }
        .to_owned();
        if let (Format::OpenMetrics | Format::Protobuf, Some(scheme)) = (self.format, self.escaping)
        {
            text.push_str("; escaping=");
            text.push_str(scheme);
        }
        text
    }
}

/// Whether a client takes gzip.
pub fn accepts_gzip(accept_encoding: &str) -> bool {
    accept_encoding.split(',').any(|item| {
        let mut parts = item.split(';').map(str::trim);
        let coding = parts.next().unwrap_or_default();
        let refused = parts.any(|p| matches!(p, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"));
        (coding == "gzip" || coding == "*") && !refused
    })
}

/// Renders every metric.
///
/// # Errors
///
/// When prometheus-client cannot encode a metric, or memory cannot be written to.
pub fn render(registry: &Registry, format: Format, gzip: bool) -> Result<Vec<u8>, std::io::Error> {
    let mut text = String::with_capacity(64 << 10);
    let body = match format {
        Format::OpenMetrics => {
            prometheus_client::encoding::text::encode(&mut text, registry)
                .map_err(std::io::Error::other)?;
            text.into_bytes()
        }
        Format::Text => {
            let families = prometheus_protobuf::encode(registry).map_err(std::io::Error::other)?;
            families
                .iter()
                .try_for_each(|family| print_family(&mut text, family))
                .map_err(std::io::Error::other)?;
            text.into_bytes()
        }
        Format::Protobuf => {
            prometheus_protobuf::encode_to_vec(registry).map_err(std::io::Error::other)?
        }
    };
    if !gzip {
        return Ok(body);
    }
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&body)?;
    encoder.finish()
}

/// One family in text 0.0.4. prometheus-client's own text is OpenMetrics only; its protobuf model
/// carries the names and types that the older format wants.
fn print_family(out: &mut String, family: &model::MetricFamily) -> std::fmt::Result {
    let kind = match family.r#type() {
        model::MetricType::Counter => "counter",
        model::MetricType::Gauge => "gauge",
        model::MetricType::Histogram => "histogram",
        _ => "untyped",
    };
    let name = &family.name;
    let help = family.help.replace('\\', "\\\\").replace('\n', "\\n");
    writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}")?;
    for metric in &family.metric {
        let labels = &metric.label;
        if let Some(counter) = &metric.counter {
            print_sample(out, name, "", labels, None, counter.value)?;
        } else if let Some(gauge) = &metric.gauge {
            print_sample(out, name, "", labels, None, gauge.value)?;
        } else if let Some(histogram) = &metric.histogram {
            for bucket in &histogram.bucket {
                let bound = bucket.upper_bound;
                let count = bucket.cumulative_count as f64;
                print_sample(out, name, "_bucket", labels, Some(bound), count)?;
            }
            let count = histogram.sample_count as f64;
            if histogram.bucket.last().is_none_or(|b| b.upper_bound.is_finite()) {
                print_sample(out, name, "_bucket", labels, Some(f64::INFINITY), count)?;
            }
            print_sample(out, name, "_sum", labels, None, histogram.sample_sum)?;
            print_sample(out, name, "_count", labels, None, count)?;
        }
    }
    Ok(())
}

fn print_sample(
    out: &mut String,
    name: &str,
    suffix: &str,
    labels: &[model::LabelPair],
    bound: Option<f64>,
    value: f64,
) -> std::fmt::Result {
    write!(out, "{name}{suffix}")?;
    let mut separator = '{';
    for label in labels {
        write!(out, "{separator}{}=\"", label.name)?;
        for c in label.value.chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '"' => out.push_str("\\\""),
                '\n' => out.push_str("\\n"),
                c => out.push(c),
            }
        }
        out.push('"');
        separator = ',';
    }
    if let Some(bound) = bound {
        let bound = if bound.is_finite() { bound.to_string() } else { "+Inf".to_owned() };
        write!(out, "{separator}le=\"{bound}\"")?;
        separator = ',';
    }
    if separator == ',' {
        out.push('}');
    }
    match value {
        v if v.is_nan() => out.push_str(" NaN\n"),
        f64::INFINITY => out.push_str(" +Inf\n"),
        f64::NEG_INFINITY => out.push_str(" -Inf\n"),
        v => writeln!(out, " {v}")?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Prometheus 3 sends.
    const PROMETHEUS: &str = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
        application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;\
        q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";

    #[test]
    fn the_format_with_the_highest_q_wins() {
        let openmetrics = Negotiated::from_accept(PROMETHEUS);
        assert_eq!(
            openmetrics.content_type(),
            "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=allow-utf-8"
        );
        let text = Negotiated::from_accept(
            "text/plain;version=0.0.4;q=0.9,application/openmetrics-text;version=1.0.0;q=0.3",
        );
        assert_eq!(text.content_type(), "text/plain; version=0.0.4; charset=utf-8");
    }

    #[test]
    fn protobuf_is_sent_to_whoever_wants_it_most_in_the_one_form_there_is() {
        let wanted = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";
        // What Prometheus sends when it wants native histograms.
        let asked =
            format!("{wanted};q=0.6,application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.2");
        assert_eq!(Negotiated::from_accept(&asked).content_type(), PROTOBUF);
        let escaped = Negotiated::from_accept(&format!("{wanted};escaping=dots"));
        assert_eq!(escaped.content_type(), format!("{PROTOBUF}; escaping=dots"));
        let less = format!("{wanted};q=0.3,application/openmetrics-text;version=1.0.0;q=0.5");
        assert_eq!(Negotiated::from_accept(&less).format, Format::OpenMetrics);
        for other in [
            "application/vnd.google.protobuf",
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=text",
            "application/vnd.google.protobuf;proto=other;encoding=delimited",
        ] {
            assert_eq!(Negotiated::from_accept(other).format, Format::Text, "{other}");
        }
    }

    #[test]
    fn whoever_asks_for_nothing_known_gets_text() {
        for accept in [
            "",
            "*/*",
            "text/html",
            "application/openmetrics-text;version=2.0.0",
            "application/openmetrics-text;q=0",
            ";;;=,q",
        ] {
            assert_eq!(Negotiated::from_accept(accept).format, Format::Text, "{accept}");
        }
    }

    #[test]
    fn an_escaping_scheme_that_is_not_known_is_not_echoed() {
        let got = Negotiated::from_accept("application/openmetrics-text;escaping=\"evil\r\n\"");
        assert_eq!(
            got.content_type(),
            "application/openmetrics-text; version=1.0.0; charset=utf-8"
        );
    }

    #[test]
    fn gzip_is_used_only_where_it_is_wanted() {
        assert!(accepts_gzip("gzip, deflate") && accepts_gzip("br;q=1.0, gzip;q=0.8"));
        assert!(!accepts_gzip("") && !accepts_gzip("deflate") && !accepts_gzip("gzip;q=0"));
    }

    /// Reads the label values of one sample line back, as a scraper does.
    fn labels_of(line: &str) -> Vec<String> {
        let mut values = Vec::new();
        let mut chars = line.chars();
        while chars.by_ref().any(|c| c == '"') {
            let mut value = String::new();
            loop {
                match chars.next().expect("a closing quote") {
                    '"' => break,
                    '\\' => value.push(match chars.next().expect("an escaped character") {
                        'n' => '\n',
                        c => c,
                    }),
                    c => value.push(c),
                }
            }
            values.push(value);
        }
        values
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_asked_for_the_answer_has_a_known_content_type(
            accept in r"(application/openmetrics-text|application/vnd.google.protobuf|proto=io.prometheus.client.MetricFamily|encoding=delimited|text/plain|\*/\*|[,;=]|q=|version=|escaping=|[0-9.]{1,5}|NaN|inf|-1|\PC){0,12}",
            encoding in r"(gzip|\*|[,;=]|q=0|.){0,8}",
        ) {
            let known = [
                "text/plain; version=0.0.4; charset=utf-8",
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
                PROTOBUF,
            ];
            let found = Negotiated::from_accept(&accept).content_type();
            let (bare, escaping) = found.split_once("; escaping=").unwrap_or((&found, "dots"));
            proptest::prop_assert!(known.contains(&bare), "{}", found);
            proptest::prop_assert!(["underscores", "dots", "values", "allow-utf-8"].contains(&escaping));
            accepts_gzip(&encoding);
        }

        #[test]
        fn a_label_value_comes_back_as_it_was(value in ".{0,60}|[\\\\\"n\n{},= ]{0,20}", other in ".{0,9}") {
            let label = |name: &str, value: &str| model::LabelPair {
                name: name.into(),
                value: value.into(),
            };
            let mut out = String::new();
            let labels = [label("a", &value), label("b", &other)];
            print_sample(&mut out, "m", "", &labels, None, 1.0).unwrap();
            proptest::prop_assert_eq!(out.matches('\n').count(), 1, "one line: {}", out);
            proptest::prop_assert!(out.starts_with("m{a=\"") && out.ends_with("} 1\n"), "{}", out);
            proptest::prop_assert_eq!(labels_of(&out), [value, other]);
        }
    }
}
