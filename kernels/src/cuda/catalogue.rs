//! Every kernel that there is: what is compiled ahead of time and what a test holds to its budget.

use super::launch::Kernel;
use super::{
    attention_expanded, attention_rows, attention_segments, attention_tiles, elementwise, interpolate,
    latents, linear, moe_kernel, norm, peak, rope, route, rows, sample, tokens,
};

pub const KERNELS: &[&Kernel] = &[
    &attention_expanded::KERNEL,
    &attention_rows::KERNEL,
    &attention_segments::KERNEL,
    &attention_tiles::KERNEL,
    &elementwise::KERNEL,
    &interpolate::KERNEL,
    &latents::KERNEL,
    &linear::KERNEL,
    &moe_kernel::KERNEL,
    &norm::KERNEL,
    &peak::KERNEL,
    &rope::KERNEL,
    &route::KERNEL,
    &rows::KERNEL,
    &sample::KERNEL,
    &tokens::KERNEL,
];
