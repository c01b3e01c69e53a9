//! Names the content of full blocks: two blocks have the same digest when their tokens, pictures and everything before them
//! are the same, for the same salt. Then their keys and values are the same too.

use crate::{Digest, ImageSpan, TokenId};

/// The digests of a sequence's full blocks, in order. Each one hashes its parent, so it stands for the whole prefix; extending
/// the chain by a block never reads the blocks before it again.
///
/// ```text
/// root = H(salt, adapter)      digest[i] = H(digest[i - 1] | root, tokens of block i, pictures that overlap block i)
/// ```
#[derive(Debug, Clone)]
pub struct ContentChain {
    root: Digest,
    digests: Vec<Digest>,
}

/// The base model. Adapters, when there are some, take other numbers.
pub const NO_ADAPTER: u64 = 0;

impl ContentChain {
    pub fn new(salt: Digest, adapter: u64) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("perilune 2026 prefix root");
        hasher.update(&salt.0).update(&adapter.to_le_bytes());
        Self { root: Digest(*hasher.finalize().as_bytes()), digests: Vec::new() }
    }

    pub fn digests(&self) -> &[Digest] {
        &self.digests
    }

    /// Covers all full blocks of `tokens`, of which earlier calls saw a prefix.
    pub fn extend(&mut self, tokens: &[TokenId], images: &[ImageSpan], block_size: usize) {
        let mut bytes = Vec::new();
        for index in self.digests.len()..tokens.len() / block_size {
            let (start, end) = (index * block_size, (index + 1) * block_size);
            bytes.clear();
            bytes.extend_from_slice(&self.digests.last().unwrap_or(&self.root).0);
            for token in &tokens[start..end] {
                bytes.extend_from_slice(&token.to_le_bytes());
            }
            // The number of tokens before is the same in all blocks, so what follows can only be pictures.
            let first = images.partition_point(|span| span.end() <= start);
            for span in images[first..].iter().take_while(|span| span.start < end) {
                bytes.extend_from_slice(&span.image.digest.0);
                // Where the picture begins, seen from the block: negative when it began in an earlier one.
                bytes.extend_from_slice(&(span.start as i64 - start as i64).to_le_bytes());
            }
            self.digests.push(Digest(*blake3::hash(&bytes).as_bytes()));
        }
    }
}
