//! The binary: arguments to configuration, and from there to `perilune::serve`.

use clap::error::ErrorKind;
use models::LoadFormat;
use perilune::args::ServeArgs;
use perilune::command_line::{Args, Command, not_utf8, unknown_variables};
use perilune::config::Config;
use perilune::exit_code::{EXIT_FAILURE, EXIT_LOAD, EXIT_USAGE};
use perilune::run::ModelSource;
use perilune::source::{self, HubSettings, Needed};
use perilune::{cli, load, logging, say};
use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let line: Vec<OsString> = std::env::args_os().collect();
    let args = match Args::parse_from_line(line.clone()) {
        Ok(args) => args,
        Err(error) if error.kind() == ErrorKind::InvalidUtf8 => {
            return say::fail(not_utf8(&line, std::env::vars_os()), EXIT_USAGE);
        }
        Err(error) => {
            // Help goes to standard output, mistakes to standard error; neither can be helped if nobody reads them.
            let _ = error.print();
            let is_help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return if is_help { ExitCode::SUCCESS } else { ExitCode::from(EXIT_USAGE) };
        }
    };
    match args.command {
        Command::Serve(args) => serve(*args),
        Command::Plan(args) => cli::plan::run(*args),
        Command::RunBatch(args) => cli::run_batch::run(*args),
        Command::Quantize(args) => finish(cli::quantize::run(args)),
        Command::MergeLora(args) => finish(cli::merge_lora::run(args)),
        Command::Chat(args) => finish(cli::chat::run(args)),
        Command::Bench(args) => finish(cli::bench::run(args)),
        Command::Kernels(args) => cli::kernels::run(args),
        Command::BenchEngine(args) => cli::bench_engine::run(*args),
    }
}

/// Of a command that talks to a server.
fn finish(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => say::fail(format_args!("{error:#}"), EXIT_FAILURE),
    }
}

fn serve(args: ServeArgs) -> ExitCode {
    let print_config = args.print_config;
    let mut config = match Config::try_from(args) {
        Ok(config) => config,
        Err(error) => {
            return say::fail(error, EXIT_USAGE);
        }
    };
    let unknown = unknown_variables(std::env::vars_os().map(|(name, _)| name));
    config.warnings.extend(
        unknown.iter().map(|name| format!("the environment has {name}, but no setting has this name")),
    );
    if print_config {
        return say::last(format_args!("{:#}", config.to_json()));
    }
    let _log = logging::init(
        config.log_format,
        std::env::var("RUST_LOG").ok().as_deref(),
        std::env::var_os("NO_COLOR").is_some(),
    );
    let needed = match config.load.load_format {
        LoadFormat::Auto => Needed::All,
        LoadFormat::Dummy => Needed::WithoutWeights,
    };
    let found = match source::find(config.model.as_deref(), needed, &HubSettings::from_env()) {
        Ok(found) => found,
        Err(error) => {
            tracing::error!(%error, "failed to find the model");
            return ExitCode::from(EXIT_LOAD);
        }
    };
    let (files, options) = (found.files.clone(), config.load.clone());
    let root = config.model.clone().unwrap_or_else(|| found.name.clone());
    let load = move || load::load(&files, &options, load::WriteCache::Beside);
    let source = ModelSource { files: found.files, name: found.name, root, load };
    perilune::run::run(config, source, load::exit_code)
}
