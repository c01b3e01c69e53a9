//! Work that runs beside a device's own queue: enqueued after what was there at a mark, and waited for by nobody but who asks.

use crate::cuda::Cuda;
use crate::cuda::driver::{Event, Stream};
use crate::cuda::error::Result;
use crate::{Device, Error};
use std::sync::Arc;

/// A second queue. A processor has none: there the work is done when it has been called.
///
/// What the work writes is not to be touched by the device's own queue before the work is done, and what it reads not to be written.
pub struct Beside(Option<Queue>);

struct Queue {
    cuda: Arc<Cuda>,
    stream: Stream,
    mark: Event,
    /// Recorded and asked for before; they can be recorded again.
    free: Vec<Event>,
}

/// Some work. Give it back by asking for its end.
#[derive(Debug)]
#[must_use]
pub struct Ticket(Option<Event>);

impl Beside {
    pub fn new(device: &Device) -> std::result::Result<Self, Error> {
        let Device::Cuda(cuda) = device else { return Ok(Self(None)) };
        let (stream, mark) = (cuda.driver.new_stream()?, cuda.driver.new_event()?);
        Ok(Self(Some(Queue { cuda: cuda.clone(), stream, mark, free: Vec::new() })))
    }

    /// Later work runs after everything that the device's own queue has by now, and not after what it gets from now on.
    pub fn mark(&mut self) {
        if let Some(Queue { cuda, mark, .. }) = &self.0 {
            cuda.note(cuda.driver.record(*mark, cuda.stream()));
        }
    }

    /// Has the ops that `work` calls enqueued here, one piece of work after the other.
    pub fn run(&mut self, work: impl FnOnce()) -> Ticket {
        let Some(queue) = &mut self.0 else {
            work();
            return Ticket(None);
        };
        match queue.run(work) {
            Ok(done) => Ticket(Some(done)),
            Err(error) => {
                queue.cuda.fail(error);
                Ticket(None)
            }
        }
    }

    /// Whether the work is done. What failed in it is the device's failure, and counts as an end.
    pub fn is_done(&mut self, ticket: &mut Ticket) -> bool {
        self.end(ticket, |cuda, event| cuda.driver.is_done(event))
    }

    /// Returns when the work is done.
    pub fn wait(&mut self, mut ticket: Ticket) {
        self.end(&mut ticket, |cuda, event| cuda.driver.finish(event).map(|()| true));
    }

    fn end(&mut self, ticket: &mut Ticket, ask: impl FnOnce(&Cuda, Event) -> Result<bool>) -> bool {
        let (Some(queue), Some(event)) = (&mut self.0, ticket.0) else { return true };
        let is_done = ask(&queue.cuda, event).unwrap_or_else(|error| {
            queue.cuda.fail(error);
            true
        });
        if is_done {
            queue.free.extend(ticket.0.take());
        }
        is_done
    }
}

impl Queue {
    fn run(&mut self, work: impl FnOnce()) -> Result<Event> {
        let Self { cuda, stream, mark, free } = self;
        cuda.driver.wait(*stream, *mark)?;
        cuda.on(*stream, work);
        let done = free.pop().map_or_else(|| cuda.driver.new_event(), Ok)?;
        cuda.driver.record(done, *stream)?;
        Ok(done)
    }
}
