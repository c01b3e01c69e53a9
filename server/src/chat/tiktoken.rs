//! Byte-pair encoding straight from a `tiktoken.model` file of ranks, with Kimi's way of cutting text into words. The file is used as
//! it is: no merges are derived, so loading takes a fraction of a second.

use base64::{Engine, engine::general_purpose::STANDARD};
use regex::Regex;
use scheduler::TokenId;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

pub(super) struct RankBpe {
    ranks: HashMap<Box<[u8]>, TokenId>,
    words: Regex,
}

/// Runs of Han; words with an optional character before them and an English contraction after them; up to three digits;
/// punctuation; newlines; spaces. The published pattern ends with `\s+(?!\S)|\s+`; `next_word` does what that look-ahead does, so a
/// linear-time engine serves.
const WORDS: &str = concat!(
    r"[\p{Han}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+",
    r"|\s+",
);

/// The published encoder cuts long texts at these lengths, in characters, before anything else.
const MAX_CHUNK_CHARS: usize = 400_000;
const MAX_RUN_CHARS: usize = 25_000;

impl RankBpe {
    /// Reads lines of `base64(token) rank`.
    pub fn parse(content: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(content).map_err(|_| "is not text".to_string())?;
        let mut ranks = HashMap::with_capacity(text.len() / 16);
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let fail = |what: &str| format!("line {}: {what}", index + 1);
            let (token, rank) = line.trim().split_once(' ').ok_or_else(|| fail("expected `token rank`"))?;
            let token = STANDARD.decode(token).map_err(|_| fail("token is not base64"))?;
            let rank: TokenId = rank.trim().parse().map_err(|_| fail("rank is not a number"))?;
            if token.is_empty() {
                return Err(fail("token is empty"));
            }
            if ranks.insert(token.into_boxed_slice(), rank).is_some() {
                return Err(fail("token is there twice"));
            }
        }
        if let Some(byte) = (0..=255u8).find(|byte| !ranks.contains_key(&[*byte][..])) {
            return Err(format!("has no token for byte 0x{byte:02x}"));
        }
        let words = Regex::new(WORDS).map_err(|error| error.to_string())?;
        Ok(Self { ranks, words })
    }

    pub fn tokens(&self) -> impl Iterator<Item = (&[u8], TokenId)> {
        self.ranks.iter().map(|(bytes, &rank)| (&bytes[..], rank))
    }

    /// Text only: control tokens are the caller's.
    pub fn encode(&self, text: &str, out: &mut Vec<TokenId>) {
        for chunk in chunks(text) {
            let mut at = 0;
            while at < chunk.len() {
                let end = self.next_word(chunk, at);
                self.encode_word(&chunk.as_bytes()[at..end], out);
                at = end;
            }
        }
    }

    /// Where the word that begins at `at` ends.
    fn next_word(&self, text: &str, at: usize) -> usize {
        let Some(found) = self.words.find_at(text, at) else { return text.len() };
        if found.start() > at {
            return found.start();
        }
        // `\s+(?!\S)`: of several spaces before a word, the last one belongs to the word.
        let word = found.as_str();
        let spaces = word.chars().all(char::is_whitespace) && !word.ends_with(['\r', '\n']);
        let last = word.chars().next_back().map_or(0, char::len_utf8);
        if spaces && found.end() < text.len() && word.len() > last { found.end() - last } else { found.end() }
    }

    fn encode_word(&self, word: &[u8], out: &mut Vec<TokenId>) {
        match self.ranks.get(word) {
            Some(&rank) => out.push(rank),
            None => self.merge(word, out),
        }
    }

    /// Joins the neighbours of lowest rank, leftmost first, until none can be joined. A part is named by where it begins; `end[part]`
    /// is where it ends, 0 once it was joined to the part before it.
    fn merge(&self, word: &[u8], out: &mut Vec<TokenId>) {
        let len = word.len();
        let mut end: Vec<usize> = (1..=len).collect();
        let mut previous: Vec<usize> = (0..len).map(|start| start.saturating_sub(1)).collect();
        let mut candidates = BinaryHeap::new();
        let candidate = |start: usize, middle: usize, stop: usize| {
            self.ranks.get(&word[start..stop]).map(|&rank| Reverse((rank, start, middle, stop)))
        };
        candidates.extend((1..len).filter_map(|middle| candidate(middle - 1, middle, middle + 1)));
        while let Some(Reverse((_, start, middle, stop))) = candidates.pop() {
            // Parts may have grown since this pair was noted.
            if end[start] != middle || end[middle] != stop {
                continue;
            }
            end[start] = stop;
            end[middle] = 0;
            if start > 0 {
                candidates.extend(candidate(previous[start], start, stop));
            }
            if stop < len {
                previous[stop] = start;
                candidates.extend(candidate(start, stop, end[stop]));
            }
        }
        let mut start = 0;
        while start < len {
            // Every part is a byte or a join of two that is in the table.
            out.push(self.ranks[&word[start..end[start]]]);
            start = end[start];
        }
    }
}

/// Cuts a text after every 400,000 characters, and inside those where a run of spaces or of other characters gets longer than 25,000.
fn chunks(text: &str) -> Vec<&str> {
    let mut chunks = Vec::new();
    let (mut start, mut chars, mut run, mut in_space) = (0, 0, 0, false);
    for (at, c) in text.char_indices() {
        let space = c.is_whitespace();
        run = if chars > 0 && space == in_space { run + 1 } else { 1 };
        in_space = space;
        if chars == MAX_CHUNK_CHARS || run > MAX_RUN_CHARS {
            chunks.push(&text[start..at]);
            start = at;
            run = 1;
        }
        chars = if chars == MAX_CHUNK_CHARS { 1 } else { chars + 1 };
    }
    chunks.push(&text[start..]);
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All bytes, then the given tokens in order.
    fn bpe(tokens: &[&str]) -> RankBpe {
        let bytes = (0..=255u8).map(|byte| vec![byte]);
        let lines = bytes.chain(tokens.iter().map(|token| token.as_bytes().to_vec()));
        let file: String =
            lines.enumerate().map(|(rank, token)| format!("{} {rank}\n", STANDARD.encode(token))).collect();
        RankBpe::parse(file.as_bytes()).expect("a good file")
    }

    fn words(text: &str) -> Vec<&str> {
        let bpe = bpe(&[]);
        let (mut at, mut words) = (0, Vec::new());
        while at < text.len() {
            let end = bpe.next_word(text, at);
            words.push(&text[at..end]);
            at = end;
        }
        words
    }

    #[test]
    fn words_are_cut_as_published() {
        let check = |text, expected: &[&str]| assert_eq!(words(text), expected, "{text:?}");
        check("Hello, world!", &["Hello", ",", " world", "!"]);
        check("1234567890", &["123", "456", "789", "0"]);
        check("中文English混合", &["中文", "English", "混合"]);
        check("camelCaseWords", &["camel", "Case", "Words"]);
        check("I'LL don't HTTPServer", &["I'LL", " don't", " HTTPServer"]);
        check("a   b", &["a", "  ", " b"]);
        check("a \n\n  b", &["a", " \n\n", " ", " b"]);
        check("end   ", &["end", "   "]);
        check("x  1", &["x", " ", " ", "1"]);
        check("?!\r\n x", &["?!\r\n", " x"]);
        check("\u{3000}\u{3000}。", &["\u{3000}", "\u{3000}", "。"]);
    }

    #[test]
    fn merges_by_rank_then_from_the_left() {
        let bpe = bpe(&["ab", "bc", "abc", "aa", "cc"]);
        let encode = |text: &str| {
            let mut out = Vec::new();
            bpe.encode(text, &mut out);
            out
        };
        let byte = |b: u8| b as TokenId;
        assert_eq!(encode("abcz"), [258, byte(b'z')]);
        assert_eq!(encode("zbcc"), [byte(b'z'), 257, byte(b'c')]);
        assert_eq!(encode("zaaa"), [byte(b'z'), 259, byte(b'a')]);
        assert!(encode("").is_empty());
    }

    /// The plain way: look for the lowest pair again and again.
    fn naive(bpe: &RankBpe, word: &[u8]) -> Vec<TokenId> {
        let mut parts: Vec<Vec<u8>> = word.iter().map(|b| vec![*b]).collect();
        loop {
            let pairs = parts.windows(2).enumerate();
            let best = pairs.filter_map(|(i, pair)| Some((*bpe.ranks.get(&pair.concat()[..])?, i))).min();
            let Some((_, i)) = best else { break };
            let joined = parts[i..i + 2].concat();
            parts.splice(i..i + 2, [joined]);
        }
        parts.iter().map(|part| bpe.ranks[&part[..]]).collect()
    }

    #[test]
    fn the_heap_agrees_with_the_plain_way() {
        let bpe = bpe(&["ab", "ba", "aa", "aba", "abab", "bb", "bab", "aaa", "abb", "aabb"]);
        let mut state = 7u64;
        for len in 0..200 {
            let word: Vec<u8> = (0..len)
                .map(|_| {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    b'a' + (state >> 60) as u8 % 2
                })
                .collect();
            let mut out = Vec::new();
            bpe.merge(&word, &mut out);
            assert_eq!(out, naive(&bpe, &word));
        }
    }

    #[test]
    fn long_texts_are_cut_where_the_published_encoder_cuts() {
        let run = "a".repeat(MAX_RUN_CHARS + 3);
        let lengths = |text: &str| chunks(text).iter().map(|c| c.chars().count()).collect::<Vec<_>>();
        assert_eq!(lengths(&run), [MAX_RUN_CHARS, 3]);
        assert_eq!(lengths(&" é".repeat(MAX_CHUNK_CHARS / 2 + 2)), [MAX_CHUNK_CHARS, 4]);
        assert_eq!(lengths(""), [0]);
        let mut out = Vec::new();
        bpe(&[]).encode(&run, &mut out);
        assert_eq!(out.len(), run.len());
    }

    #[test]
    fn bad_files_name_the_line() {
        let check = |file: &str, expected: &str| {
            let error = RankBpe::parse(file.as_bytes()).err().expect("bad file");
            assert!(error.contains(expected), "{error}");
        };
        check("YQ==", "line 1: expected");
        check("YQ== 0\n!! 1", "line 2: token is not base64");
        check("YQ== x", "line 1: rank is not a number");
        check("YQ== 0\nYQ== 1", "line 2: token is there twice");
        check("", "no token for byte 0x00");
    }
}
