//! Which block of a GPU attends to what: lists of units for attention.cu and attention_segments.cu, made on the host from the arrays of a ragged batch, once
//! for all layers of a step. How work is cut changes no bit of a result: see `RangeRule`, which decides sums.

use super::driver::DevicePtr;
use crate::{Device, Indices};
use std::cmp::Reverse;

/// Keys of a tile.
const KEYS: usize = 64;
/// Rows of a small and of a large block over pages.
pub(crate) const FEW_ROWS: usize = 16;
pub(crate) const MANY_ROWS: usize = 64;
/// Numbers before the units, of a unit, of a token that was split.
pub(crate) const HEADER: usize = 8;
pub(crate) const UNIT: usize = 8;
const SPLIT: usize = 4;

/// The rule that decides how a row's sums are made on a GPU: by how many keys the row sees, within its window, and nothing else. Short ranges are more units
/// of work for one long sequence, and more sums to merge for everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeRule {
    /// Keys of the shortest range, a multiple of 64.
    pub shortest: usize,
    /// Most ranges of a row: longer rows have longer ranges.
    pub most: usize,
}

impl Default for RangeRule {
    fn default() -> Self {
        Self { shortest: 512, most: 64 }
    }
}

impl RangeRule {
    /// Keys of a range of a row that sees so many keys.
    pub(crate) fn len(self, visible: usize) -> usize {
        let mut len = self.shortest;
        while visible > len * self.most {
            len *= 2;
        }
        len
    }

    fn count(self, visible: usize) -> usize {
        visible.div_ceil(self.len(visible))
    }
}

/// Partial results, one for each token and range that is computed apart: enough for 32 sequences of the longest context with 16
/// heads, fewer of models with more heads.
pub(crate) fn num_slots(heads: usize, max_context: usize, rule: RangeRule) -> usize {
    match rule.count(max_context) {
        0 | 1 => 0,
        ranges => ranges * (32 * 16 / heads.max(16)).max(1),
    }
}

/// What the kernels that are there can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub kv_heads: usize,
    /// Heads that share a key head.
    pub rep: usize,
    /// Whether there are kernels for 16 rows and for `many_rows`.
    pub has_few: bool,
    pub has_many: bool,
    pub many_rows: usize,
    /// Blocks that a device holds at once.
    pub blocks: usize,
    pub num_slots: usize,
    pub rule: RangeRule,
    /// Keys that a row sees at most: itself and those before it; usize::MAX: all.
    pub window: usize,
}

/// Heads of a unit of so many rows, and units side by side that cover all heads of a key head.
pub(crate) fn head_blocks(rep: usize, rows: usize) -> [usize; 2] {
    let heads = rep.min(rows);
    [heads, rep.div_ceil(heads)]
}

/// Where the sequences of a batch are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Items<'a> {
    pub cu_seqlens: &'a [u32],
    /// `None`: packed segments, in which every token sees every key.
    pub context_lens: Option<&'a [u32]>,
    /// First block of each item; `cu_seqlens` for packed segments.
    pub tables: &'a [u32],
    /// Whether each item takes part; `None`: all do.
    pub selected: Option<&'a [bool]>,
}

impl Items<'_> {
    pub fn is_selected(&self, item: usize) -> bool {
        self.selected.is_none_or(|selected| selected[item])
    }

    /// All that lists are made from.
    pub fn append_to(&self, numbers: &mut Vec<u32>) {
        for array in [self.cu_seqlens, self.tables, self.context_lens.unwrap_or_default()] {
            numbers.extend_from_slice(array);
        }
        numbers.extend(self.selected.unwrap_or_default().iter().map(|&selected| u32::from(selected)));
    }
}

#[derive(Clone, Copy, Debug)]
struct Unit {
    table: usize,
    first_token: usize,
    num_tokens: usize,
    first_visible: usize,
    last_visible: usize,
    /// Of the first tile in which the first token sees something.
    first_key: usize,
    range_len: usize,
    ranges: [usize; 2],
    slot: Option<usize>,
}

/// Units by the kernel that takes them, and how many tokens are put together afterwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub few: usize,
    pub many: usize,
    pub splits: usize,
}

/// The lists of the last batch, in device memory at a fixed address.
#[derive(Debug)]
pub(crate) struct Plan {
    work: Indices,
    words: Vec<u32>,
    shape: Option<Shape>,
    /// What the lists were made from.
    made_from: Vec<u32>,
    next_from: Vec<u32>,
    counts: Counts,
}

impl Plan {
    fn capacity(max_tokens: usize, num_slots: usize) -> usize {
        // A unit has at least one token, and is split into at most as many as there are slots.
        HEADER + UNIT * (max_tokens + num_slots) + SPLIT * max_tokens
    }

    pub fn new(device: &Device, max_tokens: usize, num_slots: usize) -> Self {
        let work = Indices::new(device, Self::capacity(max_tokens, num_slots));
        Self {
            work,
            words: Vec::new(),
            shape: None,
            made_from: Vec::new(),
            next_from: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// What `new` will allocate on the device.
    pub fn bytes(device: &Device, max_tokens: usize, num_slots: usize) -> u64 {
        Indices::bytes(device, Self::capacity(max_tokens, num_slots))
    }

    pub fn pointer(&self) -> DevicePtr {
        self.work.pointer()
    }

    /// As `update`, for the kernels of the last call; nothing where there was none.
    pub fn renew(&mut self, items: &Items) {
        if let Some(shape) = self.shape {
            self.update(&shape, items);
        }
    }

    /// Makes the lists, unless they are those of the last call.
    pub fn update(&mut self, shape: &Shape, items: &Items) -> Counts {
        let is_other = self.shape.replace(*shape) != Some(*shape);
        self.next_from.clear();
        items.append_to(&mut self.next_from);
        if is_other || self.next_from != self.made_from {
            std::mem::swap(&mut self.next_from, &mut self.made_from);
            self.counts = write(shape, items, &mut self.words);
            self.work.set(&self.words);
        }
        self.counts
    }
}

fn write(shape: &Shape, items: &Items, words: &mut Vec<u32>) -> Counts {
    let [mut few, mut many] = units(shape, items);
    let side_by_side = |rows| shape.kv_heads * head_blocks(shape.rep, rows)[1];
    let blocks = few.len() * side_by_side(FEW_ROWS) + many.len() * side_by_side(shape.many_rows);
    let mut splits = Vec::new();
    if blocks < 2 * shape.blocks {
        let mut left = shape.num_slots;
        few = split(few, &mut left, shape.num_slots, &mut splits);
        many = split(many, &mut left, shape.num_slots, &mut splits);
    }
    let counts = Counts { few: few.len(), many: many.len(), splits: splits.len() / SPLIT };
    let total = few.len() + many.len();
    let header = [0, few.len(), few.len(), total, HEADER + UNIT * total, counts.splits, 0, 0];
    words.clear();
    words.extend(header.map(|n| n as u32));
    for list in [&mut few, &mut many] {
        // The longest first, so that no block begins with much when the others are done.
        list.sort_by_key(|unit| Reverse(unit.num_keys()));
        list.iter().for_each(|unit| words.extend(unit.words()));
    }
    words.extend(splits);
    counts
}

/// Units that compute all ranges of their rows.
fn units(shape: &Shape, items: &Items) -> [Vec<Unit>; 2] {
    let (mut few, mut many) = (Vec::new(), Vec::new());
    for item in (0..items.cu_seqlens.len() - 1).filter(|&item| items.is_selected(item)) {
        let (start, end) = (items.cu_seqlens[item] as usize, items.cu_seqlens[item + 1] as usize);
        let takes_few = shape.has_few && (!shape.has_many || (end - start) * shape.rep <= FEW_ROWS);
        let (list, rows) = if takes_few { (&mut few, FEW_ROWS) } else { (&mut many, shape.many_rows) };
        let tokens = previous_power_of_two(rows / head_blocks(shape.rep, rows)[0]);
        let context = items.context_lens.map_or(0, |lens| lens[item] as usize);
        let last_position = context + end - start;
        let mut position = context;
        while position < last_position {
            // Tokens of a unit lie in one window of positions, so that all have ranges of one length.
            let next = ((position / tokens + 1) * tokens).min(last_position);
            let visible = match items.context_lens {
                Some(_) => [position + 1, next],
                None => [end - start; 2],
            };
            // Packed segments are in one range: nobody computes a part of one.
            let range_len =
                items.context_lens.map_or(1 << 30, |_| shape.rule.len(visible[1].min(shape.window)));
            let first_key = visible[0].saturating_sub(shape.window) / KEYS * KEYS;
            list.push(Unit {
                table: items.tables[item] as usize,
                first_token: start + position - context,
                num_tokens: next - position,
                first_visible: visible[0],
                last_visible: visible[1],
                range_len,
                first_key,
                ranges: [first_key / range_len, visible[1].div_ceil(range_len)],
                slot: None,
            });
            position = next;
        }
    }
    [few, many]
}

/// One unit for each range, as far as there are slots.
fn split(units: Vec<Unit>, left: &mut usize, num_slots: usize, splits: &mut Vec<u32>) -> Vec<Unit> {
    let mut parts = Vec::with_capacity(units.len());
    for unit in units {
        let [first, end] = unit.ranges;
        let ranges = end - first;
        let wanted = ranges * unit.num_tokens;
        if ranges == 1 || wanted > *left {
            parts.push(unit);
            continue;
        }
        let first_slot = num_slots - *left;
        *left -= wanted;
        parts.extend((0..ranges).map(|range| Unit {
            ranges: [first + range, first + range + 1],
            slot: Some(first_slot + range * unit.num_tokens),
            ..unit
        }));
        for token in 0..unit.num_tokens {
            let seen = (unit.first_visible + token).min(unit.last_visible);
            let numbers = [
                unit.first_token + token,
                seen.div_ceil(unit.range_len) - first,
                first_slot + token,
                unit.num_tokens,
            ];
            splits.extend(numbers.map(|n| n as u32));
        }
    }
    parts
}

impl Unit {
    fn num_keys(&self) -> usize {
        let [first, end] = self.ranges;
        self.last_visible.min(end * self.range_len) - self.first_key.max(first * self.range_len)
    }

    /// As attention.cu reads it.
    fn words(&self) -> [u32; UNIT] {
        let Self { table, first_token, num_tokens, first_visible, range_len, ranges, slot, .. } = *self;
        let slot = slot.map_or(u32::MAX, |slot| slot as u32);
        let [first, end] = ranges;
        let [table, first_token, num_tokens, first_visible, range_len, first, end] =
            [table, first_token, num_tokens, first_visible, range_len, first, end].map(|n| n as u32);
        [table, first_token, num_tokens, first_visible, range_len, first, end, slot]
    }
}

fn previous_power_of_two(n: usize) -> usize {
    1 << n.ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(rep: usize, blocks: usize, num_slots: usize) -> Shape {
        let rule = RangeRule::default();
        Shape {
            kv_heads: 1,
            rep,
            has_few: true,
            has_many: true,
            many_rows: MANY_ROWS,
            blocks,
            num_slots,
            rule,
            window: usize::MAX,
        }
    }

    fn items<'a>(cu_seqlens: &'a [u32], context_lens: &'a [u32], tables: &'a [u32]) -> Items<'a> {
        Items { cu_seqlens, context_lens: Some(context_lens), tables, selected: None }
    }

    #[test]
    fn ranges_follow_the_length_alone() {
        let rule = RangeRule::default();
        let of = |visible| (rule.len(visible), rule.count(visible));
        assert_eq!([1, 512, 513, 32_768].map(of), [(512, 1), (512, 1), (512, 2), (512, 64)]);
        assert_eq!(
            [32_769, 65_536, 65_537, 1 << 20].map(of),
            [(1024, 33), (1024, 64), (2048, 33), (16_384, 64)]
        );
        // One sequence of 32k keys as work for twice as many multiprocessors.
        assert_eq!(RangeRule { shortest: 256, most: 128 }.count(32_768), 128);
    }

    /// Every row is in one unit for each of its ranges, whatever the cut.
    #[test]
    fn every_row_is_somewhere() {
        let (cu_seqlens, context_lens) = ([0, 1, 8, 8, 300, 301], [40_000, 3, 0, 1200, 0]);
        for rep in [1, 3, 16, 37, 128] {
            for num_slots in [0, 100, 10_000] {
                let shape = shape(rep, 1000, num_slots);
                let mut words = Vec::new();
                let tables = [0, 10, 20, 30, 40, 50];
                let counts = write(&shape, &items(&cu_seqlens, &context_lens, &tables), &mut words);
                let mut ranges = vec![0; 301];
                let units = words[HEADER..].chunks(UNIT).take(counts.few + counts.many);
                for unit in units {
                    for token in 0..unit[2] as usize {
                        ranges[unit[1] as usize + token] += unit[6] - unit[5];
                    }
                }
                for (item, &context) in context_lens.iter().enumerate() {
                    for token in cu_seqlens[item]..cu_seqlens[item + 1] {
                        let visible = (context + token - cu_seqlens[item] + 1) as usize;
                        let found = ranges[token as usize] as usize;
                        // A unit's last token may see one range more.
                        let rule = RangeRule::default();
                        assert!(
                            (rule.count(visible)..=rule.count(visible + 63)).contains(&found),
                            "{rep} {token}"
                        );
                    }
                }
                assert!(words.len() <= Plan::capacity(301, num_slots));
            }
        }
    }

    #[test]
    fn slots_are_given_once() {
        let mut words = Vec::new();
        let counts = write(&shape(16, 100, 70), &items(&[0, 1, 3], &[1024, 9000], &[0, 5, 9]), &mut words);
        // Three ranges of the first, 18 of a block of the next two tokens: 3 + 36 slots.
        assert_eq!(counts, Counts { few: 3, many: 18, splits: 3 });
        let slots: Vec<u32> = words[HEADER..].chunks(UNIT).take(21).map(|unit| unit[7]).collect();
        let mut sorted = slots.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..3).chain((3..39).step_by(2)).collect::<Vec<_>>());
        assert_eq!(words[HEADER + UNIT * 21..], [0, 3, 0, 1, 1, 18, 3, 2, 2, 18, 4, 2]);
    }

    #[test]
    fn many_blocks_are_not_cut() {
        let mut words = Vec::new();
        let counts = write(&shape(16, 1, 70), &items(&[0, 1, 3], &[1024, 9000], &[0, 5, 9]), &mut words);
        assert_eq!(counts, Counts { few: 1, many: 1, splits: 0 });
    }
}
