//! Responses that can be asked for later: bounded in number, in bytes and by age, the oldest out first. Items are shared by the
//! responses of a conversation and counted once, so that a long conversation costs what it says and not its square.

use super::item::Item;
use super::kept::{Kept, Outcome};
use crate::error::ApiError;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreLimits {
    /// 0: nothing is kept.
    pub num_responses_max: usize,
    pub bytes_max: u64,
    pub age_max: Duration,
    /// Responses that are made in the background at once.
    pub num_background_max: usize,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self {
            num_responses_max: 1024,
            bytes_max: 256 << 20,
            age_max: Duration::from_secs(24 * 3600),
            num_background_max: 64,
        }
    }
}

/// Ids that were pushed out and are still known to have been here.
const NUM_PUSHED_OUT_KNOWN: usize = 16 * 1024;

pub struct ResponseStore {
    limits: StoreLimits,
    inner: Mutex<Inner>,
    background: Arc<Semaphore>,
}

#[derive(Default)]
struct Inner {
    /// By the order of arrival.
    responses: BTreeMap<u64, Resident>,
    numbers: HashMap<String, u64>,
    next: u64,
    /// By key, with the number of responses that have it.
    items: HashMap<u64, (Arc<Item>, usize)>,
    /// The latest item of each id.
    item_keys: HashMap<String, u64>,
    bytes: u64,
    pushed_out: PushedOut,
}

struct Resident {
    kept: Arc<Kept>,
    since: Instant,
    /// What it is charged with besides its items.
    bytes: u64,
    /// Its output is among the items.
    is_settled: bool,
}

#[derive(Default)]
struct PushedOut {
    order: VecDeque<String>,
    ids: HashSet<String>,
}

impl ResponseStore {
    pub fn new(limits: StoreLimits) -> Self {
        let background = Arc::new(Semaphore::new(limits.num_background_max));
        Self { limits, inner: Mutex::default(), background }
    }

    pub fn is_enabled(&self) -> bool {
        self.limits.num_responses_max > 0
    }

    /// A place among those that are made in the background.
    pub fn begin_background(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        self.background
            .clone()
            .try_acquire_owned()
            .map_err(|_| ApiError::TooManyBackground { limit: self.limits.num_background_max })
    }

    pub fn insert(&self, kept: Arc<Kept>) {
        self.insert_at(kept, Instant::now());
    }

    fn insert_at(&self, kept: Arc<Kept>, now: Instant) {
        let mut inner = self.lock();
        inner.insert(kept, now);
        inner.push_out(&self.limits, now);
    }

    /// A response that was inserted while it ran has ended. One that was deleted since then stays away.
    pub fn settle(&self, kept: &Kept, outcome: Outcome) {
        kept.end(outcome);
        let mut inner = self.lock();
        inner.settle(kept.id());
        inner.push_out(&self.limits, Instant::now());
    }

    pub fn get(&self, id: &str) -> Result<Arc<Kept>, ApiError> {
        self.get_at(id, Instant::now())
    }

    fn get_at(&self, id: &str, now: Instant) -> Result<Arc<Kept>, ApiError> {
        let mut inner = self.lock();
        inner.push_out(&self.limits, now);
        let number = inner.numbers.get(id);
        let found =
            number.and_then(|number| inner.responses.get(number)).map(|resident| resident.kept.clone());
        found.ok_or_else(|| self.not_found(&inner, id))
    }

    pub fn remove(&self, id: &str) -> Result<Arc<Kept>, ApiError> {
        let mut inner = self.lock();
        inner.push_out(&self.limits, Instant::now());
        let number = inner.numbers.get(id).copied();
        number.and_then(|number| inner.remove(number)).ok_or_else(|| self.not_found(&inner, id))
    }

    /// An item of any response that is kept.
    pub fn item(&self, id: &str) -> Option<Arc<Item>> {
        let inner = self.lock();
        let key = inner.item_keys.get(id)?;
        inner.items.get(key).map(|(item, _)| item.clone())
    }

    fn not_found(&self, inner: &Inner, id: &str) -> ApiError {
        let StoreLimits { num_responses_max, bytes_max, age_max, .. } = self.limits;
        let bounds = format!(
            "at most {num_responses_max} responses of together {bytes_max} bytes are kept, for at most {} s",
            age_max.as_secs()
        );
        let id: String = id.chars().take(64).collect();
        let message = match inner.pushed_out.ids.contains(&id) {
            true => format!("the response {id} was pushed out of the store: {bounds}"),
            false => format!("there is no response {id}; {bounds}"),
        };
        ApiError::ResponseNotFound { param: "id", message }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Inner {
    fn insert(&mut self, kept: Arc<Kept>, now: Instant) {
        let number = self.next;
        self.next += 1;
        for item in &kept.context {
            self.charge(item);
        }
        let id = kept.id().to_owned();
        self.responses.insert(number, Resident { kept, since: now, bytes: 0, is_settled: false });
        self.numbers.insert(id.clone(), number);
        self.settle(&id);
    }

    /// Charges a response with what it is now.
    fn settle(&mut self, id: &str) {
        let Some(resident) = self.numbers.get(id).and_then(|number| self.responses.get_mut(number)) else {
            return;
        };
        let (kept, bytes) = (resident.kept.clone(), resident.kept.num_bytes());
        self.bytes = self.bytes - resident.bytes + bytes;
        resident.bytes = bytes;
        if let Some(outcome) = kept.outcome().filter(|_| !resident.is_settled) {
            resident.is_settled = true;
            for item in &outcome.output {
                self.charge(item);
            }
        }
    }

    fn charge(&mut self, item: &Arc<Item>) {
        let (_, count) = self.items.entry(item.key).or_insert_with(|| {
            self.bytes += item.num_bytes();
            (item.clone(), 0)
        });
        *count += 1;
        self.item_keys.insert(item.id.clone(), item.key);
    }

    fn discharge(&mut self, item: &Item) {
        let Some((_, count)) = self.items.get_mut(&item.key) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        self.items.remove(&item.key);
        self.bytes -= item.num_bytes();
        if self.item_keys.get(&item.id) == Some(&item.key) {
            self.item_keys.remove(&item.id);
        }
    }

    fn remove(&mut self, number: u64) -> Option<Arc<Kept>> {
        let Resident { kept, bytes, is_settled, .. } = self.responses.remove(&number)?;
        self.numbers.remove(kept.id());
        self.bytes -= bytes;
        for item in &kept.context {
            self.discharge(item);
        }
        if let Some(outcome) = kept.outcome().filter(|_| is_settled) {
            for item in &outcome.output {
                self.discharge(item);
            }
        }
        Some(kept)
    }

    /// The oldest go until the rest is within the limits. Those that run stay: they are bounded on their own.
    fn push_out(&mut self, limits: &StoreLimits, now: Instant) {
        while let Some((&number, oldest)) =
            self.responses.iter().find(|(_, resident)| resident.kept.outcome().is_some())
        {
            let is_old = now.saturating_duration_since(oldest.since) > limits.age_max;
            let is_within =
                self.responses.len() <= limits.num_responses_max && self.bytes <= limits.bytes_max;
            if is_within && !is_old {
                return;
            }
            let kept = self.remove(number);
            self.pushed_out.extend(kept.map(|kept| kept.id().to_owned()));
        }
    }
}

impl Extend<String> for PushedOut {
    fn extend<T: IntoIterator<Item = String>>(&mut self, ids: T) {
        for id in ids {
            self.order.push_back(id.clone());
            self.ids.insert(id);
            if self.order.len() > NUM_PUSHED_OUT_KNOWN
                && let Some(forgotten) = self.order.pop_front()
            {
                self.ids.remove(&forgotten);
            }
        }
    }
}

#[cfg(test)]
#[path = "store/tests.rs"]
mod tests;
