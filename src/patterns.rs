//! Many patterns against one line at once, and one of them for what it names there, in bounded memory.
//!
//! All patterns are one automaton whose states are made when a line first needs them. `regex`'s own set does the same, but where
//! its room for states does not suffice it falls back to a way that is a hundred times slower, and takes 46 MB for ninety
//! patterns. Here the states are made anew instead.
//!
//! A pattern by itself has no automaton: a line that gets so far is short, and often the only one of its kind, so one would
//! never repay its 40 KB.

use std::sync::{Mutex, PoisonError};

use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::meta;
use regex_automata::nfa::thompson::{self, WhichCaptures};
use regex_automata::util::captures;
use regex_automata::util::syntax;
use regex_automata::{Input, MatchKind, PatternSet};

/// Room for states, in bytes; the samples of the kernel's log need 2.6 MB.
const STATES: usize = 4 << 20;
/// No more patterns than take this, in bytes.
const PATTERNS: usize = 32 << 20;
/// No pattern by itself may take more than this, in bytes.
const PATTERN: usize = 1 << 20;

/// A pattern is one of bytes: no class of it is Unicode's.
fn bytes() -> syntax::Config {
    syntax::Config::new().unicode(false).utf8(false)
}

/// One pattern.
pub(crate) struct Pattern(meta::Regex);

impl Pattern {
    /// Compiles it.
    ///
    /// # Errors
    ///
    /// When it is no pattern, or too large a one.
    pub(crate) fn new(pattern: &str) -> Result<Self, regex::Error> {
        let config = meta::Config::new()
            .utf8_empty(false)
            .hybrid(false)
            .onepass(false)
            .nfa_size_limit(Some(PATTERN));
        let regex = meta::Regex::builder().configure(config).syntax(bytes()).build(pattern);
        let regex = regex.map_err(|error| match (error.syntax_error(), error.size_limit()) {
            (Some(error), _) => regex::Error::Syntax(error.to_string()),
            (None, Some(limit)) => regex::Error::CompiledTooBig(limit),
            (None, None) => regex::Error::Syntax(error.to_string()),
        })?;
        Ok(Self(regex))
    }

    /// Whether it fits the line.
    pub(crate) fn is_match(&self, line: &[u8]) -> bool {
        self.0.is_match(line)
    }

    /// What its groups took from the first part of the line that it fits.
    pub(crate) fn captures<'l>(&self, line: &'l [u8]) -> Option<Captures<'l>> {
        let mut groups = self.0.create_captures();
        self.0.captures(line, &mut groups);
        groups.is_match().then_some(Captures { groups, line })
    }
}

/// What the groups of a pattern took from a line.
pub(crate) struct Captures<'l> {
    groups: captures::Captures,
    line: &'l [u8],
}

impl Captures<'_> {
    /// What the group of this name took, if it took part, with a replacement for what is no UTF-8.
    pub(crate) fn name(&self, name: &str) -> Option<String> {
        let span = self.groups.get_group_by_name(name)?;
        Some(String::from_utf8_lossy(self.line.get(span.range())?).into_owned())
    }
}

/// Patterns in an order.
pub(crate) struct Patterns {
    automaton: DFA,
    states: Mutex<Cache>,
}

impl Patterns {
    /// Compiles them.
    ///
    /// # Errors
    ///
    /// When one is wrong, or all of them together are too large.
    pub(crate) fn new<P: AsRef<str>>(patterns: &[P]) -> Result<Self, regex::Error> {
        let config = DFA::config()
            .match_kind(MatchKind::All)
            .cache_capacity(STATES)
            .skip_cache_capacity_check(true)
            .minimum_cache_clear_count(None);
        let automaton = DFA::builder()
            .configure(config)
            .syntax(bytes())
            .thompson(
                thompson::Config::new()
                    .utf8(false)
                    .which_captures(WhichCaptures::None)
                    .nfa_size_limit(Some(PATTERNS)),
            )
            .build_many(patterns)
            .map_err(|error| regex::Error::Syntax(error.to_string()))?;
        let states = Mutex::new(automaton.create_cache());
        Ok(Self { automaton, states })
    }

    /// The numbers of those that match, ascending.
    pub(crate) fn matches(&self, line: &[u8]) -> Vec<usize> {
        let mut set = PatternSet::new(self.automaton.pattern_len());
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let input = Input::new(line);
        let searched = self.automaton.try_which_overlapping_matches(&mut states, &input, &mut set);
        debug_assert!(searched.is_ok(), "it never gives up: {searched:?}");
        set.iter().map(|pattern| pattern.as_usize()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_match_are_found_in_their_order_anchored_or_not() {
        let patterns = Patterns::new(&["^a+b", "b$", r"\d{3}", "^ab", r"(?i)error"]).unwrap();
        assert_eq!(patterns.matches(b"ab"), [0, 1, 3]);
        assert_eq!(patterns.matches(b"xx 404 ERROR"), [2, 4]);
        assert_eq!(patterns.matches(b""), [0; 0]);
        assert_eq!(patterns.matches(b"\xff\xfe 123"), [2]);
    }

    #[test]
    fn more_states_than_there_is_room_for_change_nothing_but_the_time() {
        // Each keeps apart what the last 30 bytes were, in too many states for any memory.
        let all: Vec<String> =
            (0..20).map(|n| format!("{}.{{30}}x", char::from(b'a' + n))).collect();
        let patterns = Patterns::new(&all).unwrap();
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..2_000 {
            let line: String =
                std::iter::repeat_with(|| char::from(b'a' + random.u8(..26))).take(120).collect();
            let expected: Vec<usize> = (0..20_u8)
                .filter(|n| {
                    let bytes = line.as_bytes();
                    bytes.windows(32).any(|part| part[0] == b'a' + n && part[31] == b'x')
                })
                .map(usize::from)
                .collect();
            assert_eq!(patterns.matches(line.as_bytes()), expected, "{line}");
            let used = patterns.states.lock().unwrap().memory_usage();
            assert!(used <= 2 * STATES, "{used} bytes");
        }
    }

    #[test]
    fn one_pattern_tells_what_its_groups_took() {
        let pattern = Pattern::new(r"^(?<first>\w+)(?: (?<second>\d+))? end").unwrap();
        let line = b"one 22 end";
        assert!(pattern.is_match(line));
        let taken = pattern.captures(line).unwrap();
        assert_eq!(taken.name("first").as_deref(), Some("one"));
        assert_eq!(taken.name("second").as_deref(), Some("22"));
        assert_eq!(taken.name("third"), None);
        assert_eq!(pattern.captures(b"one end").unwrap().name("second"), None);
        assert!(!pattern.is_match(b"end") && pattern.captures(b"end").is_none());
        let any = Pattern::new("<(?<any>.+)>").unwrap();
        assert_eq!(any.captures(b"<a\xffb>").unwrap().name("any").as_deref(), Some("a\u{fffd}b"));
    }

    #[test]
    fn a_pattern_that_is_wrong_is_an_error() {
        assert!(Patterns::new(&["(", "a"]).is_err());
        assert!(Patterns::new(&[r"(?:[a-z]{1000}){2000}"]).is_err());
        assert!(matches!(Pattern::new("("), Err(regex::Error::Syntax(_))));
        let large = Pattern::new(r"(?:[a-z]{1000}){2000}");
        assert!(matches!(large, Err(regex::Error::CompiledTooBig(PATTERN))));
    }
}
