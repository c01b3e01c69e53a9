//! The step after the one that runs, made before that one's results are known, so that a device finds its next work ready.
//!
//! ```text
//! host     make 1  make 2 ············ take 1 in, make 3 ············ take 2 in, make 4 …
//! device           1 1 1 1 1 1 1 1 1 1 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 3 3 3 …
//! ```
//! Who samples in the step that runs goes on with a *placeholder*: the runner puts the token in, on the device. That its position and its
//! block are known is enough to schedule it. Who reaches `max_tokens` with that token does not go on. Who ends otherwise (a stop token, a
//! failure, a constraint, an abort) has a row for nothing: `commit` passes it over. Its blocks are free by then and may be given away, because
//! steps run in order: whoever gets them writes later. Nothing of that row can be found as a prefix, because only `commit` publishes, and only
//! what it takes in.
//!
//! To compute a row its token need not be known here; to draw from its logits it may have to be, as masks of constraints and penalties follow
//! from it. Such a sample is *incomplete* until the step before was taken in (`complete_samples`), while the rows are being computed. Only what
//! is drawn waits for it, and the step behind is made when it has been drawn, of those who were not deferred:
//!
//! ```text
//! host     compute 1, draw 1   compute 2 ·········· take 1 in, complete 2, masks, draw 2, compute 3 ·········· take 2 in, …
//! device           1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 3 3 …
//! ```
//! No step is made ahead
//! - of one in which somebody samples who guesses: what is computed next follows from the token. Left out, it would take part in every other
//!   step only;
//! - of one that computes something of a prompt beside its keys and values: a sum goes on with the next chunk;
//! - while constraints take tokens in: it is known soon who ends;
//! - where somebody would lose its blocks for a decode: nobody is preempted who is just being computed;
//! - where nobody is sure to have work in it.
//!
//! All else is as in any step: budgets, turns, pictures, admission. What the step that runs computes is not found as a prefix before it was
//! taken in, and who waits for it waits a step longer.

use crate::running::{Rank, Running};
use crate::{Batch, History, Sample, Scheduler, SequenceId};

impl Scheduler {
    /// Picks the step that follows `flight`, the only one that was made and not taken in; `None` when that has to wait for its results.
    /// Must be followed by `commit` of both, in order.
    pub fn schedule_ahead(&mut self, flight: &Batch) -> Option<Batch> {
        assert_eq!(self.in_flight.len(), 1, "one step runs when the next is made");
        if !self.accepting.is_empty() {
            return None;
        }
        for (rank, row) in self.going_on(flight)? {
            self.running.get_mut(&rank).expect("it goes on").pending = Some(row);
        }
        if !self.has_work_and_blocks() {
            self.running.values_mut().for_each(|running| running.pending = None);
            return None;
        }
        self.running.values_mut().for_each(|running| running.begun = running.planned);
        let batch = self.make_step();
        let made = self.in_flight.back_mut().expect("just made");
        made.stats.is_ahead = true;
        assert!(made.stats.preempted.is_empty(), "preempted in a step that was made ahead");
        Some(batch)
    }

    /// Puts in what the samples of a step wait for that was made ahead: every step before it was taken in, and it was not.
    pub fn complete_samples(&mut self, batch: &mut Batch) {
        assert_eq!(self.in_flight.len(), 1, "the step before is not taken in");
        for item in &mut batch.items {
            if let Some(sample) = item.sample.as_mut().filter(|sample| sample.is_incomplete) {
                self.complete_sample(item.id, sample);
            }
        }
    }

    fn complete_sample(&mut self, id: SequenceId, sample: &mut Sample) {
        sample.is_incomplete = false;
        match self.priorities.get(&id) {
            Some(&priority) => {
                let running = self.running.get_mut(&Rank { priority, id });
                let running = running.expect("nobody is preempted who is being computed");
                assert_eq!(running.job.sequence.tokens.len(), sample.position, "{id:?} is drawn elsewhere");
                running.put_in(sample);
            }
            // It ended, or its client went: what is drawn is not looked at.
            None if sample.params.needs_history() => {
                sample.history = Some(History { tokens: Vec::new(), prompt_len: 0 });
            }
            None => {}
        }
    }

    /// Who samples in `flight` and does not end with it for sure, and in which row; `None` where one of them cannot go on so.
    fn going_on(&self, flight: &Batch) -> Option<Vec<(Rank, usize)>> {
        let (mut going_on, mut row) = (Vec::with_capacity(flight.items.len()), 0);
        for item in &flight.items {
            if item.prompt.is_some() {
                return None;
            }
            let Some(sample) = &item.sample else { continue };
            let rank = self.priorities.get(&item.id).map(|&priority| Rank { priority, id: item.id });
            // Its client may have gone.
            if let Some(rank) = rank {
                if self.running[&rank].job.needs_token_to_compute() {
                    return None;
                }
                if sample.num_generated + 1 < sample.params.max_tokens {
                    going_on.push((rank, row));
                }
            }
            row += sample.num_rows();
        }
        Some(going_on)
    }

    /// Whether the decodes will find their blocks, all but one of the highest rank, which sits the step out, and somebody waits for nothing.
    fn has_work_and_blocks(&self) -> bool {
        let mut num_free = self.pool.num_free();
        let mut has_work = false;
        let last = self.running.keys().next_back();
        for (rank, running) in self.running.iter().filter(|(_, running)| running.num_left() > 0) {
            let num_blocks = running.len().div_ceil(self.config.block_size);
            let num_needed = num_blocks.saturating_sub(running.table.num_blocks());
            let sits_out = num_needed > num_free;
            if sits_out && Some(rank) != last {
                return false;
            }
            num_free -= if sits_out { 0 } else { num_needed };
            has_work |= !sits_out && self.waits_for_no_picture(running);
        }
        has_work
    }

    fn waits_for_no_picture(&self, running: &Running) -> bool {
        let is_ready = |span: &crate::ImageSpan| self.images.is_ready(&span.image.digest);
        running.images_entered == running.job.sequence.images().len() && running.pinned().iter().all(is_ready)
    }
}
