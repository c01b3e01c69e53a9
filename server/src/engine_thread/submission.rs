//! A sequence on its way to the engine.

use super::event::SequenceEvent;
use super::progress::Progress;
use crate::mailbox::Sender;
use scheduler::Sequence;
use std::sync::Arc;
use std::time::Instant;

pub struct Submission {
    pub sequence: Sequence,
    pub events: Sender<SequenceEvent>,
    pub progress: Arc<Progress>,
    pub submitted: Instant,
}
