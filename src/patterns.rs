//! Many patterns against one line at once, in bounded memory.
//!
//! All patterns are one automaton whose states are made when a line first needs them. `regex`'s own set does the same, but where
//! its room for states does not suffice it falls back to a way that is a hundred times slower, and takes 46 MB for ninety
//! patterns. Here the states are made anew instead.

use std::sync::{Mutex, PoisonError};

use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::nfa::thompson::{self, WhichCaptures};
use regex_automata::util::syntax;
use regex_automata::{Input, MatchKind, PatternSet};

/// Room for states, in bytes; the samples of the kernel's log need 2.6 MB.
const STATES: usize = 4 << 20;
/// No more patterns than take this, in bytes.
const PATTERNS: usize = 32 << 20;

/// Patterns in an order, of bytes: no class of theirs is Unicode's.
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
            .syntax(syntax::Config::new().unicode(false).utf8(false))
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
    fn a_pattern_that_is_wrong_is_an_error() {
        assert!(Patterns::new(&["(", "a"]).is_err());
        assert!(Patterns::new(&[r"(?:[a-z]{1000}){2000}"]).is_err());
    }
}
