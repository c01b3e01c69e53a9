//! What a batch held, as text for the trace and as counts for the oracles.

use super::{Shadow, drafts};
use crate::truth::short;
use scheduler::{Batch, BlockCopy, DraftShare, SequenceId};

/// What the batch held, counted without the scheduler's help.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Counts {
    pub num_tokens: usize,
    /// Who needs one token only and had generated it, but for those deferred.
    pub decodes: Vec<SequenceId>,
    pub images: usize,
    pub patches: usize,
    /// Rows of which something was told.
    pub prompt_rows: usize,
    /// Who runs its last token again in the next step.
    pub deferred: Vec<SequenceId>,
    /// Tokens that were guessed, and what becomes of each draft.
    pub draft_tokens: usize,
    pub drafts: Vec<DraftShare>,
    /// Who goes on with a token that was not known when the step was made.
    pub placeholders: Vec<SequenceId>,
    /// Sequence and tokens of each item.
    pub items: Vec<(SequenceId, usize)>,
    /// Blocks that are stored, and those that are loaded for each sequence.
    pub stores: usize,
    pub loads: Vec<(SequenceId, usize)>,
}

impl Shadow {
    pub(super) fn describe(&mut self, batch: &Batch) {
        let mut text = String::new();
        for encode in &batch.encodes {
            text += &format!(" encode {:x}", short(&encode.image.digest) & 0xfff);
        }
        let mut counts = Counts { images: batch.encodes.len(), ..Counts::default() };
        for BlockCopy { block, host } in &batch.stores {
            text += &format!(" store {} in {}", block.0, host.0);
        }
        for load in &batch.loads {
            text += &format!(" load {:?} for #{}", load.copies, load.id.0);
        }
        counts.stores = batch.stores.len();
        counts.loads = batch.loads.iter().map(|load| (load.id, load.copies.len())).collect();
        counts.patches = batch.encodes.iter().map(|encode| encode.image.num_patches()).sum();
        for item in &batch.items {
            let mark = if item.sample.is_some() { "+" } else { "" };
            let told = item.prompt.as_ref().map_or(0, |work| work.rows.len());
            let mark = if told > 0 { format!("{mark}({told} rows)") } else { mark.to_owned() };
            counts.prompt_rows += told;
            text += &format!(" #{}[{}..{}]{mark}", item.id.0, item.context_len, item.end());
            counts.num_tokens += item.tokens.len();
            let truth = &self.truths[&item.id];
            let num_drafts = drafts(item).len();
            let is_placeholder = item.placeholder_for.is_some();
            let is_decode = item.tokens.len() == 1 + num_drafts
                && (is_placeholder || truth.tokens.len() > truth.sequence.prompt_len());
            counts.placeholders.extend(is_placeholder.then_some(item.id));
            counts.draft_tokens += num_drafts;
            counts.decodes.extend((is_decode && item.sample.is_some()).then_some(item.id));
            counts.items.push((item.id, item.tokens.len()));
        }
        self.last_batch = text;
        self.last_counts = counts;
    }
}
