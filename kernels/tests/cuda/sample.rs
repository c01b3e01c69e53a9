//! Sampling on the device: the same tokens as one line of arithmetic after the other gives, rows alone and in company.

use crate::common::{bits, values};
use crate::device::{SEEDS, emulated};
use crate::mutants::{Run, assert_noticed};
use kernels::ops::*;
use kernels::*;

/// As the sampler of the processor: f32 weights, sums in f64 from first to last.
mod twin {
    use super::*;

    fn log_softmax(logits: &[f32]) -> Vec<f32> {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&x| f64::from((x - max).exp())).sum();
        logits.iter().map(|&x| (f64::from(x) - (f64::from(max) + sum.ln())) as f32).collect()
    }

    /// Ids by falling value, ties by rising id.
    fn sorted(values: &[f32]) -> Vec<u32> {
        let mut ids: Vec<u32> = (0..values.len() as u32).collect();
        ids.sort_by(|&a, &b| values[b as usize].total_cmp(&values[a as usize]).then(a.cmp(&b)));
        ids
    }

    pub fn row(logits: &[f32], request: &RowRequest) -> RowOutcome {
        if !logits.iter().all(|x| x.is_finite()) {
            return RowOutcome::NonFinite;
        }
        let logprobs = log_softmax(logits);
        let order = sorted(&logprobs);
        let top =
            order.iter().take(request.top.unwrap_or(0)).map(|&id| (id, logprobs[id as usize])).collect();
        match &request.want {
            Want::Score(target) => {
                let rank = 1 + order.iter().position(|id| id == target).expect("a token");
                RowOutcome::Score { logprob: logprobs[*target as usize], rank, top }
            }
            Want::Draw(draw) => match token(&adjusted(logits, draw), draw) {
                None => RowOutcome::Nothing,
                Some(token) => {
                    RowOutcome::Token { token, logprob: request.top.map(|_| logprobs[token as usize]), top }
                }
            },
        }
    }

    fn adjusted(logits: &[f32], draw: &Draw) -> Vec<f32> {
        let mut x = logits.to_vec();
        draw.excluded.iter().for_each(|&token| x[token as usize] = f32::NEG_INFINITY);
        draw.logit_bias.iter().for_each(|&(token, bias)| x[token as usize] += bias);
        let seen: std::collections::BTreeSet<u32> = draw.history.iter().copied().collect();
        for &token in seen.iter().filter(|_| draw.repetition_penalty != 1.0) {
            let x = &mut x[token as usize];
            *x = if *x > 0.0 { *x / draw.repetition_penalty } else { *x * draw.repetition_penalty };
        }
        let output = &draw.history[draw.prompt_len..];
        for &token in &seen {
            let count = output.iter().filter(|&&other| other == token).count() as f32;
            if count > 0.0 {
                x[token as usize] -= draw.frequency_penalty * count + draw.presence_penalty;
            }
        }
        let is_allowed = |id: usize| {
            draw.allowed.is_none_or(|words| words.get(id / 32).is_some_and(|word| word >> (id % 32) & 1 == 1))
        };
        let masked = |(id, x): (usize, f32)| if is_allowed(id) { x.min(f32::MAX) } else { f32::NEG_INFINITY };
        x.into_iter().enumerate().map(masked).collect()
    }

    fn token(x: &[f32], draw: &Draw) -> Option<u32> {
        let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if max == f32::NEG_INFINITY {
            return None;
        }
        if draw.temperature == 0.0 {
            return x.iter().position(|&v| v == max).map(|id| id as u32);
        }
        let weight =
            |&x: &f32| Some(((x - max) / draw.temperature).exp()).filter(|&w| w >= draw.min_p).unwrap_or(0.0);
        let weights: Vec<f32> = x.iter().map(weight).collect();
        let of = |id: &u32| f64::from(weights[*id as usize]);
        let mut ids: Vec<u32> = (0..x.len() as u32).collect();
        if draw.top_k > 0 || draw.top_p < 1.0 {
            ids = sorted(&weights);
            ids.retain(|id| of(id) > 0.0);
            if draw.top_k > 0 {
                ids.truncate(draw.top_k);
            }
            let goal = f64::from(draw.top_p) * ids.iter().map(of).sum::<f64>();
            let mut sum = 0.0;
            let end = ids.iter().position(|id| {
                sum += of(id);
                sum >= goal
            });
            ids.truncate(end.map_or(ids.len(), |end| end + 1));
        }
        let goal = uniform(draw.seed, draw.position) * ids.iter().map(of).sum::<f64>();
        let mut sum = 0.0;
        ids.into_iter().find(|id| {
            sum += of(id);
            sum > goal
        })
    }

    /// Philox 4x32-10 of the position, keyed by the seed: 53 bits.
    fn uniform(seed: u64, position: u64) -> f64 {
        let mut counter = [position as u32, (position >> 32) as u32, 0, 0];
        let mut key = [seed as u32, (seed >> 32) as u32];
        for _ in 0..10 {
            let [a, b] = [0xd251_1f53u64 * u64::from(counter[0]), 0xcd9e_8d57u64 * u64::from(counter[2])];
            counter = [
                (b >> 32) as u32 ^ counter[1] ^ key[0],
                b as u32,
                (a >> 32) as u32 ^ counter[3] ^ key[1],
                a as u32,
            ];
            key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
        }
        ((u64::from(counter[0]) << 32 | u64::from(counter[1])) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Logits of some rows; every other row has few values, so that many are equal.
fn logits(rows: usize, vocab: usize) -> Vec<f32> {
    let numbers = values(7, rows * vocab);
    let value =
        |(i, v): (usize, f32)| if (i / vocab).is_multiple_of(2) { 6.0 * v } else { (4.0 * v).round() };
    numbers.into_iter().enumerate().map(value).collect()
}

fn run(device: &Device, logits: &[f32], requests: &[RowRequest]) -> Result<Vec<RowOutcome>, Error> {
    let vocab = logits.len() / requests.len();
    let before = device.allocated_bytes();
    let sizes = SampleSizes { max_rows: requests.len() + 1, vocab };
    let mut scratch = SampleScratch::new(device, sizes)?;
    assert_eq!(device.allocated_bytes() - before, SampleScratch::bytes(sizes));
    sample(&Tensor::from_f32(device, &[requests.len(), vocab], logits), requests, &mut scratch);
    let outcomes = scratch.begin_read();
    scratch.finish_read(outcomes)
}

/// What the device says is what the twin says: tokens exactly, log-probabilities to the last bit but one.
fn assert_same(found: &RowOutcome, expected: &RowOutcome, what: &str) {
    let parts = |outcome: &RowOutcome| match outcome.clone() {
        RowOutcome::Token { token, logprob, top } => (0, token as usize, logprob, top),
        RowOutcome::Score { logprob, rank, top } => (1, rank, Some(logprob), top),
        RowOutcome::NonFinite => (2, 0, None, vec![]),
        RowOutcome::Nothing => (3, 0, None, vec![]),
    };
    let (found, expected) = (parts(found), parts(expected));
    assert_eq!((found.0, found.1), (expected.0, expected.1), "{what}");
    assert_eq!(found.2.is_some(), expected.2.is_some(), "{what}");
    let ids = |top: &[(u32, f32)]| top.iter().map(|(id, _)| *id).collect::<Vec<_>>();
    assert_eq!(ids(&found.3), ids(&expected.3), "{what}");
    let numbers = |(_, _, logprob, top): &(i32, usize, Option<f32>, Vec<(u32, f32)>)| {
        logprob.iter().copied().chain(top.iter().map(|(_, v)| *v)).collect::<Vec<f32>>()
    };
    for (a, b) in numbers(&found).into_iter().zip(numbers(&expected)) {
        assert!((a - b).abs() <= b.abs() * 2.4e-7, "{what}: {a} is not {b}");
    }
}

const HISTORY: [u32; 9] = [3, 3, 200, 5, 17, 3, 17, 17, 299];
/// Every other token.
const EVEN: [u32; 150] = {
    let (mut tokens, mut i) = ([0; 150], 0);
    while i < 150 {
        tokens[i] = 2 * i as u32;
        i += 1;
    }
    tokens
};
const BIAS: [(u32, f32); 3] = [(5, 4.0), (17, -3.0), (120, 6.5)];
const EVERY_THIRD: [u32; 9] = [0x4924_9249; 9];

/// Every parameter alone and some together.
fn draws() -> Vec<Draw<'static>> {
    let warm = Draw { temperature: 1.0, ..Draw::GREEDY };
    vec![
        // The second row has equal logits.
        Draw::GREEDY,
        Draw::GREEDY,
        warm,
        Draw { temperature: 0.3, ..warm },
        Draw { temperature: 40.0, ..warm },
        Draw { temperature: f32::MIN_POSITIVE, ..warm },
        Draw { top_k: 1, ..warm },
        Draw { top_k: 7, temperature: 2.0, ..warm },
        Draw { top_k: 1000, ..warm },
        Draw { top_p: 0.5, ..warm },
        Draw { top_p: 0.95, temperature: 3.0, ..warm },
        Draw { top_p: 1e-6, ..warm },
        Draw { min_p: 0.1, temperature: 2.0, ..warm },
        Draw { min_p: 1.0, ..warm },
        Draw { top_k: 20, top_p: 0.8, min_p: 0.01, temperature: 1.7, ..warm },
        Draw { repetition_penalty: 1.8, history: &HISTORY, prompt_len: 4, ..warm },
        Draw { repetition_penalty: 5.0, history: &EVEN, temperature: 9.0, ..warm },
        Draw { repetition_penalty: 5.0, history: &EVEN, top_k: 40, temperature: 9.0, ..warm },
        Draw { repetition_penalty: 5.0, history: &EVEN, temperature: 20.0, ..warm },
        Draw { frequency_penalty: 0.9, presence_penalty: -0.4, history: &HISTORY, prompt_len: 4, ..warm },
        Draw { presence_penalty: 2.0, history: &HISTORY, prompt_len: 2, ..Draw::GREEDY },
        Draw { logit_bias: &BIAS, excluded: &[120, 0], ..warm },
        Draw { logit_bias: &BIAS, ..Draw::GREEDY },
        Draw { allowed: Some(&EVERY_THIRD), ..warm },
        Draw { allowed: Some(&EVERY_THIRD), top_p: 0.7, logit_bias: &BIAS, ..warm },
    ]
}

fn requests(draws: &[Draw<'static>]) -> Vec<RowRequest<'static>> {
    let seeded = |(i, draw): (usize, &Draw<'static>)| {
        let draw = Draw { seed: i as u64 * 0x1_0000_0003, position: 7 + i as u64 * 31, ..*draw };
        RowRequest { top: [None, Some(0), Some(3), Some(20)][i % 4], want: Want::Draw(draw) }
    };
    draws.iter().enumerate().map(seeded).collect()
}

#[test]
fn tokens_are_those_of_the_processor() {
    let device = emulated(SEEDS[0]);
    let draws = draws();
    for (vocab, times) in [(300, 2), (1031, 1)] {
        let draws = draws.repeat(times);
        let requests = requests(&draws);
        let logits = logits(requests.len(), vocab);
        let found = run(&device, &logits, &requests).expect("outcomes");
        for ((row, request), found) in logits.chunks(vocab).zip(&requests).zip(&found) {
            assert_same(found, &twin::row(row, request), &format!("V {vocab} {request:?}"));
        }
    }
}

#[test]
fn scores_and_alternatives() {
    let device = emulated(SEEDS[0]);
    let vocab = 300;
    let requests: Vec<RowRequest> = (0..8)
        .map(|i| RowRequest {
            top: [None, Some(0), Some(20), Some(5)][i % 4],
            want: Want::Score(i as u32 * 41),
        })
        .collect();
    let logits = logits(8, vocab);
    let found = run(&device, &logits, &requests).expect("outcomes");
    for ((row, request), found) in logits.chunks(vocab).zip(&requests).zip(&found) {
        assert_same(found, &twin::row(row, request), &format!("{request:?}"));
    }
    // Fewer tokens than alternatives.
    let few = RowRequest { top: Some(20), want: Want::Score(2) };
    let row = [0.5, 1.0, 0.5];
    assert_same(&run(&device, &row, &[few]).expect("outcomes")[0], &twin::row(&row, &few), "three tokens");
}

/// A nucleus of most of a vocabulary, and weights that are nearly equal.
#[test]
fn wide_distributions() {
    let device = emulated(SEEDS[1]);
    let vocab = 9001;
    let draw = |top_p, position| Draw { temperature: 1.0, top_p, position, seed: 9, ..Draw::GREEDY };
    let requests: Vec<RowRequest> = [draw(0.5, 1), draw(1.0, 2), draw(0.999, 3)]
        .map(|draw| RowRequest { top: None, want: Want::Draw(draw) })
        .to_vec();
    let row: Vec<f32> = (0..vocab).map(|i| ((i * 7919) % vocab) as f32 * 1e-5).collect();
    let found = run(&device, &row.repeat(3), &requests).expect("outcomes");
    for (request, found) in requests.iter().zip(&found) {
        assert_same(found, &twin::row(&row, request), &format!("{request:?}"));
    }
}

#[test]
fn rows_that_cannot_be_sampled_fail_alone() {
    let device = emulated(SEEDS[0]);
    let good = RowRequest { top: Some(1), want: Want::Draw(Draw::GREEDY) };
    let nothing = |temperature| RowRequest {
        top: None,
        want: Want::Draw(Draw { temperature, allowed: Some(&[]), ..Draw::GREEDY }),
    };
    let all = RowRequest {
        top: None,
        want: Want::Draw(Draw { temperature: 1.0, excluded: &[0, 1, 2, 3, 4, 5, 6], ..Draw::GREEDY }),
    };
    let overflow = RowRequest {
        top: None,
        want: Want::Draw(Draw { repetition_penalty: 1e-30, history: &[6], prompt_len: 1, ..Draw::GREEDY }),
    };
    let requests = [good, good, good, nothing(0.0), nothing(1.0), all, overflow, good];
    let mut logits: Vec<f32> = (0..requests.len() * 7).map(|i| (i % 7) as f32).collect();
    logits[3] = f32::NAN;
    logits[7] = f32::INFINITY;
    logits[20] = f32::NEG_INFINITY;
    logits[6 * 7 + 6] = 3e38;
    let found = run(&device, &logits, &requests).expect("outcomes");
    for (i, (row, request)) in logits.chunks(7).zip(&requests).enumerate() {
        assert_same(&found[i], &twin::row(row, request), &format!("row {i}"));
    }
    assert_eq!(found[..6].iter().filter(|outcome| matches!(outcome, RowOutcome::NonFinite)).count(), 3);
    assert_eq!(found[3..6], [RowOutcome::Nothing, RowOutcome::Nothing, RowOutcome::Nothing]);
}

/// Rows whose edits do not fit together go in several launches; a row's outcome has the same bits alone, under another schedule.
#[test]
fn rows_do_not_know_of_each_other() {
    let vocab = 300;
    let histories: Vec<Vec<u32>> = (0..5).map(|row| (0..200 + row).collect()).collect();
    let request = |history| {
        let draw = Draw {
            temperature: 2.0,
            repetition_penalty: 1.3,
            history,
            prompt_len: 7,
            seed: 3,
            ..Draw::GREEDY
        };
        RowRequest { top: Some(4), want: Want::Draw(draw) }
    };
    let requests: Vec<RowRequest> = histories.iter().map(|history| request(history)).collect();
    let logits = logits(5, vocab);
    let together = run(&emulated(SEEDS[0]), &logits, &requests).expect("outcomes");
    let other = emulated(SEEDS[1]);
    for (row, (request, expected)) in requests.iter().zip(&together).enumerate() {
        let logits = &logits[row * vocab..(row + 1) * vocab];
        assert_eq!(&run(&other, logits, std::slice::from_ref(request)).expect("an outcome")[0], expected);
        assert_same(expected, &twin::row(logits, request), &format!("row {row}"));
    }
}

/// Tokens of the first call at `to`, the others as they were, as a later op of the device reads them; and the outcomes of two calls, read
/// after both were enqueued.
fn place(device: &Device, from: &[u32], to: &[u32]) -> Result<(Vec<u8>, [Vec<RowOutcome>; 2]), Error> {
    const VOCAB: usize = 300;
    let calls = [(5, 3), (3, 9)].map(|(rows, seed)| {
        let draw = Draw { temperature: 1.0, seed, ..Draw::GREEDY };
        (logits(rows, VOCAB), vec![RowRequest { top: Some(2), want: Want::Draw(draw) }; rows])
    });
    let mut scratch = SampleScratch::new(device, SampleSizes { max_rows: 5, vocab: VOCAB })?;
    let names: Vec<f32> = (0..VOCAB).map(|id| id as f32).collect();
    let names = Tensor::from_f32(device, &[VOCAB, 1], &names);
    let mut tokens = Indices::new(device, 700);
    tokens.set(&[299; 600]);
    let mut found = Tensor::zeros(device, DType::F32, &[600, 1]);
    let [first, second] = calls.each_ref().map(|(logits, requests)| {
        let logits = Tensor::from_f32(device, &[requests.len(), VOCAB], logits);
        sample(&logits, requests, &mut scratch);
        let outcomes = scratch.begin_read();
        if requests.len() == 5 {
            place_tokens(&scratch, from, to, &mut tokens);
            gather_rows(&names, &tokens, &mut found);
        }
        outcomes
    });
    let outcomes = [scratch.finish_read(first)?, scratch.finish_read(second)?];
    Ok((found.read()?, outcomes))
}

/// More than a block of them, from rows in any order.
fn places() -> (Vec<u32>, Vec<u32>) {
    let from = (0..515).map(|i| i * 3 % 5).collect();
    (from, (0..515).map(|i| (i * 7 + 11) % 600).collect())
}

/// What is sampled becomes tokens of the next step on the device, and outcomes of a call outlive the next one.
#[test]
fn sampled_tokens_are_placed_for_the_next_step() {
    for seed in SEEDS {
        let device = emulated(seed);
        let (from, to) = places();
        let (found, outcomes) = place(&device, &from, &to).expect("outcomes");
        let alone = |rows: usize, seed: u64| {
            let draw = Draw { temperature: 1.0, seed, ..Draw::GREEDY };
            let requests = vec![RowRequest { top: Some(2), want: Want::Draw(draw) }; rows];
            run(&device, &logits(rows, 300), &requests).expect("outcomes")
        };
        assert_eq!(outcomes, [alone(5, 3), alone(3, 9)]);
        let mut expected = [299.0f32; 600];
        for (&from, &to) in from.iter().zip(&to) {
            let RowOutcome::Token { token, .. } = outcomes[0][from as usize] else { panic!("no token") };
            expected[to as usize] = token as f32;
        }
        let found: Vec<f32> = found.as_chunks().0.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect();
        assert_eq!(found, expected);
        let (found, _) = place(&device, &[], &[]).expect("outcomes");
        assert!(found.as_chunks().0.iter().all(|bytes| f32::from_ne_bytes(*bytes) == 299.0));
    }
}

#[test]
fn bugs_are_noticed() {
    let (draws, vocab) = (draws(), 300);
    let requests = requests(&draws);
    let logits = logits(requests.len(), vocab);
    let all = |device: &Device| {
        let outcomes = run(device, &logits, &requests)?;
        let words = outcomes.into_iter().flat_map(|outcome| match outcome {
            RowOutcome::Token { token, logprob, top } => {
                let numbers =
                    bits(&logprob.into_iter().chain(top.iter().map(|(_, v)| *v)).collect::<Vec<_>>());
                [vec![token], numbers, top.into_iter().map(|(id, _)| id).collect()].concat()
            }
            failed => vec![u32::MAX - u32::from(failed == RowOutcome::Nothing)],
        });
        Ok(words.flat_map(u32::to_le_bytes).collect())
    };
    let case = |from, to| -> (&'static str, &'static str, Run) { (from, to, &all) };
    assert_noticed(&[
        // Barriers.
        case("s.bins[i] = 0;\n        __syncthreads();", "s.bins[i] = 0;"),
        case(
            "if (sum) atomicAdd(s.bins + bin, sum);\n        __syncthreads();",
            "if (sum) atomicAdd(s.bins + bin, sum);",
        ),
        case(
            "if (warp_id() == 0) find_bin(above, goal, s);\n        __syncthreads();",
            "if (warp_id() == 0) find_bin(above, goal, s);",
        ),
        case("weights[i] = logits[i];\n    __syncthreads();", "weights[i] = logits[i];"),
        // Searches.
        case("before < goal && before + own >= goal", "before <= goal && before + own > goal"),
        case("key == cut.key && id <= cut.id", "key == cut.key && id < cut.id"),
        case("for (; bin > top - 7 && before", "for (; bin > top - 6 && before"),
        case("(goal - above + one - 1) / one", "(goal - above) / one"),
        // Rules.
        case("b.value == a.value && b.id < a.id", "b.value == a.value && b.id > a.id"),
        case("floor(uniform(r) * (double)all) + 1", "floor((1 - uniform(r)) * (double)all) + 1"),
        case("x > 0 ? x / r.repetition : x * r.repetition", "x / r.repetition"),
        case("if (!(weight >= r.min_p)) weight = 0;", "if (!(weight > r.min_p)) weight = 0;"),
        case("!(word >> (i % 32) & 1)", "!(word >> (i % 31) & 1)"),
    ]);
}

#[test]
fn bugs_of_places_are_noticed() {
    let (from, to) = places();
    let placed = |device: &Device| place(device, &from, &to).map(|(found, _)| found);
    let case = |from, to| -> (&'static str, &'static str, Run) { (from, to, &placed) };
    assert_noticed(&[
        // Guards, and who has which.
        case("if (i >= count) return;\n    int row", "if (i > count) return;\n    int row"),
        case("if (i >= count) return;\n    int row", "if (i + 1 >= count) return;\n    int row"),
        case(
            "int i = (int)(blockIdx.x * THREADS + threadIdx.x);\n    if (i >= count) return;\n    int row",
            "int i = (int)threadIdx.x;\n    if (i >= count) return;\n    int row",
        ),
        // From where to where.
        case("int row = from[i], place = to[i];", "int row = to[i], place = from[i];"),
        case("int row = from[i], place = to[i];", "int row = from[0], place = to[i];"),
        case("results[(long long)row * RESULT + 1];", "results[(long long)row * RESULT];"),
        case("tokens[place] = token;", "tokens[i] = token;"),
    ]);
}
