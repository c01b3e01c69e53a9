//! What a sequence's memory and answer must be, computed from the sequence alone.

use crate::rng::chain;
use scheduler::{
    Accepted, Failure, FinishReason, Pooling, PromptLogprob, PromptOutput, RowSum, Sampled, SampledToken,
    SamplingParams, Sequence, TokenId,
};
use std::ops::Range;
use std::sync::Arc;

/// Token ids go from 1; 0 is a picture's placeholder, so that only the digest tells pictures apart.
pub const NUM_TOKENS: u64 = 50;

/// What kind of machine the sequences run on.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// Keys and values of generated tokens differ from those of the same tokens in a prompt.
    pub has_two_forms: bool,
    /// One in so many samples fails; 0 is never.
    pub failure_rate: u64,
    /// One in so many samples waits for the next step; 0 is never.
    pub deferral_rate: u64,
    /// Only those wait who have a constraint.
    pub only_constrained_wait: bool,
    /// Of 100 steps so many can be followed by one that is made ahead.
    pub ahead_percent: u64,
    /// The host has time while a step runs, in which constraints take tokens in.
    pub works_alone: bool,
    /// Some sequences have a constraint that takes its time and ends them.
    pub holds: bool,
    /// So many of 100 tokens are those a few positions before: what is guessed from earlier text is right about as often.
    pub copies_percent: u64,
}

#[derive(Debug, Clone)]
pub struct Truth {
    pub machine: Machine,
    pub sequence: Sequence,
    /// Prompt and output.
    pub tokens: Vec<TokenId>,
    /// For each position, all that its key and value depend on.
    pub hashes: Vec<u64>,
}

impl Truth {
    pub fn new(machine: Machine, sequence: Sequence) -> Self {
        let prompt = sequence.tokens().to_vec();
        let mut truth = Self { machine, sequence, tokens: Vec::new(), hashes: Vec::new() };
        prompt.into_iter().for_each(|token| truth.push(token));
        truth
    }

    pub fn push(&mut self, token: TokenId) {
        let position = self.tokens.len();
        // Tenants do not share memory, even where it is equal.
        let salt = u64::from_le_bytes(self.sequence.salt.0[..8].try_into().unwrap());
        let mut hash = chain(*self.hashes.last().unwrap_or(&salt), u64::from(token));
        if let Some(adapter) = self.sequence.adapter {
            hash = chain(hash, 1 << 32 | adapter.0.get());
        }
        if let Some((digest, row)) = self.image_at(position) {
            hash = chain(hash, chain(digest, row as u64));
        }
        if self.machine.has_two_forms && position >= self.sequence.prompt_len() {
            hash = chain(hash, 1);
        }
        self.tokens.push(token);
        self.hashes.push(hash);
    }

    /// The picture and its row that a position shows.
    pub fn image_at(&self, position: usize) -> Option<(u64, usize)> {
        let spans = self.sequence.images();
        let span = spans.iter().find(|span| (span.start..span.end()).contains(&position))?;
        Some((short(&span.image.digest), position - span.start))
    }

    /// By time, row and column, counted from the first token on.
    pub fn rotary_position(&self, position: usize) -> [usize; 3] {
        let (mut next, mut found) = (0, [0; 3]);
        for at in 0..=position {
            let spans = self.sequence.images();
            let span = spans.iter().find(|span| (span.start..span.end()).contains(&at));
            let grid = span.and_then(|span| Some((at - span.start, span.image.position_grid?)));
            match grid {
                None => {
                    found = [next; 3];
                    next += 1;
                }
                Some((row, [rows, columns])) => {
                    found = [next, next + row / columns, next + row % columns];
                    next += if row + 1 == rows * columns { rows.max(columns) } else { 0 };
                }
            }
        }
        found
    }

    /// Whether it may have to run its last token again.
    pub fn may_be_deferred(&self) -> bool {
        let waits = self.sequence.constraint.is_some() || !self.machine.only_constrained_wait;
        self.machine.deferral_rate > 0 && waits
    }

    pub fn is_held(&self) -> bool {
        self.machine.holds && is_held(self.params())
    }

    pub fn params(&self) -> &Arc<SamplingParams> {
        &self.sequence.params
    }

    /// Of its constraint, if it has one: what was said so far.
    pub fn state(&self) -> u64 {
        let said = &self.tokens[self.sequence.prompt_len()..];
        said.iter().fold(0, |state, &token| chain(state, u64::from(token)))
    }

    /// What the model says after the tokens so far.
    pub fn sample(&self) -> Sampled {
        let params = self.params();
        let drawn = chain(*self.hashes.last().unwrap(), params.seed);
        if self.machine.failure_rate > 0 && (drawn >> 32).is_multiple_of(self.machine.failure_rate) {
            let failures = [Failure::NonFiniteLogits, Failure::NothingToSample];
            return Sampled::Failed(failures[(drawn % 2) as usize]);
        }
        let period = 1 + (params.seed % 7) as usize;
        let copied = self.tokens.len().checked_sub(period).map(|at| self.tokens[at]);
        let token = match copied {
            Some(token) if token > 0 && (drawn >> 20) % 100 < self.machine.copies_percent => token,
            _ => (1 + drawn % NUM_TOKENS) as TokenId,
        };
        let logprob = params.logprobs.map(|_| -((drawn % 1000) as f32));
        let num_top = params.logprobs.unwrap_or(0) as TokenId;
        Sampled::Token(SampledToken { token, logprob, top: (0..num_top).map(|i| (i, -1.0)).collect() })
    }

    /// Rows of the prompt of which something is wanted.
    pub fn wanted_rows(&self) -> Range<usize> {
        let prompt_len = self.sequence.prompt_len();
        match self.sequence.prompt_output() {
            None => 0..0,
            Some(PromptOutput::Logprobs { first, .. }) => first - 1..prompt_len - 1,
            Some(PromptOutput::Pooled(Pooling::Last)) => prompt_len - 1..prompt_len,
            Some(PromptOutput::Pooled(Pooling::Mean)) => 0..prompt_len,
        }
    }

    /// Whether what is wanted of a row cannot be told.
    pub fn row_fails(&self, row: usize) -> bool {
        let drawn = chain(self.hashes[row], 11);
        self.machine.failure_rate > 0 && (drawn >> 32).is_multiple_of(20 * self.machine.failure_rate)
    }

    pub fn prompt_logprob(&self, row: usize, top: usize) -> PromptLogprob {
        let (drawn, token) = (self.hashes[row], self.tokens[row + 1]);
        let top = (0..top as TokenId).map(|i| (i, -1.0)).collect();
        PromptLogprob { token, logprob: -((drawn % 1000) as f32), rank: (drawn % 7) as usize, top }
    }

    /// A sum that is another one when rows are left out, repeated or added in another order.
    pub fn add_row(&self, sum: &RowSum, row: usize) -> RowSum {
        let before = sum.0.first().map_or(0, |&sum| sum as u64);
        RowSum(vec![(chain(before, self.hashes[row]) >> 16) as f64])
    }

    /// The whole answer, of this sequence alone on the machine.
    pub fn alone(&self) -> (Vec<SampledToken>, FinishReason) {
        let mut truth = self.clone();
        let mut answer = Vec::new();
        if self.wanted_rows().any(|row| self.row_fails(row)) {
            return (answer, FinishReason::Failed(Failure::NonFiniteLogits));
        }
        if self.params().max_tokens == 0 {
            return (answer, FinishReason::Length);
        }
        loop {
            let sampled = match truth.sample() {
                Sampled::Token(sampled) => sampled,
                Sampled::Failed(failure) => return (answer, FinishReason::Failed(failure)),
                Sampled::Deferred => unreachable!("nobody waits for the truth"),
            };
            truth.push(sampled.token);
            let is_stop = truth.params().stop_token_ids.contains(&sampled.token);
            let accepted = if self.is_held() { accept(self.params(), sampled.token) } else { Accepted::Open };
            answer.push(sampled);
            if is_stop && answer.len() > truth.params().min_tokens {
                return (answer, FinishReason::Stop);
            }
            if accepted == Accepted::Complete {
                return (answer, FinishReason::Complete);
            }
            if answer.len() == truth.params().max_tokens {
                return (answer, FinishReason::Length);
            }
            if accepted == Accepted::Failed {
                return (answer, FinishReason::Failed(Failure::Constraint));
            }
        }
    }
}

/// Who has a constraint that takes its time, where there are any.
pub fn is_held(params: &SamplingParams) -> bool {
    params.seed % 4 == 1
}

/// What such a constraint says of a token.
pub fn accept(params: &SamplingParams, token: TokenId) -> Accepted {
    match chain(params.seed, u64::from(token)) % 32 {
        0..3 => Accepted::Complete,
        3 => Accepted::Failed,
        _ => Accepted::Open,
    }
}

/// What a mask says that is of a state.
pub fn state_words(state: u64) -> [u32; 2] {
    [state as u32, (state >> 32) as u32]
}

pub fn short(digest: &scheduler::Digest) -> u64 {
    u64::from_le_bytes(digest.0[..8].try_into().unwrap())
}
