//! Finding where a text ends that nothing bounds: the marker that ends the thinking, the one that begins a tool call. A marker may be
//! a control token or ordinary text that tokens split anywhere, also with more text in the token that completes it.
//!
//! ```text
//! marker  <go>          tokens   …a<   g   o>{          tail kept: the last 3 bytes
//!                                  └─ the marker ─┘└ what comes with its end
//! ```

use super::vocabulary::Vocabulary;
use scheduler::TokenId;

/// Some markers over one vocabulary, any of which counts.
pub struct Markers {
    texts: Vec<Vec<u8>>,
    /// `completing[m][k]`: tokens with which marker `m`, of which `k` bytes came before, ends before the token does. At 0 are the
    /// tokens that hold all of it.
    completing: Vec<Vec<Vec<Overhang>>>,
    longest: usize,
}

/// A token that goes on after the marker's end, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overhang {
    pub token: TokenId,
    pub rest: usize,
}

/// The end of the text so far, as far as a marker may lie in it.
#[derive(Debug, Clone, Default)]
pub struct Tail(Vec<u8>);

impl Markers {
    /// Looks at every token: milliseconds for a large vocabulary.
    pub fn new(texts: &[&str], vocabulary: &Vocabulary) -> Self {
        let texts: Vec<Vec<u8>> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
        assert!(texts.iter().all(|text| !text.is_empty()), "a marker has text");
        let completing = texts.iter().map(|text| completing(text, vocabulary)).collect();
        let longest = texts.iter().map(Vec::len).max().unwrap_or(0);
        Self { texts, completing, longest }
    }

    /// Takes in a token's bytes. Where a marker ends in them, says after how many of them.
    pub fn push(&self, tail: &mut Tail, bytes: &[u8]) -> Option<usize> {
        let before = tail.0.len();
        tail.0.extend_from_slice(bytes);
        let end = self.texts.iter().filter_map(|text| find_end(&tail.0, text, before)).min();
        let keep = tail.0.len().min(self.longest.saturating_sub(1));
        tail.0.drain(..tail.0.len() - keep);
        end.map(|end| end - before)
    }

    /// The tokens that would complete a marker now and go on after it.
    pub fn overhangs<'a>(&'a self, tail: &'a Tail) -> impl Iterator<Item = Overhang> + 'a {
        let begun = |text: &'a [u8]| (0..text.len()).filter(|&k| tail.0.ends_with(&text[..k]));
        self.texts
            .iter()
            .zip(&self.completing)
            .flat_map(move |(text, completing)| begun(text).flat_map(|k| completing[k].iter().copied()))
    }

    /// Every token that can end a marker and go on, in whatever state.
    pub fn all_overhangs(&self) -> impl Iterator<Item = Overhang> + '_ {
        self.completing.iter().flatten().flatten().copied()
    }
}

/// Where the first occurrence of `text` ends, of those that end after `from`.
fn find_end(bytes: &[u8], text: &[u8], from: usize) -> Option<usize> {
    let first = (from + 1).saturating_sub(text.len());
    bytes
        .get(first..)?
        .windows(text.len())
        .position(|window| window == text)
        .map(|at| first + at + text.len())
}

fn completing(text: &[u8], vocabulary: &Vocabulary) -> Vec<Vec<Overhang>> {
    let mut lists = vec![Vec::new(); text.len()];
    for token in 0..vocabulary.len() as TokenId {
        let bytes = vocabulary.bytes(token);
        if let Some(rest) = find_end(bytes, text, 0).filter(|&end| end < bytes.len()) {
            lists[0].push(Overhang { token, rest });
        }
        for (k, list) in lists.iter_mut().enumerate().skip(1) {
            let left = &text[k..];
            if bytes.len() > left.len() && bytes.starts_with(left) {
                list.push(Overhang { token, rest: left.len() });
            }
        }
    }
    lists
}

#[cfg(test)]
mod tests {
    use super::super::vocabulary::Words;
    use super::*;

    fn vocabulary(words: &[&str]) -> Vocabulary {
        let words: Vec<Vec<u8>> = words.iter().map(|word| word.as_bytes().to_vec()).collect();
        Vocabulary::new(Words { is_control: vec![false; words.len()], words, ends: Vec::new() }, None)
    }

    #[test]
    fn a_marker_is_found_however_it_is_split() {
        let vocabulary = vocabulary(&["x"]);
        let text = "thinking ◁/think ◁◁/think▷{\"a\"";
        for marker in ["◁/think▷", "</end>"] {
            let markers = Markers::new(&[marker, "</end>"], &vocabulary);
            let text = text.replace("◁/think▷", marker);
            let end = text.find(marker).expect("is in it") + marker.len();
            for size in 1..=text.len() {
                let (mut tail, mut seen) = (Tail::default(), 0);
                let mut found = None;
                for piece in text.as_bytes().chunks(size) {
                    if let Some(after) = markers.push(&mut tail, piece) {
                        found = Some(seen + after);
                        break;
                    }
                    seen += piece.len();
                }
                assert_eq!(found, Some(end), "{marker} in pieces of {size}");
            }
        }
    }

    #[test]
    fn tokens_that_go_on_after_a_marker_are_known_in_each_state() {
        let words = ["<go>", "<go>{", "o>", "o>{", ">x", "x<go>yz", "g"];
        let vocabulary = vocabulary(&words);
        let markers = Markers::new(&["<go>"], &vocabulary);
        let overhangs = |text: &str| {
            let mut tail = Tail::default();
            markers.push(&mut tail, text.as_bytes());
            let mut found: Vec<_> =
                markers.overhangs(&tail).map(|o| (words[o.token as usize], o.rest)).collect();
            found.sort_unstable();
            found
        };
        let whole = [("<go>{", 4), ("x<go>yz", 5)];
        assert_eq!(overhangs("text"), whole);
        assert_eq!(overhangs("text<g"), [("<go>{", 4), ("o>{", 2), ("x<go>yz", 5)]);
        assert_eq!(overhangs("text<go"), [("<go>{", 4), (">x", 1), ("x<go>yz", 5)]);
        assert_eq!(overhangs("<go<"), whole);
    }
}
