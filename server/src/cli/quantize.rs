//! `perilune quantize`: a quantised copy of a checkpoint, to be loaded here and elsewhere.

use crate::say;
use crate::source::{self, HubSettings, Needed};
use anyhow::{Context, Result};
use clap::{Args as ClapArgs, ValueEnum};
use models::Quantization;
use std::path::PathBuf;
use std::time::Instant;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum QuantizedArg {
    /// 8 bits in groups of 32: 8.5 bits a weight
    Int8,
    /// 4 bits in groups of 32: 4.5 bits a weight
    Int4,
}

#[derive(Debug, ClapArgs)]
pub struct QuantizeArgs {
    /// A directory in the Hugging Face format, a GGUF file, or a name on the hub; without one, the small model built into the binary
    #[arg(value_name = "MODEL")]
    pub model: Option<String>,

    /// Folder to write to: empty, or not there yet
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,

    /// Type of the decoder's linear layers
    #[arg(long, value_enum)]
    pub quantization: QuantizedArg,

    /// Threads that quantise; default: one for each core
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
}

pub fn run(args: QuantizeArgs) -> Result<()> {
    let QuantizeArgs { model, output, quantization, threads } = args;
    let found = source::find(model.as_deref(), Needed::All, &HubSettings::from_env())?;
    let quantization = match quantization {
        QuantizedArg::Int8 => Quantization::Int8,
        QuantizedArg::Int4 => Quantization::Int4,
    };
    let start = Instant::now();
    let mut tenths = 0;
    let mut report = |read: u64, total: u64| {
        let now = read * 10 / total.max(1);
        if now > tenths {
            tenths = now;
            say::note(format_args!("{} %", 10 * now));
        }
    };
    let written =
        models::quantize(&found.files, quantization, &output, threads.map(usize::from), &mut report)
            .with_context(|| format!("failed to quantise {}", found.name))?;
    say::result(format_args!(
        "{}: {} matrices quantised, {} tensors copied, {} MiB from {} MiB, {:.1} s",
        output.display(),
        written.quantised,
        written.copied,
        written.bytes_written >> 20,
        written.bytes_read >> 20,
        start.elapsed().as_secs_f64()
    ))?;
    Ok(())
}
