//! A small, bounded YAML tree.
//!
//! Built from the parser's events and not with its own loader, which recurses (a megabyte of
//! `- - - -` overflows the stack), copies every alias (a few lines expand to gigabytes), refuses
//! a key that stands twice, and turns scalars into numbers, where flags want their text.

use yaml_rust2::Event;
use yaml_rust2::parser::Parser;
use yaml_rust2::scanner::TScalarStyle;

/// Depth of nesting; static pod manifests reach about ten.
pub(super) const MAX_DEPTH: usize = 64;

/// A YAML value; scalars keep their text, and null is an empty one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl Node {
    /// The first document of `text`; an empty one is an empty map.
    ///
    /// # Errors
    ///
    /// A sentence with the line, never with text from the file, which may hold secrets.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut parser = Parser::new_from_str(text);
        let mut open: Vec<Building> = Vec::new();
        loop {
            let (event, mark) = parser
                .next_token()
                .map_err(|error| format!("not YAML at line {}", error.marker().line()))?;
            let line = mark.line();
            let done = match event {
                Event::Scalar(text, TScalarStyle::Plain, ..) if is_null(&text) => {
                    Node::Text(String::new())
                }
                Event::Scalar(text, ..) => Node::Text(text),
                Event::SequenceStart(..) | Event::MappingStart(..) => {
                    if open.len() == MAX_DEPTH {
                        return Err(format!("nested too deeply at line {line}"));
                    }
                    open.push(match event {
                        Event::SequenceStart(..) => Building::List(Vec::new()),
                        _ => Building::Map(Vec::new(), None),
                    });
                    continue;
                }
                Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                    Some(Building::List(items)) => Node::List(items),
                    Some(Building::Map(entries, _)) => Node::Map(entries),
                    None => return Err(format!("not YAML at line {line}")),
                },
                Event::Alias(_) => return Err(format!("an alias at line {line}, not supported")),
                Event::DocumentEnd | Event::StreamEnd => return Ok(Node::Map(Vec::new())),
                Event::Nothing | Event::StreamStart | Event::DocumentStart => continue,
            };
            match open.last_mut() {
                None => return Ok(done),
                Some(parent) => parent.add(done),
            }
        }
    }

    /// The value of a key; of equal keys the last.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        self.entries().iter().rev().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// The value at the end of a path of keys.
    pub(crate) fn at(&self, path: &[&str]) -> Option<&Node> {
        path.iter().try_fold(self, |node, key| node.get(key))
    }

    /// The text at the end of a path of keys, where it is a scalar and not empty.
    pub(crate) fn text_at(&self, path: &[&str]) -> Option<&str> {
        self.at(path)?.text()
    }

    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Node::Text(text) if !text.is_empty() => Some(text),
            _ => None,
        }
    }

    pub(crate) fn entries(&self) -> &[(String, Node)] {
        match self {
            Node::Map(entries) => entries,
            _ => &[],
        }
    }

    pub(crate) fn items(&self) -> &[Node] {
        match self {
            Node::List(items) => items,
            _ => &[],
        }
    }

    /// The scalars of a list, or a scalar by itself.
    pub(crate) fn texts(&self) -> Vec<String> {
        match self {
            Node::List(items) => items.iter().filter_map(Node::text).map(str::to_owned).collect(),
            other => other.text().map(str::to_owned).into_iter().collect(),
        }
    }
}

fn is_null(text: &str) -> bool {
    matches!(text, "~" | "null" | "Null" | "NULL")
}

/// A collection whose end has not come yet.
enum Building {
    List(Vec<Node>),
    /// The entries, and a key that waits for its value.
    Map(Vec<(String, Node)>, Option<String>),
}

impl Building {
    fn add(&mut self, node: Node) {
        match self {
            Building::List(items) => items.push(node),
            Building::Map(entries, key) => match key.take() {
                Some(key) => entries.push((key, node)),
                // A key that is itself a collection names nothing that is looked for.
                None => *key = Some(node.text().unwrap_or_default().to_owned()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_keep_their_text() {
        let node = Node::parse("a: 8589934592\nb: yes\nc: [1, 0x10]\nd: {e: f}\n").unwrap();
        assert_eq!(node.text_at(&["a"]), Some("8589934592"));
        assert_eq!(node.text_at(&["b"]), Some("yes"));
        assert_eq!(node.get("c").unwrap().texts(), ["1", "0x10"]);
        assert_eq!(node.text_at(&["d", "e"]), Some("f"));
        assert_eq!(node.text_at(&["d", "x"]), None);
        let node = Node::parse("a: null\nb: ~\nc: 'null'\n").unwrap();
        assert_eq!((node.text_at(&["a"]), node.text_at(&["b"])), (None, None));
        assert_eq!(node.text_at(&["c"]), Some("null"));
    }

    #[test]
    fn of_equal_keys_the_last_holds() {
        assert_eq!(Node::parse("a: 1\na: 2\n").unwrap().text_at(&["a"]), Some("2"));
    }

    #[test]
    fn an_empty_file_is_an_empty_map() {
        assert_eq!(Node::parse("").unwrap(), Node::Map(Vec::new()));
        assert_eq!(Node::parse("# only a comment\n").unwrap(), Node::Map(Vec::new()));
    }

    #[test]
    fn deep_nesting_is_refused_and_overflows_nothing() {
        for garbage in ["- ".repeat(500_000), "[".repeat(500_000), "{a: ".repeat(250_000)] {
            Node::parse(&garbage).unwrap_err();
        }
    }

    #[test]
    fn an_error_names_the_line_and_not_the_secret() {
        let error = Node::parse("ok: 1\ntoken: \"hunter2\n").unwrap_err();
        assert!(error.contains("line") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn an_alias_is_refused() {
        Node::parse("a: &x [1]\nb: *x\n").unwrap_err();
    }

    #[test]
    fn bytes_of_any_kind_are_survived() {
        for garbage in ["\u{0}\u{1}\u{fffd}", "\t: [", "a: b: c: d", "? [x]\n: y\n", "%YAML 9"] {
            if let Err(error) = Node::parse(garbage) {
                assert!(error.contains("line"), "{error}");
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_is_too_much(text in r"([a-z]|[:{}\[\],&*!|>'%@~?#-]|\n| |\t|\PC){0,60}|.{0,60}") {
            if let Err(error) = Node::parse(&text) {
                proptest::prop_assert!(error.contains("line"), "{error}");
            }
        }

        #[test]
        fn a_quoted_text_comes_back_whole(key in "[a-z]{1,9}", text in r"\PC{0,40}") {
            let quoted = text.replace('\'', "''");
            let node = Node::parse(&format!("x:\n- {key}: '{quoted}'\n")).unwrap();
            let item = &node.get("x").unwrap().items()[0];
            proptest::prop_assert_eq!(item.get(&key), Some(&Node::Text(text)));
        }
    }
}
