//! Black-box tests of the `perilune` binary: this crate knows only HTTP.
