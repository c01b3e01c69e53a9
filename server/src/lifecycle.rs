//! From the first connection to the last: who is in flight, and how the server goes down.

use crate::error::ApiError;
use crate::http::Phase;
use tokio::sync::watch;

#[derive(Clone)]
pub struct Lifecycle {
    phase: watch::Sender<Phase>,
    in_flight: watch::Sender<usize>,
}

impl Lifecycle {
    pub fn new() -> Self {
        Self { phase: watch::Sender::new(Phase::Serving), in_flight: watch::Sender::new(0) }
    }

    /// Takes a request in, until what this returns is dropped. Refused on the way down.
    pub fn admit(&self) -> Result<InFlight, ApiError> {
        // Counted first: a drain that begins in between then waits for it or sees it refused.
        self.in_flight.send_modify(|count| *count += 1);
        let guard = InFlight(self.in_flight.clone());
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

    pub async fn drained(&self) {
        let mut in_flight = self.in_flight.subscribe();
        let _ = in_flight.wait_for(|count| *count == 0).await;
    }
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self::new()
    }
}

/// A request whose answer is not complete.
pub struct InFlight(watch::Sender<usize>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}
