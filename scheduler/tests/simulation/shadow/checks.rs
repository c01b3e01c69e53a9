//! What an item of a batch is compared with: the truth of its sequence, and what a step may ask for.

use super::{Shadow, drafts};
use crate::truth::state_words;
use scheduler::{BatchItem, FinishReason, MAX_DEFERRALS, TokenId};
use std::collections::{BTreeMap, BTreeSet};

impl Shadow {
    pub(super) fn check_placeholder(&self, item: &BatchItem) {
        let (id, truth) = (item.id, &self.truths[&item.id]);
        assert_eq!((item.tokens.len(), item.prompt.is_some(), item.images.len()), (1, false, 0), "{id:?}");
        let sample = item.sample.as_ref().expect("who goes on samples");
        assert_eq!(sample.num_drafts, 0, "{id:?}");
        let guesses = truth.sequence.speculation().is_some() && truth.sequence.constraint.is_none();
        assert!(!guesses, "{id:?} needs its last token");
        let ended_for_sure = self.gone.get(&id).is_some_and(|reason| *reason == Some(FinishReason::Length));
        assert!(!ended_for_sure, "{id:?} goes on beyond its last token");
    }

    /// Compares positions `from..to` of an item's memory with the truth.
    pub(super) fn compare(&self, item: &BatchItem, from: usize, to: usize) {
        let truth = self.with_drafts(item);
        for position in from..to {
            let hash = self.slots[self.slot(item, position)].map(|slot| slot.hash);
            assert_eq!(hash, Some(truth.hashes[position]), "{:?} reads a wrong key at {position}", item.id);
        }
    }

    pub(super) fn check_context(&self, item: &BatchItem) {
        let size = self.config.block_size;
        assert!(!item.tokens.is_empty(), "{:?} has nothing to compute", item.id);
        let adapter = self.truths[&item.id].sequence.adapter;
        assert_eq!(item.adapter, adapter, "{:?} runs with the weights of another", item.id);
        assert!(item.blocks.len() * size >= item.end(), "{:?} has not enough blocks", item.id);
        let distinct: BTreeSet<_> = item.blocks.iter().collect();
        assert_eq!(distinct.len(), item.blocks.len(), "{:?} has a block twice", item.id);
        self.compare(item, 0, item.context_len);
        match self.ends.get(&item.id) {
            Some(&end) => assert_eq!(item.context_len, end, "{:?} skips or repeats tokens", item.id),
            None => {
                assert_eq!(item.context_len % size, 0, "{:?} starts inside a block", item.id);
                assert!(self.config.enable_prefix_caching || item.context_len == 0, "a hit without a cache");
                for position in 0..item.context_len {
                    let writer = self.slots[self.slot(item, position)].expect("compared above").writer;
                    let is_clean =
                        self.poisoners.get(&writer).is_none_or(|excused| excused.contains(&item.id));
                    assert!(is_clean, "{:?} takes a poisoned block", item.id);
                }
            }
        }
    }

    pub(super) fn check_images(&self, item: &BatchItem) {
        let (truth, size) = (self.truth(item), self.config.image_rows_per_block);
        let mut shown = BTreeMap::new();
        for images in &item.images {
            for i in 0..images.len {
                let row = images.first_row + i;
                let index = images.rows[row / size].0 as usize * size + row % size;
                let position = item.context_len + images.first_token + i;
                assert!(position < item.end(), "a picture's row beyond the chunk");
                assert!(shown.insert(position, self.image_rows[index]).is_none(), "two rows for {position}");
            }
        }
        for position in item.context_len..item.end() {
            let expected = truth.image_at(position);
            let actual = shown.get(&position).copied().flatten();
            assert_eq!(actual, expected, "{:?} shows a wrong row at {position}", item.id);
        }
        // Where there is no picture there is nothing to go wrong, and much to count.
        let ends = [item.context_len, item.end() - 1];
        let rotary: Vec<_> = item.rotary_positions().collect();
        if !truth.sequence.images().is_empty() && truth.tokens.len() == item.end() {
            for position in ends {
                let expected = truth.rotary_position(position);
                assert_eq!(rotary[position - item.context_len], expected, "{:?} at {position}", item.id);
            }
        }
    }

    pub(super) fn check_sample(&self, item: &BatchItem) {
        let (truth, drafts) = (self.truth(item), drafts(item));
        let end = item.end() - drafts.len();
        let known = &item.tokens[..item.tokens.len() - drafts.len()];
        if item.placeholder_for.is_none() {
            assert_eq!(*known, truth.tokens[item.context_len..end], "{:?} has wrong tokens", item.id);
        }
        let is_last = end == truth.tokens.len();
        let samples = is_last && truth.params().max_tokens > 0;
        assert_eq!(item.sample.is_some(), samples, "{:?} samples exactly after its last token", item.id);
        let Some(sample) = &item.sample else { return };
        let prompt_len = truth.sequence.prompt_len();
        assert_eq!(sample.params.seed, truth.params().seed);
        assert_eq!(sample.position, truth.tokens.len());
        assert_eq!(sample.num_generated, truth.tokens.len() - prompt_len);
        assert_eq!(sample.history.is_some(), truth.params().needs_history());
        let deferrals = self.deferrals.get(&item.id).copied().unwrap_or(0);
        assert_eq!(sample.may_be_deferred, deferrals < MAX_DEFERRALS, "{:?} after {deferrals}", item.id);
        if self.gone.contains_key(&item.id) {
            // Nobody looks at what it says.
            return;
        }
        let mask = sample.mask.as_ref().map(|mask| mask.allowed().expect("it is there").to_vec());
        let expected = truth.sequence.constraint.as_ref().map(|_| state_words(truth.state()).to_vec());
        assert_eq!(mask, expected, "{:?} is drawn under a mask of another state", item.id);
        for row in sample.rows() {
            let Some((history, history_prompt_len)) = row.history() else { continue };
            let expected = [&truth.tokens[..], &drafts[..row.index]].concat();
            assert_eq!((history, history_prompt_len), (&expected[..], prompt_len));
            assert_eq!(row.position() - row.num_generated(), prompt_len);
        }
        self.check_drafts(item, drafts);
    }

    fn check_drafts(&self, item: &BatchItem, drafts: &[TokenId]) {
        let (truth, id) = (&self.truths[&item.id], item.id);
        if drafts.is_empty() {
            return;
        }
        let config = truth.sequence.speculation().expect("only those who want to draft");
        assert!(drafts.len() <= config.num_speculative_tokens, "{id:?} drafts too much");
        assert!(item.tokens.len() == 1 + drafts.len() && item.prompt.is_none(), "{id:?} drafts in a prompt");
        let most = truth.sequence.prompt_len() + truth.params().max_tokens;
        assert!(truth.tokens.len() + drafts.len() < most, "{id:?} drafts beyond its answer");
        assert!(!drafts.contains(&0), "{id:?} drafts a picture");
    }
}
