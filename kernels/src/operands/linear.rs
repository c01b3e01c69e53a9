//! Operands of linear layers.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    None,
    /// The tanh form of GELU.
    GeluTanh,
    /// GELU with the error function.
    GeluErf,
    /// x · sigmoid(1.702 x)
    QuickGelu,
}
