//! `perilune merge-lora`: a copy of a checkpoint with an adapter merged into it, to be loaded here and elsewhere.

use crate::say;
use crate::source::{self, HubSettings, Needed};
use anyhow::{Context, Result};
use clap::Args as ClapArgs;
use models::lora::{Merged, merge};
use std::path::PathBuf;
use std::time::Instant;

#[derive(Debug, ClapArgs)]
pub struct MergeLoraArgs {
    /// The base, in floats: a directory in the Hugging Face format, or a name on the hub
    #[arg(value_name = "MODEL")]
    pub model: String,

    /// A folder with adapter_config.json and adapter_model.safetensors
    #[arg(value_name = "ADAPTER")]
    pub adapter: PathBuf,

    /// Folder to write to: empty, or not there yet
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
}

pub fn run(args: MergeLoraArgs) -> Result<()> {
    let MergeLoraArgs { model, adapter, output } = args;
    let found = source::find(Some(&model), Needed::All, &HubSettings::from_env())?;
    let start = Instant::now();
    let mut tenths = 0;
    let mut report = |written: u64, total: u64| {
        let now = written * 10 / total.max(1);
        if now > tenths {
            tenths = now;
            say::note(format_args!("{} %", 10 * now));
        }
    };
    let Merged { changed, copied, bytes_written } = merge(&found.files, &adapter, &output, &mut report)
        .with_context(|| format!("failed to merge {} into {}", adapter.display(), found.name))?;
    say::result(format_args!(
        "{}: {changed} matrices changed, {copied} tensors copied, {} MiB, {:.1} s",
        output.display(),
        bytes_written >> 20,
        start.elapsed().as_secs_f64()
    ))?;
    Ok(())
}
