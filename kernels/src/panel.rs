//! In what portions weights are packed, whatever their type.

/// Rows of one panel.
pub(crate) const PANEL: usize = 32;

/// Weights of one row that share a scale: neighbours along K.
pub const GROUP: usize = 32;

/// K of float weights is filled up to a multiple of this.
pub(crate) const K_GRAIN: usize = 16;

/// K of float weights with its zeros.
pub(crate) const fn k_padded(k: usize) -> usize {
    k.next_multiple_of(K_GRAIN)
}
