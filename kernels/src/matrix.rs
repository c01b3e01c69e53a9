//! Weights of linear layers, packed for the device when they are loaded.
//!
//! A matrix `[N, K]` is cut into panels of 32 rows; N is filled up with zeros to whole panels. What a panel holds for the processor
//! is in `cpu/pack.rs` and `compact.rs`, what it holds for a GPU in `cuda/pack.rs`. The size is the same. A change to what is packed for the processor
//! raises [`crate::CPU_LAYOUT_VERSION`].

use crate::compact::{self, Spill, TooManyOutliers};
use crate::cpu::pack as cpu_pack;
use crate::cuda::driver::DevicePtr;
use crate::cuda::pack as gpu_pack;
use crate::memory::{self, Buffer};
use crate::packed::{Packed, one_part};
use crate::panel::{self, GROUP, K_GRAIN, PANEL};
use crate::quantize::GroupedRow;
use crate::random::RandomRows;
use crate::source::{Made, MemberRows, Members, Stacked, WeightRows};
use crate::{ActivationType, DType, Device, SharedBytes, WeightType};
use std::fmt;

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
    /// Parts `[Ni, K]` of any types, stacked along N and kept as `stored_as`; see [`MatrixBatch::pack`].
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

    /// Numbers of a seed: see [`MatrixBatch::random`].
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

    /// Room for weights that come later: see [`MatrixBatch::with_room`].
    pub fn with_room(device: &Device, stored_as: impl Into<WeightType>, n: usize, k: usize) -> Self {
        Self { batch: MatrixBatch::with_room(device, stored_as, [1, n, k]) }
    }

    /// Other weights in the same memory, `[N, K]` as `part` has it: see [`MatrixBatch::refill_f32`].
    pub fn refill(&mut self, stored_as: DType, part: &impl WeightRows) {
        let [n, k] = part.shape();
        self.batch.refill(stored_as, [1, n, k], &Stacked(std::slice::from_ref(part)));
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

    pub(crate) fn of_batch(batch: MatrixBatch) -> Self {
        assert_eq!(batch.count, 1, "a matrix is one member");
        Self { batch }
    }
}

impl MatrixBatch {
    /// One source `[N, K]` for each member. Compact bf16 that has more outliers than there is room for is kept as plain bf16, as
    /// `stored_as` of what comes out says; so it is with all that makes a matrix.
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

    /// Room for weights that come later, at most of this shape: zeros, or on a GPU whatever was there.
    pub fn with_room(device: &Device, stored_as: impl Into<WeightType>, shape: [usize; 3]) -> Self {
        Self::unwritten(device, stored_as.into(), shape)
    }

    /// Other weights in the same memory, as [`MatrixBatch::pack_f32`], of floats and of any shape that takes no more of it. They are in the
    /// order of the device's work: what was enqueued before reads what was there before.
    pub fn refill_f32(
        &mut self,
        stored_as: DType,
        shape: [usize; 3],
        value: &(dyn Fn(usize, usize, usize) -> f32 + Sync),
    ) {
        let source = Made(|head, row, values: &mut [f32]| {
            for (column, out) in values.iter_mut().enumerate() {
                *out = value(head, row, column);
            }
        });
        self.refill(stored_as, shape, &source);
    }

    fn refill(&mut self, stored_as: DType, [count, n, k]: [usize; 3], source: &dyn MemberRows) {
        assert!(count > 0 && n > 0 && k > 0, "weights [{count}, {n}, {k}] are empty");
        let bytes = Self::packed_bytes(stored_as, [count, n, k]);
        assert!(bytes <= self.bytes(), "refill: {stored_as} [{count}, {n}, {k}] exceeds {self:?}");
        (self.stored_as, self.count, self.n, self.k) = (stored_as.into(), count, n, k);
        if let Device::Cpu(_) = self.device() {
            // What fills up panels is zeros, and not what was there.
            self.buffer.as_mut_slice::<u8>()[..bytes as usize].fill(0);
        }
        self.fill_panels(source);
    }

    /// With mean 0 and deviation `std`, the same for the same seed however many threads there are. Floats are normally distributed to
    /// the eye (a sum of four uniforms); of quantised types every level is as frequent as any other, and nothing is rounded.
    pub fn random(
        device: &Device,
        stored_as: impl Into<WeightType>,
        [count, n, k]: [usize; 3],
        std: f32,
        seed: u64,
    ) -> Self {
        let mut batch = Self::unwritten(device, stored_as.into(), [count, n, k]);
        batch.fill(&RandomRows { n, std, seed });
        batch
    }

    pub fn packed_bytes(stored_as: impl Into<WeightType>, [count, n, k]: [usize; 3]) -> u64 {
        let (stored_as, panels) = (stored_as.into(), count * n.div_ceil(PANEL));
        panels as u64 * stored_as.panel_bytes(k) as u64 + stored_as.spill_bytes(panels, k) as u64
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

    /// The panels of all members, one after the other, and what they spill.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.buffer.as_slice()
    }

    /// Bytes of one panel.
    pub(crate) fn panel_bytes(&self) -> usize {
        self.stored_as.panel_bytes(self.k)
    }

    /// K of float weights with its zeros.
    pub(crate) fn k_padded(&self) -> usize {
        panel::k_padded(self.k)
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

    /// Packs every row; panels are shared out to all threads. Compact bf16 becomes plain where there is no room for its outliers.
    pub(crate) fn fill(&mut self, source: &dyn MemberRows) {
        if self.stored_as != WeightType::CompactBf16 {
            return self.fill_panels(source);
        }
        if let Err(TooManyOutliers) = self.fill_compact(source) {
            let device = self.device().clone();
            *self = Self::unwritten(&device, WeightType::BF16, [self.count, self.n, self.k]);
            self.fill_panels(source);
        }
    }

    fn fill_compact(&mut self, source: &dyn MemberRows) -> Result<(), TooManyOutliers> {
        let Device::Cpu(cpu) = self.device().clone() else { panic!("a GPU has no kernels for compact bf16") };
        let (panels, panel_bytes) = (self.panels_per_member(), self.panel_bytes());
        let rows = PanelRows { source, stored_as: self.stored_as, n: self.n, k: self.k };
        let spill = Spill::new();
        let bytes = self.buffer.as_mut_slice::<u8>();
        let end = self.count * panels * panel_bytes;
        cpu.for_blocks(&mut bytes[..end], panel_bytes, |index, panel| {
            let (member, first) = (index / panels, index % panels * PANEL);
            rows.pack_compact(member, first, panel, (&spill, index * panel_bytes));
        });
        spill.finish(bytes, end)
    }

    /// Has every panel of a matrix of the processor written: `pack(panel, bytes)`, by all threads.
    pub(crate) fn fill_by_panel(&mut self, pack: impl Fn(usize, &mut [u8]) + Sync) {
        let Device::Cpu(cpu) = self.device().clone() else { panic!("panels of the processor") };
        let panel_bytes = self.panel_bytes();
        cpu.for_blocks(self.buffer.as_mut_slice::<u8>(), panel_bytes, pack);
    }

    /// The rows of a panel of float weights of the processor, `[32, K]`, as kernels multiply them. Panels are counted over all members;
    /// rows beyond N are zeros, or any finite numbers.
    pub(crate) fn read_panel(&self, panel: usize, values: &mut [f32]) {
        let (k, start) = (self.k, panel * self.panel_bytes());
        assert_eq!(values.len(), PANEL * k, "read_panel: values");
        let dtype = self.stored_as.float().expect("float weights");
        let bytes = &self.as_bytes()[start..start + self.panel_bytes()];
        if self.stored_as != WeightType::CompactBf16 {
            return cpu_pack::unpack_panel(bytes, dtype, k, values, 0);
        }
        let rounds = self.device().activation_type(self.stored_as) == ActivationType::Int16;
        let mut words = vec![0; compact::BLOCK_WORDS];
        for (index, first) in (0..k).step_by(compact::BLOCK_K).enumerate() {
            let at = start + index * compact::BLOCK_BYTES;
            let words = &mut words[..panel::k_padded(compact::BLOCK_K.min(k - first)) * PANEL];
            compact::unpack_block(self.as_bytes(), at, words);
            cpu_pack::unpack_panel(memory::bytes_of_slice(words), dtype, k, values, first);
            if rounds {
                compact::round_to_levels(self.as_bytes(), at, (&mut *values, k), first);
            }
        }
    }

    fn fill_panels(&mut self, source: &dyn MemberRows) {
        let panels = self.panels_per_member();
        let total = self.count * panels;
        let panel_bytes = self.panel_bytes();
        let rows = PanelRows { source, stored_as: self.stored_as, n: self.n, k: self.k };
        let device = self.device().clone();
        match &device {
            Device::Cpu(cpu) => {
                let bytes = &mut self.buffer.as_mut_slice::<u8>()[..total * panel_bytes];
                cpu.for_blocks(bytes, panel_bytes, |index, panel| {
                    rows.pack(index / panels, index % panels * PANEL, panel);
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
                        rows.pack_for_gpu(member, first, panel);
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

impl PanelRows<'_> {
    /// The panel of a member that begins at row `first`, for the processor. All its rows are read before they are packed, some of K at
    /// a time: their places in a panel are apart, and so the lines that are written stay in the first cache.
    fn pack(&self, member: usize, first: usize, panel: &mut [u8]) {
        let rows = first..self.n.min(first + PANEL);
        let (k, stored_as) = (self.k, self.stored_as);
        let Some(dtype) = stored_as.float() else {
            let mut groups = vec![GroupedRow::new(k); rows.len()];
            let mut values = vec![0.0; k];
            for (row, groups) in rows.clone().zip(&mut groups) {
                if !self.source.read_groups(member, row, stored_as, groups) {
                    self.source.read_f32(member, row, &mut values);
                    groups.quantize(stored_as, &values);
                }
            }
            for (index, group) in panel.chunks_exact_mut(stored_as.group_bytes()).enumerate() {
                for (column, row) in groups.iter().enumerate() {
                    cpu_pack::pack_group(group, stored_as, column, row, index);
                }
            }
            return self.source.done(member, rows);
        };
        let mut values = vec![0.0; rows.len() * k];
        for (row, values) in rows.clone().zip(values.chunks_exact_mut(k)) {
            self.source.read_f32(member, row, values);
        }
        for (start, block) in (0..k).step_by(PACK_K).zip(panel.chunks_mut(PACK_K * stored_as.line_bytes())) {
            for (column, values) in values.chunks_exact(k).enumerate() {
                cpu_pack::pack_row(block, dtype, column, &values[start..k.min(start + PACK_K)]);
            }
        }
        self.source.done(member, rows);
    }

    /// As compact bf16, into a panel that begins at `at` in its matrix.
    fn pack_compact(&self, member: usize, first: usize, panel: &mut [u8], (spill, at): (&Spill, usize)) {
        let rows = first..self.n.min(first + PANEL);
        let k = self.k;
        let mut values = vec![0.0; rows.len() * k];
        for (row, values) in rows.clone().zip(values.chunks_exact_mut(k)) {
            self.source.read_f32(member, row, values);
        }
        let mut words = vec![0; compact::BLOCK_WORDS];
        let starts = (0..k).step_by(compact::BLOCK_K);
        for (index, (start, block)) in starts.zip(panel.chunks_mut(compact::BLOCK_BYTES)).enumerate() {
            let block_k = compact::BLOCK_K.min(k - start);
            let words = &mut words[..panel::k_padded(block_k) * PANEL];
            words.fill(0);
            for (column, values) in values.chunks_exact(k).enumerate() {
                let words = memory::bytes_of_slice_mut(words);
                cpu_pack::pack_row(words, DType::BF16, column, &values[start..start + block_k]);
            }
            spill.pack_block(words, block_k, block, at + index * compact::BLOCK_BYTES);
        }
        self.source.done(member, rows);
    }

    /// The same for a GPU, into a panel that was zeroed.
    fn pack_for_gpu(&self, member: usize, first: usize, panel: &mut [u8]) {
        let (mut values, mut groups) = (vec![0.0; self.k], GroupedRow::new(self.k));
        let rows = first..self.n.min(first + PANEL);
        for row in rows.clone() {
            if let Some(dtype) = self.stored_as.float() {
                self.source.read_f32(member, row, &mut values);
                gpu_pack::pack_row(panel, dtype, row - first, &values);
                continue;
            }
            if !self.source.read_groups(member, row, self.stored_as, &mut groups) {
                self.source.read_f32(member, row, &mut values);
                groups.quantize(self.stored_as, &values);
            }
            gpu_pack::pack_groups(panel, self.stored_as, row - first, &groups);
        }
        self.source.done(member, rows);
    }
}

/// K of floats that are packed at a time: 128 lines of a panel in bf16 are 8 KiB.
const PACK_K: usize = 128;

/// What is packed before it is copied to a GPU.
const UPLOAD_BYTES: usize = 4 << 20;

impl Packed for MatrixBatch {
    /// What it is stored as, and `[count, N, K]`.
    type Form = (WeightType, [usize; 3]);

    fn part_bytes(&(stored_as, shape): &Self::Form) -> Vec<u64> {
        vec![Self::packed_bytes(stored_as, shape)]
    }

    fn from_parts(device: &Device, form: &Self::Form, parts: Vec<SharedBytes>) -> Self {
        let (stored_as, [count, n, k]) = *form;
        let buffer = Buffer::shared(device, one_part::<Self>(form, parts));
        let made = Self { buffer, stored_as, count, n, k };
        if stored_as == WeightType::CompactBf16 {
            compact::check(made.as_bytes(), count * made.panels_per_member(), k);
        }
        made
    }

    fn is(&self, &(stored_as, shape): &Self::Form) -> bool {
        (self.stored_as, [self.count, self.n, self.k]) == (stored_as, shape)
    }

    fn share(&mut self) -> Vec<SharedBytes> {
        vec![self.buffer.share()]
    }
}

impl Packed for Matrix {
    /// What it is stored as, and `[N, K]`.
    type Form = (WeightType, [usize; 2]);

    fn part_bytes(&(stored_as, [n, k]): &Self::Form) -> Vec<u64> {
        MatrixBatch::part_bytes(&(stored_as, [1, n, k]))
    }

    fn from_parts(device: &Device, &(stored_as, [n, k]): &Self::Form, parts: Vec<SharedBytes>) -> Self {
        Self { batch: MatrixBatch::from_parts(device, &(stored_as, [1, n, k]), parts) }
    }

    fn is(&self, &(stored_as, [n, k]): &Self::Form) -> bool {
        self.batch.is(&(stored_as, [1, n, k]))
    }

    fn share(&mut self) -> Vec<SharedBytes> {
        self.batch.share()
    }
}

impl fmt::Debug for MatrixBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}, {}, {}]", self.stored_as, self.count, self.n, self.k)
    }
}
