//! A coarse copy of a matrix, by which it is told what rows of it *can* give one of the largest numbers of a product.
//!
//! ```text
//! coarse  ŵ [N, K]   int8 in groups of 32
//! norms     [2, N]   f32, rounded up: ‖w - ŵ‖ of each row, then ‖ŵ‖
//! ```
//! w is what the exact matrix holds, after its own rounding. For the processor; `ops::screened_linear` says what it is good for.

use crate::cpu::pack as cpu_pack;
use crate::cpu::shared::SharedMut;
use crate::packed::Packed;
use crate::panel::PANEL;
use crate::quantize::GroupedRow;
use crate::{DType, Device, Matrix, MatrixBatch, SharedBytes, Tensor, WeightType};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Of a matrix of floats.
#[derive(Debug)]
pub struct Screen {
    coarse: Matrix,
    norms: Tensor,
    /// Not below ‖w‖ of any row; not finite where one has no bound.
    longest: f32,
    room: Mutex<ScreenRoom>,
}

/// What a product in progress keeps.
#[derive(Debug)]
pub(crate) struct ScreenRoom {
    /// `[2, MAX_ROWS, panels]`: of each panel the largest number that is surely reached, then the largest that can be.
    pub bounds: Tensor,
    /// Those that hold a number that may be among the largest.
    pub panels: Vec<u32>,
    pub sorted: Vec<f32>,
}

impl Screen {
    /// Rows of activations that are screened at a time, at most: of more, the coarse product computes as long as memory needs for the exact one, and
    /// panels that one row or another marks become many (docs/performance/weights.md).
    pub const MAX_ROWS: usize = 4;

    /// Of weights of the processor in floats.
    pub fn of(exact: &Matrix) -> Self {
        let (device, n, k) = (exact.device().clone(), exact.n(), exact.k());
        let stored_as = WeightType::Int8;
        let mut coarse = MatrixBatch::unwritten(&device, stored_as, [1, n, k]);
        let mut norms = Tensor::zeros(&device, DType::F32, &[2, n]);
        let to = SharedMut::new(norms.as_f32_mut());
        coarse.fill_by_panel(|panel, bytes| {
            let mut values = vec![0.0; PANEL * k];
            exact.as_batch().read_panel(panel, &mut values);
            let (mut row, mut meant) = (GroupedRow::new(k), vec![0.0; k]);
            let first = panel * PANEL;
            for (column, values) in values.chunks_exact(k).enumerate().take(n - first) {
                row.quantize(stored_as, values);
                row.dequantize(&mut meant);
                for (index, group) in bytes.chunks_exact_mut(stored_as.group_bytes()).enumerate() {
                    cpu_pack::pack_group(group, stored_as, column, &row, index);
                }
                let off = values.iter().zip(&meant).map(|(w, meant)| f64::from(*w) - f64::from(*meant));
                let [off, meant] = [norm_above(off), norm_above(meant.iter().map(|&w| f64::from(w)))];
                // SAFETY: this panel's own rows, each once.
                unsafe {
                    to.slice(first + column, 1)[0] = off;
                    to.slice(n + first + column, 1)[0] = meant;
                }
            }
        });
        Self::new(Matrix::of_batch(coarse), norms)
    }

    fn new(coarse: Matrix, norms: Tensor) -> Self {
        let (off, meant) = norms.as_f32().split_at(coarse.n());
        let longest = off.iter().zip(meant).map(|(off, meant)| off + meant);
        // What is not a number stays so.
        let longest = longest.fold(0.0f32, |max, x| if x <= max || max.is_nan() { max } else { x });
        let room = Mutex::new(ScreenRoom::new(coarse.device(), coarse.n()));
        Self { coarse, norms, longest: longest.next_up(), room }
    }

    /// Of the copy and the norms.
    pub fn packed_bytes(n: usize, k: usize) -> u64 {
        Self::part_bytes(&[n, k]).into_iter().sum()
    }

    /// What it has beside them, for a product in progress.
    pub fn room_bytes(n: usize) -> u64 {
        Tensor::bytes_of(DType::F32, &ScreenRoom::shape(n))
    }

    pub fn coarse(&self) -> &Matrix {
        &self.coarse
    }

    /// ‖w - ŵ‖ and ‖ŵ‖ of each row.
    pub(crate) fn norms(&self) -> (&[f32], &[f32]) {
        self.norms.as_f32().split_at(self.coarse.n())
    }

    pub(crate) fn longest(&self) -> f32 {
        self.longest
    }

    pub(crate) fn room(&self) -> MutexGuard<'_, ScreenRoom> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ScreenRoom {
    fn shape(n: usize) -> [usize; 3] {
        [2, Screen::MAX_ROWS, n.div_ceil(PANEL)]
    }

    fn new(device: &Device, n: usize) -> Self {
        let panels = n.div_ceil(PANEL);
        Self {
            bounds: Tensor::zeros(device, DType::F32, &Self::shape(n)),
            panels: Vec::with_capacity(panels),
            sorted: Vec::with_capacity(panels),
        }
    }
}

/// The length of a vector, rounded up to f32; NaN where a value is not finite.
fn norm_above(values: impl Iterator<Item = f64>) -> f32 {
    let squares: f64 = values.map(|x| x * x).sum();
    above(squares.sqrt())
}

/// In f32, and not below x, which is the result of sums in f64.
pub(crate) fn above(x: f64) -> f32 {
    ((x * (1.0 + 1e-7)) as f32).next_up()
}

impl Packed for Screen {
    /// `[N, K]`.
    type Form = [usize; 2];

    fn part_bytes(&[n, k]: &Self::Form) -> Vec<u64> {
        vec![Matrix::packed_bytes(WeightType::Int8, n, k), Tensor::bytes_of(DType::F32, &[2, n])]
    }

    fn from_parts(device: &Device, &[n, k]: &Self::Form, mut parts: Vec<SharedBytes>) -> Self {
        let norms = parts.split_off(1);
        let norms = Tensor::from_parts(device, &(DType::F32, vec![2, n]), norms);
        Self::new(Matrix::from_parts(device, &(WeightType::Int8, [n, k]), parts), norms)
    }

    fn is(&self, &[n, k]: &Self::Form) -> bool {
        [self.coarse.n(), self.coarse.k()] == [n, k]
    }

    fn share(&mut self) -> Vec<SharedBytes> {
        [self.coarse.share(), self.norms.share()].concat()
    }
}
