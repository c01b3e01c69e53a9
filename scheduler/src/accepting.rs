//! Tokens that constraints take time to take in, many at once and beside the device.
//!
//! ```text
//! step runs · commit: begin_accept(t) · schedule · next step runs ················· commit
//!                      └── other threads take t in, then compute the mask ──┘
//!                                                 └ finish_accepting: who ends with t
//! ```
//! On a device that works alone the next step is made before it is known whether `t` ends its sequence, so that nobody waits for a grammar. Who
//! ends has a row in that step for nothing: `commit` passes it over, as in a step that was made ahead, nothing of it is published, and its blocks
//! may be given away at once, because steps run in order. Where the host computes the steps, or nobody else is running, it is asked before the next
//! step is made.

use crate::running::{Rank, end_by};
use crate::{Accepted, Event, FinishReason, Scheduler};

impl Scheduler {
    /// Whether a constraint is still to say whether its sequence ends.
    pub fn is_accepting(&self) -> bool {
        !self.accepting.is_empty()
    }

    /// Asks every constraint that has begun to take a token in, waits for its answer, and says who ends. The result of a later step
    /// must not be taken in before.
    pub fn finish_accepting(&mut self) -> Vec<Event> {
        let accepting = std::mem::take(&mut self.accepting);
        // The threads that take tokens in begin with the first: what they have not come to is done here.
        let accepted: Vec<Option<Accepted>> =
            accepting.iter().rev().map(|&rank| self.finish_accept(rank)).collect();
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
    fn finish_accept(&mut self, rank: Rank) -> Option<Accepted> {
        let running = self.running.get_mut(&rank).map(|running| &mut running.job);
        let job = running.or_else(|| self.waiting.get_mut(&rank))?;
        let constraint = job.sequence.constraint.as_mut().expect("it has begun to take a token in");
        Some(constraint.finish_accept())
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
