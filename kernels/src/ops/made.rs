//! What attention makes for the linear layer that reads it: f32 `[T, K]`, or on a GPU, where tokens are many, rounded and packed at once as the layer takes
//! them, or both where somebody else reads f32. The bits are those of the ops alone, and of [`TokenRoom::hold`] after them.

use super::attention::{HeadsOverPages, attend_to_heads};
use super::attention_expanded::{ExpandedCall, ExpandedScratch, attend_expanded};
use super::linear::run_heads;
use super::{HeadSlice, HeadSliceMut, Tokens};
use crate::cuda::tokens::PackedResult;
use crate::operands::attention::{AttentionScratch, Ragged, Softmax};
use crate::operands::kv::KvRows;
use crate::operands::latents::Latents;
use crate::operands::tokens::TokenRoom;
use crate::{DType, Matrix, MatrixBatch, Tensor};
use std::ops::Range;

/// Who reads what attention makes.
#[derive(Clone, Copy, Debug)]
pub struct Readers<'a> {
    /// The weights of the layer.
    pub layer: &'a Matrix,
    /// Whether somebody reads f32 beside it.
    pub floats: bool,
}

/// Tokens that one or more ops make, each its own rows.
#[derive(Debug)]
pub struct MadeTokens<'a> {
    out: &'a mut Tensor,
    room: &'a mut TokenRoom,
    /// Where they are packed.
    packed: Option<DType>,
    floats: bool,
}

impl TokenRoom {
    /// Begins tokens `out` `[T, H, D]`. `makers`: what each op that will make some of them can pack them as; if all can as the layer takes them, and it
    /// takes them packed, they are.
    pub fn make<'a>(
        &'a mut self,
        out: &'a mut Tensor,
        readers: Readers,
        makers: &[Option<DType>],
    ) -> MadeTokens<'a> {
        let taken = self.packs(readers.layer.stored_as(), out.rows()).map(|(dtype, _)| dtype);
        let packed = taken.filter(|&dtype| {
            makers.iter().all(|&maker| maker == Some(dtype)) && out.row_len().is_multiple_of(WHOLE)
        });
        self.made = None;
        MadeTokens { out, room: self, packed, floats: readers.floats || packed.is_none() }
    }
}

/// Numbers of a token that need no zeros to fill them up.
const WHOLE: usize = 32;

impl<'a> MadeTokens<'a> {
    /// See [`gqa_attention`](super::gqa_attention). It makes what [`AttentionScratch::packs_as`] says for the type of the caches.
    pub fn gqa_attention<'b>(
        &mut self,
        q: &'b Tensor,
        caches: [impl Into<KvRows<'b>>; 2],
        (ragged, softmax): (&'b Ragged<'b>, impl Into<Softmax<'b>>),
        scratch: &mut AttentionScratch,
    ) {
        let softmax = softmax.into();
        let call = HeadsOverPages { q, caches: caches.map(Into::into), ragged, softmax };
        let packed = PackedResult { room: self.packed.and(self.room.packed.as_ref()), floats: self.floats };
        attend_to_heads(call, scratch, self.out, packed);
    }

    /// See [`heads_linear`](super::heads_linear), of some rows of x `[T, H, K]` to the same ones here. It makes what
    /// [`heads_pack_as`](super::heads_pack_as) says.
    pub fn heads_linear(&mut self, x: &Tensor, w: &MatrixBatch, rows: Range<usize>) {
        let [from_len, to_len] = [x, &*self.out].map(|tensor| tensor.shape()[2]);
        let from = HeadSlice { tensor: x, rows: rows.clone(), offset: 0, len: from_len };
        let room = self.packed.and(self.room.packed.as_ref());
        let to = HeadSliceMut { tensor: self.out, rows, offset: 0, len: to_len };
        run_heads(from, w, to, room.map(|room| (room, self.floats)));
    }

    /// See [`expanded_attention`](super::expanded_attention). It makes what [`ExpandedScratch::packs_as`] says.
    pub fn expanded_attention(
        &mut self,
        q: &Tensor,
        latents: Latents,
        (ragged, scale): (&Ragged, f32),
        scratch: &mut ExpandedScratch,
    ) {
        let packed = PackedResult { room: self.packed.and(self.room.packed.as_ref()), floats: self.floats };
        attend_expanded(ExpandedCall { q, latents, ragged, scale }, scratch, self.out, packed);
    }

    /// What was made in f32, to change it: where [`Readers`] say that it is read, and nothing was packed.
    pub fn floats(&mut self) -> &mut Tensor {
        assert!(self.packed.is_none(), "tokens: they were packed");
        self.out
    }

    /// All of them were made.
    pub fn done(self) -> Tokens<'a> {
        let Self { out, room, packed, floats } = self;
        Tokens::of(out, room, packed, floats)
    }
}
