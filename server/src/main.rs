//! The binary: arguments to configuration, and from there to `perilune::serve`.

use clap::error::ErrorKind;
use perilune::args::{Args, Command, ServeArgs};
use perilune::config::Config;
use perilune::run::EXIT_FAILURE;
use perilune::{cli, logging};
use std::process::ExitCode;

/// What a supervisor can tell apart.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let args = match Args::parse_from_line(std::env::args_os().collect()) {
        Ok(args) => args,
        Err(error) => {
            // Help goes to standard output, mistakes to standard error; neither can be helped if nobody reads them.
            let _ = error.print();
            let is_help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return if is_help { ExitCode::SUCCESS } else { ExitCode::from(EXIT_USAGE) };
        }
    };
    match args.command {
        Command::Serve(args) => serve(*args),
        Command::Chat(args) => finish(cli::chat::run(args)),
        Command::Bench(args) => finish(cli::bench::run(args)),
    }
}

/// Of a command that talks to a server.
fn finish(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

fn serve(args: ServeArgs) -> ExitCode {
    let print_config = args.print_config;
    let config = match Config::try_from(args) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    if print_config {
        println!("{:#}", config.to_json());
        return ExitCode::SUCCESS;
    }
    logging::init(
        config.log_format,
        std::env::var("RUST_LOG").ok().as_deref(),
        std::env::var_os("NO_COLOR").is_some(),
    );
    tracing::error!("this build has no model loader yet");
    ExitCode::from(perilune::run::EXIT_LOAD)
}
