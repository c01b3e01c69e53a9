//! Offsets within the one block of device memory: first fit, freed neighbours grow together. What is allocated at start stays
//! until the end, so that the order of allocation decides all addresses.

use std::collections::BTreeMap;

/// Regions begin at multiples of this, and at least one unit of it lies between two.
pub const GRAIN: u64 = 256;

#[derive(Debug)]
pub(crate) struct Arena {
    /// Start and length of each gap.
    free: BTreeMap<u64, u64>,
    /// Start and length of each region, gap included.
    used: BTreeMap<u64, u64>,
}

impl Arena {
    pub fn new(bytes: u64) -> Self {
        Self { free: BTreeMap::from([(0, bytes / GRAIN * GRAIN)]), used: BTreeMap::new() }
    }

    /// What a region of so many bytes takes.
    pub fn footprint(bytes: u64) -> u64 {
        bytes.next_multiple_of(GRAIN) + GRAIN
    }

    /// The offset of a new region, if one gap is large enough.
    pub fn allocate(&mut self, bytes: u64) -> Option<u64> {
        let wanted = Self::footprint(bytes);
        let (&start, &len) = self.free.iter().find(|&(_, &len)| len >= wanted)?;
        self.free.remove(&start);
        if len > wanted {
            self.free.insert(start + wanted, len - wanted);
        }
        self.used.insert(start, wanted);
        Some(start)
    }

    pub fn free(&mut self, start: u64) {
        let mut len = self.used.remove(&start).expect("a region is freed once");
        let mut start = start;
        if let Some(next) = self.free.remove(&(start + len)) {
            len += next;
        }
        if let Some((&before, &before_len)) = self.free.range(..start).next_back()
            && before + before_len == start
        {
            (start, len) = (before, before_len + len);
        }
        self.free.insert(start, len);
    }

    /// Bytes in gaps.
    pub fn free_bytes(&self) -> u64 {
        self.free.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_apart_and_come_back() {
        let mut arena = Arena::new(4 * GRAIN + 100);
        let a = arena.allocate(1).expect("room");
        let b = arena.allocate(GRAIN).expect("room");
        assert_eq!([a, b], [0, 2 * GRAIN]);
        assert_eq!(arena.allocate(0), None);
        arena.free(a);
        assert_eq!(arena.allocate(2 * GRAIN), None);
        arena.free(b);
        assert_eq!(arena.free_bytes(), 4 * GRAIN);
        assert_eq!(arena.allocate(3 * GRAIN), Some(0));
    }

    #[test]
    fn gaps_grow_together_on_both_sides() {
        let mut arena = Arena::new(100 * GRAIN);
        let regions: Vec<u64> = (0..50).map(|_| arena.allocate(7).expect("room")).collect();
        assert_eq!(arena.allocate(1), None);
        for i in [1, 3, 2, 0, 49, 48] {
            arena.free(regions[i]);
        }
        assert_eq!(arena.free.len(), 2);
        assert_eq!(arena.allocate(7 * GRAIN), Some(0));
    }
}
