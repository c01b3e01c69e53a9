//! Reads of memory that threads share out: each a stretch of its own, as the pool does it, or pieces in turns.

use crate::{Bench, Work};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};

const WORDS: usize = 64 << 20;

pub fn all(bench: &Bench) {
    if !bench.wants("read") {
        return;
    }
    let data = vec![1u32; WORDS];
    let work = || Work::Bytes(4.0 * WORDS as f64);
    let threads = bench.device.num_threads();
    for kib in [18, 96, 1024] {
        let pieces: Vec<&[u32]> = data.chunks(kib << 8).collect();
        bench.line("read", &format!("pieces of {kib} KiB in turns"), work(), || {
            let next = AtomicUsize::new(0);
            bench.device.for_each(threads, &|_, _| {
                while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                    black_box(sum(piece));
                }
            });
        });
        bench.line("read", &format!("pieces of {kib} KiB in stretches"), work(), || {
            bench.device.for_each(pieces.len(), &|index, _| {
                black_box(sum(pieces[index]));
            });
        });
    }
}

fn sum(piece: &[u32]) -> u32 {
    let (lines, rest) = piece.as_chunks::<64>();
    let mut sums = [0u32; 64];
    for line in lines {
        sums.iter_mut().zip(line).for_each(|(sum, x)| *sum = sum.wrapping_add(*x));
    }
    sums.iter().chain(rest).fold(0, |a, &b| a.wrapping_add(b))
}
