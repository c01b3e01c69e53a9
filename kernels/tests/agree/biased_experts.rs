//! Experts with biases and a clamped function between their products, as gpt-oss has them: made, run and computed again in f64.

use crate::common::*;
use crate::naive::{self, Rows};
use kernels::ops::*;
use kernels::*;
use std::ops::Range;

pub const ALPHA: f32 = 1.702;
/// So low that some of what is gated is beyond it.
pub const LIMIT: f32 = 0.75;

pub struct BiasedCase {
    pub stored_as: WeightType,
    /// T, H, I, E, k
    pub sizes: [usize; 5],
}

impl BiasedCase {
    fn hosts(&self) -> Vec<[Host; 3]> {
        let [_, h, i, e, _] = self.sizes;
        random_experts(self.stored_as.float().unwrap_or(DType::BF16), [e, h, i])
    }

    /// Of gate, up and down.
    fn biases(&self) -> [Vec<f32>; 3] {
        let [_, h, i, e, _] = self.sizes;
        [(e * i, 50), (e * i, 51), (e * h, 52)].map(|(len, seed)| values(seed, len))
    }

    fn inputs(&self) -> (Host, Host, Vec<i32>) {
        let [t, h, _, e, k] = self.sizes;
        let ids = (0..t * k).map(|pair| ((pair * 7 + pair / 5) % e) as i32).collect();
        (Host::random(DType::F32, &[t, h], 90), Host::random(DType::F32, &[t, k], 91), ids)
    }

    /// What some of the tokens get.
    pub fn run(&self, device: &Device, tokens: Range<usize>) -> Result<Vec<u8>, Error> {
        let [t, h, i, e, k] = self.sizes;
        let [gate, up, down] = self.biases();
        let (width, turns) = (BiasedGlu::width(i), BiasedGlu::in_turns([e, i], [&gate, &up]));
        let biases =
            [Tensor::from_f32(device, &[e, width], &turns), Tensor::from_f32(device, &[e, h], &down)];
        let bytes: u64 = biases.iter().map(|bias| 4 * bias.len() as u64).sum();
        assert_eq!(bytes, BiasedGlu::bytes([e, h, i]));
        let glu = BiasedGlu::new([ALPHA, LIMIT], biases);
        let experts = pack_experts(device, self.stored_as, &self.hosts()).with_glu(glu);
        let (x, weights, ids) = self.inputs();
        let part = |host: &Host, len: usize| {
            let values: Vec<f32> =
                host.values[tokens.start * len..tokens.end * len].iter().map(|&v| v as f32).collect();
            Tensor::from_f32(device, &[tokens.len(), len], &values)
        };
        let mut id_tensor = Tensor::unwritten(device, DType::I32, &[tokens.len(), k]);
        id_tensor.write_i32(0, &ids[tokens.start * k..tokens.end * k]);
        let mut scratch = MoeScratch::new(device, t + 2, [e, h, i], k);
        let mut out = Tensor::unwritten(device, DType::F32, &[tokens.len(), h]);
        moe(&part(&x, h), &experts, &id_tensor, &part(&weights, k), &mut scratch, &mut out);
        out.read()
    }

    /// What all tokens should get; `round` is what becomes of what a product reads.
    pub fn twin(&self, round: &dyn Fn(&Rows) -> Rows) -> Vec<f64> {
        let [_, h, i, _, k] = self.sizes;
        let biases = self.biases();
        let (x, weights, ids) = self.inputs();
        let parts: Vec<[Rows; 3]> = self
            .hosts()
            .iter()
            .map(|parts| parts.each_ref().map(|w| kept(self.stored_as, &w.values, w.shape[1])))
            .collect();
        let linear =
            |x: Vec<f64>, w: &Rows| naive::linear(&round(&vec![x]), w, None, Activation::None).remove(0);
        let (alpha, limit) = (f64::from(ALPHA), f64::from(LIMIT));
        let mut out = Vec::new();
        for (token, x) in x.rows().iter().enumerate() {
            let mut sum = vec![0.0; h];
            for (pair, &expert) in ids.iter().enumerate().skip(token * k).take(k) {
                let expert = expert as usize;
                let biased = |x: Vec<f64>, part: usize, n: usize| -> Vec<f64> {
                    let bias = &biases[part][expert * n..(expert + 1) * n];
                    let product = linear(x, &parts[expert][part]);
                    product.iter().zip(bias).map(|(v, &bias)| v + f64::from(bias)).collect()
                };
                let both = [0, 1].map(|part| biased(x.clone(), part, i));
                let inner = both[0].iter().zip(&both[1]).map(|(&gate, &up)| {
                    let (gate, up) = (gate.min(limit), up.clamp(-limit, limit));
                    (up + 1.0) * gate / (1.0 + (-alpha * gate).exp())
                });
                let made = biased(inner.collect(), 2, h);
                sum.iter_mut().zip(made).for_each(|(sum, v)| *sum += weights.values[pair] * v);
            }
            out.extend(sum);
        }
        out
    }
}
