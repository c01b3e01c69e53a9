//! Tokens that constraints take time to take in, many at once and beside the device.
//!
//! ```text
//! step runs · commit: begin_accept(t) · schedule · begin · next step runs ························· commit
//!                                                          start_accepting · finish_accepting: who ends with t
//!                                                           └─ other threads take t in, then compute the mask
//! ```
//! On a device that works alone the next step is made before it is known whether `t` ends its sequence, so that nobody waits for a grammar. Who
//! ends has a row in that step for nothing: `commit` passes it over, as in a step that was made ahead, nothing of it is published, and its blocks
//! may be given away at once, because steps run in order. Where the host computes the steps, or nobody else is running, it is asked before the next
//! step is made.

use crate::running::{Rank, end_by};
use crate::{Accepted, Constraint, Event, FinishReason, Scheduler};

impl Scheduler {
    /// Has the threads that constraints may have begin with what is to be taken in.
    pub fn start_accepting(&mut self) {
        for i in self.num_started..self.accepting.len() {
            if let Some(constraint) = self.accepting_constraint(self.accepting[i]) {
                constraint.start_accept();
            }
        }
        self.num_started = self.accepting.len();
    }

    /// Asks every constraint that has a token to take in, waits for its answer, and says who ends. The result of a later step
    /// must not be taken in before.
    pub fn finish_accepting(&mut self) -> Vec<Event> {
        self.start_accepting();
        self.num_started = 0;
        self.spent_masks.clear();
        let accepting = std::mem::take(&mut self.accepting);
        // The threads that take tokens in begin with the first: what they have not come to is done here.
        let finish = |&rank| Some(self.accepting_constraint(rank)?.finish_accept());
        let accepted: Vec<Option<Accepted>> = accepting.iter().rev().map(finish).collect();
        let mut events = Vec::new();
        for (&rank, accepted) in accepting.iter().zip(accepted.into_iter().rev()) {
            if let Some(reason) = accepted.and_then(|accepted| end_by(accepted, None)) {
                let preemptions = self.finish_accepted(rank, reason);
                events.push(Event::Finished { id: rank.id, reason, preemptions });
            }
        }
        events
    }

    /// `None`: it was aborted meanwhile.
    fn accepting_constraint(&mut self, rank: Rank) -> Option<&mut dyn Constraint> {
        let running = self.running.get_mut(&rank).map(|running| &mut running.job);
        let job = running.or_else(|| self.waiting.get_mut(&rank))?;
        Some(&mut **job.sequence.constraint.as_mut().expect("it has a token to take in"))
    }

    /// Ends a sequence, which may have lost its place since its last token; returns how often that happened to it.
    fn finish_accepted(&mut self, rank: Rank, reason: FinishReason) -> usize {
        self.in_flight.iter_mut().for_each(|step| step.ended.push(rank.id));
        match self.waiting.remove(&rank) {
            None => self.finish(rank, reason),
            Some(job) => {
                self.priorities.remove(&rank.id);
                job.preemptions
            }
        }
    }
}
