//! How a router chooses experts.

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouterConfig {
    pub scoring: Scoring,
    pub top_k: usize,
    /// Experts are cut into this many groups of one size; 1 where there are none.
    pub num_groups: usize,
    pub top_groups: usize,
    pub group_score: GroupScore,
    pub normalize: bool,
    pub scale: f32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    Softmax,
    Sigmoid,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupScore {
    Max,
    SumOfTopTwo,
}
