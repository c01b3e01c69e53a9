//! Value by value.

use crate::Tensor;

/// `x += y`, f32.
pub fn add(x: &mut Tensor, y: &Tensor) {
    assert_eq!(x.shape(), y.shape(), "add");
    for (x, y) in x.as_f32_mut().iter_mut().zip(y.as_f32()) {
        *x += y;
    }
}

/// `out[t, i] = silu(gate_up[t, i]) * gate_up[t, I + i]`; `gate_up` `[T, 2I]`, `out` `[T, I]`, f32.
pub fn silu_mul(gate_up: &Tensor, out: &mut Tensor) {
    let [t, i2] = *gate_up.shape() else { panic!("silu_mul: gate_up") };
    let i = i2 / 2;
    assert_eq!(out.shape(), [t, i], "silu_mul: out");
    for (row, out) in gate_up.as_f32().chunks_exact(i2).zip(out.as_f32_mut().chunks_exact_mut(i)) {
        for j in 0..i {
            out[j] = silu(row[j]) * row[i + j];
        }
    }
}

pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}
