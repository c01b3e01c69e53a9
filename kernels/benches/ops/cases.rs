//! The ops at sizes of Moonlight and MoonViT: D 2048, 16 heads of 128 + 64 over a latent of 512, experts of 1408.

mod attention;
mod eight;
mod experts;
mod linears;
mod pictures;
mod rows;

use crate::{Bench, Work};
use experts::Op;
use kernels::cuda::Matmul;
use kernels::ops::*;
use kernels::*;

pub fn all(bench: &Bench) {
    linears::linears(bench);
    linears::heads(bench);
    experts::experts(bench);
    experts::with_shared(bench);
    attention::prepared(bench);
    attention::latent(bench);
    attention::expanded(bench);
    attention::decoding(bench);
    attention::grouped(bench);
    pictures::pictures(bench);
    rows::rows(bench);
    rows::samples(bench, 163_840, &[1, 32, 256]);
    eight::all(bench);
}

/// What the emulator can do: each kind of line once.
pub fn tiny(bench: &Bench) {
    let (x, mut y) = (random(bench, &[3, 24]), zeros(bench, &[3, 24]));
    bench.line("add", "T 3 D 24", Work::Bytes(12.0 * 72.0), || add(&mut y, &x));
    let w = Matrix::random(&bench.device, DType::BF16, 40, 24, 0.02, 2);
    let mut out = zeros(bench, &[3, 40]);
    bench.line("linear", "bfloat16 T 3 N 40 K 24", Work::Flop(2.0 * (3 * 40 * 24) as f64), || {
        linear(&x, &w, None, Activation::None, &mut out);
    });
    let (x, mut out) = (random(bench, &[200, 24]), zeros(bench, &[200, 40]));
    let work = || Work::Flop(2.0 * (200 * 40 * 24) as f64);
    let mut room = TokenRoom::new(&bench.device, &[[200, 24]]);
    with_wgmma(bench, || {
        bench.line("linear", "bfloat16 T 200 N 40 K 24 wgmma", work(), || {
            room.hold(&x).linear(&w, None, Activation::None, &mut out);
        });
    });
    attention::expanded_line(bench, [2, 24, 8, 4, 8], [3, 5]);
    pictures::turned_line(bench, [40, 2, 8]);
    pictures::add_line(bench, [200, 40, 24]);
    rows::packed_norms(bench, [40, 24]);
    let layer = experts::Layer::new(bench, [5, 24, 32], 40);
    for (op, t) in [(Op::NormAndRoute, 40), (Op::MoeAndNorm, 3), (Op::MoeAndNorm, 40)] {
        layer.line(bench, op, [t, 2]);
    }
    rows::samples(bench, 131, &[2]);
}

fn on_gpu(bench: &Bench) -> bool {
    matches!(bench.device, Device::Cuda(_))
}

/// The lines of `run` by wgmma, where the device has it.
fn with_wgmma(bench: &Bench, run: impl FnOnce()) {
    let Device::Cuda(cuda) = &bench.device else { return };
    if cuda.choose_matmul(Matmul::Wgmma) {
        run();
        cuda.choose_matmul(Matmul::Auto);
    }
}

fn zeros(bench: &Bench, shape: &[usize]) -> Tensor {
    Tensor::zeros(&bench.device, DType::F32, shape)
}

fn random(bench: &Bench, shape: &[usize]) -> Tensor {
    Tensor::random(&bench.device, shape, 1.0, 1)
}

/// Those that the device has products with.
fn known(bench: &Bench, types: &[WeightType]) -> Vec<WeightType> {
    types
        .iter()
        .copied()
        .filter(|stored_as| !on_gpu(bench) || WeightType::ON_GPU.contains(stored_as))
        .collect()
}
