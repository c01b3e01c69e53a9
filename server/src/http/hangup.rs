//! Notices clients that hang up while hyper has no reason to read: one that sent a second request ahead, or whose body is unread, is
//! otherwise noticed only when its answer ends. One `poll` over all sockets, four times a second. A client that closes only its
//! sending side counts as gone too.

use super::socket::Socket;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;

#[cfg(target_os = "linux")]
const GONE: PollFlags = PollFlags::RDHUP.union(PollFlags::HUP).union(PollFlags::ERR);
#[cfg(not(target_os = "linux"))]
const GONE: PollFlags = PollFlags::HUP.union(PollFlags::ERR);

#[derive(Default)]
struct Watched {
    sockets: BTreeMap<u64, (Arc<Socket>, Arc<Gone>)>,
    next: u64,
    num_gone: Arc<AtomicU64>,
}

/// Whether the client is, and who waits for that.
#[derive(Default)]
struct Gone {
    is_gone: AtomicBool,
    notify: Notify,
}

#[derive(Clone)]
pub struct Hangups(Arc<Mutex<Watched>>);

impl Hangups {
    /// Starts the watch, which ends when nobody holds this any more.
    pub fn start(period: Duration) -> Self {
        let watched = Arc::new(Mutex::new(Watched::default()));
        tokio::spawn(watch(Arc::downgrade(&watched), period));
        Self(watched)
    }

    pub fn watch(&self, socket: Arc<Socket>) -> Hangup {
        let gone = Arc::new(Gone::default());
        let mut watched = lock(&self.0);
        let id = watched.next;
        watched.next += 1;
        watched.sockets.insert(id, (socket, gone.clone()));
        let num_gone = watched.num_gone.clone();
        Hangup { watched: self.0.clone(), id, gone, asked_at: AtomicU64::new(0), num_gone }
    }
}

/// One watched socket. Dropping it ends the watch.
pub struct Hangup {
    watched: Arc<Mutex<Watched>>,
    id: u64,
    gone: Arc<Gone>,
    /// How many of all clients have gone: while the number stays the same this one's own word, which lies alone in memory, is not looked up.
    num_gone: Arc<AtomicU64>,
    asked_at: AtomicU64,
}

impl Hangup {
    pub async fn hung_up(&self) {
        self.gone.notify.notified().await;
    }

    /// True before whoever waits is woken. Cheap, because it is asked with every token.
    pub fn has_hung_up(&self) -> bool {
        let num_gone = self.num_gone.load(Ordering::Acquire);
        if self.asked_at.load(Ordering::Relaxed) == num_gone {
            return false;
        }
        let is_gone = self.gone.is_gone.load(Ordering::Acquire);
        if !is_gone {
            self.asked_at.store(num_gone, Ordering::Relaxed);
        }
        is_gone
    }
}

impl Drop for Hangup {
    fn drop(&mut self) {
        lock(&self.watched).sockets.remove(&self.id);
    }
}

fn lock(watched: &Mutex<Watched>) -> MutexGuard<'_, Watched> {
    watched.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

async fn watch(watched: Weak<Mutex<Watched>>, period: Duration) {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(watched) = watched.upgrade() else { return };
        notify_gone(&mut lock(&watched));
    }
}

fn notify_gone(watched: &mut Watched) {
    let mut polled: Vec<PollFd> =
        watched.sockets.values().map(|(socket, _)| PollFd::new(socket, GONE)).collect();
    match poll(&mut polled, Some(&Timespec::default())) {
        Ok(0) => return,
        Ok(_) => {}
        Err(error) => {
            tracing::warn!(%error, "failed to poll the connections");
            return;
        }
    }
    let num_gone = &watched.num_gone;
    for (fd, (_, gone)) in polled.iter().zip(watched.sockets.values()) {
        if fd.revents().intersects(GONE) {
            if !gone.is_gone.swap(true, Ordering::AcqRel) {
                num_gone.fetch_add(1, Ordering::Release);
            }
            gone.notify.notify_one();
        }
    }
}
