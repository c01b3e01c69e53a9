//! Which part of a batch is expanded and attended to when: passes for attention_expanded.cu, made on the host from the arrays of a ragged
//! batch, once for all layers of a step. A pass fills the workspace with ranges of some items. How ranges are dealt out changes no bit.

use super::attention_plan::{HEADER, Items, UNIT};
use super::driver::DevicePtr;
use crate::{Device, Indices};
use std::ops::Range;

/// Keys of a range, and rows of the workspace: a row's sums begin anew at each multiple of it.
pub(crate) const RANGE: usize = 2048;
/// Rows of the workspace that are expanded together.
pub(crate) const TILE: usize = 64;
/// Tokens of a small and of a large block of `attend_expanded`.
pub(crate) const FEW_TOKENS: usize = 64;
pub(crate) const MANY_TOKENS: usize = 128;
/// Numbers of a segment.
pub(crate) const SEGMENT: usize = 4;

/// What decides the lists beside the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// Keys of a range, a multiple of `MANY_TOKENS`.
    pub range: usize,
    /// Rows of the workspace, at least a range.
    pub rows: usize,
    /// Whether there are large blocks.
    pub has_many: bool,
}

/// One filling of the workspace. Segments and units are numbered from the begin of their lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pass {
    pub segments: Range<usize>,
    /// Rows of the workspace that are used.
    pub rows: usize,
    pub few: Range<usize>,
    pub many: Range<usize>,
}

/// The lists of the last batch, in device memory at a fixed address: units, then segments.
#[derive(Debug)]
pub(crate) struct Plan {
    work: Indices,
    words: Vec<u32>,
    rule: Option<Rule>,
    /// What the lists were made from.
    made_from: Vec<u32>,
    next_from: Vec<u32>,
    passes: Vec<Pass>,
    num_units: usize,
}

impl Plan {
    /// Each token may be an item of its own, with a unit and a segment in each of its ranges.
    fn capacity(max_tokens: usize, max_context: usize, range: usize) -> usize {
        HEADER + (UNIT + SEGMENT) * max_tokens * max_context.div_ceil(range)
    }

    pub fn new(device: &Device, max_tokens: usize, max_context: usize, range: usize) -> Self {
        let work = Indices::new(device, Self::capacity(max_tokens, max_context, range));
        Self {
            work,
            words: Vec::new(),
            rule: None,
            made_from: Vec::new(),
            next_from: Vec::new(),
            passes: Vec::new(),
            num_units: 0,
        }
    }

    /// What `new` will allocate on the device.
    pub fn bytes(device: &Device, max_tokens: usize, max_context: usize, range: usize) -> u64 {
        Indices::bytes(device, Self::capacity(max_tokens, max_context, range))
    }

    pub fn pointer(&self) -> DevicePtr {
        self.work.pointer()
    }

    pub fn passes(&self) -> &[Pass] {
        &self.passes
    }

    /// Where segments begin, in words.
    pub fn first_segment(&self) -> usize {
        HEADER + UNIT * self.num_units
    }

    /// Makes the lists for the items that are selected, unless they are those of the last call.
    pub fn update(&mut self, rule: &Rule, items: &Items) {
        let is_other = self.rule.replace(*rule) != Some(*rule);
        self.next_from.clear();
        items.append_to(&mut self.next_from);
        if is_other || self.next_from != self.made_from {
            std::mem::swap(&mut self.next_from, &mut self.made_from);
            self.num_units = write(rule, items, &mut self.passes, &mut self.words);
            self.work.set(&self.words);
        }
    }
}

/// One item's rows and keys.
struct Item {
    table: usize,
    first_token: usize,
    num_tokens: usize,
    context: usize,
}

impl Item {
    fn end(&self) -> usize {
        self.context + self.num_tokens
    }

    /// Positions of its tokens, cut where blocks of so many tokens begin.
    fn windows(&self, tokens: usize) -> impl Iterator<Item = Range<usize>> {
        let (context, end) = (self.context, self.end());
        let first = context / tokens;
        (first..end.div_ceil(tokens)).map(move |i| (i * tokens).max(context)..((i + 1) * tokens).min(end))
    }
}

fn items_of(items: &Items) -> Vec<Item> {
    let lens = items.context_lens.expect("items of pages have contexts");
    let all = items.cu_seqlens.windows(2).enumerate().filter(|&(item, _)| items.is_selected(item));
    let item = |(item, tokens): (usize, &[u32])| Item {
        table: items.tables[item] as usize,
        first_token: tokens[0] as usize,
        num_tokens: (tokens[1] - tokens[0]) as usize,
        context: lens[item] as usize,
    };
    all.map(item).filter(|item| item.num_tokens > 0).collect()
}

/// How many units there are.
fn write(rule: &Rule, items: &Items, passes: &mut Vec<Pass>, words: &mut Vec<u32>) -> usize {
    let items = items_of(items);
    let mut lists = Lists { rule, units: Vec::new(), segments: Vec::new() };
    passes.clear();
    let longest = items.iter().map(Item::end).max().unwrap_or(0);
    // All first ranges come before any second one: sums of a range are merged with those of an earlier pass.
    for range in 0..longest.div_ceil(rule.range) {
        let pending: Vec<&Item> = items.iter().filter(|item| item.end() > range * rule.range).collect();
        let mut pending = pending.as_slice();
        while !pending.is_empty() {
            let (now, later) = pending.split_at(rule.num_fitting(pending, range));
            passes.push(lists.pass(now, range));
            pending = later;
        }
    }
    words.clear();
    words.resize(HEADER, 0);
    words.extend(lists.units.iter().flatten());
    words.extend(lists.segments.iter().flatten());
    lists.units.len()
}

impl Rule {
    /// Keys of a range that an item has.
    fn count(&self, item: &Item, range: usize) -> usize {
        (item.end() - range * self.range).min(self.range)
    }

    /// How many of some items fill the workspace: at least one.
    fn num_fitting(&self, items: &[&Item], range: usize) -> usize {
        let mut rows = 0;
        let fits = |item: &&&Item| {
            rows += self.count(item, range).next_multiple_of(TILE);
            rows <= self.rows
        };
        items.iter().take_while(fits).count()
    }
}

struct Lists<'a> {
    rule: &'a Rule,
    units: Vec<[u32; UNIT]>,
    segments: Vec<[u32; SEGMENT]>,
}

impl Lists<'_> {
    /// One range of some items, which fit.
    fn pass(&mut self, items: &[&Item], range: usize) -> Pass {
        let (first_segment, first) = (self.segments.len(), range * self.rule.range);
        let mut rows = 0;
        let [mut few, mut many] = [Vec::new(), Vec::new()];
        for item in items {
            let count = self.rule.count(item, range);
            self.segments.push([item.table, first, count, rows].map(|n| n as u32));
            let takes_many = self.rule.has_many && item.num_tokens > FEW_TOKENS;
            let (list, tokens) = if takes_many { (&mut many, MANY_TOKENS) } else { (&mut few, FEW_TOKENS) };
            for window in item.windows(tokens).filter(|window| window.end > first) {
                list.push(self.rule.unit(item, &window, range, rows));
            }
            rows += count.next_multiple_of(TILE);
        }
        let [few, many] = [few, many].map(|units| {
            let first = self.units.len();
            self.units.extend(units);
            first..self.units.len()
        });
        Pass { segments: first_segment..self.segments.len(), rows, few, many }
    }
}

impl Rule {
    /// As attention_expanded.cu reads it. A window lies in one range, so that all its tokens have the same last one.
    fn unit(&self, item: &Item, window: &Range<usize>, range: usize, row: usize) -> [u32; UNIT] {
        let first = range * self.range;
        let is_last = window.end <= first + self.range;
        // Position p is row `table + p` of the workspace; the sum wraps where the range begins later than its row.
        let table = (row as u32).wrapping_sub(first as u32);
        let [first_token, num_tokens, first_visible, range_len, range, end] = [
            item.first_token + window.start - item.context,
            window.len(),
            window.start + 1,
            self.range,
            range,
            range + 1,
        ]
        .map(|n| n as u32);
        [table, first_token, num_tokens, first_visible, range_len, range, end, u32::from(is_last)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Rule = Rule { range: 256, rows: 512, has_many: true };

    fn passes(rule: &Rule, items: &Items) -> (Vec<Pass>, Vec<u32>, usize) {
        let (mut passes, mut words) = (Vec::new(), Vec::new());
        let num_units = write(rule, items, &mut passes, &mut words);
        (passes, words, num_units)
    }

    /// Each row is in one unit for each of its ranges, in passes that follow each other, and its keys are in the segment that it reads.
    #[test]
    fn every_row_meets_its_keys_once_and_in_order() {
        let (cu_seqlens, tables) = ([0, 1, 71, 71, 371, 471], [0, 10, 20, 30, 40]);
        let (context_lens, selected) = ([900, 250, 7, 0, 3], [true, true, true, true, false]);
        let items = Items {
            cu_seqlens: &cu_seqlens,
            context_lens: Some(&context_lens),
            tables: &tables,
            selected: Some(&selected),
        };
        for has_many in [false, true] {
            let (passes, words, num_units) = passes(&Rule { has_many, ..RULE }, &items);
            let mut next = vec![0; 471];
            for pass in &passes {
                assert!(pass.rows <= RULE.rows && !pass.segments.is_empty());
                let segments: Vec<&[u32]> = words[HEADER + UNIT * num_units..]
                    .chunks(SEGMENT)
                    .collect::<Vec<_>>()[pass.segments.clone()]
                .to_vec();
                assert!(segments.iter().all(|segment| segment[3] % TILE as u32 == 0));
                for (units, most) in [(&pass.few, FEW_TOKENS), (&pass.many, MANY_TOKENS)] {
                    for unit in words[HEADER..].chunks(UNIT).take(units.end).skip(units.start) {
                        assert!((1..=most).contains(&(unit[2] as usize)), "{unit:?}");
                        let [first, last] =
                            [unit[5] * unit[4], (unit[6] * unit[4]).min(unit[3] + unit[2] - 1) - 1];
                        let segment =
                            segments.iter().find(|segment| segment[3] == unit[0].wrapping_add(first));
                        let segment = segment.expect("its keys are in the workspace");
                        assert!(segment[1] == first && last < first + segment[2], "{unit:?} {segment:?}");
                        for token in unit[1]..unit[1] + unit[2] {
                            let range = &mut next[token as usize];
                            assert_eq!(*range, unit[5], "token {token}");
                            *range += 1;
                            let visible = unit[3] + token - unit[1];
                            assert_eq!(unit[7] == 1, visible.div_ceil(unit[4]) == *range, "token {token}");
                        }
                    }
                }
            }
            for (item, &context) in context_lens.iter().enumerate() {
                for token in cu_seqlens[item]..cu_seqlens[item + 1] {
                    let visible = context + token - cu_seqlens[item] + 1;
                    let expected = if selected[item] { visible.div_ceil(RULE.range as u32) } else { 0 };
                    assert_eq!(next[token as usize], expected, "token {token}");
                }
            }
            assert!(words.len() <= Plan::capacity(471, 901, RULE.range));
            assert_eq!(passes.iter().any(|pass| !pass.many.is_empty()), has_many);
        }
    }

    #[test]
    fn small_items_share_a_pass() {
        let (cu_seqlens, tables) = ([0, 100, 200, 300, 400, 500], [0, 1, 2, 3, 4]);
        let items =
            Items { cu_seqlens: &cu_seqlens, context_lens: Some(&[0; 5]), tables: &tables, selected: None };
        let (passes, ..) = passes(&RULE, &items);
        // 128 rows each, of which the workspace holds four.
        assert_eq!(
            passes.iter().map(|pass| (pass.segments.clone(), pass.rows)).collect::<Vec<_>>(),
            [(0..4, 512), (4..5, 128)]
        );
    }
}
