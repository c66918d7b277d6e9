//! Command line flags, of processes, manifests, units and files of arguments.

use std::net::IpAddr;

/// Flags in their order; dashes are taken off the names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Flags(Vec<(String, String)>);

impl Flags {
    /// Reads `--name=value`, `--name value`, `-name=value` and `--name`, whose value is `true`.
    pub(super) fn parse<S: AsRef<str>>(args: &[S]) -> Self {
        let mut flags = Vec::new();
        let mut args = args.iter().map(AsRef::as_ref).peekable();
        while let Some(arg) = args.next() {
            let Some(flag) = arg.strip_prefix('-') else { continue };
            let flag = flag.trim_start_matches('-');
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, value.to_owned()),
                None => (
                    flag,
                    args.next_if(|next| !next.starts_with('-'))
                        .map_or_else(|| "true".to_owned(), str::to_owned),
                ),
            };
            flags.push((name.to_owned(), value));
        }
        Self(flags)
    }

    /// The last value of a flag, where it is not empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().rev().find(|(flag, _)| flag == name)?;
        Some(value.as_str()).filter(|value| !value.is_empty())
    }

    /// Where an API server with these flags answers on its own machine.
    pub(super) fn api_url(&self, default_port: u16) -> String {
        let bound = self.get("bind-address").and_then(|text| text.parse::<IpAddr>().ok());
        let host = match bound.filter(|ip| !ip.is_unspecified()) {
            Some(IpAddr::V6(ip)) => format!("[{ip}]"),
            Some(IpAddr::V4(ip)) => ip.to_string(),
            None => "127.0.0.1".to_owned(),
        };
        let port = self.get("secure-port").and_then(|text| text.parse::<u16>().ok());
        format!("https://{host}:{}", port.unwrap_or(default_port))
    }

    /// Every flag with its value, in their order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Every value of a repeatable flag.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(flag, _)| flag == name).map(|(_, value)| value.as_str())
    }
}

/// What stands in for text that only running a command would give.
const UNKNOWN: char = '\u{fffd}';

/// The arguments in a file of the snaps, as their wrappers' bash takes them: split at blanks and line ends, which quotes
/// and backslashes protect, with `#` before a comment and variables in place. Nothing is run: what a command in it would
/// print is unknown, and so is a variable that `value` does not know.
///
/// # Errors
///
/// What makes bash refuse the file as a whole, and so keeps the service from starting.
pub(crate) fn words_of_file(
    text: &str,
    value: impl Fn(&str) -> Option<String>,
) -> Result<Vec<String>, &'static str> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars().peekable();
    // Within double quotes.
    let mut quoted = false;
    while let Some(c) = chars.next() {
        match c {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\'' if !quoted => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('\'') => break,
                        Some(c) => word.push(c),
                        None => return Err("a quote is never closed"),
                    }
                }
            }
            '\\' => match chars.next() {
                // It joins two lines.
                Some('\n') | None => {}
                Some(c @ ('"' | '\\' | '$' | '`')) => word.get_or_insert_default().push(c),
                Some(c) => {
                    let word = word.get_or_insert_default();
                    word.extend(quoted.then_some('\\'));
                    word.push(c);
                }
            },
            '`' => {
                while chars.next().ok_or("a ` is never closed")? != '`' {}
                word.get_or_insert_default().push(UNKNOWN);
            }
            '$' if chars.next_if_eq(&'(').is_some() => {
                let mut open = 1;
                while open > 0 {
                    match chars.next().ok_or("a $( is never closed")? {
                        '(' => open += 1,
                        ')' => open -= 1,
                        _ => {}
                    }
                }
                word.get_or_insert_default().push(UNKNOWN);
            }
            '$' => {
                let braced = chars.next_if_eq(&'{').is_some();
                let mut name = String::new();
                while let Some(c) = chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
                    name.push(c);
                }
                let plain = !braced || chars.next_if_eq(&'}').is_some();
                let word = word.get_or_insert_default();
                match (name.is_empty(), plain) {
                    (true, true) if !braced => word.push('$'),
                    (false, true) => match value(&name) {
                        Some(value) => word.push_str(&value),
                        None => word.push(UNKNOWN),
                    },
                    // `${NAME:-other}` and the like.
                    _ => {
                        while chars.next().ok_or("a ${ is never closed")? != '}' {}
                        word.push(UNKNOWN);
                    }
                }
            }
            c if quoted => word.get_or_insert_default().push(c),
            c if c.is_ascii_whitespace() => words.extend(word.take()),
            '#' if word.is_none() => while chars.next_if(|c| *c != '\n').is_some() {},
            '(' | ')' | '<' | '>' | '|' | '&' | ';' => {
                return Err("one of ( ) < > | & ; stands outside of quotes");
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    if quoted {
        return Err("a quote is never closed");
    }
    words.extend(word);
    Ok(words)
}

/// Splits as a shell and as systemd do: at blanks, which quotes and backslashes protect. A quote
/// left open ends with the text.
pub(super) fn split_words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None | Some('"'), '\\') => word.get_or_insert_default().extend(chars.next()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_read_in_every_spelling() {
        let flags = Flags::parse(&[
            "etcd",
            "--data-dir=/a",
            "--wal-dir",
            "/b",
            "-name=n",
            "--force-new-cluster",
            "--data-dir=/c",
        ]);
        assert_eq!(flags.get("data-dir"), Some("/c"));
        assert_eq!(flags.get("wal-dir"), Some("/b"));
        assert_eq!(flags.get("name"), Some("n"));
        assert_eq!(flags.get("force-new-cluster"), Some("true"));
        assert_eq!(flags.get("missing"), None);
        assert_eq!(flags.all("data-dir").collect::<Vec<_>>(), ["/a", "/c"]);
    }

    #[test]
    fn an_api_server_is_reached_where_its_flags_say() {
        let url = |args: &[&str]| Flags::parse(args).api_url(6443);
        assert_eq!(url(&[]), "https://127.0.0.1:6443");
        assert_eq!(
            url(&["--bind-address=0.0.0.0", "--secure-port=16443"]),
            "https://127.0.0.1:16443"
        );
        assert_eq!(url(&["--bind-address=10.0.0.7"]), "https://10.0.0.7:6443");
        assert_eq!(url(&["--bind-address=fd00::7"]), "https://[fd00::7]:6443");
        assert_eq!(url(&["--bind-address=::", "--secure-port=x"]), "https://127.0.0.1:6443");
    }

    #[test]
    fn words_are_split_as_systemd_does() {
        assert_eq!(
            split_words(r#"/usr/local/bin/k3s server '--etcd-arg' "a b" c\ d '' e"#),
            ["/usr/local/bin/k3s", "server", "--etcd-arg", "a b", "c d", "", "e"]
        );
        assert_eq!(split_words("'open"), ["open"]);
        assert_eq!(split_words("end\\"), ["end"]);
    }

    fn of(text: &str) -> Result<Vec<String>, &'static str> {
        words_of_file(text, |name| (name == "SNAP_DATA").then(|| "/var/snap/m/1".to_owned()))
    }

    #[test]
    fn a_file_of_arguments_is_read_as_bash_reads_it() {
        let text = "# BEGIN ANSIBLE MANAGED BLOCK\n--a=1 --b # c d\n\n  --e='2 3' --f=\"4\n5\"\n# --a=4\n--g=h#i\\\nj \
                    --k=\\\"l\\ m '' --n=\"\\o \\$p\"";
        assert_eq!(
            of(text).unwrap(),
            ["--a=1", "--b", "--e=2 3", "--f=4\n5", "--g=h#ij", "--k=\"l m", "", "--n=\\o $p"]
        );
    }

    #[test]
    fn variables_are_put_in_and_nothing_is_run() {
        let text = "--a=${SNAP_DATA}/b '--c=${SNAP_DATA}' --d=$SNAP_DATA/e --f=\"$SNAP_DATA\" --g=$ --h=$(rm (x) y)z \
                    --i=`id` --j=${X} --k=${SNAP_DATA:-/l} --m=$SNAP_DATAS";
        assert_eq!(
            of(text).unwrap(),
            [
                "--a=/var/snap/m/1/b",
                "--c=${SNAP_DATA}",
                "--d=/var/snap/m/1/e",
                "--f=/var/snap/m/1",
                "--g=$",
                "--h=\u{fffd}z",
                "--i=\u{fffd}",
                "--j=\u{fffd}",
                "--k=\u{fffd}",
                "--m=\u{fffd}"
            ]
        );
    }

    #[test]
    fn what_bash_refuses_is_refused() {
        for text in ["--a='b", "--a=\"b", "--a=$(b", "--a=`b", "--a=${b", "--a=b;c", "(", "a > b"] {
            assert!(of(text).is_err(), "{text}");
        }
        assert_eq!(of("--a='(;)' --b=\"|&\"").unwrap(), ["--a=(;)", "--b=|&"]);
    }

    proptest::proptest! {
        #[test]
        fn any_arguments_are_survived(args in proptest::collection::vec(".{0,12}|-{0,3}[a-z=]{0,6}", 0..9)) {
            let flags = Flags::parse(&args);
            proptest::prop_assert!(flags.0.len() <= args.len());
            proptest::prop_assert!(flags.0.iter().all(|(name, _)| !name.starts_with('-')));
        }

        #[test]
        fn what_is_quoted_stays_one_word(words in proptest::collection::vec("[^'\\\\]{0,9}", 0..6), junk in ".{0,60}") {
            let line = words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
            proptest::prop_assert_eq!(&split_words(&line), &words);
            proptest::prop_assert_eq!(of(&line).unwrap(), words);
            split_words(&junk);
            drop(of(&junk));
        }
    }
}
