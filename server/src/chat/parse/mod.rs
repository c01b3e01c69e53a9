//! What a model writes besides text: its thinking and its calls of tools.

mod markers;

pub use markers::ReasoningMarkers;
