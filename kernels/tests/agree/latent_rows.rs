//! `prepare_latents` against its parts, one op after the other: the same bits in the cache, in the queries and in their copy.

use crate::common::*;
use kernels::ops::*;
use kernels::*;
use std::ops::Range;

/// Sizes of tokens that are prepared.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub heads: usize,
    pub nope: usize,
    pub rank: usize,
    /// A multiple of 2.
    pub rotated: usize,
    pub layout: RopeLayout,
}

pub const SIZES: [Sizes; 3] = [
    Sizes { heads: 3, nope: 5, rank: 17, rotated: 6, layout: RopeLayout::Half },
    Sizes { heads: 2, nope: 8, rank: 20, rotated: 4, layout: RopeLayout::Interleaved },
    Sizes { heads: 5, nope: 16, rank: 1300, rotated: 128, layout: RopeLayout::Half },
];

const EPS: f32 = 1e-6;
const POSITIONS: [u32; 7] = [4, 0, 12, 12, 3, 1, 9];
/// One of the rows is there to fill up a step.
const SLOTS: [u32; 7] = [7, 2, NOWHERE, 0, 8, 5, 1];
const NUM_SLOTS: usize = 9;

/// The inputs of some of the seven tokens, on a device.
struct Inputs {
    kv: Tensor,
    norm: Tensor,
    q: Tensor,
    absorbed: Tensor,
    table: RopeTable,
    cache: KvTensor,
    positions: Vec<u32>,
    slots: Vec<u32>,
}

impl Sizes {
    fn inputs(&self, device: &Device, stored_as: KvType, tokens: Range<usize>) -> Inputs {
        let Self { heads, nope, rank, rotated, .. } = *self;
        let t = tokens.len();
        let part = |seed: u64, shape: &[usize]| {
            let width: usize = shape.iter().product();
            let all = values(seed, POSITIONS.len() * width);
            let shape: Vec<usize> = [&[t], shape].concat();
            Tensor::from_f32(device, &shape, &all[tokens.start * width..tokens.end * width])
        };
        let angle =
            |p: usize, i: usize| ((p as f32 * 0.3 + i as f32).cos(), (p as f32 * 0.3 + i as f32).sin());
        Inputs {
            kv: part(1, &[rank + rotated]),
            norm: Host::random(DType::F32, &[rank], 2).tensor(device),
            q: part(3, &[heads, nope + rotated]),
            absorbed: part(4, &[heads, rank + rotated]),
            table: RopeTable::new(device, 13, rotated / 2, &angle),
            cache: KvTensor::zeros(device, stored_as, NUM_SLOTS, KvShape::Latent { rank, rotated }),
            positions: POSITIONS[tokens.clone()].to_vec(),
            slots: SLOTS[tokens].to_vec(),
        }
    }

    /// What is left in the queries, in their copy and in the cache.
    pub fn together(
        &self,
        device: &Device,
        stored_as: KvType,
        tokens: Range<usize>,
    ) -> Result<Vec<u8>, Error> {
        let mut inputs = self.inputs(device, stored_as, tokens);
        let mut scratch = Tensor::unwritten(device, DType::F32, &[inputs.positions.len(), self.rank]);
        let Inputs { kv, norm, q, absorbed, table, cache, positions, slots } = &mut inputs;
        let rows = LatentRows { kv, norm, eps: EPS, q, absorbed, scratch: &mut scratch };
        let rotation = Rotation { table, positions: (&*positions).into(), layout: self.layout };
        prepare_latents(rows, &rotation, cache, &*slots);
        inputs.left()
    }

    /// The same, by ops that do one thing.
    pub fn in_parts(&self, device: &Device, stored_as: KvType) -> Result<Vec<u8>, Error> {
        let mut inputs = self.inputs(device, stored_as, 0..POSITIONS.len());
        let Inputs { kv, norm, q, absorbed, table, cache, positions, slots } = &mut inputs;
        let (t, Self { nope, rank, rotated, .. }) = (positions.len(), *self);
        let [mut latent, mut normed] = [(); 2].map(|()| Tensor::unwritten(device, DType::F32, &[t, 1, rank]));
        kv.reshape(&[t, 1, rank + rotated]);
        copy_slice(kv, 0, &mut latent, 0, rank);
        rms_norm(&latent, norm, EPS, &mut normed);
        copy_slice(&normed, 0, kv, 0, rank);
        rope(kv, rank, table, &*positions, self.layout);
        store_kv(kv, cache, &*slots);
        rope(q, nope, table, &*positions, self.layout);
        copy_slice(q, nope, absorbed, rank, rotated);
        inputs.left()
    }
}

impl Inputs {
    fn left(&self) -> Result<Vec<u8>, Error> {
        let KvRows { rows, scales } = self.cache.as_rows();
        let tensors = [Some(&self.q), Some(&self.absorbed), Some(rows), scales];
        let bytes = tensors.into_iter().flatten().map(Tensor::read).collect::<Result<Vec<_>, _>>()?;
        Ok(bytes.concat())
    }
}
