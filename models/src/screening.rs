//! When the output head is screened: as long as it pays. And which weights are asked for beforehand: those of the head, or of its coarse copy.

use kernels::ops::{self, Activation, ReadyPlan, Screened};
use kernels::{Matrix, Screen, Tensor};
use std::cell::Cell;

/// A coarse copy of the head, and what it was good for of late.
pub struct HeadScreen {
    screen: Screen,
    counts: Cell<ScreenCounts>,
    /// Products that take the whole head before the next one is screened.
    rest: Cell<u32>,
    /// The rest after the next one that shows too little.
    next_rest: Cell<u32>,
}

/// What became of products with the head that could be screened, since the model was loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScreenCounts {
    /// Screened with success.
    pub screened: u64,
    /// Panels of 32 rows of the head that those computed exactly.
    pub panels: u64,
    /// Screened, and computed as a whole all the same.
    pub whole: u64,
    /// Not tried.
    pub untried: u64,
}

/// What steps read: it ends with the head, or with the coarse copy where few rows are screened.
pub struct StepReads {
    whole: ReadyPlan,
    screened: Option<ReadyPlan>,
    /// Which of them is followed.
    follows_screened: Cell<bool>,
}

impl StepReads {
    /// Follows what most steps of one sequence read.
    pub fn new(whole: ReadyPlan, screened: Option<ReadyPlan>) -> Self {
        screened.as_ref().unwrap_or(&whole).follow();
        let follows_screened = Cell::new(screened.is_some());
        Self { whole, screened, follows_screened }
    }

    /// A step begins after which so many rows go through the head.
    pub fn begin(&self, num_rows: usize) {
        let Some(screened) = &self.screened else { return };
        let is_screened = num_rows <= Screen::MAX_ROWS;
        if self.follows_screened.replace(is_screened) != is_screened {
            let plan = if is_screened { screened } else { &self.whole };
            plan.follow();
        }
    }
}

/// Products without a try after one that showed too little, at most.
const LONGEST_REST: u32 = 64;

impl HeadScreen {
    pub fn new(screen: Screen) -> Self {
        Self { screen, counts: Cell::default(), rest: Cell::new(0), next_rest: Cell::new(1) }
    }

    pub fn counts(&self) -> ScreenCounts {
        self.counts.get()
    }

    /// As `ops::screened_linear`. What it reads, and no number that is looked at, depends on what was computed before: where a coarse product shows
    /// too little, it was read for nothing, and the next ones go without.
    pub fn linear(&self, x: &Tensor, head: &Matrix, tops: &[usize], out: &mut Tensor) {
        let ScreenCounts { mut screened, mut panels, mut whole, mut untried } = self.counts.get();
        if let Some(rest) = self.rest.get().checked_sub(1) {
            self.rest.set(rest);
            untried += 1;
            ops::linear(x, head, None, Activation::None, out);
        } else {
            match ops::screened_linear(x, head, &self.screen, tops, out) {
                Screened::Panels { computed, .. } => {
                    screened += 1;
                    panels += computed as u64;
                    self.next_rest.set(1);
                }
                Screened::Whole => {
                    whole += 1;
                    let rest = self.next_rest.get();
                    self.rest.set(rest);
                    self.next_rest.set((2 * rest).min(LONGEST_REST));
                }
                Screened::Untried => untried += 1,
            }
        }
        self.counts.set(ScreenCounts { screened, panels, whole, untried });
    }
}
