//! Launches of norm.cu: one block for each row.

use super::compile::Source;
use super::driver::Args;
use super::launch::{Instance, Kernel, grid};
use super::{Cuda, tokens};
use crate::{DType, Tensor};

const THREADS: u32 = 256;

pub(super) const KERNEL: Kernel = Kernel {
    source: Source { name: "norm.cu", text: include_str!("norm.cu") },
    instances: &[
        Instance::new("rms_norm<float, 1>", 32, 128),
        Instance::new("rms_norm<float, 4>", 40, 128),
        Instance::new("rms_norm<bf16, 1>", 32, 128),
        Instance::new("rms_norm<bf16, 4>", 40, 128),
        Instance::new("add_rms_norm<float, 1>", 32, 128),
        Instance::new("add_rms_norm<float, 4>", 40, 128),
        Instance::new("add_rms_norm<bf16, 1>", 32, 128),
        Instance::new("add_rms_norm<bf16, 4>", 40, 128),
        Instance::new("layer_norm<float, 1>", 40, 256),
        Instance::new("layer_norm<float, 4>", 40, 256),
        Instance::new("layer_norm<bf16, 1>", 40, 256),
        Instance::new("layer_norm<bf16, 4>", 40, 256),
        Instance::new("layer_norm_heads<float, 1>", 48, 256),
        Instance::new("layer_norm_heads<float, 4>", 48, 256),
        Instance::new("pack_rms_norm<bf16, 1>", 64, 256),
        Instance::new("pack_rms_norm<bf16, 4>", 64, 256),
        Instance::new("pack_rms_norm<f16, 1>", 64, 256),
        Instance::new("pack_rms_norm<f16, 4>", 64, 256),
        Instance::new("pack_add_rms_norm<bf16, 1>", 64, 256),
        Instance::new("pack_add_rms_norm<bf16, 4>", 64, 256),
        Instance::new("pack_add_rms_norm<f16, 1>", 64, 256),
        Instance::new("pack_add_rms_norm<f16, 4>", 64, 256),
        Instance::new("pack_layer_norm<bf16, 1>", 64, 256),
        Instance::new("pack_layer_norm<bf16, 4>", 64, 256),
        Instance::new("pack_layer_norm<f16, 1>", 64, 256),
        Instance::new("pack_layer_norm<f16, 4>", 64, 256),
    ],
};

pub(crate) fn rms_norm(cuda: &Cuda, x: &Tensor, w: &Tensor, eps: f32, out: &mut Tensor) {
    let width = *x.shape().last().expect("a tensor has dimensions");
    let args = Args::new().pointer(x.pointer()).pointer(w.pointer());
    let args = args.value(eps).value(width as i32).pointer(out.pointer());
    launch(cuda, "rms_norm", x, width, args);
}

pub(crate) fn add_rms_norm(
    cuda: &Cuda,
    residual: &mut Tensor,
    x: &Tensor,
    w: &Tensor,
    eps: f32,
    out: &mut Tensor,
) {
    assert_eq!(residual.dtype(), x.dtype(), "add_rms_norm: types");
    let width = *x.shape().last().expect("a tensor has dimensions");
    let args = Args::new().pointer(residual.pointer()).pointer(x.pointer()).pointer(w.pointer());
    let args = args.value(eps).value(width as i32).pointer(out.pointer());
    launch(cuda, "add_rms_norm", x, width, args);
}

pub(crate) fn layer_norm(cuda: &Cuda, x: &Tensor, w: &Tensor, b: &Tensor, eps: f32, out: &mut Tensor) {
    assert_eq!(b.dtype(), DType::F32, "layer_norm: bias");
    let width = *x.shape().last().expect("a tensor has dimensions");
    let args = Args::new().pointer(x.pointer()).pointer(w.pointer()).pointer(b.pointer());
    let args = args.value(eps).value(width as i32).pointer(out.pointer());
    launch(cuda, "layer_norm", x, width, args);
}

pub(crate) fn layer_norm_heads(cuda: &Cuda, x: &Tensor, w: &Tensor, b: &Tensor, eps: f32, out: &mut Tensor) {
    assert_eq!([x.dtype(), w.dtype(), b.dtype(), out.dtype()], [DType::F32; 4], "layer_norm_heads: types");
    let [heads, width] = *w.shape() else { unreachable!("a weight for each head") };
    let args = Args::new().pointer(x.pointer()).pointer(w.pointer()).pointer(b.pointer());
    let args = args.value(eps).value(heads as i32).value(width as i32).pointer(out.pointer());
    launch(cuda, "layer_norm_heads", x, width, args);
}

/// Into `out`, and rounded and packed into a room as well, for linear layers. `residual`: what x is added to before, as in `add_rms_norm`.
pub(crate) fn pack_rms_norm(
    cuda: &Cuda,
    (residual, x): (Option<&mut Tensor>, &Tensor),
    (w, eps): (&Tensor, f32),
    out: &mut Tensor,
    (dtype, room): (DType, &Tensor),
) {
    let (rows, width) = (x.rows(), x.row_len());
    assert_eq!([x.dtype(), w.dtype(), out.dtype()], [DType::F32; 3], "rms_norm: types");
    assert!(tokens::packed_bytes([rows, width]) <= room.bytes(), "rms_norm: no room for {rows} of {width}");
    let mut name = "pack_rms_norm";
    let mut args = Args::new();
    if let Some(residual) = residual {
        assert_eq!(residual.dtype(), DType::F32, "add_rms_norm: types");
        (name, args) = ("pack_add_rms_norm", args.pointer(residual.pointer()));
    }
    let args = args.pointer(x.pointer()).pointer(w.pointer()).value(eps).value(rows as i32);
    let args = args.value(width as i32).pointer(out.pointer()).pointer(room.pointer());
    let vector = if width.is_multiple_of(4) { 4 } else { 1 };
    let expression = format!("{name}<{}, {vector}>", dtype.cpp());
    // SAFETY: `ops` checked that x, out and the stream are T rows of `width` elements, w one; the room holds them, filled up, and each has its block.
    unsafe { cuda.launch(&KERNEL, &expression, grid(tokens::padded([rows, width])[0], THREADS), args) };
}

/// Rounded and packed into a room, for a linear layer.
pub(crate) fn pack_layer_norm(
    cuda: &Cuda,
    x: &Tensor,
    [w, b]: [&Tensor; 2],
    eps: f32,
    dtype: DType,
    room: &Tensor,
) {
    let (rows, width) = (x.rows(), x.row_len());
    assert_eq!([x.dtype(), b.dtype()], [DType::F32; 2], "layer_norm: types");
    assert!(tokens::packed_bytes([rows, width]) <= room.bytes(), "layer_norm: no room for {rows} of {width}");
    let args = Args::new().pointer(x.pointer()).pointer(w.pointer()).pointer(b.pointer()).value(eps);
    let args = args.value(rows as i32).value(width as i32).pointer(room.pointer());
    let vector = if width.is_multiple_of(4) { 4 } else { 1 };
    let expression = format!("pack_layer_norm<{}, {vector}>", dtype.cpp());
    // SAFETY: T rows of `width` elements in x, `width` in w and b; the room holds them, filled up, and each has its block.
    unsafe { cuda.launch(&KERNEL, &expression, grid(tokens::padded([rows, width])[0], THREADS), args) };
}

/// The checks that the three have in common were made in `ops`: x and out have one shape, w is as wide.
fn launch(cuda: &Cuda, name: &str, x: &Tensor, width: usize, args: Args) {
    if x.is_empty() {
        return;
    }
    let vector = if width.is_multiple_of(4) { 4 } else { 1 };
    let expression = format!("{name}<{}, {vector}>", x.dtype().cpp());
    // SAFETY: T rows of `width` elements in x, residual and out, `width` in w and b (as many rows of them as the argument says); one
    // block for each row.
    unsafe { cuda.launch(&KERNEL, &expression, grid(x.len() / width, THREADS), args) };
}
