//! Weights of linear layers, packed for the device when they are loaded.
//!
//! A matrix `[N, K]` is cut into panels of 32 rows. N is filled up with zeros to whole panels, K to a multiple of 16. For the
//! processor a panel holds for each `k` its 32 weights side by side, so that a kernel streams through memory in order; what it
//! holds for a GPU is in `cuda/pack.rs`. The size is the same.
//!
//! ```text
//! panel p:  k = 0: w[32p][0] w[32p+1][0] … w[32p+31][0]   k = 1: w[32p][1] …        f32, f16
//!           k = 0: w[32p][0] w[32p+16][0] w[32p+1][0] w[32p+17][0] …                bf16
//! ```
//! The bf16 order makes one 32-bit word of columns c and c + 16: a shift gives one vector of f32, a mask the other.

use crate::cuda::driver::DevicePtr;
use crate::cuda::pack::pack_row as pack_row_for_gpu;
use crate::memory::Buffer;
use crate::{DType, Device, HostTensor, Tensor};
use half::{bf16, f16};
use std::fmt;

/// Rows of one panel.
pub(crate) const PANEL: usize = 32;

/// K is filled up to a multiple of this.
const K_GRAIN: usize = 16;

/// Weights `[N, K]`.
#[derive(Debug)]
pub struct Matrix {
    batch: MatrixBatch,
}

/// `H` matrices `[N, K]` of one size, such as one for each head.
pub struct MatrixBatch {
    buffer: Buffer,
    dtype: DType,
    count: usize,
    n: usize,
    k: usize,
}

/// `E` experts with SwiGLU: gate and up `[I, H]`, down `[H, I]`.
#[derive(Debug)]
pub struct Experts {
    /// Panels of gate and up take turns: `[E][I / 32][gate, up]`, as one batch of `[2 I', H]`, I' being whole panels.
    pub(crate) gate_up: MatrixBatch,
    pub(crate) down: MatrixBatch,
    inner: usize,
}

#[derive(Clone, Copy, Debug)]
pub struct ExpertSource<'a> {
    pub gate: HostTensor<'a>,
    pub up: HostTensor<'a>,
    pub down: HostTensor<'a>,
}

impl Matrix {
    /// Parts `[Ni, K]` of any float types, stacked along N and stored as `dtype`.
    pub fn pack(device: &Device, dtype: DType, parts: &[HostTensor]) -> Self {
        let k = parts.first().expect("a matrix has parts").shape[1];
        for part in parts {
            part.check();
            assert_eq!(part.shape.len(), 2, "matrix part");
            assert_eq!(part.shape[1], k, "matrix parts have one width");
        }
        let n = parts.iter().map(|part| part.shape[0]).sum();
        let mut batch = MatrixBatch::zeroed(device, dtype, 1, n, k);
        batch.fill(&|_, row, values| {
            let (mut row, mut parts) = (row, parts.iter());
            let part = loop {
                let part = parts.next().expect("the row is in a part");
                if row < part.shape[0] {
                    break part;
                }
                row -= part.shape[0];
            };
            part.read_f32(row * k, values);
        });
        Self { batch }
    }

    /// Normally distributed to the eye (a sum of four uniforms), the same for the same seed.
    pub fn random(device: &Device, dtype: DType, n: usize, k: usize, std: f32, seed: u64) -> Self {
        Self { batch: MatrixBatch::random(device, dtype, [1, n, k], std, seed) }
    }

    pub fn n(&self) -> usize {
        self.batch.n
    }

    pub fn k(&self) -> usize {
        self.batch.k
    }

    pub fn dtype(&self) -> DType {
        self.batch.dtype
    }

    pub fn device(&self) -> &Device {
        self.batch.device()
    }

    pub fn bytes(&self) -> u64 {
        self.batch.bytes()
    }

    /// What `bytes` of such a matrix will be.
    pub fn packed_bytes(dtype: DType, n: usize, k: usize) -> u64 {
        MatrixBatch::packed_bytes(dtype, [1, n, k])
    }

    pub(crate) fn as_batch(&self) -> &MatrixBatch {
        &self.batch
    }
}

impl MatrixBatch {
    /// One tensor `[N, K]` for each member.
    pub fn pack(device: &Device, dtype: DType, parts: &[HostTensor]) -> Self {
        let shape = parts.first().expect("a batch has members").shape;
        assert_eq!(shape.len(), 2, "matrix batch");
        let (n, k) = (shape[0], shape[1]);
        for part in parts {
            part.check();
            assert_eq!(part.shape, shape, "matrices of a batch have one shape");
        }
        let mut batch = Self::zeroed(device, dtype, parts.len(), n, k);
        batch.fill(&|member, row, values| parts[member].read_f32(row * k, values));
        batch
    }

    /// From `value(head, n, k)`: for sources that are transposed or interleaved.
    pub fn pack_f32(
        device: &Device,
        dtype: DType,
        [heads, n, k]: [usize; 3],
        value: &(dyn Fn(usize, usize, usize) -> f32 + Sync),
    ) -> Self {
        let mut batch = Self::zeroed(device, dtype, heads, n, k);
        batch.fill(&|head, row, values| {
            for (column, out) in values.iter_mut().enumerate() {
                *out = value(head, row, column);
            }
        });
        batch
    }

    pub fn random(device: &Device, dtype: DType, [count, n, k]: [usize; 3], std: f32, seed: u64) -> Self {
        let mut batch = Self::zeroed(device, dtype, count, n, k);
        batch.fill(&|member, row, values| {
            let start = ((member * n + row) * k) as u64;
            for (i, out) in values.iter_mut().enumerate() {
                *out = std * standard_normal(seed, start + i as u64);
            }
        });
        batch
    }

    pub fn packed_bytes(dtype: DType, [count, n, k]: [usize; 3]) -> u64 {
        (count * n.next_multiple_of(PANEL)) as u64 * k.next_multiple_of(K_GRAIN) as u64 * dtype.size() as u64
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

    pub fn dtype(&self) -> DType {
        self.dtype
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
        PANEL * self.k_padded() * self.dtype.size()
    }

    /// K with its zeros.
    pub(crate) fn k_padded(&self) -> usize {
        self.k.next_multiple_of(K_GRAIN)
    }

    /// The first panel, on a GPU.
    pub(crate) fn pointer(&self) -> DevicePtr {
        self.buffer.pointer()
    }

    pub(crate) fn panels_per_member(&self) -> usize {
        self.n.div_ceil(PANEL)
    }

    fn zeroed(device: &Device, dtype: DType, count: usize, n: usize, k: usize) -> Self {
        assert!(dtype.is_float(), "weights of {dtype}");
        assert!(count > 0 && n > 0 && k > 0, "weights [{count}, {n}, {k}] are empty");
        let bytes =
            usize::try_from(Self::packed_bytes(dtype, [count, n, k])).expect("weights fit the address space");
        let name = format!("weights {dtype} [{count}, {n}, {k}]");
        Self { buffer: Buffer::unwritten(device, bytes, &name), dtype, count, n, k }
    }

    /// Packs every row, `read(member, row, values)` giving its K values; panels are shared out to all threads.
    fn fill(&mut self, read: &(dyn Fn(usize, usize, &mut [f32]) + Sync)) {
        let (n, k, dtype) = (self.n, self.k, self.dtype);
        let panels = self.panels_per_member();
        let panel_bytes = self.panel_bytes();
        let pack = |index: usize, panel: &mut [u8], pack_row: PackRow| {
            let (member, first) = (index / panels, index % panels * PANEL);
            let mut values = vec![0.0; k];
            for row in first..n.min(first + PANEL) {
                read(member, row, &mut values);
                pack_row(panel, dtype, row - first, &values);
            }
        };
        let device = self.device().clone();
        match &device {
            Device::Cpu(cpu) => {
                cpu.for_blocks(self.buffer.as_mut_slice::<u8>(), panel_bytes, |index, panel| {
                    pack(index, panel, pack_row);
                });
            }
            Device::Cuda(cuda) => {
                // Some panels at a time: the next are packed while these are copied.
                let total = self.count * panels;
                let at_once = (UPLOAD_BYTES / panel_bytes).clamp(1, total);
                let mut block = vec![0; at_once * panel_bytes];
                for first in (0..total).step_by(at_once) {
                    let block = &mut block[..at_once.min(total - first) * panel_bytes];
                    block.fill(0);
                    cuda.host
                        .for_blocks(block, panel_bytes, |i, panel| pack(first + i, panel, pack_row_for_gpu));
                    self.buffer.write(first * panel_bytes, block);
                }
            }
        }
    }
}

/// Writes one row of weights into a panel.
type PackRow = fn(panel: &mut [u8], dtype: DType, row: usize, values: &[f32]);

/// What is packed before it is copied to a GPU.
const UPLOAD_BYTES: usize = 4 << 20;

impl Experts {
    pub fn pack(device: &Device, dtype: DType, experts: &[ExpertSource]) -> Self {
        let (inner, hidden) = match experts.first().expect("there are experts").gate.shape {
            [inner, hidden] => (*inner, *hidden),
            other => panic!("experts: gate is a matrix, not {other:?}"),
        };
        for expert in experts {
            let ExpertSource { gate, up, down } = expert;
            for (part, shape) in [(gate, [inner, hidden]), (up, [inner, hidden]), (down, [hidden, inner])] {
                part.check();
                assert_eq!(part.shape, shape, "experts have one shape");
            }
        }
        let down: Vec<HostTensor> = experts.iter().map(|expert| expert.down).collect();
        let mut gate_up = MatrixBatch::zeroed(device, dtype, experts.len(), gate_up_rows(inner), hidden);
        gate_up.fill(&|expert, row, values| {
            let (is_up, row) = (row / PANEL % 2 == 1, row / (2 * PANEL) * PANEL + row % PANEL);
            let ExpertSource { gate, up, .. } = &experts[expert];
            if row < inner {
                if is_up { up } else { gate }.read_f32(row * hidden, values);
            } else {
                values.fill(0.0);
            }
        });
        Self { gate_up, down: MatrixBatch::pack(device, dtype, &down), inner }
    }

    pub fn random(
        device: &Device,
        dtype: DType,
        [experts, hidden, inner]: [usize; 3],
        std: f32,
        seed: u64,
    ) -> Self {
        let gate_up = [experts, gate_up_rows(inner), hidden];
        Self {
            gate_up: MatrixBatch::random(device, dtype, gate_up, std, seed),
            down: MatrixBatch::random(device, dtype, [experts, hidden, inner], std, seed ^ 0x5bd1_e995),
            inner,
        }
    }

    pub fn packed_bytes(dtype: DType, [experts, hidden, inner]: [usize; 3]) -> u64 {
        MatrixBatch::packed_bytes(dtype, [experts, gate_up_rows(inner), hidden])
            + MatrixBatch::packed_bytes(dtype, [experts, hidden, inner])
    }

    pub fn len(&self) -> usize {
        self.down.count
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn hidden(&self) -> usize {
        self.down.n
    }

    pub fn inner(&self) -> usize {
        self.inner
    }

    pub fn dtype(&self) -> DType {
        self.down.dtype
    }

    pub fn device(&self) -> &Device {
        self.down.device()
    }

    pub fn bytes(&self) -> u64 {
        self.gate_up.bytes() + self.down.bytes()
    }
}

impl fmt::Debug for MatrixBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}, {}, {}]", self.dtype, self.count, self.n, self.k)
    }
}

fn gate_up_rows(inner: usize) -> usize {
    2 * inner.next_multiple_of(PANEL)
}

/// Writes the weights of one output into its column of a panel.
fn pack_row(panel: &mut [u8], dtype: DType, column: usize, values: &[f32]) {
    let size = dtype.size();
    let place = match dtype {
        DType::BF16 if column < PANEL / 2 => 2 * column,
        DType::BF16 => 2 * (column - PANEL / 2) + 1,
        _ => column,
    };
    let cells = panel.chunks_exact_mut(PANEL * size).map(|line| &mut line[place * size..(place + 1) * size]);
    for (cell, &value) in cells.zip(values) {
        match dtype {
            DType::F32 => cell.copy_from_slice(&value.to_ne_bytes()),
            DType::BF16 => cell.copy_from_slice(&bf16::from_f32(value).to_bits().to_ne_bytes()),
            DType::F16 => cell.copy_from_slice(&f16::from_f32_const(value).to_bits().to_ne_bytes()),
            DType::I32 | DType::U8 => unreachable!("weights are floats"),
        }
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
