//! Exponential, sigmoid and the activations, on vectors. Every result depends on its own lane only.

use super::Simd;
use crate::operands::linear::Activation;

const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln 2 in two parts: the first has so few bits that its products with whole numbers are exact.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;
/// Added and subtracted again, it leaves the nearest whole number.
const ROUND: f32 = 12_582_912.0;

/// e^x. Within 2 ulp for -87 ≤ x ≤ 88; exactly 1 at 0; exactly 0 below -87.3; e^88 above 88; NaN stays NaN.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    let y = s.min(s.splat(88.0), s.max(s.splat(-88.0), x));
    let n = s.sub(s.fma(y, s.splat(LOG2_E), s.splat(ROUND)), s.splat(ROUND));
    // -126 and below would leave the normal numbers; those results are replaced by 0 anyway.
    let n = s.max(s.splat(-126.0), n);
    let r = s.fma(n, s.splat(-LN_2_HIGH), y);
    let r = s.fma(n, s.splat(-LN_2_LOW), r);
    // Taylor to the seventh power; |r| ≤ ln 2 / 2, so that what is left out is below 6e-9.
    let mut p = s.splat(1.0 / 5040.0);
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = s.fma(p, r, s.splat(coefficient));
    }
    s.select_lt(x, s.splat(-87.3), s.zero(), s.mul(p, s.pow2(n)))
}

/// x / (1 + e^(-a x)): SiLU for a = 1.
#[inline(always)]
fn gated<S: Simd>(s: S, x: S::V, ax: S::V) -> S::V {
    let e = exp(s, s.sub(s.zero(), ax));
    s.div(x, s.add(s.splat(1.0), e))
}

/// 1 / (1 + e^(-x))
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    gated(s, s.splat(1.0), x)
}

#[inline(always)]
pub(crate) fn silu<S: Simd>(s: S, x: S::V) -> S::V {
    gated(s, x, x)
}

/// (u + 1) · g · sigmoid(alpha · g), with g = gate up to the limit and u = up within it on both sides.
#[inline(always)]
pub(crate) fn clamped_glu<S: Simd>(s: S, [gate, up]: [S::V; 2], [alpha, limit]: [f32; 2]) -> S::V {
    let gate = s.min(s.splat(limit), gate);
    let up = s.min(s.splat(limit), s.max(s.splat(-limit), up));
    s.mul(s.add(up, s.splat(1.0)), gated(s, gate, s.mul(gate, s.splat(alpha))))
}

/// x / (1 + e^(-1.702 x))
#[inline(always)]
fn quick_gelu<S: Simd>(s: S, x: S::V) -> S::V {
    gated(s, x, s.mul(x, s.splat(1.702)))
}

/// x / 2 * (1 + tanh u) = x / (1 + e^(-2u)), u = √(2/π) (x + 0.044715 x³)
#[inline(always)]
fn gelu_tanh<S: Simd>(s: S, x: S::V) -> S::V {
    const TWICE_SQRT_2_BY_PI: f32 = 1.595_769;
    let cubic = s.fma(s.mul(s.mul(x, x), s.splat(0.044_715)), x, x);
    gated(s, x, s.mul(cubic, s.splat(TWICE_SQRT_2_BY_PI)))
}

/// x / 2 * (1 + erf(x / √2)), with erf to 2.5e-7 by formula 7.1.26 of Abramowitz and Stegun.
#[inline(always)]
fn gelu_erf<S: Simd>(s: S, x: S::V) -> S::V {
    let z = s.mul(s.max(x, s.sub(s.zero(), x)), s.splat(std::f32::consts::FRAC_1_SQRT_2));
    let t = s.div(s.splat(1.0), s.fma(z, s.splat(0.327_591_1), s.splat(1.0)));
    let mut p = s.splat(1.061_405_4);
    for coefficient in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        p = s.fma(p, t, s.splat(coefficient));
    }
    let tail = s.mul(s.mul(p, t), exp(s, s.sub(s.zero(), s.mul(z, z))));
    // tail = 1 - erf(|x| / √2): half of it is the left tail of the normal distribution.
    let half = s.mul(x, s.splat(0.5));
    s.select_lt(x, s.zero(), s.mul(half, tail), s.mul(half, s.sub(s.splat(2.0), tail)))
}

#[inline(always)]
pub(crate) fn activate<S: Simd>(s: S, act: Activation, x: S::V) -> S::V {
    match act {
        Activation::None => x,
        Activation::GeluTanh => gelu_tanh(s, x),
        Activation::GeluErf => gelu_erf(s, x),
        Activation::QuickGelu => quick_gelu(s, x),
    }
}
