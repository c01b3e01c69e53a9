//! Ops on the CUDA side, through the emulator: against their f64 twins, alone and in company, under several schedules.

mod attention;
mod bench;
#[path = "../agree/biased_experts.rs"]
mod biased_experts;
mod clusters;
#[allow(dead_code, reason = "shared with the tests of the CPU, of which this one uses a part")]
#[path = "../agree/common.rs"]
mod common;
mod device;
mod expanded;
#[path = "../agree/expert_rows.rs"]
mod expert_rows;
mod faults;
mod graphs;
mod hopper;
mod host_blocks;
#[path = "../agree/latent_rows.rs"]
mod latent_rows;
mod latents;
mod linear;
mod made;
mod made_experts;
mod moe;
mod mutants;
#[allow(dead_code, reason = "shared with the tests of the CPU, of which this one uses a part")]
#[path = "../agree/naive.rs"]
mod naive;
mod norm;
mod packed;
#[path = "../agree/pages.rs"]
mod pages;
mod peak;
mod prepare;
mod ptx;
mod queues;
mod route;
mod sample;
mod small;
mod tokens;
mod traffic;
