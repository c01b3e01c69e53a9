//! How tokens, sequences, adapters and contents are named.

use std::num::NonZeroU64;

pub type TokenId = u32;

/// Chosen by the caller, unique for the life of an engine, increasing with the order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// An adapter of the model's weights, chosen by the caller. Never used twice in a process: weights that are loaded again, under an old name or
/// from an old folder, have another number, as cached blocks are found by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AdapterId(pub NonZeroU64);

/// A 256-bit content hash. Two different contents never share one, so it may name memory that belongs to somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Digest(pub [u8; 32]);
