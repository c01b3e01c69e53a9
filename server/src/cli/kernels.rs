//! `perilune kernels build`: a GPU's kernels compiled ahead of time, for images and for machines without a compiler. A server that is
//! given the folder with --kernel-cache finds there what it would compile itself.

use crate::exit_code::{EXIT_FAILURE, EXIT_USAGE};
use crate::say;
use clap::{Args, Subcommand};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

#[derive(Debug, Args)]
pub struct KernelsArgs {
    #[command(subcommand)]
    pub command: KernelsCommand,
}

#[derive(Debug, Subcommand)]
pub enum KernelsCommand {
    /// Compile every kernel for an architecture into a folder; needs no GPU, only NVIDIA's run-time compiler
    Build(BuildArgs),
}

#[derive(Debug, Args)]
pub struct BuildArgs {
    /// Architectures, such as sm_80, sm_90a (H100, H200) or sm_100a
    #[arg(long, value_name = "ARCH", required = true, value_delimiter = ',')]
    pub arch: Vec<String>,

    /// The folder; what is there already is left
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,

    /// Where libnvrtc is, which compiles kernels, if the system does not find it
    #[arg(long, value_name = "DIR", env = "PERILUNE_NVRTC_DIR")]
    pub nvrtc_dir: Option<PathBuf>,

    /// Kernels compiled at a time; default: one for each core
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
}

pub fn run(args: KernelsArgs) -> ExitCode {
    let KernelsCommand::Build(BuildArgs { arch: archs, output, nvrtc_dir, threads }) = args.command;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.map_or(cores, usize::from);
    let shows_progress = std::io::stderr().is_terminal();
    for arch in archs {
        let start = Instant::now();
        let done = |done: usize, all: usize| {
            if shows_progress {
                let _ = write!(std::io::stderr(), "\r{arch}: {done} of {all}");
            }
        };
        let built = models::build_kernels(nvrtc_dir.as_deref(), &output, &arch, threads, &done);
        if shows_progress {
            say::note("");
        }
        match built {
            Ok(built) => {
                let line = format_args!(
                    "{arch}: {} kernels by NVRTC {}.{} in {}, {:.1} s",
                    built.instances,
                    built.version.0,
                    built.version.1,
                    built.folder.display(),
                    start.elapsed().as_secs_f64()
                );
                if let Err(error) = say::result(line) {
                    return say::fail(error, EXIT_FAILURE);
                }
            }
            Err(error) => {
                let is_usage = matches!(error, models::KernelError::UnknownArch(_));
                return say::fail(error, if is_usage { EXIT_USAGE } else { EXIT_FAILURE });
            }
        }
    }
    ExitCode::SUCCESS
}
