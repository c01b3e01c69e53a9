//! Names the content of full blocks: two blocks have the same digest when their tokens, pictures and everything before them
//! are the same, for the same salt and adapter. Then their keys and values are the same too.

use crate::{AdapterId, Digest, ImageSpan, TokenId};

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

/// In place of an adapter's number, which is never 0.
const NO_ADAPTER: u64 = 0;

impl ContentChain {
    pub fn new(salt: Digest, adapter: Option<AdapterId>) -> Self {
        let adapter = adapter.map_or(NO_ADAPTER, |id| id.0.get());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ImageInput;
    use std::num::NonZeroU64;
    use std::sync::Arc;

    fn span(start: usize, name: u8, num_tokens: usize) -> ImageSpan {
        let image = ImageInput {
            digest: Digest([name; 32]),
            grid: [1, 1],
            num_tokens,
            position_grid: None,
            patches: Vec::new(),
        };
        ImageSpan { start, image: Arc::new(image) }
    }

    fn digests(tokens: &[TokenId], images: &[ImageSpan]) -> Vec<Digest> {
        let mut chain = ContentChain::new(Digest::default(), None);
        chain.extend(tokens, images, 4);
        chain.digests().to_vec()
    }

    #[test]
    fn only_full_blocks_have_a_digest() {
        for (len, expected) in [(0, 0), (1, 0), (3, 0), (4, 1), (7, 1), (8, 2), (13, 3)] {
            assert_eq!(digests(&vec![5; len], &[]).len(), expected, "{len} tokens");
        }
    }

    #[test]
    fn a_chain_does_not_depend_on_how_it_grew() {
        let tokens: Vec<_> = (0..23).collect();
        let images = [span(2, 1, 7), span(13, 2, 1)];
        let whole = digests(&tokens, &images);
        for stride in 1..9 {
            let mut chain = ContentChain::new(Digest::default(), None);
            for len in (0..tokens.len()).step_by(stride).chain([tokens.len()]) {
                chain.extend(&tokens[..len], &images, 4);
            }
            assert_eq!(chain.digests(), whole, "stride {stride}");
        }
    }

    #[test]
    fn a_digest_stands_for_the_whole_prefix() {
        let base: Vec<_> = (0..12).collect();
        for position in 0..12 {
            let mut changed = base.clone();
            changed[position] += 1 << 24;
            for (block, (a, b)) in digests(&base, &[]).iter().zip(&digests(&changed, &[])).enumerate() {
                assert_eq!(a == b, block < position / 4, "token {position}, block {block}");
            }
        }
        let equal = digests(&[7; 12], &[]);
        assert!(
            equal[0] != equal[1] && equal[1] != equal[2],
            "equal tokens at other places are other content"
        );
    }

    #[test]
    fn salt_and_adapter_are_mixed_in() {
        let first = |salt, adapter| {
            let mut chain = ContentChain::new(Digest([salt; 32]), adapter);
            chain.extend(&[1, 2, 3, 4], &[], 4);
            chain.digests()[0]
        };
        let adapter = |number| NonZeroU64::new(number).map(AdapterId);
        assert_eq!(first(0, None), first(0, None));
        assert_ne!(first(0, None), first(1, None));
        assert_ne!(first(0, None), first(0, adapter(1)));
        assert_ne!(first(0, adapter(1)), first(0, adapter(2)));
        assert_eq!(first(3, adapter(2)), first(3, adapter(2)));
    }

    #[test]
    fn pictures_are_content_of_the_blocks_that_they_touch() {
        let tokens = [0; 16];
        let same = |a: &[ImageSpan], b: &[ImageSpan]| -> Vec<bool> {
            digests(&tokens, a).iter().zip(digests(&tokens, b)).map(|(a, b)| *a == b).collect()
        };
        let none: [ImageSpan; 0] = [];
        assert_eq!(same(&[span(6, 1, 3)], &none), [true, false, false, false]);
        assert_eq!(same(&[span(6, 1, 3)], &[span(6, 2, 3)]), [true, false, false, false]);
        assert_eq!(
            same(&[span(8, 1, 2)], &none),
            [true, true, false, false],
            "from the block's first token on"
        );
        // The placeholder is a token like any other: only the place tells these apart.
        assert_eq!(same(&[span(4, 1, 2)], &[span(5, 1, 2)]), [true, false, false, false]);
        assert_eq!(same(&[span(12, 1, 2)], &[span(14, 1, 2)]), [true, true, true, false]);
        let (ab, ba) = ([span(0, 1, 2), span(2, 2, 2)], [span(0, 2, 2), span(2, 1, 2)]);
        assert_eq!(same(&ab, &ba), [false; 4]);
    }
}
