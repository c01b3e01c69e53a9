//! Products with packed weights.

use crate::{Matrix, MatrixBatch, Tensor};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    None,
    GeluTanh,
    GeluErf,
    QuickGelu,
}

impl Activation {
    pub(crate) fn apply(self, x: f32) -> f32 {
        match self {
            Activation::None => x,
            Activation::GeluTanh => {
                let inner = 0.797_884_6 * (x + 0.044_715 * x * x * x);
                0.5 * x * (1.0 + inner.tanh())
            }
            Activation::GeluErf => 0.5 * x * (1.0 + erf(x / std::f32::consts::SQRT_2)),
            Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
        }
    }
}

/// Error function in f64 by its series and continued fraction; good to 1e-12.
fn erf(x: f32) -> f32 {
    let x = f64::from(x);
    let a = x.abs();
    if a > 6.0 {
        return x.signum() as f32;
    }
    if a < 2.5 {
        let (mut term, mut sum, mut n) = (a, a, 0.0);
        while term.abs() > 1e-17 {
            n += 1.0;
            term *= -a * a / n;
            sum += term / (2.0 * n + 1.0);
        }
        return (x.signum() * sum * std::f64::consts::FRAC_2_SQRT_PI) as f32;
    }
    let mut fraction = 0.0;
    for k in (1..60).rev() {
        fraction = f64::from(k) / 2.0 / (a + fraction);
    }
    let erfc = (-a * a).exp() / (a + fraction) / std::f64::consts::PI.sqrt();
    (x.signum() * (1.0 - erfc)) as f32
}

/// `out[t, n] = act(sum_k x[t, k] * w[n, k] + bias[n])`; `x` `[T, K]`, `w` `[N, K]`, `out` `[T, N]`.
pub fn linear(x: &Tensor, w: &Matrix, bias: Option<&Tensor>, act: Activation, out: &mut Tensor) {
    let (n, k) = (w.n(), w.k());
    let t = x.len() / k;
    assert_eq!(x.len(), t * k, "linear: x {:?} for K = {k}", x.shape());
    assert_eq!(out.len(), t * n, "linear: out {:?} for {t} rows of N = {n}", out.shape());
    if let Some(bias) = bias {
        assert_eq!(bias.len(), n, "linear: bias");
    }
    let x = x.as_f32();
    let out = out.as_f32_mut();
    for i in 0..t {
        for j in 0..n {
            let mut sum = 0.0;
            for l in 0..k {
                sum += x[i * k + l] * w.w.get(j * k + l);
            }
            out[i * n + j] = act.apply(sum + bias.map_or(0.0, |b| b.get(j)));
        }
    }
}

/// Values `offset .. offset + len` of each head of `[T, H, D]`.
#[derive(Debug, Clone, Copy)]
pub struct HeadSlice<'a> {
    pub tensor: &'a Tensor,
    pub offset: usize,
    pub len: usize,
}

#[derive(Debug)]
pub struct HeadSliceMut<'a> {
    pub tensor: &'a mut Tensor,
    pub offset: usize,
    pub len: usize,
}

/// `out[t, h, n] = sum_k x[t, h, k] * w[h][n, k]`.
pub fn heads_linear(x: HeadSlice, w: &MatrixBatch, out: HeadSliceMut) {
    let [t, h, d] = *x.tensor.shape() else { panic!("heads_linear: x") };
    let [to, ho, e] = *out.tensor.shape() else { panic!("heads_linear: out") };
    assert_eq!((t, h), (to, ho), "heads_linear: out");
    assert_eq!(h, w.heads.len(), "heads_linear: w");
    assert!(x.offset + x.len <= d && out.offset + out.len <= e, "heads_linear: slice");
    let values = x.tensor.as_f32();
    let result = out.tensor.as_f32_mut();
    for (head, w) in w.heads.iter().enumerate() {
        assert_eq!((w.n(), w.k()), (out.len, x.len), "heads_linear: w");
        for i in 0..t {
            let row = &values[(i * h + head) * d + x.offset..][..x.len];
            for j in 0..out.len {
                let mut sum = 0.0;
                for (l, v) in row.iter().enumerate() {
                    sum += v * w.w.get(j * x.len + l);
                }
                result[(i * h + head) * e + out.offset + j] = sum;
            }
        }
    }
}
