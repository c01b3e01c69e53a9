//! What was typed: the command line, the environment and the configuration file, as clap sees them. What it means is decided in
//! `config.rs`. Names follow vLLM where it has one. A subcommand's own flags stand with it, in `cli/`.

mod caches;
pub mod foreign;
mod serve;
mod values;

pub use caches::{default_kernel_cache, default_weights_cache};
pub use serve::{DataArgs, HarmlessArgs, LoraArgs, ResponsesArgs, ServeArgs};
pub use values::{
    ActivationsArg, DTypeArg, GenerationConfigArg, HeadScreeningArg, KvCacheDTypeArg, LoadFormatArg,
    LogFormatArg, MatmulArg, QuantizationArg, WeightLayoutArg,
};
