//! What is wanted of a row of logits, what comes of it, and how much of the row that looks at.

use scheduler::{Failure, PromptLogprob, SampleRow, Sampled, TokenId};

/// What is wanted of a row of logits.
#[derive(Debug, Clone, Copy)]
pub enum RowTask<'a> {
    Sample(SampleRow<'a>),
    /// Its mask is late: nothing, but to see whether the logits are finite.
    Defer,
    Score {
        target: TokenId,
        top: usize,
    },
}

#[derive(Debug, PartialEq)]
pub enum RowResult {
    Sampled(Sampled),
    Scored(Result<PromptLogprob, Failure>),
}

/// The largest k of top-k for which a head is screened.
const MOST_SCREENED: usize = 64;

/// For each row how many of its largest logits are all that is looked at, with their places; what is smaller may then be any smaller number.
/// `None`: of a row more is, or nothing is sampled of it.
pub(crate) fn tops(tasks: &[RowTask]) -> Option<Vec<usize>> {
    tasks.iter().map(top_of).collect()
}

fn top_of(task: &RowTask) -> Option<usize> {
    let RowTask::Sample(row) = task else { return None };
    let params = row.params();
    let loses_tokens = row.num_generated() < params.min_tokens && !params.stop_token_ids.is_empty();
    let is_adjusted = loses_tokens || !params.logit_bias.is_empty() || params.needs_history();
    if is_adjusted || params.logprobs.is_some() || row.sample.mask.is_some() {
        return None;
    }
    match params.temperature == 0.0 {
        true => Some(1),
        // `draw` begins with these, and looks at no other.
        false => Some(params.top_k).filter(|k| (1..=MOST_SCREENED).contains(k)),
    }
}
