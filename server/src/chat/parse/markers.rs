//! The strings around thinking and calls, and finding them in text that comes in pieces.

/// What surrounds a model's thinking in its output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReasoningMarkers {
    pub start: String,
    pub end: String,
    /// The prompt ends inside the thinking: the answer goes on with it and has no start marker.
    pub open_in_prompt: bool,
}

/// Where a search in unfinished text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// The first marker begins at this byte; which one it is.
    At(usize, usize),
    /// No marker, and none can begin before the last `n` bytes.
    Held(usize),
}

/// The first of the markers in `text`; of several that begin there, the longest. At the end of an output nothing is held.
pub(super) fn find(text: &str, markers: &[&str], is_end: bool) -> Found {
    let hits = markers.iter().enumerate().filter_map(|(index, marker)| Some((text.find(marker)?, index)));
    match hits.min_by_key(|&(at, index)| (at, usize::MAX - markers[index].len())) {
        Some((at, index)) => Found::At(at, index),
        None if is_end => Found::Held(0),
        None => Found::Held(held(text, markers)),
    }
}

/// The length of the longest end of `text` that is the beginning of a marker.
fn held(text: &str, markers: &[&str]) -> usize {
    let longest = |marker: &&str| {
        let cuts = marker.char_indices().map(|(at, _)| at).skip(1);
        cuts.filter(|&at| text.ends_with(&marker[..at])).max().unwrap_or(0)
    };
    markers.iter().map(longest).max().unwrap_or(0)
}

/// Whether a text begins with a marker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Match {
    /// It does; which one.
    Yes(usize),
    /// It may when more of it is there.
    Partly,
    No,
}

pub(super) fn starts_with(text: &str, markers: &[&str], is_end: bool) -> Match {
    let whole = markers.iter().enumerate().filter(|(_, marker)| text.starts_with(**marker));
    if let Some((index, _)) = whole.max_by_key(|(_, marker)| marker.len()) {
        return Match::Yes(index);
    }
    let partly = !is_end && markers.iter().any(|marker| marker.starts_with(text));
    if partly { Match::Partly } else { Match::No }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_first_and_holds_back_what_may_become_one() {
        let markers = ["<tool_call>", "</think>", "◁/think▷"];
        let cases = [
            ("", Found::Held(0)),
            ("plain", Found::Held(0)),
            ("a<", Found::Held(1)),
            ("a</thin", Found::Held(6)),
            ("a</thing", Found::Held(0)),
            ("x◁/", Found::Held(4)),
            ("x<tool_call></think>", Found::At(1, 0)),
            ("</think><tool_call>", Found::At(0, 1)),
        ];
        for (text, found) in cases {
            assert_eq!(find(text, &markers, false), found, "{text:?}");
        }
        assert_eq!(find("a</thin", &markers, true), Found::Held(0));
        assert_eq!(find("ab", &["a", "ab"], false), Found::At(0, 1));
    }

    #[test]
    fn begins_wholly_partly_or_not() {
        let markers = ["[TOOL", "[TOOL_CALLS]"];
        assert_eq!(starts_with("", &markers, false), Match::Partly);
        assert_eq!(starts_with("[TO", &markers, false), Match::Partly);
        assert_eq!(starts_with("[TO", &markers, true), Match::No);
        assert_eq!(starts_with("[TOOL_CALLS] x", &markers, false), Match::Yes(1));
        assert_eq!(starts_with("x", &markers, false), Match::No);
    }
}
