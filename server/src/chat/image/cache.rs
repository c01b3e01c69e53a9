//! Pictures that are ready for the model, by what was sent: a picture that comes again, as those of a conversation do with each turn,
//! is neither decoded nor resized again. One that comes several times at once is processed once; the others wait for it.

use super::error::ImageInputError;
use crate::chat::picture::Picture;
use scheduler::Digest;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// The frames of one picture or animation, in order.
pub type Frames = Arc<[Picture]>;

type Outcome = Result<Frames, ImageInputError>;

/// Of the bytes that were sent, and of the salt of whoever sent them. What they become depends on the bytes alone: a cache belongs to one
/// processor and one set of limits.
pub type Key = [u8; 32];

pub fn key(salt: &Digest, bytes: &[u8]) -> Key {
    *blake3::keyed_hash(&salt.0, bytes).as_bytes()
}

/// A picture's name among those of its salt: embeddings are found by it. Without a salt it is the picture's own.
pub fn salted(salt: &Digest, digest: Digest) -> Digest {
    match *salt == Digest::default() {
        true => digest,
        false => Digest(key(salt, &digest.0)),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    Cached,
    /// Processed by this call.
    Made,
}

#[derive(Debug)]
pub struct ProcessedImages {
    capacity: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<Key, Entry>,
    /// Finished entries, least recently used first.
    order: BTreeMap<u64, Key>,
    bytes: usize,
    num_uses: u64,
}

#[derive(Debug)]
struct Entry {
    outcome: Arc<OnceLock<Outcome>>,
    /// `None` while it is being made.
    finished: Option<Finished>,
}

#[derive(Debug, Clone, Copy)]
struct Finished {
    bytes: usize,
    used_at: u64,
}

impl ProcessedImages {
    /// `capacity` is in bytes; with 0 nothing is kept, and what comes several times at once is still made once.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, state: Mutex::default() }
    }

    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// What `make` gives for this key, now or earlier. Failures are told to all who wait, and not kept.
    pub fn get(&self, key: Key, make: impl FnOnce() -> Outcome) -> (Outcome, Found) {
        let slot = self.lock().slot(key);
        let mut found = Found::Cached;
        let outcome = slot.get_or_init(|| {
            found = Found::Made;
            // Should `make` panic, the entry must not stay unfinished for ever.
            let unfinished = Unfinished { cache: self, key, slot: &slot };
            let outcome = make();
            std::mem::forget(unfinished);
            outcome
        });
        if found == Found::Made {
            self.lock().finish(key, &slot, outcome, self.capacity);
        }
        (outcome.clone(), found)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock leaves the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Unfinished<'a> {
    cache: &'a ProcessedImages,
    key: Key,
    slot: &'a Arc<OnceLock<Outcome>>,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        self.cache.lock().forget(self.key, self.slot);
    }
}

impl State {
    /// Where the outcome is or will be.
    fn slot(&mut self, key: Key) -> Arc<OnceLock<Outcome>> {
        self.num_uses += 1;
        let used_at = self.num_uses;
        let entry =
            self.entries.entry(key).or_insert_with(|| Entry { outcome: Arc::default(), finished: None });
        if let Some(finished) = &mut entry.finished {
            self.order.remove(&finished.used_at);
            finished.used_at = used_at;
            self.order.insert(used_at, key);
        }
        entry.outcome.clone()
    }

    fn finish(&mut self, key: Key, slot: &Arc<OnceLock<Outcome>>, outcome: &Outcome, capacity: usize) {
        let Ok(frames) = outcome else { return self.forget(key, slot) };
        let bytes = frames.iter().map(Picture::bytes).sum();
        self.num_uses += 1;
        let used_at = self.num_uses;
        match self.entries.get_mut(&key) {
            Some(entry) if Arc::ptr_eq(&entry.outcome, slot) => {
                entry.finished = Some(Finished { bytes, used_at });
            }
            _ => return,
        }
        self.order.insert(used_at, key);
        self.bytes += bytes;
        while self.bytes > capacity {
            let Some((_, oldest)) = self.order.pop_first() else { return };
            let entry = self.entries.remove(&oldest).expect("what is in the order is an entry");
            self.bytes -= entry.finished.expect("what is in the order is finished").bytes;
        }
    }

    /// Removes an entry that came to nothing.
    fn forget(&mut self, key: Key, slot: &Arc<OnceLock<Outcome>>) {
        if self.entries.get(&key).is_some_and(|entry| Arc::ptr_eq(&entry.outcome, slot)) {
            self.entries.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use scheduler::ImageInput;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    /// As many floats as its name.
    fn frames(name: u8) -> Outcome {
        let image = ImageInput {
            digest: Digest([name; 32]),
            grid: [1, 1],
            num_tokens: 1,
            position_grid: None,
            patches: vec![0.0; usize::from(name)],
        };
        Ok(Arc::new([image.into()]))
    }

    fn size(name: u8) -> usize {
        frames(name).unwrap().iter().map(Picture::bytes).sum()
    }

    fn get(cache: &ProcessedImages, name: u8) -> Found {
        let (outcome, found) = cache.get([name; 32], || frames(name));
        let Picture::Rows(image) = &outcome.unwrap()[0] else { panic!("tokens") };
        assert_eq!(image.digest, Digest([name; 32]));
        found
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let cache = ProcessedImages::new(size(1) + size(2) + size(3));
        [1, 2, 3].iter().for_each(|&name| assert_eq!(get(&cache, name), Found::Made));
        assert_eq!(cache.bytes(), size(1) + size(2) + size(3));
        assert_eq!(get(&cache, 1), Found::Cached);
        // 4 takes the place of 2 and then 3, because 1 was used after them.
        assert_eq!(get(&cache, 4), Found::Made);
        assert_eq!(get(&cache, 1), Found::Cached);
        assert_eq!(cache.bytes(), size(1) + size(4));
        assert_eq!(get(&cache, 2), Found::Made);
    }

    #[test]
    fn what_is_larger_than_the_cache_is_not_kept() {
        let cache = ProcessedImages::new(size(1));
        assert_eq!(get(&cache, 200), Found::Made);
        assert_eq!((cache.bytes(), get(&cache, 200)), (0, Found::Made));
        let none = ProcessedImages::new(0);
        assert_eq!((get(&none, 1), get(&none, 1), none.bytes()), (Found::Made, Found::Made, 0));
        assert!(none.lock().entries.is_empty() && cache.lock().entries.is_empty());
    }

    #[test]
    fn failures_and_panics_leave_nothing() {
        let cache = ProcessedImages::new(1 << 20);
        let (outcome, found) = cache.get([1; 32], || Err(ImageInputError::Empty));
        assert_eq!((outcome, found), (Err(ImageInputError::Empty), Found::Made));
        let panicked = catch_unwind(AssertUnwindSafe(|| cache.get([1; 32], || panic!("planted"))));
        assert!(panicked.is_err());
        assert!(cache.lock().entries.is_empty());
        assert_eq!(get(&cache, 1), Found::Made);
    }

    #[test]
    fn what_comes_at_once_is_made_once() {
        // Nothing is kept, so whoever came too late would make it again.
        let cache = ProcessedImages::new(0);
        let (made, hits) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let all_have_asked = || Arc::strong_count(&cache.lock().entries[&[9; 32]].outcome) == 1 + 8;
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let (_, found) = cache.get([9; 32], || {
                        while !all_have_asked() {
                            std::thread::yield_now();
                        }
                        made.fetch_add(1, SeqCst);
                        frames(9)
                    });
                    hits.fetch_add(usize::from(found == Found::Cached), SeqCst);
                });
            }
        });
        assert_eq!((made.into_inner(), hits.into_inner()), (1, 7));
    }

    /// Against a plain list, over random uses.
    #[test]
    fn random_uses_agree_with_a_plain_list() {
        let capacity = 3 * size(40);
        let cache = ProcessedImages::new(capacity);
        let mut list: Vec<u8> = Vec::new();
        let mut state = 5u32;
        for _ in 0..2000 {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            let name = 1 + (state >> 24) as u8 % 90;
            let known = list.iter().position(|&other| other == name);
            let expected = if known.is_some() { Found::Cached } else { Found::Made };
            assert_eq!(get(&cache, name), expected, "{name}");
            known.map(|at| list.remove(at));
            list.push(name);
            while list.iter().map(|&name| size(name)).sum::<usize>() > capacity {
                list.remove(0);
            }
            assert_eq!(cache.bytes(), list.iter().map(|&name| size(name)).sum::<usize>());
        }
    }
}
