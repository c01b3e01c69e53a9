//! Every op against its f64 twin, at sizes that divide nothing, for every type and every instruction set of this machine; and
//! every row alone against the same row in company, bit by bit.

mod attention;
#[allow(dead_code, reason = "shared with the tests of GPUs")]
mod biased_experts;
mod caches;
mod common;
mod compact;
mod decoding;
mod expert_rows;
mod glu;
mod independence;
#[allow(dead_code, reason = "shared with the tests of GPUs, of which this one uses a part")]
mod latent_rows;
mod layers;
mod matrices;
mod naive;
mod pages;
mod rounded;
mod screened;
mod small;
mod windows;
