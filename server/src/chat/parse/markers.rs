//! The strings around thinking.

/// What surrounds a model's thinking in its output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReasoningMarkers {
    pub start: String,
    pub end: String,
    /// The prompt ends inside the thinking: the answer goes on with it and has no start marker.
    pub open_in_prompt: bool,
}
