//! Drafts without a second model: what followed the last few tokens when they came before, in the prompt or in the answer, is
//! likely to follow again. The tokens of a copy, a quotation or a loop are guessed this way and verified in one step.
//!
//! ```text
//! tokens   a b c d e f … a b c         the last 3 tokens were seen before
//!                ▲           ▲
//!                └ position  └ what follows here is guessed to be d e f …
//!
//! heads[hash(a b)] ─▶ position of what followed last time ─links─▶ the time before ─links─▶ …
//! ```
//! The index holds the shortest n-grams only. Of the places at which the last one was seen, latest first, the one is taken before
//! which most tokens agree. It costs at most 12 bytes a token, grows with the tokens and reads none twice but when the table of heads
//! doubles; a look-up reads a bounded number of places.
//!
//! A draft costs a row for each of its tokens, so a sequence whose drafts fail drafts less: one token after a pause, which
//! doubles from failure to failure.

use crate::{ImageSpan, InvalidParam, TokenId};

/// Most tokens of a draft.
pub const MAX_SPECULATIVE_TOKENS: usize = 16;
/// Most tokens before a draft that are compared.
pub const MAX_PROMPT_LOOKUP: usize = 64;
/// Places that a look-up reads.
const MAX_CANDIDATES: usize = 32;
/// The longest pause is `1 << MAX_DOUBLINGS` steps.
const MAX_DOUBLINGS: u32 = 6;
/// No position: an n-gram has at least one token, so nothing follows one at 0.
const NOWHERE: u32 = 0;
const MIN_HEADS: usize = 64;

/// How drafts of a sequence are found, under vLLM's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NgramConfig {
    /// Most tokens of a draft, from 1 to [`MAX_SPECULATIVE_TOKENS`].
    pub num_speculative_tokens: usize,
    /// Tokens before the draft that are compared: at most so many, to [`MAX_PROMPT_LOOKUP`] …
    pub prompt_lookup_max: usize,
    /// … and at least so many.
    pub prompt_lookup_min: usize,
}

impl Default for NgramConfig {
    fn default() -> Self {
        Self { num_speculative_tokens: 4, prompt_lookup_max: 4, prompt_lookup_min: 2 }
    }
}

impl NgramConfig {
    pub fn check(&self) -> Result<(), InvalidParam> {
        let Self { num_speculative_tokens: k, prompt_lookup_max: max, prompt_lookup_min: min } = *self;
        let fail = |param, message| Err(InvalidParam { param, message });
        if !(1..=MAX_SPECULATIVE_TOKENS).contains(&k) {
            let message = format!("{k} is not in [1, {MAX_SPECULATIVE_TOKENS}]");
            return fail("num_speculative_tokens", message);
        }
        if !(1..=MAX_PROMPT_LOOKUP).contains(&max) {
            return fail("prompt_lookup_max", format!("{max} is not in [1, {MAX_PROMPT_LOOKUP}]"));
        }
        if !(1..=max).contains(&min) {
            return fail("prompt_lookup_min", format!("{min} is not in [1, prompt_lookup_max = {max}]"));
        }
        Ok(())
    }
}

/// The drafts of one sequence: where its n-grams were seen, and how its drafts went. A function of its tokens and of the steps in
/// which it could draft.
#[derive(Debug)]
pub(crate) struct Drafter {
    config: NgramConfig,
    index: Index,
    /// Most tokens of the next draft.
    limit: usize,
    /// Drafts that failed as a whole since one did not.
    failures: u32,
    /// Steps without a draft that are still to come.
    pause: usize,
}

/// Where n-grams of one length were seen: for each position, the one before it that follows an n-gram of the same hash.
#[derive(Debug)]
struct Index {
    /// Length of the n-grams.
    n: usize,
    /// By hash, the position seen last; a power of two of them.
    heads: Vec<u32>,
    /// By position; as many as tokens were read.
    links: Vec<u32>,
}

impl Drafter {
    pub fn new(config: NgramConfig) -> Self {
        let index = Index { n: config.prompt_lookup_min, heads: vec![NOWHERE; MIN_HEADS], links: Vec::new() };
        Self { config, index, limit: config.num_speculative_tokens, failures: 0, pause: 0 }
    }

    /// Reads tokens of which earlier calls read a prefix. Positions of pictures are not followed to: their tokens stand for rows that a
    /// draft does not have.
    pub fn read(&mut self, tokens: &[TokenId], images: &[ImageSpan]) {
        self.index.read(tokens, images);
    }

    /// What may follow `tokens`: up to `max_len` tokens, mostly none. Reads them first.
    pub fn draft(&mut self, tokens: &[TokenId], images: &[ImageSpan], max_len: usize) -> Vec<TokenId> {
        self.read(tokens, images);
        if self.pause > 0 {
            self.pause -= 1;
            return Vec::new();
        }
        let Some(start) = self.index.find(tokens, self.config.prompt_lookup_max) else { return Vec::new() };
        let next_image = images.iter().map(|span| span.start).find(|&at| at >= start);
        let end = next_image.unwrap_or(usize::MAX);
        // What is copied may reach into the copy: a loop goes on for as long as wanted.
        let period = tokens.len() - start;
        let len = self.limit.min(max_len).min(end - start);
        (0..len).map(|i| tokens[start + i % period]).collect()
    }

    /// Takes in how a draft went.
    pub fn judge(&mut self, num_drafted: usize, num_accepted: usize) {
        let wanted = match num_accepted {
            0 => {
                self.pause = 1 << self.failures;
                self.failures = (self.failures + 1).min(MAX_DOUBLINGS);
                1
            }
            _ if num_accepted == num_drafted => self.limit.max(2 * num_drafted),
            _ => num_accepted + 1,
        };
        if num_accepted > 0 {
            self.failures = 0;
        }
        self.limit = wanted.min(self.config.num_speculative_tokens);
    }
}

impl Index {
    fn read(&mut self, tokens: &[TokenId], images: &[ImageSpan]) {
        let mut span = images.partition_point(|span| span.end() <= self.links.len());
        for position in self.links.len()..tokens.len() {
            while images.get(span).is_some_and(|span| span.end() <= position) {
                span += 1;
            }
            let is_picture = images.get(span).is_some_and(|span| span.start <= position);
            let is_found = position >= self.n && !is_picture;
            // A position that nobody shall find leads nowhere, and nothing leads to it.
            let before = if is_found { self.follow(tokens, position) } else { NOWHERE };
            self.links.push(before);
            if self.links.len() > self.heads.len() {
                self.grow(tokens, images);
            }
        }
    }

    /// Makes `position` the last one after its n-gram; the one before it.
    fn follow(&mut self, tokens: &[TokenId], position: usize) -> u32 {
        let slot = self.slot(&tokens[position - self.n..position]);
        std::mem::replace(&mut self.heads[slot], u32::try_from(position).expect("positions have 32 bits"))
    }

    /// Doubles the heads and reads again what was read.
    fn grow(&mut self, tokens: &[TokenId], images: &[ImageSpan]) {
        let num_read = self.links.len();
        self.heads = vec![NOWHERE; 2 * self.heads.len()];
        self.links.clear();
        self.read(&tokens[..num_read], images);
    }

    fn slot(&self, ngram: &[TokenId]) -> usize {
        const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
        let mix =
            |hash: u64, &token: &TokenId| (hash ^ u64::from(token)).wrapping_mul(FACTOR).rotate_left(29);
        let hash = ngram.iter().fold(0, mix).wrapping_mul(FACTOR);
        (hash >> 32) as usize & (self.heads.len() - 1)
    }

    /// The position before which most tokens, from `n` to `max`, are the last ones of `tokens`; of several the latest.
    fn find(&self, tokens: &[TokenId], max: usize) -> Option<usize> {
        let last = tokens.len().checked_sub(self.n)?;
        let mut position = self.heads[self.slot(&tokens[last..])];
        let (mut best, mut best_len) = (None, self.n - 1);
        for _ in 0..MAX_CANDIDATES {
            if position == NOWHERE {
                break;
            }
            let before = &tokens[..position as usize];
            let pairs = before.iter().rev().zip(tokens.iter().rev());
            let len = pairs.take(max).take_while(|(a, b)| a == b).count();
            if len > best_len {
                (best, best_len) = (Some(position as usize), len);
            }
            if best_len == max {
                break;
            }
            position = self.links[position as usize];
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Digest, ImageInput};
    use std::sync::Arc;

    fn config(
        num_speculative_tokens: usize,
        prompt_lookup_max: usize,
        prompt_lookup_min: usize,
    ) -> NgramConfig {
        NgramConfig { num_speculative_tokens, prompt_lookup_max, prompt_lookup_min }
    }

    fn span(start: usize, num_tokens: usize) -> ImageSpan {
        let image = ImageInput {
            digest: Digest([1; 32]),
            grid: [1, 1],
            num_tokens,
            position_grid: None,
            patches: Vec::new(),
        };
        ImageSpan { start, image: Arc::new(image) }
    }

    fn draft(config: NgramConfig, tokens: &[TokenId]) -> Vec<TokenId> {
        Drafter::new(config).draft(tokens, &[], usize::MAX)
    }

    /// The rule, written plainly: the longest n first, the latest place first.
    fn naive(config: NgramConfig, tokens: &[TokenId]) -> Vec<TokenId> {
        let len = tokens.len();
        for n in (config.prompt_lookup_min..=config.prompt_lookup_max.min(len)).rev() {
            for end in (n..len).rev() {
                if tokens[end - n..end] == tokens[len - n..] {
                    let mut tokens = tokens.to_vec();
                    (0..config.num_speculative_tokens).for_each(|i| tokens.push(tokens[end + i]));
                    return tokens[len..].to_vec();
                }
            }
        }
        Vec::new()
    }

    #[test]
    fn what_followed_last_time_is_guessed() {
        let check = |tokens: &[TokenId], expected: &[TokenId]| {
            assert_eq!(draft(config(3, 3, 2), tokens), expected, "{tokens:?}");
        };
        check(&[], &[]);
        check(&[1], &[]);
        check(&[1, 2], &[]);
        check(&[1, 2, 3, 4], &[]);
        check(&[1, 2, 3, 4, 5, 1, 2], &[3, 4, 5]);
        // One token alone is too short.
        check(&[1, 2, 3, 4, 5, 1], &[]);
        // The latest of equal places, but a longer one goes before.
        check(&[1, 2, 7, 1, 2, 8, 1, 2], &[8, 1, 2]);
        check(&[6, 1, 2, 7, 1, 2, 8, 6, 1, 2], &[7, 1, 2]);
        // A loop goes on.
        check(&[5, 5, 5], &[5, 5, 5]);
        check(&[1, 2, 1, 2], &[1, 2, 1]);
    }

    #[test]
    fn a_draft_is_the_rule_s_however_tokens_were_read() {
        let mut state = 1u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        };
        let mut num_found = 0;
        for round in 0..300 {
            let lookup_max = 1 + round % 5;
            let config = config(1 + round % 4, lookup_max, 1 + random(lookup_max as u64) as usize);
            // Few enough of each token that no look-up ends early.
            let tokens: Vec<TokenId> = (0..random(200)).map(|_| random(25) as TokenId).collect();
            let mut drafter = Drafter::new(config);
            let mut len = 0;
            while len < tokens.len() {
                len = tokens.len().min(len + 1 + random(9) as usize);
                let found = drafter.draft(&tokens[..len], &[], usize::MAX);
                assert_eq!(found, naive(config, &tokens[..len]), "{config:?} {:?}", &tokens[..len]);
                num_found += usize::from(!found.is_empty());
            }
        }
        assert!(num_found > 1000, "{num_found}");
    }

    #[test]
    fn a_look_up_and_the_memory_are_bounded() {
        // Every place is one of the shortest n-gram: only the latest are read.
        let mut tokens = vec![1, 2, 3, 4];
        for i in 0..1000 {
            tokens.extend([10 + i, 3, 4]);
        }
        tokens.extend([2, 3, 4]);
        let drafter = &mut Drafter::new(config(1, 3, 2));
        assert_eq!(drafter.draft(&tokens, &[], 1), [2]);
        assert!(drafter.index.heads.len() < 2 * tokens.len());
        assert_eq!(drafter.index.links.len(), tokens.len());
    }

    #[test]
    fn pictures_are_never_drafted() {
        // 0 stands for a picture's row.
        let tokens = [1, 2, 3, 0, 0, 0, 4, 5, 0, 0, 6, 7, 1, 2];
        let images = [span(3, 3), span(8, 2)];
        let draft = |len: usize, n: usize| Drafter::new(config(4, n, n)).draft(&tokens[..len], &images, 4);
        assert_eq!(draft(14, 2), [3], "it ends before the picture");
        assert_eq!(draft(10, 2), [4, 5], "after a picture's last row, not inside of it");
        assert_eq!(draft(9, 1), [4, 5]);
    }

    #[test]
    fn failures_make_pauses_and_success_makes_them_short() {
        let tokens = [7; 10];
        let mut drafter = Drafter::new(config(4, 2, 1));
        let steps_to_draft = |drafter: &mut Drafter| {
            let mut steps = 0;
            loop {
                let draft = drafter.draft(&tokens, &[], 9);
                if !draft.is_empty() {
                    return (steps, draft.len());
                }
                steps += 1;
                assert!(steps < 1000);
            }
        };
        assert_eq!(steps_to_draft(&mut drafter), (0, 4));
        for pause in [1, 2, 4, 8, 16, 32, 64, 64, 64] {
            drafter.judge(1, 0);
            assert_eq!(steps_to_draft(&mut drafter), (pause, 1));
        }
        for (accepted, len) in [(1, 2), (2, 4), (4, 4), (2, 3), (1, 2), (2, 4)] {
            let (steps, drafted) = steps_to_draft(&mut drafter);
            assert_eq!(steps, 0);
            drafter.judge(drafted, accepted);
            assert_eq!(drafter.limit, len);
        }
        drafter.judge(4, 0);
        assert_eq!(steps_to_draft(&mut drafter), (1, 1));
    }

    #[test]
    fn a_configuration_that_means_nothing_names_its_field() {
        let check = |config: NgramConfig, param: Option<&str>| {
            assert_eq!(config.check().err().map(|error| error.param), param, "{config:?}");
        };
        check(NgramConfig::default(), None);
        check(config(1, 1, 1), None);
        check(config(MAX_SPECULATIVE_TOKENS, MAX_PROMPT_LOOKUP, MAX_PROMPT_LOOKUP), None);
        check(config(0, 1, 1), Some("num_speculative_tokens"));
        check(config(MAX_SPECULATIVE_TOKENS + 1, 1, 1), Some("num_speculative_tokens"));
        check(config(1, 0, 1), Some("prompt_lookup_max"));
        check(config(1, MAX_PROMPT_LOOKUP + 1, 1), Some("prompt_lookup_max"));
        check(config(1, 3, 0), Some("prompt_lookup_min"));
        check(config(1, 3, 4), Some("prompt_lookup_min"));
    }
}
