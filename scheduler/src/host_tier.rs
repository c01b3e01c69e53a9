//! The second tier of cached prefixes: what blocks held when they were given away, in places of the host's memory. Numbers only; whoever
//! runs the steps copies the bytes.
//!
//! ```text
//!  idle (least recently used first) ── store: takes the content of a block ──▶ pinned until the step is made
//!        ▲                          ── pin: a block is to be loaded from it ──▶ pinned until the copy has landed
//!        └───────────────────────────────── unpin: the last pin ──────────────┘
//! ```
//! A place keeps its content when a block was loaded from it: when that block is given away again there is nothing to copy.

use crate::Digest;
use std::collections::{BTreeMap, BTreeSet};

/// A place for one block in the host's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostBlockId(pub u32);

#[derive(Debug, Clone, Default)]
struct Place {
    digest: Option<Digest>,
    num_pins: u32,
    /// Counted in uses; 0: never, or not worth keeping.
    used_at: u64,
}

#[derive(Debug, Default)]
pub(crate) struct HostTier {
    places: Vec<Place>,
    /// Places without a pin, least recently used first.
    idle: BTreeSet<(u64, HostBlockId)>,
    by_digest: BTreeMap<Digest, HostBlockId>,
    num_uses: u64,
}

/// What becomes of the content of a block that is given away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stored {
    /// To be copied here. Pinned.
    To(HostBlockId),
    /// The host has it.
    Before,
    /// Every place is pinned.
    Nowhere,
}

impl HostTier {
    pub fn new(num_places: usize) -> Self {
        let ids = 0..u32::try_from(num_places).expect("places are numbered with 32 bits");
        Self {
            places: vec![Place::default(); num_places],
            idle: ids.map(|i| (0, HostBlockId(i))).collect(),
            ..Self::default()
        }
    }

    pub fn has_places(&self) -> bool {
        !self.places.is_empty()
    }

    /// Places that hold a content.
    pub fn num_used(&self) -> usize {
        self.by_digest.len()
    }

    pub fn num_pins(&self, id: HostBlockId) -> u32 {
        self.places[id.0 as usize].num_pins
    }

    /// Finds a place for a content, which is the one that was used last of all from now on.
    pub fn store(&mut self, digest: Digest) -> Stored {
        if let Some(&id) = self.by_digest.get(&digest) {
            self.pin_place(id);
            self.unpin(id);
            return Stored::Before;
        }
        let Some(&(_, id)) = self.idle.first() else { return Stored::Nowhere };
        self.pin_place(id);
        if let Some(old) = self.places[id.0 as usize].digest.replace(digest) {
            self.by_digest.remove(&old);
        }
        self.by_digest.insert(digest, id);
        Stored::To(id)
    }

    /// Where a content is, if it is here. Pinned.
    pub fn pin(&mut self, digest: &Digest) -> Option<HostBlockId> {
        let &id = self.by_digest.get(digest)?;
        self.pin_place(id);
        Some(id)
    }

    fn pin_place(&mut self, id: HostBlockId) {
        let place = &mut self.places[id.0 as usize];
        if place.num_pins == 0 {
            self.idle.remove(&(place.used_at, id));
        }
        place.num_pins += 1;
    }

    /// Takes one pin off.
    pub fn unpin(&mut self, id: HostBlockId) {
        let place = &mut self.places[id.0 as usize];
        assert!(place.num_pins > 0, "{id:?} is unpinned twice");
        place.num_pins -= 1;
        if place.num_pins == 0 {
            self.num_uses += 1;
            place.used_at = if place.digest.is_some() { self.num_uses } else { 0 };
            self.idle.insert((place.used_at, id));
        }
    }

    /// Whether a place still stands for this content.
    pub fn holds(&self, id: HostBlockId, digest: &Digest) -> bool {
        self.places[id.0 as usize].digest.as_ref() == Some(digest)
    }

    /// Nobody shall find this content again.
    pub fn withdraw(&mut self, digest: &Digest) {
        let Some(id) = self.by_digest.remove(digest) else { return };
        let place = &mut self.places[id.0 as usize];
        place.digest = None;
        if place.num_pins == 0 {
            self.idle.remove(&(place.used_at, id));
            place.used_at = 0;
            self.idle.insert((0, id));
        }
    }

    /// Asserts that the pins are exactly `pinned`, and that the index is sound.
    pub fn check(&self, pinned: impl Iterator<Item = HostBlockId>) {
        let mut pins = vec![0; self.places.len()];
        pinned.for_each(|id| pins[id.0 as usize] += 1);
        let mut num_known = 0;
        for (index, place) in self.places.iter().enumerate() {
            let id = HostBlockId(index as u32);
            assert_eq!(place.num_pins, pins[index], "pins of {id:?}");
            let is_idle = self.idle.contains(&(place.used_at, id));
            assert_eq!(is_idle, place.num_pins == 0, "whether {id:?} may be given away");
            if let Some(digest) = &place.digest {
                assert_eq!(self.by_digest.get(digest), Some(&id), "index entry of {id:?}");
                num_known += 1;
            }
        }
        assert_eq!(self.by_digest.len(), num_known, "index entries without a place");
        let num_idle = pins.iter().filter(|&&n| n == 0).count();
        assert_eq!(self.idle.len(), num_idle, "idle entries without a place");
    }
}
