//! What is asked of rows of logits.

/// Most alternatives that are reported.
pub const MAX_TOP: usize = 20;

/// What is wanted of one row.
#[derive(Clone, Copy, Debug)]
pub struct RowRequest<'a> {
    /// `Some(n)`: the log-probability of the token, and the `n` most probable tokens with theirs; at most `MAX_TOP`.
    pub top: Option<usize>,
    pub want: Want<'a>,
}

#[derive(Clone, Copy, Debug)]
pub enum Want<'a> {
    Draw(Draw<'a>),
    /// How probable this token is, and its rank.
    Score(u32),
}

/// How a token is chosen. All numbers are checked; tokens are below V.
#[derive(Clone, Copy, Debug)]
pub struct Draw<'a> {
    /// 0 is greedy.
    pub temperature: f32,
    /// 0 is off.
    pub top_k: usize,
    /// In (0, 1]; 1 is off.
    pub top_p: f32,
    /// In [0, 1]; 0 is off.
    pub min_p: f32,
    /// Key and counter of the random number.
    pub seed: u64,
    pub position: u64,
    /// 1 is off; counts all of `history`.
    pub repetition_penalty: f32,
    /// These count `history` from `prompt_len` on.
    pub frequency_penalty: f32,
    pub presence_penalty: f32,
    /// Tokens so far; may be empty where no penalty is set, and then `prompt_len` is 0.
    pub history: &'a [u32],
    pub prompt_len: usize,
    /// Added to logits, each token once.
    pub logit_bias: &'a [(u32, f32)],
    /// Cannot be drawn: stop tokens before `min_tokens`.
    pub excluded: &'a [u32],
    /// Bit t % 32 of word t / 32 lets token t be drawn; tokens beyond the last word cannot be. `None`: all can.
    pub allowed: Option<&'a [u32]>,
}

impl Draw<'_> {
    /// The most probable token, of all.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        seed: 0,
        position: 0,
        repetition_penalty: 1.0,
        frequency_penalty: 0.0,
        presence_penalty: 0.0,
        history: &[],
        prompt_len: 0,
        logit_bias: &[],
        excluded: &[],
        allowed: None,
    };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleSizes {
    /// Most rows of a call.
    pub max_rows: usize,
    pub vocab: usize,
}
