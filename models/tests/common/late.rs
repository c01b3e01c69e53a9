//! A constraint whose masks come late: steps go on without them, and what its sequence says must stay the same.

use scheduler::{Accepted, Constraint, TokenId, TokenMask};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Allows three tokens in four, others after each token.
#[derive(Debug, Clone)]
pub struct Late {
    pub seed: u64,
    /// A mask is late up to so many times.
    pub most: usize,
    num_accepted: u64,
    mask: Option<Arc<LateMask>>,
}

#[derive(Debug)]
struct LateMask {
    words: Vec<u32>,
    /// How often it is still late.
    left: AtomicUsize,
}

fn mix(seed: u64, number: u64) -> u64 {
    let x = (seed ^ number.rotate_left(32)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^ (x >> 31)
}

impl Late {
    pub fn new(seed: u64, most: usize) -> Self {
        Self { seed, most, num_accepted: 0, mask: None }
    }

    fn mask(&self) -> LateMask {
        let random = |number: u64| mix(mix(self.seed, self.num_accepted), number);
        // Enough words for the vocabularies of the fixtures.
        let words = (0..16).map(|word| (random(word) | random(word + 100)) as u32).collect();
        LateMask { words, left: AtomicUsize::new(random(1000) as usize % (self.most + 1)) }
    }
}

impl Constraint for Late {
    fn next_mask(&mut self) -> Option<Arc<dyn TokenMask>> {
        if self.mask.is_none() {
            self.mask = Some(Arc::new(self.mask()));
        }
        self.mask.clone().map(|mask| mask as Arc<dyn TokenMask>)
    }

    fn accept(&mut self, _: TokenId) -> Accepted {
        (self.num_accepted, self.mask) = (self.num_accepted + 1, None);
        Accepted::Open
    }

    fn boxed_clone(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

impl TokenMask for LateMask {
    fn allowed(&self) -> Option<&[u32]> {
        self.left.store(0, Relaxed);
        Some(&self.words)
    }

    fn is_ready(&self) -> bool {
        self.left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_err()
    }
}
