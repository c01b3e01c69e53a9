//! The channel from the engine's thread to one stream: bounded, for one sender and one receiver. Every token goes through one of these, from one
//! processor to another, when both have long lost it from their caches. So it touches as little memory as can be: a message costs each side
//! one short lock in two cache lines, to ask again when there is nothing costs one load, and who sends is told in one place that some
//! receiver is gone.
//!
//! ```text
//! sender    lock ── push, quiet = false, take the waker ── unlock ── wake, if the receiver was quiet
//! receiver  quiet? ─▶ Pending
//!           lock ── take all messages, leave the waker, quiet = true ── unlock ── hand out one by one
//! ```

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// A channel with room for so many messages in all, however fast they are taken: whoever sends never waits.
pub fn mailbox<T>(num_messages_max: usize, departures: &Departures) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        quiet: AtomicBool::new(false),
        receiver_is_gone: AtomicBool::new(false),
        state: Mutex::new(State { next: None, later: VecDeque::new(), waker: None, sender_is_gone: false }),
    });
    let sender = Sender { shared: shared.clone(), room: num_messages_max };
    let departures = departures.clone();
    (sender, Receiver { shared, taken: VecDeque::new(), registered: WakerId::default(), departures })
}

/// How many receivers of several mailboxes are gone. While the number stays the same nobody need be asked.
#[derive(Debug, Clone, Default)]
pub struct Departures(Arc<AtomicU64>);

impl Departures {
    /// Who is counted says that it is gone.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

#[derive(Debug)]
#[repr(align(64))]
struct Shared<T> {
    /// Nothing was sent since the receiver left its waker. Written under the lock; read without it by the receiver alone, who set it.
    quiet: AtomicBool,
    receiver_is_gone: AtomicBool,
    state: Mutex<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    /// The oldest message, which mostly is the only one: it needs no memory of its own.
    next: Option<T>,
    /// None where there is no next one.
    later: VecDeque<T>,
    /// There while it is quiet.
    waker: Option<Waker>,
    sender_is_gone: bool,
}

#[derive(Debug)]
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
    room: usize,
}

#[derive(Debug)]
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    /// Messages that were taken and not handed out.
    taken: VecDeque<T>,
    registered: WakerId,
    departures: Departures,
}

/// Which waker was left somewhere. Good for a comparison as long as it is still there, so that its task cannot have been freed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WakerId(usize, usize);

impl WakerId {
    pub fn of(context: &Context<'_>) -> Self {
        let waker = context.waker();
        Self(waker.data().addr(), std::ptr::from_ref(waker.vtable()).addr())
    }
}

fn lock<T>(shared: &Shared<T>) -> MutexGuard<'_, State<T>> {
    shared.state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> Shared<T> {
    /// Whom to wake, after the lock is given back.
    fn disturb(&self, state: &mut State<T>) -> Option<Waker> {
        self.quiet.store(false, Ordering::Release);
        state.waker.take()
    }
}

impl<T> Sender<T> {
    /// Nothing when the receiver is gone. Panics when more is sent than there is room for.
    pub fn send(&mut self, message: T) {
        assert!(self.room > 0, "more was sent than can be sent");
        self.room -= 1;
        let waker = {
            let mut state = lock(&self.shared);
            if self.is_closed() {
                return;
            }
            match &mut state.next {
                next @ None => *next = Some(message),
                Some(_) => state.later.push_back(message),
            }
            self.shared.disturb(&mut state)
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Whether the receiver is gone.
    pub fn is_closed(&self) -> bool {
        self.shared.receiver_is_gone.load(Ordering::Acquire)
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let waker = {
            let mut state = lock(&self.shared);
            state.sender_is_gone = true;
            self.shared.disturb(&mut state)
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Receiver<T> {
    /// `None` when the sender is gone and everything was received.
    pub fn poll_next(&mut self, context: &Context<'_>) -> Poll<Option<T>> {
        if let Some(message) = self.taken.pop_front() {
            return Poll::Ready(Some(message));
        }
        if self.is_quiet(context) {
            return Poll::Pending;
        }
        let mut state = lock(&self.shared);
        let next = state.next.take();
        if !state.later.is_empty() {
            std::mem::swap(&mut state.later, &mut self.taken);
        }
        if state.sender_is_gone {
            return Poll::Ready(next);
        }
        // What comes while these messages are handed out wakes the task once more.
        state.waker = Some(context.waker().clone());
        self.shared.quiet.store(true, Ordering::Release);
        self.registered = WakerId::of(context);
        drop(state);
        next.map_or(Poll::Pending, |message| Poll::Ready(Some(message)))
    }
}

impl<T> Receiver<T> {
    /// Whether there is nothing, and the task will be woken when there is.
    pub fn is_quiet(&self, context: &Context<'_>) -> bool {
        self.taken.is_empty()
            && self.shared.quiet.load(Ordering::Acquire)
            && self.registered == WakerId::of(context)
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.receiver_is_gone.store(true, Ordering::Release);
        // What nobody will read is freed now, and so is the task that would have been woken.
        let (next, later, waker) = {
            let mut state = lock(&self.shared);
            (state.next.take(), std::mem::take(&mut state.later), state.waker.take())
        };
        drop((next, later, waker));
        self.departures.0.fetch_add(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Wakes {
        fn count(&self) -> usize {
            self.0.load(Ordering::Relaxed)
        }
    }

    fn poll(receiver: &mut Receiver<u32>, task: &Arc<Wakes>) -> Poll<Option<u32>> {
        receiver.poll_next(&Context::from_waker(&Waker::from(task.clone())))
    }

    #[test]
    fn messages_come_in_order_and_one_wake_is_enough_for_several() {
        let (mut sender, mut receiver) = mailbox(4, &Departures::default());
        let task = Arc::new(Wakes::default());
        assert_eq!(poll(&mut receiver, &task), Poll::Pending);
        for message in 0..3 {
            sender.send(message);
        }
        assert_eq!(task.count(), 1);
        for message in 0..3 {
            assert_eq!(poll(&mut receiver, &task), Poll::Ready(Some(message)));
        }
        assert_eq!((poll(&mut receiver, &task), poll(&mut receiver, &task)), (Poll::Pending, Poll::Pending));
        let waker = Waker::from(task.clone());
        let context = Context::from_waker(&waker);
        assert!(receiver.is_quiet(&context));
        sender.send(3);
        assert!(!receiver.is_quiet(&context));
        assert_eq!((task.count(), poll(&mut receiver, &task)), (2, Poll::Ready(Some(3))));
    }

    #[test]
    fn what_comes_while_messages_are_handed_out_wakes_again() {
        let (mut sender, mut receiver) = mailbox(9, &Departures::default());
        let task = Arc::new(Wakes::default());
        sender.send(0);
        sender.send(1);
        assert_eq!((task.count(), poll(&mut receiver, &task)), (0, Poll::Ready(Some(0))));
        sender.send(2);
        assert_eq!(task.count(), 1);
        assert_eq!(poll(&mut receiver, &task), Poll::Ready(Some(1)));
        assert_eq!(poll(&mut receiver, &task), Poll::Ready(Some(2)));
        assert_eq!(poll(&mut receiver, &task), Poll::Pending);
    }

    #[test]
    fn a_sender_that_ends_is_heard_after_its_last_message() {
        let (mut sender, mut receiver) = mailbox(1, &Departures::default());
        let task = Arc::new(Wakes::default());
        assert_eq!(poll(&mut receiver, &task), Poll::Pending);
        sender.send(7);
        assert_eq!(poll(&mut receiver, &task), Poll::Ready(Some(7)));
        assert_eq!(poll(&mut receiver, &task), Poll::Pending);
        drop(sender);
        assert_eq!(task.count(), 2);
        assert_eq!(poll(&mut receiver, &task), Poll::Ready(None));
        assert_eq!(poll(&mut receiver, &task), Poll::Ready(None));
    }

    #[test]
    fn the_task_that_asked_last_is_woken() {
        let (mut sender, mut receiver) = mailbox(2, &Departures::default());
        let [first, second] = [(); 2].map(|()| Arc::new(Wakes::default()));
        assert_eq!(poll(&mut receiver, &first), Poll::Pending);
        assert_eq!(poll(&mut receiver, &second), Poll::Pending);
        sender.send(1);
        assert_eq!((first.count(), second.count()), (0, 1));
    }

    #[test]
    fn a_receiver_that_is_gone_is_seen_and_keeps_nothing_alive() {
        let departures = Departures::default();
        let (mut sender, mut receiver) = mailbox(5, &departures);
        let (_other, _stays) = mailbox::<u32>(5, &departures);
        let task = Arc::new(Wakes::default());
        assert_eq!(poll(&mut receiver, &task), Poll::Pending);
        assert!(!sender.is_closed());
        assert_eq!(departures.count(), 0);
        drop(receiver);
        assert!(sender.is_closed());
        assert_eq!(departures.count(), 1);
        assert_eq!(Arc::strong_count(&task), 1);
        sender.send(1);
        assert_eq!(task.count(), 0);
    }

    #[test]
    #[should_panic(expected = "more was sent than can be sent")]
    fn there_is_room_for_so_many_and_no_more() {
        let (mut sender, _receiver) = mailbox(1, &Departures::default());
        sender.send(1);
        sender.send(2);
    }

    #[test]
    fn nothing_is_lost_between_threads() {
        const MESSAGES: u32 = 20_000;
        let (mut sender, mut receiver) = mailbox(MESSAGES as usize, &Departures::default());
        struct Unpark(std::thread::Thread);
        impl Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        std::thread::scope(|scope| {
            scope.spawn(move || (0..MESSAGES).for_each(|message| sender.send(message)));
            let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
            let context = Context::from_waker(&waker);
            let mut next = 0;
            loop {
                match receiver.poll_next(&context) {
                    Poll::Ready(Some(message)) => {
                        assert_eq!(message, next);
                        next += 1;
                    }
                    Poll::Ready(None) => break,
                    Poll::Pending => std::thread::park(),
                }
            }
            assert_eq!(next, MESSAGES);
        });
    }
}
