//! The order in which a picture's patches go through the tower: those of a window after each other, so that a window is a segment.
//!
//! ```text
//! tokens of a picture of 3 x 5, windows of 2 x 2:   0  1 | 2  3 | 4
//!                                                   5  6 | 7  8 | 9        0 1 5 6 · 2 3 7 8 · 4 9 · 10 11 · 12 13 · 14
//!                                                  ------+------+---
//!                                                  10 11 |12 13 |14        each token is four patches
//! ```

use crate::vision_parts::MERGE;

const PATCHES: usize = MERGE * MERGE;

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Windows {
    /// Of each place in the tower, the patch that goes there, as the image processor counts them.
    pub patches: Vec<u32>,
    /// Row and column of that patch.
    pub places: Vec<[u32; 2]>,
    /// Of each token in raster order, where it is among the tower's.
    pub tokens: Vec<u32>,
    /// Where windows begin and end in the tower.
    pub segments: Vec<u32>,
}

impl Windows {
    /// Of so many rows and columns of patches, in windows of `side` tokens in each direction.
    pub fn set(&mut self, grid: [usize; 2], side: usize) {
        let [rows, columns] = grid.map(|n| n / MERGE);
        let Self { patches, places, tokens, segments } = self;
        patches.clear();
        places.clear();
        segments.clear();
        segments.push(0);
        tokens.clear();
        tokens.resize(rows * columns, 0);
        for (first_row, first_column) in
            (0..rows).step_by(side).flat_map(|r| (0..columns).step_by(side).map(move |c| (r, c)))
        {
            for row in first_row..rows.min(first_row + side) {
                for column in first_column..columns.min(first_column + side) {
                    let token = row * columns + column;
                    tokens[token] = (patches.len() / PATCHES) as u32;
                    for inside in 0..PATCHES {
                        patches.push((token * PATCHES + inside) as u32);
                        let place = [MERGE * row + inside / MERGE, MERGE * column + inside % MERGE];
                        places.push(place.map(|at| at as u32));
                    }
                }
            }
            segments.push(patches.len() as u32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_follow_one_another() {
        let mut windows = Windows { segments: vec![7], ..Windows::default() };
        windows.set([6, 10], 2);
        let order = [0, 1, 5, 6, 2, 3, 7, 8, 4, 9, 10, 11, 12, 13, 14];
        let patches: Vec<u32> = order.iter().flat_map(|token| (4 * token..).take(4)).collect();
        assert_eq!(windows.patches, patches);
        assert_eq!(windows.segments, [0, 16, 32, 40, 48, 56, 60]);
        for (place, &token) in order.iter().enumerate() {
            assert_eq!(windows.tokens[token as usize], place as u32);
        }
        assert_eq!(windows.places[..5], [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2]]);
        assert_eq!(windows.places[59], [5, 9]);
        windows.set([2, 4], 3);
        assert_eq!(
            (&windows.patches[..], &windows.segments[..]),
            (&[0, 1, 2, 3, 4, 5, 6, 7][..], &[0, 8][..])
        );
    }
}
