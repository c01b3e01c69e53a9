//! From the first connection to the last: who is in flight, and how the server goes down.

use crate::error::ApiError;
use crate::http::Phase;
use tokio::sync::watch;

#[derive(Clone)]
pub struct Lifecycle {
    phase: watch::Sender<Phase>,
    in_flight: watch::Sender<Counts>,
}

#[derive(Default)]
struct Counts {
    requests: usize,
    /// Of the server's own: a line of a batch until it is written, a change of adapters.
    work: usize,
}

impl Lifecycle {
    pub fn new() -> Self {
        Self { phase: watch::Sender::new(Phase::Serving), in_flight: watch::Sender::default() }
    }

    /// Takes a request in, until what this returns is dropped. Refused on the way down.
    pub fn admit(&self) -> Result<InFlight, ApiError> {
        self.take(|counts| &mut counts.requests)
    }

    /// The same for what the end is to wait for and is no request to the model.
    pub fn admit_work(&self) -> Result<InFlight, ApiError> {
        self.take(|counts| &mut counts.work)
    }

    fn take(&self, count: fn(&mut Counts) -> &mut usize) -> Result<InFlight, ApiError> {
        // Counted first: a drain that begins in between then waits for it or sees it refused.
        self.in_flight.send_modify(|counts| *count(counts) += 1);
        let guard = InFlight { counts: self.in_flight.clone(), count };
        if *self.phase.borrow() != Phase::Serving {
            return Err(ApiError::Draining);
        }
        Ok(guard)
    }

    pub fn is_serving(&self) -> bool {
        *self.phase.borrow() == Phase::Serving
    }

    pub fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Requests to the model whose answers are not complete.
    pub fn num_requests(&self) -> usize {
        self.in_flight.borrow().requests
    }

    pub async fn drained(&self) {
        let mut in_flight = self.in_flight.subscribe();
        let _ = in_flight.wait_for(|Counts { requests, work }| requests + work == 0).await;
    }
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self::new()
    }
}

/// A request whose answer is not complete, or other work that is not done.
pub struct InFlight {
    counts: watch::Sender<Counts>,
    count: fn(&mut Counts) -> &mut usize,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.counts.send_modify(|counts| *(self.count)(counts) -= 1);
    }
}
