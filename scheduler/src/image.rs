//! Pictures of a prompt.

use crate::Digest;
use std::sync::Arc;

/// A picture as the model's image processor prepared it. The scheduler reads the digest and the counts; the pixels are only carried.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageInput {
    /// Of the pixels and of the processor's settings.
    pub digest: Digest,
    /// Rows of patches, columns of patches.
    pub grid: [usize; 2],
    /// Placeholder tokens that the picture takes in the prompt: rows of its embedding.
    pub num_tokens: usize,
    /// Rows and columns in which its tokens have their positions, row by row, where the model rotates by time, row and column: what follows the
    /// picture goes on after the longer side. `None`: one after another, as a text's.
    pub position_grid: Option<[usize; 2]>,
    /// `[grid[0] * grid[1], patch_len]`, row-major, normalised.
    pub patches: Vec<f32>,
}

impl ImageInput {
    /// What encoding it costs, in the unit of the encode budget.
    pub fn num_patches(&self) -> usize {
        self.grid[0] * self.grid[1]
    }

    /// Positions that it takes of what follows: as many as tokens, or fewer.
    pub fn num_positions(&self) -> usize {
        self.position_grid.map_or(self.num_tokens, |[rows, columns]| rows.max(columns))
    }
}

/// A run of placeholder tokens: `image.num_tokens` of them from position `start`.
#[derive(Debug, Clone)]
pub struct ImageSpan {
    pub start: usize,
    pub image: Arc<ImageInput>,
}

impl ImageSpan {
    pub fn end(&self) -> usize {
        self.start + self.image.num_tokens
    }
}
