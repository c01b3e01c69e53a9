//! What ops take beside tensors: sizes, options, scratch and views. Both devices' sides of an op know them, and so they lie below both; `ops`
//! has what is done with them.

pub mod attention;
pub mod expert_rows;
pub mod kv;
pub mod latents;
pub mod linear;
pub mod moe;
pub mod rope;
pub mod route;
pub mod sample;
pub mod tokens;
