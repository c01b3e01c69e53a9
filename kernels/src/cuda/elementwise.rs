//! Launches of elementwise.cu.

use super::Cuda;
use super::compile::Source;
use super::driver::Args;
use super::launch::{Instance, Kernel, grid};
use crate::{DType, Tensor};

const THREADS: u32 = 256;

pub(super) const KERNEL: Kernel = Kernel {
    source: Source { name: "elementwise.cu", text: include_str!("elementwise.cu") },
    instances: &[
        Instance::new("add<1>", 32, 0),
        Instance::new("add<4>", 32, 0),
        Instance::new("add_gated<1>", 40, 0),
        Instance::new("add_gated<4>", 48, 0),
        Instance::new("silu_mul<1>", 40, 0),
        Instance::new("silu_mul<4>", 48, 0),
    ],
};

pub(crate) fn add(cuda: &Cuda, x: &mut Tensor, y: &Tensor) {
    assert_eq!([x.dtype(), y.dtype()], [DType::F32; 2], "add: types");
    let args = Args::new().pointer(x.pointer()).pointer(y.pointer()).value(x.len() as u64);
    launch(cuda, "add", x.row_len(), x.len(), args);
}

pub(crate) fn add_gated(cuda: &Cuda, x: &mut Tensor, y: &Tensor, gate: &Tensor) {
    assert_eq!([x.dtype(), y.dtype(), gate.dtype()], [DType::F32; 3], "add_gated: types");
    let args = Args::new().pointer(x.pointer()).pointer(y.pointer()).pointer(gate.pointer());
    let args = args.value(x.row_len() as i32).value(x.len() as u64);
    launch(cuda, "add_gated", x.row_len(), x.len(), args);
}

pub(crate) fn silu_mul(cuda: &Cuda, gate_up: &Tensor, out: &mut Tensor) {
    assert_eq!([gate_up.dtype(), out.dtype()], [DType::F32; 2], "silu_mul: types");
    let args = Args::new().pointer(gate_up.pointer()).value(out.row_len() as i32);
    let args = args.value(out.len() as u64).pointer(out.pointer());
    launch(cuda, "silu_mul", out.row_len(), out.len(), args);
}

fn launch(cuda: &Cuda, name: &str, width: usize, len: usize, args: Args) {
    if len == 0 {
        return;
    }
    let vector = if width.is_multiple_of(4) { 4 } else { 1 };
    let blocks = len.div_ceil(THREADS as usize * vector);
    // SAFETY: `ops` checked that all tensors have `len` elements (gate_up twice as many), in rows of `width`, and a gate one for each row.
    unsafe { cuda.launch(&KERNEL, &format!("{name}<{vector}>"), grid(blocks, THREADS), args) };
}
