//! What can go wrong before the first op runs, and on a device while it runs. Ops themselves do not fail: a wrong shape is our own
//! mistake and panics; a failure of a device is kept there, and reported by whoever waits for it.

use crate::cuda::error::CudaError;
use crate::{ActivationType, DType, Isa};

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("tensor of {dtype} {shape:?} needs {expected} bytes, found {found}")]
    WrongLength { dtype: DType, shape: Vec<usize>, expected: u64, found: u64 },
    #[error("this processor has no {0}")]
    NoSuchIsa(Isa),
    #[error("there are no products of {0} for this processor ({1})")]
    NoProducts(ActivationType, Isa),
    #[error("{threads} threads cannot be pinned to {cpus} CPUs, one each")]
    PinCount { threads: usize, cpus: usize },
    #[error("this process may not run on CPU {0}, or this system pins no threads")]
    CannotPin(usize),
    /// The first of the threads that compute, counted from 1, that the system did not start, and why.
    #[error(
        "failed to start thread {thread} of {threads} that compute: {reason}: use fewer threads, or raise the limits on processes and memory"
    )]
    NoThread { thread: usize, threads: usize, reason: String },
    #[error(transparent)]
    Cuda(#[from] CudaError),
}
