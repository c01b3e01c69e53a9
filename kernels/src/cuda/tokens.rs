//! Tokens of linear layers as tensor cores take them, where they are many: rounded once and packed (tokens.cuh), by tokens.cu.

use super::Cuda;
use super::compile::Source;
use super::driver::{Args, DevicePtr, Grid};
use super::launch::{Instance, Kernel};
use crate::{DType, Tensor, WeightType};

const THREADS: u32 = 256;
/// Tokens and numbers along K come in multiples of these, as in tokens.cuh.
const GRAIN: [usize; 2] = [128, 32];

pub(super) const KERNEL: Kernel = Kernel {
    source: Source { name: "tokens.cu", text: include_str!("tokens.cu") },
    instances: &[
        Instance::new("pack_tokens<bf16, 1>", 40, 0),
        Instance::new("pack_tokens<bf16, 4>", 40, 0),
        Instance::new("pack_tokens<f16, 1>", 40, 0),
        Instance::new("pack_tokens<f16, 4>", 40, 0),
        Instance::new("pack_silu_mul<bf16, 1>", 48, 0),
        Instance::new("pack_silu_mul<bf16, 4>", 48, 0),
        Instance::new("pack_silu_mul<f16, 1>", 48, 0),
        Instance::new("pack_silu_mul<f16, 4>", 48, 0),
    ],
};

/// Where attention leaves its result `[T, H, D]` beside f32, or in its place, rounded and packed for a linear layer: H · D are whole columns, and
/// rows from T on stay as they are.
#[derive(Clone, Copy)]
pub(crate) struct PackedResult<'a> {
    pub room: Option<&'a Tensor>,
    /// Whether f32 are read as well.
    pub floats: bool,
}

impl PackedResult<'_> {
    pub const NONE: Self = Self { room: None, floats: true };

    /// Null where nothing is packed.
    pub fn pointer(&self) -> DevicePtr {
        self.room.map_or(DevicePtr::NULL, Tensor::pointer)
    }

    pub fn leaves_floats(&self) -> bool {
        self.room.is_none() || self.floats
    }

    /// Of so many tokens and numbers.
    pub fn check(&self, op: &str, sizes: [usize; 2]) {
        if let Some(room) = self.room {
            assert!(packed_bytes(sizes) <= room.bytes(), "{op}: no room for {} tokens", sizes[0]);
            assert!(sizes[1].is_multiple_of(GRAIN[1]), "{op}: width of what is packed");
        }
    }
}

/// Filled up.
pub(crate) fn padded([rows, width]: [usize; 2]) -> [usize; 2] {
    [rows.next_multiple_of(GRAIN[0]), width.next_multiple_of(GRAIN[1])]
}

/// What tensor cores take tokens as beside these weights.
pub(crate) fn taken_by(stored_as: WeightType) -> DType {
    stored_as.float().unwrap_or(DType::BF16)
}

/// What so many tokens of so many numbers take.
pub(crate) fn packed_bytes(sizes: [usize; 2]) -> u64 {
    2 * padded(sizes).iter().product::<usize>() as u64
}

/// Rounds x `[T, K]` to bf16 or f16, into a room of at least `packed_bytes([T, K])`.
pub(crate) fn pack(cuda: &Cuda, x: &Tensor, dtype: DType, room: &Tensor) {
    launch(cuda, "pack_tokens", x, x.row_len(), dtype, room);
}

/// Of gate and up `[T, 2 K]`, the product that goes on to the next layer.
pub(crate) fn pack_silu_mul(cuda: &Cuda, gate_up: &Tensor, dtype: DType, room: &Tensor) {
    launch(cuda, "pack_silu_mul", gate_up, gate_up.row_len() / 2, dtype, room);
}

/// K numbers of each token, from rows of x.
fn launch(cuda: &Cuda, name: &str, x: &Tensor, width: usize, dtype: DType, room: &Tensor) {
    let rows = x.rows();
    assert_eq!(x.dtype(), DType::F32, "tokens: type of x");
    assert!(packed_bytes([rows, width]) <= room.bytes(), "tokens: no room for {rows} of {width}");
    let vector = if width.is_multiple_of(4) { 4 } else { 1 };
    let [tokens, columns] = padded([rows, width]);
    let blocks = [tokens / 8, columns.div_ceil(256), 1].map(|n| n as u32);
    let args =
        Args::new().pointer(x.pointer()).value(rows as i32).value(width as i32).pointer(room.pointer());
    let expression = format!("{name}<{}, {vector}>", dtype.cpp());
    let grid = Grid { blocks, threads: [THREADS, 1, 1], shared: 0 };
    // SAFETY: x is T rows of K or of twice as many, and the room holds them, filled up.
    unsafe { cuda.launch(&KERNEL, &expression, grid, args) };
}
