//! Ops on the CUDA side, through the emulator: against their f64 twins, alone and in company, under several schedules.

#[path = "../agree/common.rs"]
mod common;
mod device;
mod linear;
#[path = "../agree/naive.rs"]
#[allow(dead_code)]
mod naive;
mod norm;
