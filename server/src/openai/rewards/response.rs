//! Rewards and what follows from them.

use crate::openai::chat::response::ResponseHead;
use crate::openai::embeddings::response::ReadUsage;
use scheduler::TokenId;
use schemars::JsonSchema;
use serde::Serialize;

#[derive(Serialize, JsonSchema)]
pub struct RewardList<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    /// The policy.
    model: &'a str,
    reference: &'a str,
    beta: f64,
    /// Of the completions, in their order.
    data: Vec<Reward>,
    /// Of each pair of completions, the earlier one as the chosen one.
    margins: Vec<Margin>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [TokenId]>,
    usage: ReadUsage,
}

#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Reward {
    pub object: &'static str,
    pub index: usize,
    /// Of the completion, the one that ends it included.
    pub num_tokens: usize,
    /// The natural logarithm of the completion's probability after the prompt, under the policy.
    pub logprob: f64,
    /// And under the reference.
    pub reference_logprob: f64,
    /// `beta` times the first less the second.
    pub reward: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<TokenId>>,
}

#[derive(Debug, PartialEq, Serialize, JsonSchema)]
struct Margin {
    chosen: usize,
    rejected: usize,
    /// The reward of the first less that of the second.
    margin: f64,
    /// How probable it is by the Bradley-Terry model that the first is preferred.
    probability: f64,
}

impl<'a> RewardList<'a> {
    pub fn new(
        head: &'a ResponseHead,
        reference: &'a str,
        beta: f64,
        rewards: Vec<Reward>,
        usage: ReadUsage,
    ) -> Self {
        Self {
            id: &head.id,
            object: "list",
            created: head.created,
            model: &head.model,
            reference,
            beta,
            margins: margins(&rewards),
            data: rewards,
            prompt_token_ids: None,
            usage,
        }
    }

    pub fn with_prompt(self, tokens: &'a [TokenId]) -> Self {
        Self { prompt_token_ids: Some(tokens), ..self }
    }
}

fn margins(rewards: &[Reward]) -> Vec<Margin> {
    let pairs = (0..rewards.len()).flat_map(|i| (i + 1..rewards.len()).map(move |j| (i, j)));
    pairs
        .map(|(chosen, rejected)| {
            let margin = rewards[chosen].reward - rewards[rejected].reward;
            Margin { chosen, rejected, margin, probability: sigmoid(margin) }
        })
        .collect()
}

/// 1 / (1 + e^-x), without an overflow on the way.
fn sigmoid(x: f64) -> f64 {
    let e = (-x.abs()).exp();
    if x < 0.0 { e / (1.0 + e) } else { 1.0 / (1.0 + e) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reward(index: usize, reward: f64) -> Reward {
        Reward {
            object: "reward",
            index,
            num_tokens: 1,
            logprob: 0.0,
            reference_logprob: 0.0,
            reward,
            token_ids: None,
        }
    }

    #[test]
    fn every_pair_has_a_margin_and_the_other_way_round_it_is_the_opposite() {
        let rewards = [0.5, -1.25, 900.0];
        let forth = margins(&rewards.map(|r| reward(0, r)));
        let pairs: Vec<_> = forth.iter().map(|margin| (margin.chosen, margin.rejected)).collect();
        assert_eq!(pairs, [(0, 1), (0, 2), (1, 2)]);
        assert_eq!(forth[0].margin, 1.75);
        assert!((forth[0].probability - 0.851_952_801_968_310_6).abs() < 1e-15);
        for (i, j) in pairs {
            let one = margins(&[reward(0, rewards[i]), reward(1, rewards[j])]);
            let other = margins(&[reward(0, rewards[j]), reward(1, rewards[i])]);
            assert_eq!(one[0].margin, -other[0].margin);
            assert!((one[0].probability + other[0].probability - 1.0).abs() < 1e-15);
            assert!(one[0].probability.is_finite());
        }
        assert_eq!(margins(&[reward(0, 1.0)]), []);
        assert_eq!(sigmoid(0.0), 0.5);
    }
}
