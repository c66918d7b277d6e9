//! Command line flags, of processes, manifests, units and files of arguments.

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

    /// Every value of a repeatable flag.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(flag, _)| flag == name).map(|(_, value)| value.as_str())
    }
}

/// The arguments in a file of the snaps: one or more a line, quoted or not, `#` starts a comment.
pub(super) fn words_of_file(text: &str) -> Vec<String> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.starts_with('#'))
        .flat_map(split_words)
        .collect()
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
    fn words_are_split_as_systemd_does() {
        assert_eq!(
            split_words(r#"/usr/local/bin/k3s server '--etcd-arg' "a b" c\ d '' e"#),
            ["/usr/local/bin/k3s", "server", "--etcd-arg", "a b", "c d", "", "e"]
        );
        assert_eq!(split_words("'open"), ["open"]);
        assert_eq!(split_words("end\\"), ["end"]);
    }

    #[test]
    fn comments_in_a_file_of_arguments_are_left_out() {
        let text = "# BEGIN ANSIBLE MANAGED BLOCK\n--a=1\n\n  --b='2 3'\n# --a=4\n";
        assert_eq!(words_of_file(text), ["--a=1", "--b=2 3"]);
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
            proptest::prop_assert_eq!(split_words(&line), words);
            split_words(&junk);
            words_of_file(&junk);
        }
    }
}
