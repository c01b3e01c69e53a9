//! Room for the tokens of linear layers.

use crate::Tensor;

/// Where rounded tokens lie. A processor needs no room: its ops round in their own.
#[derive(Debug)]
pub struct TokenRoom {
    pub(crate) packed: Option<Tensor>,
}
