//! Room for the tokens of linear layers, and what is made for them.

use crate::cuda::driver::DevicePtr;
use crate::{DType, Tensor, WeightType};

/// Where rounded tokens lie. A processor needs no room: its ops round in their own.
#[derive(Debug)]
pub struct TokenRoom {
    pub(crate) packed: Option<Tensor>,
    /// What is in it beside a tensor that a norm wrote.
    pub(crate) made: Option<Made>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Made {
    pub dtype: DType,
    /// The tensor, which has the same in f32.
    pub of: DevicePtr,
    pub rows: usize,
}

impl Made {
    pub fn is_of(&self, x: &Tensor) -> bool {
        (self.of, self.rows) == (x.pointer(), x.rows())
    }
}

/// A norm in front of linear layers.
#[derive(Clone, Copy, Debug)]
pub struct NormFor<'a> {
    /// `[D]`
    pub weight: &'a Tensor,
    pub eps: f32,
    /// What the first of the layers keeps its weights as; f32 where there is none.
    pub next: WeightType,
}
