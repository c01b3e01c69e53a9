//! Launches of sample.cu: requests are made into words and lists, copied, and one block takes a row.

use super::Cuda;
use super::compile::Source;
use super::driver::Args;
use super::launch::{Instance, Kernel, grid};
use crate::operands::sample::{Draw, MAX_TOP, RowRequest, SampleSizes, Want};
use crate::{DType, Device, Index, Indices, Tensor};

pub(super) const KERNEL: Kernel = Kernel {
    source: Source { name: "sample.cu", text: include_str!("sample.cu") },
    instances: &[Instance::new("sample", 80, 3072), Instance::new("place_tokens", 32, 0)],
};

const THREADS: u32 = 512;

/// Words of a request, of an edit and of a result, as in sample.cu.
const REQUEST: usize = 18;
const EDIT: usize = 3;
pub(crate) const RESULT: usize = 4 + 2 * MAX_TOP;

const EXCLUDED: u32 = 1;
const SEEN: u32 = 2;
/// One occurrence in the output.
const OCCURRENCE: u32 = 4;

/// Buffers in device memory, and those in which requests are put together.
#[derive(Debug)]
pub(crate) struct Buffers {
    /// `[rows, V]`: logits after all adjustments, then weights.
    weights: Tensor,
    /// `[rows, RESULT]`
    pub results: Tensor,
    requests: Indices,
    edits: Indices,
    masks: Indices,
    draft: Draft,
    max_edits: usize,
}

/// What is copied next.
#[derive(Debug, Default)]
struct Draft {
    requests: Vec<u32>,
    edits: Vec<u32>,
    masks: Vec<u32>,
    /// Of one row: token, flags, bias.
    changes: Vec<(u32, u32, f32)>,
}

impl Buffers {
    pub fn new(device: &Device, sizes: SampleSizes) -> Self {
        let SampleSizes { max_rows, vocab } = sizes;
        let indices = |len| Indices::new(device, len);
        Self {
            weights: Tensor::unwritten(device, DType::F32, &[max_rows, vocab]),
            results: Tensor::zeros(device, DType::I32, &[max_rows, RESULT]),
            requests: indices(max_rows * REQUEST),
            edits: indices(max_edits(sizes) * EDIT),
            masks: indices(max_rows * vocab.div_ceil(32)),
            draft: Draft::default(),
            max_edits: max_edits(sizes),
        }
    }

    pub fn bytes(sizes: SampleSizes) -> u64 {
        let SampleSizes { max_rows, vocab } = sizes;
        // All of words of four bytes.
        4 * (max_rows * (vocab + RESULT + REQUEST + vocab.div_ceil(32)) + max_edits(sizes) * EDIT) as u64
    }
}

/// Of one launch. A row has at most one for each token, so that it fits alone.
fn max_edits(sizes: SampleSizes) -> usize {
    sizes.vocab.max(64 * sizes.max_rows)
}

/// Checked in `ops`. Rows go together as far as there is room for their edits.
pub(crate) fn run(cuda: &Cuda, logits: &Tensor, rows: &[RowRequest], buffers: &mut Buffers) {
    assert_eq!(logits.dtype(), DType::F32, "sample: type of the logits");
    let vocab = logits.row_len();
    let mut first = 0;
    for (row, request) in rows.iter().enumerate() {
        buffers.draft.collect_changes(&request.want);
        if buffers.draft.edits.len() / EDIT + buffers.draft.changes.len() > buffers.max_edits {
            launch(cuda, logits, first..row, buffers);
            first = row;
        }
        buffers.draft.push(request, vocab);
    }
    launch(cuda, logits, first..rows.len(), buffers);
}

/// Checked in `ops`.
pub(crate) fn place_tokens(cuda: &Cuda, results: &Tensor, from: Index, to: Index, tokens: &Indices) {
    let count = from.len();
    if count == 0 {
        return;
    }
    let device = results.device();
    let [from, to] = [from, to].map(|rows| rows.on_device(device));
    let args = Args::new().pointer(results.pointer()).pointer(from.pointer).pointer(to.pointer);
    let args = args.value(count as i32).pointer(tokens.pointer());
    // SAFETY: `ops` checked that all rows are among the results and all places among the tokens.
    unsafe { cuda.launch(&KERNEL, "place_tokens", grid(count.div_ceil(THREADS as usize), THREADS), args) };
}

/// Rows whose requests are in the draft, which is empty afterwards.
fn launch(cuda: &Cuda, logits: &Tensor, rows: std::ops::Range<usize>, buffers: &mut Buffers) {
    let Buffers { weights, results, requests, edits, masks, draft, .. } = buffers;
    let lists = [(requests, &mut draft.requests), (edits, &mut draft.edits), (masks, &mut draft.masks)].map(
        |(to, from)| {
            to.set(from);
            from.clear();
            to.pointer()
        },
    );
    if rows.is_empty() {
        return;
    }
    let vocab = logits.row_len();
    let [requests, edits, masks] = lists;
    let args = Args::new().pointer(logits.device_slice(rows.start * vocab).start);
    let args = args.pointer(requests).pointer(edits).pointer(masks).value(vocab as i32);
    let args = args.pointer(weights.pointer()).pointer(results.device_slice(rows.start * RESULT).start);
    // SAFETY: `ops` checked that logits and buffers have these rows and that tokens are below V; the lists are those of the
    // requests.
    unsafe { cuda.launch(&KERNEL, "sample", grid(rows.len(), THREADS), args) };
}

impl Draft {
    /// Each token of a row whose logit changes, once, in rising order.
    fn collect_changes(&mut self, want: &Want) {
        let changes = &mut self.changes;
        changes.clear();
        let Want::Draw(draw) = want else { return };
        changes.extend(draw.excluded.iter().map(|&token| (token, EXCLUDED, 0.0)));
        changes.extend(draw.logit_bias.iter().map(|&(token, bias)| (token, 0, bias)));
        if draw.repetition_penalty != 1.0 {
            changes.extend(draw.history.iter().map(|&token| (token, SEEN, 0.0)));
        }
        if draw.frequency_penalty != 0.0 || draw.presence_penalty != 0.0 {
            changes.extend(draw.history[draw.prompt_len..].iter().map(|&token| (token, OCCURRENCE, 0.0)));
        }
        changes.sort_unstable_by_key(|&(token, ..)| token);
        changes.dedup_by(|next, kept| {
            let is_same = next.0 == kept.0;
            if is_same {
                // Occurrences are counted, marks are set.
                let count = kept.1 / OCCURRENCE + next.1 / OCCURRENCE;
                kept.1 = count * OCCURRENCE + (kept.1 | next.1) % OCCURRENCE;
                kept.2 += next.2;
            }
            is_same
        });
    }

    /// After `collect_changes` of the same row.
    fn push(&mut self, request: &RowRequest, vocab: usize) {
        let first_edit = self.edits.len() / EDIT;
        self.edits
            .extend(self.changes.iter().flat_map(|&(token, flags, bias)| [token, flags, bias.to_bits()]));
        let (is_score, target, draw) = match request.want {
            Want::Draw(draw) => (0, 0, draw),
            Want::Score(target) => (1, target, Draw::GREEDY),
        };
        let first_word = self.masks.len();
        if let Some(allowed) = draw.allowed {
            self.masks.extend(allowed.iter().take(vocab.div_ceil(32)));
        }
        let mask_words = draw.allowed.map_or(u32::MAX, |_| (self.masks.len() - first_word) as u32);
        // A score has a log-probability anyway.
        let top = request.top.or((is_score == 1).then_some(0)).map_or(u32::MAX, |top| top as u32);
        let words: [u32; REQUEST] = [
            is_score,
            target,
            top,
            first_edit as u32,
            (self.edits.len() / EDIT) as u32,
            first_word as u32,
            mask_words,
            i32::try_from(draw.top_k).unwrap_or(i32::MAX).cast_unsigned(),
            draw.temperature.to_bits(),
            draw.top_p.to_bits(),
            draw.min_p.to_bits(),
            draw.repetition_penalty.to_bits(),
            draw.frequency_penalty.to_bits(),
            draw.presence_penalty.to_bits(),
            draw.seed as u32,
            (draw.seed >> 32) as u32,
            draw.position as u32,
            (draw.position >> 32) as u32,
        ];
        self.requests.extend(words);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_of_a_token_come_together() {
        let mut draft = Draft::default();
        let draw = Draw {
            repetition_penalty: 2.0,
            presence_penalty: 1.0,
            history: &[5, 5, 3, 5, 5, 9],
            prompt_len: 3,
            logit_bias: &[(3, -1.5), (7, 2.0)],
            excluded: &[9],
            ..Draw::GREEDY
        };
        draft.collect_changes(&Want::Draw(draw));
        let expected = [
            (3, SEEN, -1.5),
            (5, SEEN + 2 * OCCURRENCE, 0.0),
            (7, 0, 2.0),
            (9, EXCLUDED + SEEN + OCCURRENCE, 0.0),
        ];
        assert_eq!(draft.changes, expected);
    }
}
