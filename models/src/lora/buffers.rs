//! What a step computes for its adapters in, some rows at a time: a row's result does not depend on how many there are.

use super::experts::ExpertBuffers;
use super::spec::{AdapterSpec, Target};
use kernels::{DType, Device, Tensor};

/// Rows at a time. An adapter's matrices are small: reading them again for more rows costs little beside the room that these would take.
const CHUNK_ROWS: usize = 256;

/// The largest step, and how many adapters there may be in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LoraLimits {
    pub max_loras: usize,
    pub num_tokens: usize,
    /// Rows that go through the head at a time.
    pub logit_rows: usize,
}

impl LoraLimits {
    pub fn chunk_rows(&self) -> usize {
        self.num_tokens.min(CHUNK_ROWS)
    }

    /// Rows of one adapter that go through the head at a time.
    pub fn head_rows(&self) -> usize {
        self.chunk_rows().min(self.logit_rows)
    }

    /// Runs of rows of one adapter: each has at most one that is not full.
    pub fn num_chunks(&self) -> usize {
        self.max_loras.min(self.num_tokens) + self.num_tokens / self.chunk_rows()
    }
}

pub(crate) struct LoraBuffers {
    /// Rows of what a module reads, or of what that is made of.
    pub wide: Tensor,
    /// What the last matrix of an MLP reads.
    pub inner: Tensor,
    /// Times A.
    pub low: Tensor,
    /// Times B.
    pub delta: Tensor,
    /// As `delta`, as wide as the vocabulary.
    pub logits: Tensor,
    /// Where adapters of single experts have room.
    pub(super) experts: Option<ExpertBuffers>,
}

impl LoraBuffers {
    /// At most.
    pub const NUM_TENSORS: u64 = 5 + ExpertBuffers::NUM_TENSORS;

    /// Of one row, in the order of the fields.
    fn widths(spec: &AdapterSpec) -> [usize; 4] {
        let hidden = spec.head.k;
        let [mut wide, mut inner, mut low, mut delta] = [hidden, 1, spec.max_rank, hidden];
        for module in spec.layers.iter().flatten() {
            match (module.target, &spec.latent) {
                (Target::KvUp, Some(heads)) => {
                    wide = wide.max(heads.num_heads * heads.query_dim.max(heads.rank));
                    low = low.max(heads.num_heads * spec.max_rank);
                    delta = delta.max(heads.num_heads * heads.rank.max(heads.value_dim));
                }
                (Target::Down, _) => {
                    wide = wide.max(2 * module.k);
                    inner = inner.max(module.k);
                    delta = delta.max(module.n);
                }
                _ => {
                    wide = wide.max(module.k);
                    delta = delta.max(module.n);
                }
            }
        }
        [wide, inner, low, delta]
    }

    pub fn new(device: &Device, spec: &AdapterSpec, limits: LoraLimits) -> Self {
        let rows = limits.chunk_rows();
        let [wide, inner, low, delta] =
            Self::widths(spec).map(|width| Tensor::zeros(device, DType::F32, &[rows, width]));
        let experts = spec.experts.as_ref();
        let experts = experts.map(|modules| ExpertBuffers::new(device, modules, rows, spec.max_rank));
        let logits = Tensor::zeros(device, DType::F32, &[limits.head_rows(), spec.head.n]);
        Self { wide, inner, low, delta, logits, experts }
    }

    /// What `new` allocates.
    pub fn bytes(spec: &AdapterSpec, limits: LoraLimits) -> u64 {
        let rows = limits.chunk_rows();
        let experts = spec.experts.as_ref();
        let experts = experts.map_or(0, |modules| ExpertBuffers::bytes(modules, rows, spec.max_rank));
        let own = Self::widths(spec).map(|width| Tensor::bytes_of(DType::F32, &[rows, width]));
        own.iter().sum::<u64>() + Tensor::bytes_of(DType::F32, &[limits.head_rows(), spec.head.n]) + experts
    }
}
