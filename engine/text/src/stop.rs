//! Stop strings in a stream: text is passed on as soon as it cannot be the beginning of one.

/// What [`StopMatcher::push`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMatch {
    /// No stop string is complete; go on.
    None,
    /// A stop string is complete: what was appended is all the text there is.
    Stopped,
}

/// Finds stop strings across chunk boundaries. The match that is complete first counts, and of those the one
/// that began first, so that the result does not depend on how the text was cut.
pub struct StopMatcher {
    stops: Vec<String>,
    /// Text that may be the beginning of a stop string: shorter than the longest of them.
    held: String,
    /// Whether the string that stops is part of the text.
    include: bool,
}

impl StopMatcher {
    /// A matcher for some strings; empty ones are left out. With `include`, the string that stops is passed on too.
    pub fn new(stops: Vec<String>, include: bool) -> Self {
        Self { stops: stops.into_iter().filter(|stop| !stop.is_empty()).collect(), held: String::new(), include }
    }

    /// Takes the next text and appends to `out` what is certain to be before any stop string.
    pub fn push(&mut self, text: &str, out: &mut String) -> StopMatch {
        self.held.push_str(text);
        if let Some((end, start)) = self.first_match() {
            out.push_str(&self.held[..if self.include { end } else { start }]);
            self.held.clear();
            return StopMatch::Stopped;
        }
        let certain = self.held.len() - self.possible_prefix();
        out.push_str(&self.held[..certain]);
        self.held.drain(..certain);
        StopMatch::None
    }

    /// The stream ended otherwise: appends what was held back.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
    }

    /// End and start of the match that ends first.
    fn first_match(&self) -> Option<(usize, usize)> {
        let matches =
            self.stops.iter().filter_map(|stop| self.held.find(stop.as_str()).map(|at| (at + stop.len(), at)));
        matches.min()
    }

    /// Bytes at the end of the held text that could begin a stop string.
    fn possible_prefix(&self) -> usize {
        let longest = |stop: &String| {
            let prefixes = stop.char_indices().map(|(end, _)| &stop[..end]);
            prefixes.rev().find(|prefix| self.held.ends_with(prefix)).map_or(0, str::len)
        };
        self.stops.iter().map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Text passed on for each chunk, then at the end; stops feeding at a match.
    fn check(stops: &[&str], chunks: &[&str], expected: &[&str], stopped: bool) {
        let mut matcher = StopMatcher::new(stops.iter().map(|stop| stop.to_string()).collect(), false);
        let mut texts = Vec::new();
        let mut found = StopMatch::None;
        for chunk in chunks {
            let mut text = String::new();
            found = matcher.push(chunk, &mut text);
            texts.push(text);
            if found == StopMatch::Stopped {
                break;
            }
        }
        let mut tail = String::new();
        matcher.finish(&mut tail);
        texts.push(tail);
        assert_eq!(texts, expected, "stops {stops:?} in {chunks:?}");
        assert_eq!(found == StopMatch::Stopped, stopped, "stops {stops:?} in {chunks:?}");
    }

    #[test]
    fn holds_back_only_what_may_begin_a_stop_string() {
        check(&[], &["a", "b"], &["a", "b", ""], false);
        check(&["END"], &["xE", "N", "D y"], &["x", "", "", ""], true);
        check(&["END"], &["xE", "N", "x"], &["x", "", "ENx", ""], false);
        check(&["END"], &["xEN"], &["x", "EN"], false);
        check(&["aab"], &["aaa", "b"], &["a", "", ""], true);
        check(&["\n\n"], &["a\n", "b\n", "\n"], &["a", "\nb", "", ""], true);
        check(&["é!"], &["é", "é", "!"], &["", "é", "", ""], true);
        check(&["abcd", "bc"], &["ab", "cd"], &["", "a", ""], true);
        check(&["bc", "abc"], &["abc"], &["", ""], true);
        check(&["", "x"], &["ax"], &["a", ""], true);
    }

    #[test]
    fn the_string_that_stops_is_shown_on_request() {
        let mut matcher = StopMatcher::new(vec!["END".to_owned()], true);
        let mut text = String::new();
        assert_eq!(matcher.push("aEN", &mut text), StopMatch::None);
        assert_eq!(matcher.push("Db", &mut text), StopMatch::Stopped);
        matcher.finish(&mut text);
        assert_eq!(text, "aEND");
    }

    proptest! {
        /// Any cut of a text gives the same output as the text in one piece.
        #[test]
        fn cuts_do_not_matter(
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            chunks in prop::collection::vec("[abcé]{0,3}", 0..10),
            include: bool,
        ) {
            let run = |chunks: &[String]| {
                let (mut matcher, mut out) = (StopMatcher::new(stops.clone(), include), String::new());
                let stopped = chunks.iter().any(|chunk| matcher.push(chunk, &mut out) == StopMatch::Stopped);
                matcher.finish(&mut out);
                (out, stopped)
            };
            let letters: Vec<String> = chunks.concat().chars().map(String::from).collect();
            prop_assert_eq!(run(&chunks), run(&letters));
            prop_assert_eq!(run(&chunks), run(&[chunks.concat()]));
        }
    }
}
