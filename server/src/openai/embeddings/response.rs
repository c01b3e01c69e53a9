//! Embeddings in OpenAI's shape, with vLLM's `id` and `created`.

use crate::openai::chat::response::ResponseHead;
use crate::openai::embeddings::lower::{Encoding, Form};
use crate::openai::embeddings::vector::{base64, mean, normalise};
use crate::reading::Read;
use scheduler::PooledSum;
use schemars::JsonSchema;
use serde::Serialize;

#[derive(Serialize, JsonSchema)]
pub struct EmbeddingList<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    data: Vec<Embedding>,
    usage: ReadUsage,
}

#[derive(Serialize, JsonSchema)]
struct Embedding {
    object: &'static str,
    index: usize,
    embedding: Values,
}

#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
enum Values {
    Float(Vec<f32>),
    Base64(String),
}

/// Of requests that generate nothing.
#[derive(Serialize, JsonSchema)]
pub struct ReadUsage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: ReadDetails,
}

#[derive(Serialize, JsonSchema)]
struct ReadDetails {
    cached_tokens: usize,
}

impl ReadUsage {
    pub fn new(reads: &[Read], prompt_tokens: usize) -> Self {
        let cached_tokens = reads.iter().map(|read| read.timings.cached_tokens).sum();
        Self {
            prompt_tokens,
            completion_tokens: 0,
            total_tokens: prompt_tokens,
            prompt_tokens_details: ReadDetails { cached_tokens },
        }
    }
}

impl<'a> EmbeddingList<'a> {
    pub fn new(head: &'a ResponseHead, reads: &[Read], form: Form, prompt_tokens: usize) -> Self {
        let embedding = |(index, read): (usize, &Read)| {
            let pooled = read.pooled.as_ref().expect("a pooled prompt ends with its vector");
            Embedding { object: "embedding", index, embedding: form.values(pooled) }
        };
        Self {
            id: &head.id,
            object: "list",
            created: head.created,
            model: &head.model,
            data: reads.iter().enumerate().map(embedding).collect(),
            usage: ReadUsage::new(reads, prompt_tokens),
        }
    }
}

impl Form {
    fn values(self, pooled: &PooledSum) -> Values {
        let mut vector = mean(pooled);
        // Cut first: what is left has length 1 again.
        vector.truncate(self.dimensions.unwrap_or(usize::MAX));
        if self.normalise {
            normalise(&mut vector);
        }
        let vector: Vec<f32> = vector.into_iter().map(|x| x as f32).collect();
        match self.encoding {
            Encoding::Float => Values::Float(vector),
            Encoding::Base64 => Values::Base64(base64(&vector)),
        }
    }
}
