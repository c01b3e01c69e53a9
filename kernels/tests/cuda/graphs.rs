//! A captured graph gives the bits of the same calls made one by one, for whatever lies in its buffers.

use crate::common::*;
use crate::device::emulated;
use kernels::ops::*;
use kernels::*;

struct Step {
    table: Tensor,
    norm: Tensor,
    w: Matrix,
    rope: RopeTable,
    ids: Indices,
    positions: Indices,
    residual: Tensor,
    normed: Tensor,
    out: Tensor,
}

const TOKENS: usize = 3;

impl Step {
    fn new(device: &Device) -> Self {
        let zeros = |shape: &[usize]| Tensor::unwritten(device, DType::F32, shape);
        Self {
            table: Host::random(DType::BF16, &[50, 24], 1).tensor(device),
            norm: Host::random(DType::F32, &[24], 2).tensor(device),
            w: Matrix::pack(device, DType::BF16, &[Host::random(DType::BF16, &[40, 24], 3).view()]),
            rope: RopeTable::new(device, 9, 4, &|p, i| ((p + i) as f32, p as f32 - i as f32)),
            ids: Indices::new(device, TOKENS),
            positions: Indices::new(device, TOKENS),
            residual: zeros(&[TOKENS, 24]),
            normed: zeros(&[TOKENS, 24]),
            out: zeros(&[TOKENS, 40]),
        }
    }

    fn set(&mut self, ids: &[u32], positions: &[u32]) {
        self.ids.set(ids);
        self.positions.set(positions);
    }

    fn run(&mut self) {
        embedding(&self.table, &self.ids, &mut self.residual);
        rms_norm(&self.residual, &self.norm, 1e-6, &mut self.normed);
        linear(&self.normed, &self.w, None, Activation::None, &mut self.out);
        rope(&mut self.out, 3, &self.rope, &self.positions, RopeLayout::Half);
    }
}

#[test]
fn replays_equal_calls() {
    let device = emulated(1);
    let Device::Cuda(cuda) = &device else { panic!("not a GPU") };
    let inputs = [([1, 2, 3], [0, 1, 2]), ([49, 0, 7], [8, 3, 3]), ([5, 5, 5], [0, 0, 1])];
    let (mut eager, mut captured) = (Step::new(&device), Step::new(&device));
    captured.set(&inputs[0].0, &inputs[0].1);
    let graph = cuda.capture(|| captured.run()).expect("a graph");
    for (ids, positions) in inputs {
        eager.set(&ids, &positions);
        eager.run();
        captured.set(&ids, &positions);
        cuda.replay(graph);
        assert_eq!(bits(&captured.out.to_f32_vec()), bits(&eager.out.to_f32_vec()), "{ids:?}");
    }
}

#[test]
#[should_panic(expected = "cannot be part of a captured graph")]
fn what_would_not_repeat_is_refused() {
    let device = emulated(1);
    let Device::Cuda(cuda) = &device else { panic!("not a GPU") };
    let mut step = Step::new(&device);
    let _ = cuda.capture(|| embedding(&step.table, &[1, 2, 3], &mut step.residual));
}
