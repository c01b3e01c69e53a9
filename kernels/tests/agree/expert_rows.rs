//! The layer of experts in steps: one after the other they have the bits of the op that is all of them, on both devices; and each row alone has those
//! that it has in company.

use crate::common::*;
use kernels::ops::*;
use kernels::*;

/// T, H, I, E, k
type Sizes = [usize; 5];

struct Layer {
    experts: Experts,
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    rows: ExpertRows,
}

impl Layer {
    /// Of some of the tokens.
    fn new(
        device: &Device,
        stored_as: WeightType,
        [t, h, i, e, k]: Sizes,
        tokens: std::ops::Range<usize>,
    ) -> Self {
        let part = |host: &Host, width: usize| {
            let values: Vec<f32> =
                host.values[tokens.start * width..tokens.end * width].iter().map(|&v| v as f32).collect();
            Tensor::from_f32(device, &[tokens.len(), width], &values)
        };
        // The last expert is never chosen, if there are several.
        let all: Vec<i32> = (0..t * k).map(|pair| ((pair * 7 + pair / 5) % (e - 1).max(1)) as i32).collect();
        let mut ids = Tensor::zeros(device, DType::I32, &[tokens.len(), k]);
        ids.write_i32(0, &all[tokens.start * k..tokens.end * k]);
        let max_width = h.max(i.next_multiple_of(32));
        Self {
            experts: Experts::random(device, stored_as, [e, h, i], 0.2, 4),
            x: part(&Host::random(DType::F32, &[t, h], 90), h),
            ids,
            weights: part(&Host::random(DType::F32, &[t, k], 91), k),
            rows: ExpertRows::new(
                device,
                ExpertRowSizes { max_tokens: t + 1, top_k: k, experts: e, max_width },
            ),
        }
    }

    fn at_once(&self, [t, h, i, e, k]: Sizes) -> Vec<u32> {
        let device = self.x.device();
        let mut scratch = MoeScratch::new(device, t, [e, h, i], k);
        let mut out = Tensor::zeros(device, DType::F32, &[self.x.rows(), h]);
        moe(&self.x, &self.experts, &self.ids, &self.weights, &mut scratch, &mut out);
        bits(&out.to_f32_vec())
    }

    fn in_steps(&mut self) -> Vec<u32> {
        let Self { experts, x, ids, weights, rows } = self;
        let device = &x.device().clone();
        let (h, i, pairs) = (experts.hidden(), experts.inner(), ids.len());
        let padded = i.next_multiple_of(32);
        let buffer = |shape: [usize; 2]| Tensor::zeros(device, DType::F32, &shape);
        let [mut entered, mut both, mut made] = [h, 2 * padded, h].map(|width| buffer([pairs, width]));
        sort_by_expert(ids, rows);
        enter_experts(x, rows, &mut entered);
        expert_linear(&entered, experts.gate_up(), rows, &mut both);
        let mut inner = buffer([pairs * padded / 32, 32]);
        both.reshape(&[pairs * padded / 32, 64]);
        silu_mul(&both, &mut inner);
        inner.reshape(&[pairs, padded]);
        let mut narrow = buffer([pairs, i]);
        copy_slice(&inner, 0, &mut narrow, 0, i);
        expert_linear(&narrow, experts.down(), rows, &mut made);
        let mut out = buffer([x.rows(), h]);
        combine_experts(&made, weights, rows, &mut out);
        bits(&out.to_f32_vec())
    }
}

/// All tokens, and some of them.
pub fn check(device: &Device, stored_as: WeightType, sizes: Sizes) {
    let what = format!("{device:?} {stored_as} {sizes:?}");
    let [t, h, ..] = sizes;
    let mut all = Layer::new(device, stored_as, sizes, 0..t);
    let together = all.in_steps();
    assert!(together == all.at_once(sizes), "{what}: in steps");
    assert!(together == all.in_steps(), "{what}: again");
    for tokens in [0..1, t / 2..t] {
        let found = Layer::new(device, stored_as, sizes, tokens.clone()).in_steps();
        assert!(found == together[tokens.start * h..tokens.end * h], "{what}: {tokens:?}");
    }
}

pub const SIZES: [Sizes; 5] =
    [[1, 5, 3, 2, 1], [7, 67, 33, 5, 2], [20, 64, 96, 70, 3], [150, 34, 64, 3, 2], [9, 270, 97, 4, 2]];

/// Numbers of 32 bits as they are, also those that are no floats.
pub fn numbers_are_gathered(device: &Device) {
    let all = [i32::MIN, -1, 0, 1, 0x7fa0_0001, i32::MAX];
    let mut numbers = Tensor::zeros(device, DType::I32, &[3, 2]);
    numbers.write_i32(0, &all);
    let mut found = Tensor::zeros(device, DType::I32, &[2, 2]);
    gather_rows(&numbers, &[2, 0], &mut found);
    let bytes: Vec<u8> = [all[4], all[5], all[0], all[1]].iter().flat_map(|n| n.to_le_bytes()).collect();
    assert_eq!(found.read().unwrap(), bytes, "{device:?}");
}
