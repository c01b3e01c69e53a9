//! What responses say of a prompt's tokens: vLLM's `prompt_logprobs`, and the prompt's part of a completion's log-probabilities where
//! the completion repeats it.

use crate::openai::report::{CompletionLogprobs, LOWEST, TokenNames, TopLogprobs};
use scheduler::{PromptLogprob, TokenId};
use schemars::JsonSchema;
use serde::Serialize;
use serde::ser::SerializeMap;

/// A prompt that is repeated: its tokens and the characters of its text before each.
#[derive(Debug, Clone, Copy)]
pub struct Echoed<'a> {
    pub tokens: &'a [TokenId],
    pub offsets: &'a [usize],
    /// Of all tokens but the first.
    pub logprobs: &'a [PromptLogprob],
    /// Alternatives to name.
    pub top: usize,
}

/// One entry for each token of the prompt; `null` for the first, which nothing comes before.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PromptLogprobsJson(
    #[schemars(with = "Vec<Option<std::collections::BTreeMap<String, Candidate>>>")] Vec<Option<Candidates>>,
);

/// By token id: the prompt's token, then the most probable ones.
#[derive(Debug)]
struct Candidates(Vec<(TokenId, Candidate)>);

#[derive(Debug, Serialize, JsonSchema)]
struct Candidate {
    logprob: f32,
    rank: usize,
    decoded_token: Option<String>,
}

impl Serialize for Candidates {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (token, candidate) in &self.0 {
            map.serialize_entry(&token.to_string(), candidate)?;
        }
        map.end()
    }
}

impl TokenNames<'_> {
    pub fn prompt(&self, logprobs: &[PromptLogprob], top: usize) -> PromptLogprobsJson {
        let rest = logprobs.iter().map(|entry| Some(self.candidates(entry, top)));
        PromptLogprobsJson(std::iter::once(None).chain(rest).collect())
    }

    fn candidates(&self, entry: &PromptLogprob, top: usize) -> Candidates {
        let candidate = |token, logprob: f32, rank| {
            let decoded_token = self.tokenizer.token_text(token);
            (token, Candidate { logprob: logprob.max(LOWEST), rank, decoded_token })
        };
        let others = (1..).zip(entry.top.iter().take(top)).filter(|(_, (token, _))| *token != entry.token);
        let others = others.map(|(rank, &(token, logprob))| candidate(token, logprob, rank));
        let own = candidate(entry.token, entry.logprob, entry.rank);
        Candidates(std::iter::once(own).chain(others).collect())
    }

    /// In OpenAI's shape for completions; what belongs to the answer comes after it.
    pub fn echoed(&self, prompt: Echoed<'_>) -> CompletionLogprobs {
        let Echoed { tokens, offsets, logprobs, top } = prompt;
        let alternatives = |entry: &PromptLogprob| {
            let listed = &entry.top[..top.min(entry.top.len())];
            self.top(listed, (entry.token, entry.logprob))
        };
        let (mut token_logprobs, mut top_logprobs): (Vec<Option<f32>>, Vec<Option<TopLogprobs>>) =
            (vec![None], vec![None]);
        token_logprobs.extend(logprobs.iter().map(|entry| Some(entry.logprob.max(LOWEST))));
        top_logprobs.extend(logprobs.iter().map(|entry| Some(alternatives(entry))));
        CompletionLogprobs {
            text_offset: offsets.to_vec(),
            token_logprobs,
            tokens: tokens.iter().map(|&token| self.name(token)).collect(),
            top_logprobs,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_are_an_object_by_id() {
        let candidate = |rank| Candidate { logprob: -0.5, rank, decoded_token: Some("é".into()) };
        let json =
            PromptLogprobsJson(vec![None, Some(Candidates(vec![(17, candidate(9)), (4, candidate(1))]))]);
        assert_eq!(
            serde_json::to_string(&json).unwrap(),
            r#"[null,{"17":{"logprob":-0.5,"rank":9,"decoded_token":"é"},"4":{"logprob":-0.5,"rank":1,"decoded_token":"é"}}]"#
        );
    }
}
