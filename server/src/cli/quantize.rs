//! `perilune quantize`: a quantised copy of a checkpoint, to be loaded here and elsewhere.

use crate::args::{QuantizeArgs, QuantizedArg};
use crate::source::{self, HubSettings, Needed};
use anyhow::{Context, Result};
use models::Quantization;
use std::time::Instant;

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
            eprintln!("{} %", 10 * now);
        }
    };
    let written =
        models::quantize(&found.files, quantization, &output, threads.map(usize::from), &mut report)
            .with_context(|| format!("failed to quantise {}", found.name))?;
    println!(
        "{}: {} matrices quantised, {} tensors copied, {} MiB from {} MiB, {:.1} s",
        output.display(),
        written.quantised,
        written.copied,
        written.bytes_written >> 20,
        written.bytes_read >> 20,
        start.elapsed().as_secs_f64()
    );
    Ok(())
}
