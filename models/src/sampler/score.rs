//! How probable a given token was: a prompt's, in the place of one that is drawn. The distribution is the one that sampling reports,
//! from the same function, so a token has the same log-probability whether it was generated or is read in a prompt.

use super::draw::{Workspace, report};
use scheduler::{Failure, PromptLogprob, TokenId};

/// Of `target` after the token whose logits these are, with the `top` most probable ones.
pub fn score(
    logits: &[f32],
    target: TokenId,
    top: usize,
    work: &mut Workspace,
) -> Result<PromptLogprob, Failure> {
    if !logits.iter().all(|x| x.is_finite()) {
        return Err(Failure::NonFiniteLogits);
    }
    let top = report(logits, top, &mut work.logprobs);
    let logprob = work.logprobs[target as usize];
    Ok(PromptLogprob { token: target, logprob, rank: rank(&work.logprobs, target), top })
}

/// The place of a token among all, in the order of [`report`]'s list: 1 is the first; of equal ones the lower id comes first.
fn rank(logprobs: &[f32], target: TokenId) -> usize {
    let (before, after) = logprobs.split_at(target as usize);
    let own = after[0];
    let equal_or_more = before.iter().filter(|&&x| x >= own).count();
    let more = after.iter().filter(|&&x| x > own).count();
    1 + equal_or_more + more
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::sample;
    use scheduler::{Sample, Sampled, SamplingParams};
    use std::sync::Arc;

    /// Few values, so that many are equal.
    fn logits(seed: u32) -> Vec<f32> {
        (0..67u32).map(|i| ((i.wrapping_mul(2_654_435_761) ^ seed) >> 7) as f32 % 9.0 - 4.5).collect()
    }

    #[test]
    fn the_rank_is_the_place_in_the_list_of_all() {
        let mut work = Workspace::default();
        for seed in 0..20 {
            let logits = logits(seed);
            for target in 0..67 {
                let scored = score(&logits, target, 67, &mut work).unwrap();
                assert_eq!(scored.top[scored.rank - 1], (target, scored.logprob));
                let short = score(&logits, target, 3, &mut work).unwrap();
                assert_eq!((short.rank, short.logprob), (scored.rank, scored.logprob));
                assert_eq!(short.top[..], scored.top[..3]);
            }
        }
    }

    #[test]
    fn a_drawn_token_and_a_read_one_are_equally_probable() {
        let mut work = Workspace::default();
        for seed in 0..20 {
            let params = SamplingParams {
                temperature: 1.7,
                seed: u64::from(seed),
                logprobs: Some(5),
                logit_bias: vec![(3, 9.0)],
                ..SamplingParams::default()
            };
            let request = Sample::new(Arc::new(params), 3, 0);
            let drawn = sample(&mut logits(seed), request.row(0), &mut work);
            let Sampled::Token(drawn) = drawn else { panic!("{drawn:?}") };
            let read = score(&logits(seed), drawn.token, 5, &mut work).unwrap();
            assert_eq!((Some(read.logprob), read.top), (drawn.logprob, drawn.top));
        }
    }

    #[test]
    fn numbers_that_are_none_are_a_failure() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut logits = logits(1);
            logits[40] = bad;
            let failed = score(&logits, 0, 0, &mut Workspace::default());
            assert_eq!(failed, Err(Failure::NonFiniteLogits));
        }
    }
}
