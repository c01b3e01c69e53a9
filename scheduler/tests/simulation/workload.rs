//! What happens on a day: a configuration, arrivals, prompts that share beginnings and pictures, follow-up turns, tenants.

use crate::rng::{Rng, chain};
use crate::truth::{Machine, NUM_TOKENS, accept, is_held, state_words};
use scheduler::{
    Accepted, AdapterId, Constraint, Digest, ImageInput, ImageSpan, NgramConfig, Pooling, PromptOutput,
    SamplingParams, SchedulerConfig, Sequence, SequenceId, TokenId, TokenMask,
};
use std::num::NonZeroU64;
use std::sync::Arc;

pub struct Workload {
    pub config: SchedulerConfig,
    pub machine: Machine,
    images: Vec<Arc<ImageInput>>,
    /// Beginnings that prompts share.
    families: Vec<Prompt>,
    has_images: bool,
    has_priorities: bool,
    /// Most requests of the day are answered with drafts.
    speculates: bool,
    /// Nobody guesses or is told of its prompt, so that most steps can be made ahead.
    is_plain: bool,
    /// Mean time between arrivals.
    pub gap_us: usize,
    next_id: u64,
}

#[derive(Debug, Clone, Default)]
pub struct Prompt {
    pub tokens: Vec<TokenId>,
    pub images: Vec<ImageSpan>,
}

impl Prompt {
    fn add_text(&mut self, rng: &mut Rng, len: usize) {
        self.tokens.extend((0..len).map(|_| rng.range(1, NUM_TOKENS as usize) as TokenId));
    }

    fn add_image(&mut self, image: &Arc<ImageInput>) {
        self.images.push(ImageSpan { start: self.tokens.len(), image: image.clone() });
        self.tokens.extend(std::iter::repeat_n(0, image.num_tokens));
    }

    /// The first `len` tokens, and the pictures that are whole among them; half a picture is cut off.
    fn cut(&self, len: usize) -> Prompt {
        let mut len = len.min(self.tokens.len());
        if let Some(span) = self.images.iter().find(|span| span.start < len && len < span.end()) {
            len = span.start;
        }
        let images = self.images.iter().filter(|span| span.end() <= len).cloned().collect();
        Prompt { tokens: self.tokens[..len].to_vec(), images }
    }
}

impl Workload {
    pub fn new(rng: &mut Rng) -> Self {
        // Beside the day's numbers: a day without steps ahead is what it was before there were any.
        let async_scheduling = Rng(!rng.0.rotate_left(29)).one_in(2);
        let mut tier = Rng(!rng.0.rotate_left(43));
        let mut config = SchedulerConfig { async_scheduling, ..config(rng) };
        if config.enable_prefix_caching && tier.one_in(2) {
            let most = if tier.one_in(3) { 6 } else { 120 };
            config.num_host_blocks = tier.range(1, most);
        }
        Self::on(config, rng)
    }

    pub fn on(config: SchedulerConfig, rng: &mut Rng) -> Self {
        let failure_rate = if rng.one_in(3) { rng.range(10, 100) as u64 } else { 0 };
        // Numbers of their own: whether masks are late changes nothing else of the day.
        let mut late = Rng(!rng.0);
        let deferral_rate = if late.one_in(3) { late.range(1, 12) as u64 } else { 0 };
        let has_two_forms = config.share_decoded_below == 0;
        // Beside the day's numbers: a day without drafts is what it was before there were any.
        let mut beside = Rng(!rng.0.rotate_left(17));
        let speculates = beside.one_in(2);
        let is_plain = config.async_scheduling && Rng(!rng.0.rotate_left(31)).one_in(2);
        let holds = Rng(!rng.0.rotate_left(37)).one_in(3);
        let works_alone = Rng(!rng.0.rotate_left(41)).one_in(2);
        let copies_percent = if speculates { *beside.pick(&[0, 50, 90, 98]) } else { 0 };
        let ahead_percent = if config.async_scheduling { *beside.pick(&[100, 100, 70]) } else { 0 };
        let machine = Machine {
            has_two_forms,
            failure_rate,
            deferral_rate,
            only_constrained_wait: config.async_scheduling,
            ahead_percent,
            works_alone,
            holds,
            copies_percent,
        };
        let images: Vec<_> = (0..rng.range(1, 6)).map(|_| Arc::new(image(rng))).collect();
        let has_images = rng.one_in(2);
        let families = (0..3).map(|_| family(rng, config.token_capacity(), has_images, &images)).collect();
        let (has_priorities, gap_us) = (rng.one_in(3), if rng.one_in(2) { 500 } else { rng.range(1, 5000) });
        Self {
            config,
            machine,
            images,
            families,
            has_images,
            has_priorities,
            speculates,
            is_plain,
            gap_us,
            next_id: 0,
        }
    }

    /// One request: `n` sequences of one prompt, each with its own seed.
    pub fn request(&mut self, rng: &mut Rng, conversations: &[Prompt]) -> Vec<Sequence> {
        let prompt = self.prompt(rng, conversations);
        let params = params(rng, self.config.token_capacity());
        let mut salt = Digest::default();
        salt.0[0] = if rng.one_in(6) { 1 } else { 0 };
        // One in eight has the one adapter, one in eight the other.
        let adapter =
            NonZeroU64::new(chain(self.next_id, 17) % 8).filter(|number| number.get() <= 2).map(AdapterId);
        let priority = if self.has_priorities { rng.range(0, 2) as i32 - 1 } else { 0 };
        let prompt_output = rng.one_in(5).then(|| prompt_output(rng, prompt.tokens.len()));
        let n = if rng.one_in(4) { rng.range(2, 4) } else { 1 };
        let mut speculation = if self.speculates { speculation(rng) } else { None };
        if self.is_plain {
            speculation = None;
        }
        let mut sequence = || {
            let id = SequenceId(self.next_id);
            self.next_id += 1;
            let params = Arc::new(SamplingParams { seed: rng.next(), ..params.clone() });
            let Prompt { tokens, images } = prompt.clone();
            let sequence = Sequence::new(id, tokens, images, params, 1 + NUM_TOKENS as usize);
            let mut sequence = sequence.expect("a valid prompt");
            (sequence.priority, sequence.salt, sequence.adapter) = (priority, salt, adapter);
            let machine = &self.machine;
            if machine.deferral_rate > 0
                && machine.only_constrained_wait
                && sequence.params.seed.is_multiple_of(4)
            {
                sequence.constraint = Some(Box::new(Anything::default()));
            }
            if machine.holds && is_held(&sequence.params) {
                let params = sequence.params.clone();
                sequence.constraint = Some(Box::new(Ending { params, token: None, state: 0 }));
            }
            match speculation {
                Some(config) => sequence.speculating(config).expect("a valid configuration"),
                None => sequence,
            }
        };
        let mut sequences: Vec<_> = (0..n).map(|_| sequence()).collect();
        if let Some(output) = prompt_output.filter(|_| !self.is_plain) {
            // Mostly of one of several answers.
            let wanting = if rng.one_in(3) { sequences.len() } else { 1 };
            for sequence in &mut sequences[..wanting] {
                *sequence = sequence.clone().wanting(output).expect("the prompt has these rows");
            }
        }
        sequences
    }

    fn prompt(&self, rng: &mut Rng, conversations: &[Prompt]) -> Prompt {
        let mut prompt = if !conversations.is_empty() && rng.one_in(4) {
            rng.pick(conversations).clone()
        } else {
            let family = rng.pick(&self.families);
            // Mostly short prompts, some as long as the memory.
            let longest = if rng.one_in(3) { family.tokens.len() } else { 1 + family.tokens.len() / 4 };
            family.cut(rng.range(1, longest))
        };
        for span in &mut prompt.images {
            // Another picture in the same place: equal tokens, different content.
            let other = rng.pick(&self.images);
            if other.num_tokens == span.image.num_tokens && rng.one_in(3) {
                span.image = other.clone();
            }
        }
        let tail = rng.range(0, 4);
        prompt.add_text(rng, tail);
        for _ in 0..if self.has_images { rng.range(0, 2) } else { 0 } {
            // The same picture once more, or another one.
            prompt.add_image(rng.pick(&self.images));
        }
        if prompt.tokens.is_empty() {
            prompt.add_text(rng, 1);
        }
        prompt
    }
}

/// Tells the state that it is of: what was said before it.
#[derive(Debug)]
struct StateMask {
    words: [u32; 2],
    is_ready: bool,
}

fn mask_of(state: u64) -> Option<Arc<dyn TokenMask>> {
    // Some are never there before they are waited for.
    Some(Arc::new(StateMask { words: state_words(state), is_ready: !state.is_multiple_of(3) }))
}

impl TokenMask for StateMask {
    fn allowed(&self) -> Option<&[u32]> {
        Some(&self.words)
    }

    fn is_ready(&self) -> bool {
        self.is_ready
    }
}

/// Lets anything be said; what it asks for may be late all the same.
#[derive(Debug, Clone, Default)]
struct Anything {
    state: u64,
}

impl Constraint for Anything {
    fn next_mask(&mut self) -> Option<Arc<dyn TokenMask>> {
        mask_of(self.state)
    }

    fn accept(&mut self, token: TokenId) -> Accepted {
        self.state = chain(self.state, u64::from(token));
        Accepted::Open
    }

    fn boxed_clone(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

/// Ends its sequence some day, and is not asked whether it does at once.
#[derive(Debug, Clone)]
struct Ending {
    params: Arc<SamplingParams>,
    token: Option<TokenId>,
    state: u64,
}

impl Constraint for Ending {
    fn next_mask(&mut self) -> Option<Arc<dyn TokenMask>> {
        mask_of(self.state)
    }

    fn accept(&mut self, _: TokenId) -> Accepted {
        unreachable!("the scheduler begins and finishes")
    }

    fn begin_accept(&mut self, token: TokenId) -> Option<Accepted> {
        assert_eq!(self.token.replace(token), None, "it was not asked of the token before");
        self.state = chain(self.state, u64::from(token));
        None
    }

    fn finish_accept(&mut self) -> Accepted {
        accept(&self.params, self.token.take().expect("there is a token"))
    }

    fn boxed_clone(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

fn config(rng: &mut Rng) -> SchedulerConfig {
    let max_running = rng.range(1, 8);
    let block_size = rng.range(1, 8);
    SchedulerConfig {
        block_size,
        num_blocks: rng.range(2, 60),
        num_host_blocks: 0,
        max_model_len: rng.range(50, 500),
        max_batched_tokens: max_running + rng.range(0, 40),
        max_running,
        max_waiting: rng.range(1, 30),
        image_rows_per_block: rng.range(1, 4),
        num_image_blocks: if rng.one_in(8) { rng.range(0, 3) } else { rng.range(4, 20) },
        max_encode_patches: if rng.one_in(8) { rng.range(1, 10) } else { rng.range(20, 60) },
        encode_ahead: rng.one_in(2),
        async_scheduling: false,
        enable_prefix_caching: !rng.one_in(5),
        share_decoded_below: if rng.one_in(2) { usize::MAX } else { 0 },
    }
}

fn speculation(rng: &mut Rng) -> Option<NgramConfig> {
    let prompt_lookup_max = rng.range(1, 4);
    let config = NgramConfig {
        num_speculative_tokens: if rng.one_in(4) { 16 } else { rng.range(1, 5) },
        prompt_lookup_max,
        prompt_lookup_min: rng.range(1, prompt_lookup_max),
    };
    (!rng.one_in(4)).then_some(config)
}

fn image(rng: &mut Rng) -> ImageInput {
    let mut digest = Digest::default();
    digest.0[..8].copy_from_slice(&rng.next().to_le_bytes());
    let grid = [rng.range(1, 6), rng.range(1, 6)];
    // Few sizes, so that different pictures can have the same.
    let num_tokens = *rng.pick(&[1, 2, 5, 5, 9, 9, 16]);
    let position_grid = match num_tokens {
        9 => Some([3, 3]),
        16 => Some([2, 8]),
        _ => None,
    };
    ImageInput { digest, grid, num_tokens, position_grid, patches: Vec::new() }
}

fn family(rng: &mut Rng, capacity: usize, has_images: bool, images: &[Arc<ImageInput>]) -> Prompt {
    let mut prompt = Prompt::default();
    while prompt.tokens.len() < capacity {
        let len = rng.range(1, if has_images { 8 } else { 20 });
        prompt.add_text(rng, len);
        if has_images && rng.one_in(2) {
            prompt.add_image(rng.pick(images));
        }
    }
    prompt
}

fn prompt_output(rng: &mut Rng, prompt_len: usize) -> PromptOutput {
    match rng.range(0, 3) {
        0 => PromptOutput::Pooled(Pooling::Last),
        1 => PromptOutput::Pooled(Pooling::Mean),
        _ => {
            let first = if rng.one_in(2) { 1 } else { rng.range(1, prompt_len) };
            PromptOutput::Logprobs { first, top: rng.range(0, 2) }
        }
    }
}

fn params(rng: &mut Rng, capacity: usize) -> SamplingParams {
    let max_tokens = match rng.range(0, 9) {
        0 => 0,
        1..=5 => rng.range(1, 1 + capacity / 2),
        _ => rng.range(1, 20),
    };
    let mut stop_token_ids: Vec<_> =
        (0..rng.range(0, 2)).map(|_| rng.range(1, NUM_TOKENS as usize) as TokenId).collect();
    stop_token_ids.sort_unstable();
    stop_token_ids.dedup();
    SamplingParams {
        max_tokens,
        min_tokens: if rng.one_in(3) { rng.range(0, max_tokens) } else { 0 },
        stop_token_ids,
        presence_penalty: if rng.one_in(5) { 0.5 } else { 0.0 },
        logprobs: rng.one_in(5).then_some(2),
        ..SamplingParams::default()
    }
}
