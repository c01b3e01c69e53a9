//! Scores and rankings in vLLM's shapes; rankings are Jina's and Cohere's too.

use crate::openai::chat::response::ResponseHead;
use crate::openai::embeddings::response::ReadUsage;
use schemars::JsonSchema;
use serde::Serialize;

#[derive(Serialize, JsonSchema)]
pub struct ScoreList<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    data: Vec<Score>,
    usage: ReadUsage,
}

#[derive(Serialize, JsonSchema)]
struct Score {
    index: usize,
    object: &'static str,
    score: f64,
}

impl<'a> ScoreList<'a> {
    pub fn new(head: &'a ResponseHead, scores: &[f64], usage: ReadUsage) -> Self {
        let score = |(index, &score): (usize, &f64)| Score { index, object: "score", score };
        Self {
            id: &head.id,
            object: "list",
            created: head.created,
            model: &head.model,
            data: scores.iter().enumerate().map(score).collect(),
            usage,
        }
    }
}

#[derive(Serialize, JsonSchema)]
pub struct RerankList<'a> {
    id: &'a str,
    model: &'a str,
    usage: ReadUsage,
    results: Vec<RerankResult<'a>>,
}

#[derive(Serialize, JsonSchema)]
struct RerankResult<'a> {
    /// Of the document in the request.
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<RankedDocument<'a>>,
    relevance_score: f64,
}

#[derive(Serialize, JsonSchema)]
struct RankedDocument<'a> {
    text: &'a str,
}

impl<'a> RerankList<'a> {
    /// `documents` are given back where there are some.
    pub fn new(
        head: &'a ResponseHead,
        ranked: &[(usize, f64)],
        documents: Option<&'a [String]>,
        usage: ReadUsage,
    ) -> Self {
        let result = |&(index, relevance_score): &(usize, f64)| RerankResult {
            index,
            document: documents.map(|documents| RankedDocument { text: &documents[index] }),
            relevance_score,
        };
        Self { id: &head.id, model: &head.model, usage, results: ranked.iter().map(result).collect() }
    }
}

/// The best `top_n`, best first; equal ones in the order in which they were given.
pub fn ranked(scores: &[f64], top_n: usize) -> Vec<(usize, f64)> {
    let mut ranked: Vec<(usize, f64)> = scores.iter().copied().enumerate().collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    ranked.truncate(top_n);
    ranked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn best_first_and_equal_ones_as_they_came() {
        let scores = [0.5, -1.0, 0.75, 0.5];
        assert_eq!(ranked(&scores, 4), [(2, 0.75), (0, 0.5), (3, 0.5), (1, -1.0)]);
        assert_eq!(ranked(&scores, 2), [(2, 0.75), (0, 0.5)]);
    }
}
