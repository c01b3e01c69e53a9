//! Weights of linear layers, packed for the device when they are loaded.
//!
//! A matrix `[N, K]` is cut into panels of 32 rows; N is filled up with zeros to whole panels. What a panel holds for the processor
//! is in `cpu/pack.rs`, what it holds for a GPU in `cuda/pack.rs`. The size is the same.

use crate::cpu::pack as cpu_pack;
use crate::cuda::driver::DevicePtr;
use crate::cuda::pack as gpu_pack;
use crate::memory::Buffer;
use crate::quantize::GroupedRow;
use crate::source::{Made, MemberRows, Members, Stacked, WeightRows};
use crate::weight_type::{GROUP, K_GRAIN};
use crate::{DType, Device, Tensor, WeightType};
use std::fmt;

/// Rows of one panel.
pub(crate) const PANEL: usize = 32;

/// Weights `[N, K]`.
#[derive(Debug)]
pub struct Matrix {
    batch: MatrixBatch,
}

/// `H` matrices `[N, K]` of one size, such as one for each head.
pub struct MatrixBatch {
    buffer: Buffer,
    stored_as: WeightType,
    count: usize,
    n: usize,
    k: usize,
}

impl Matrix {
    /// Parts `[Ni, K]` of any types, stacked along N and kept as `stored_as`.
    pub fn pack<R: WeightRows>(device: &Device, stored_as: impl Into<WeightType>, parts: &[R]) -> Self {
        let k = parts.first().expect("a matrix has parts").shape()[1];
        for part in parts {
            assert_eq!(part.shape()[1], k, "matrix parts have one width");
        }
        let n = parts.iter().map(|part| part.shape()[0]).sum();
        let mut batch = MatrixBatch::unwritten(device, stored_as.into(), [1, n, k]);
        batch.fill(&Stacked(parts));
        Self { batch }
    }

    /// Normally distributed to the eye (a sum of four uniforms), the same for the same seed.
    pub fn random(
        device: &Device,
        stored_as: impl Into<WeightType>,
        n: usize,
        k: usize,
        std: f32,
        seed: u64,
    ) -> Self {
        Self { batch: MatrixBatch::random(device, stored_as, [1, n, k], std, seed) }
    }

    pub fn n(&self) -> usize {
        self.batch.n
    }

    pub fn k(&self) -> usize {
        self.batch.k
    }

    pub fn stored_as(&self) -> WeightType {
        self.batch.stored_as
    }

    /// As [`MatrixBatch::dtype`].
    pub fn dtype(&self) -> DType {
        self.batch.dtype()
    }

    pub fn device(&self) -> &Device {
        self.batch.device()
    }

    pub fn bytes(&self) -> u64 {
        self.batch.bytes()
    }

    /// What `bytes` of such a matrix will be.
    pub fn packed_bytes(stored_as: impl Into<WeightType>, n: usize, k: usize) -> u64 {
        MatrixBatch::packed_bytes(stored_as, [1, n, k])
    }

    pub(crate) fn as_batch(&self) -> &MatrixBatch {
        &self.batch
    }
}

impl MatrixBatch {
    /// One source `[N, K]` for each member.
    pub fn pack<R: WeightRows>(device: &Device, stored_as: impl Into<WeightType>, parts: &[R]) -> Self {
        let [n, k] = parts.first().expect("a batch has members").shape();
        for part in parts {
            assert_eq!(part.shape(), [n, k], "matrices of a batch have one shape");
        }
        let mut batch = Self::unwritten(device, stored_as.into(), [parts.len(), n, k]);
        batch.fill(&Members(parts));
        batch
    }

    /// From `value(head, n, k)`: for sources that are transposed or interleaved.
    pub fn pack_f32(
        device: &Device,
        stored_as: impl Into<WeightType>,
        shape: [usize; 3],
        value: &(dyn Fn(usize, usize, usize) -> f32 + Sync),
    ) -> Self {
        let mut batch = Self::unwritten(device, stored_as.into(), shape);
        batch.fill(&Made(|head, row, values: &mut [f32]| {
            for (column, out) in values.iter_mut().enumerate() {
                *out = value(head, row, column);
            }
        }));
        batch
    }

    pub fn random(
        device: &Device,
        stored_as: impl Into<WeightType>,
        [count, n, k]: [usize; 3],
        std: f32,
        seed: u64,
    ) -> Self {
        let mut batch = Self::unwritten(device, stored_as.into(), [count, n, k]);
        batch.fill(&Made(|member, row, values: &mut [f32]| {
            let start = ((member * n + row) * k) as u64;
            for (i, out) in values.iter_mut().enumerate() {
                *out = std * standard_normal(seed, start + i as u64);
            }
        }));
        batch
    }

    pub fn packed_bytes(stored_as: impl Into<WeightType>, [count, n, k]: [usize; 3]) -> u64 {
        (count * n.div_ceil(PANEL)) as u64 * stored_as.into().panel_bytes(k) as u64
    }

    /// Members.
    pub fn count(&self) -> usize {
        self.count
    }

    pub fn n(&self) -> usize {
        self.n
    }

    pub fn k(&self) -> usize {
        self.k
    }

    pub fn stored_as(&self) -> WeightType {
        self.stored_as
    }

    /// Of float weights. Panics for quantised ones.
    pub fn dtype(&self) -> DType {
        self.stored_as.float().expect("float weights")
    }

    pub fn device(&self) -> &Device {
        self.buffer.device()
    }

    pub fn bytes(&self) -> u64 {
        self.buffer.len() as u64
    }

    /// The panels of all members, one after the other.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.buffer.as_slice()
    }

    /// Bytes of one panel.
    pub(crate) fn panel_bytes(&self) -> usize {
        self.stored_as.panel_bytes(self.k)
    }

    /// K of float weights with its zeros.
    pub(crate) fn k_padded(&self) -> usize {
        WeightType::k_padded(self.k)
    }

    /// What a GPU multiplies in one go, along K (cuda/gemm.cuh).
    pub(crate) fn units(&self) -> usize {
        match self.stored_as.is_quantised() {
            true => self.k.div_ceil(GROUP),
            false => self.k_padded() / K_GRAIN,
        }
    }

    /// The first panel, on a GPU.
    pub(crate) fn pointer(&self) -> DevicePtr {
        self.buffer.pointer()
    }

    pub(crate) fn panels_per_member(&self) -> usize {
        self.n.div_ceil(PANEL)
    }

    pub(crate) fn unwritten(device: &Device, stored_as: WeightType, [count, n, k]: [usize; 3]) -> Self {
        assert!(count > 0 && n > 0 && k > 0, "weights [{count}, {n}, {k}] are empty");
        let bytes = usize::try_from(Self::packed_bytes(stored_as, [count, n, k]))
            .expect("weights fit the address space");
        let name = format!("weights {stored_as} [{count}, {n}, {k}]");
        Self { buffer: Buffer::unwritten(device, bytes, &name), stored_as, count, n, k }
    }

    /// Packs every row; panels are shared out to all threads.
    pub(crate) fn fill(&mut self, source: &dyn MemberRows) {
        let panels = self.panels_per_member();
        let total = self.count * panels;
        let panel_bytes = self.panel_bytes();
        let rows = PanelRows { source, stored_as: self.stored_as, n: self.n, k: self.k };
        let device = self.device().clone();
        match &device {
            Device::Cpu(cpu) => {
                cpu.for_blocks(self.buffer.as_mut_slice::<u8>(), panel_bytes, |index, panel| {
                    rows.pack(index / panels, index % panels * PANEL, panel, &FOR_CPU);
                });
            }
            Device::Cuda(cuda) => {
                // Some panels at a time: the next are packed while these are copied.
                let at_once = (UPLOAD_BYTES / panel_bytes).clamp(1, total);
                let mut block = vec![0; at_once * panel_bytes];
                for first in (0..total).step_by(at_once) {
                    let block = &mut block[..at_once.min(total - first) * panel_bytes];
                    block.fill(0);
                    cuda.host.for_blocks(block, panel_bytes, |i, panel| {
                        let (member, first) = ((first + i) / panels, (first + i) % panels * PANEL);
                        rows.pack(member, first, panel, &FOR_GPU);
                    });
                    self.buffer.write(first * panel_bytes, block);
                }
            }
        }
    }
}

/// What panels are packed from.
struct PanelRows<'a> {
    source: &'a dyn MemberRows,
    stored_as: WeightType,
    n: usize,
    k: usize,
}

/// How one row is written into its panel, of floats and of groups.
struct Packing {
    row: fn(&mut [u8], DType, usize, &[f32]),
    groups: fn(&mut [u8], WeightType, usize, &GroupedRow),
}

const FOR_CPU: Packing = Packing { row: cpu_pack::pack_row, groups: cpu_pack::pack_groups };
const FOR_GPU: Packing = Packing { row: gpu_pack::pack_row, groups: gpu_pack::pack_groups };

impl PanelRows<'_> {
    /// The panel of a member that begins at row `first`. It was zeroed where a GPU's is packed.
    fn pack(&self, member: usize, first: usize, panel: &mut [u8], packing: &Packing) {
        let (mut values, mut groups) = (vec![0.0; self.k], GroupedRow::new(self.k));
        for row in first..self.n.min(first + PANEL) {
            if let Some(dtype) = self.stored_as.float() {
                self.source.read_f32(member, row, &mut values);
                (packing.row)(panel, dtype, row - first, &values);
                continue;
            }
            if !self.source.read_groups(member, row, self.stored_as, &mut groups) {
                self.source.read_f32(member, row, &mut values);
                groups.quantize(self.stored_as, &values);
            }
            (packing.groups)(panel, self.stored_as, row - first, &groups);
        }
    }
}

/// What is packed before it is copied to a GPU.
const UPLOAD_BYTES: usize = 4 << 20;

impl fmt::Debug for MatrixBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}, {}, {}]", self.stored_as, self.count, self.n, self.k)
    }
}

/// The sum of four uniform numbers, scaled to variance 1.
fn standard_normal(seed: u64, index: u64) -> f32 {
    let bits = mix(seed ^ mix(index.wrapping_add(0x9e37_79b9_7f4a_7c15)));
    let sum: u64 = (0..4).map(|i| bits >> (16 * i) & 0xffff).sum();
    // Each part has mean 32767.5 and variance (65536² - 1) / 12.
    (sum as f32 - 131_070.0) * (1.0 / 37_837.23)
}

/// The finaliser of SplitMix64.
fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

impl Tensor {
    /// Numbers as `Matrix::random` has them, f32.
    pub fn random(device: &Device, shape: &[usize], std: f32, seed: u64) -> Self {
        let len = shape.iter().product::<usize>() as u64;
        let values: Vec<f32> = (0..len).map(|i| std * standard_normal(seed, i)).collect();
        Self::from_f32(device, shape, &values)
    }
}
