//! What can go wrong before the first op runs. Ops themselves cannot fail: a wrong shape is our own mistake and panics.

use crate::{DType, Isa};

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("tensor of {dtype} {shape:?} needs {expected} bytes, found {found}")]
    WrongLength { dtype: DType, shape: Vec<usize>, expected: u64, found: u64 },
    #[error("this processor has no {0}")]
    NoSuchIsa(Isa),
}
