//! The command line as a whole: subcommands, and the configuration file that one of them names, worked in.

use crate::args::ServeArgs;
use crate::cli::bench::BenchArgs;
use crate::cli::bench_engine::BenchEngineArgs;
use crate::cli::chat::ChatArgs;
use crate::cli::kernels::KernelsArgs;
use crate::cli::merge_lora::MergeLoraArgs;
use crate::cli::plan::PlanArgs;
use crate::cli::quantize::QuantizeArgs;
use crate::cli::run_batch::RunBatchArgs;
use clap::parser::ValueSource;
use clap::{ArgAction, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;

#[derive(Debug, Parser)]
#[command(name = "perilune", version, about = "OpenAI-compatible inference server", max_term_width = 110)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a model over HTTP
    Serve(Box<ServeArgs>),
    /// Print what fits in memory, before any weight is read; takes the flags of serve
    Plan(Box<PlanArgs>),
    /// Answer a file of requests without a server; takes the flags of serve
    RunBatch(Box<RunBatchArgs>),
    /// Write a quantised copy of a model
    Quantize(QuantizeArgs),
    /// Write a copy of a model with an adapter merged into it
    MergeLora(MergeLoraArgs),
    /// Talk to a running server
    Chat(ChatArgs),
    /// Measure a running server
    Bench(BenchArgs),
    /// Measure the engine alone, without a server; takes the flags of serve
    BenchEngine(Box<BenchEngineArgs>),
    /// Compile a GPU's kernels ahead of time
    Kernels(KernelsArgs),
}

impl Args {
    /// Parses a command line, with the configuration file that it names worked in. Flags win over the environment, and that over the
    /// file.
    pub fn parse_from_line(line: Vec<OsString>) -> Result<Self, clap::Error> {
        let mut command = Self::command();
        let matches = command.try_get_matches_from_mut(&line)?;
        let Some((subcommand @ ("serve" | "plan" | "run-batch" | "bench-engine"), serve)) =
            matches.subcommand()
        else {
            return Self::from_arg_matches(&matches);
        };
        let Some(path) = serve.get_one::<PathBuf>("config") else { return Self::from_arg_matches(&matches) };
        let fail = |message: String| {
            Self::command().error(
                clap::error::ErrorKind::InvalidValue,
                format!("--config {}: {message}", path.display()),
            )
        };
        let text = std::fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
        let typed = |id: &str| {
            matches!(serve.value_source(id), Some(ValueSource::CommandLine | ValueSource::EnvVariable))
        };
        let mut flags = Vec::new();
        for (name, values) in crate::config_file::parse(&text).map_err(&fail)? {
            if name == "config" {
                return Err(fail("`config` has no meaning in the file itself".into()));
            }
            let arg = find_arg(&command, &name).ok_or_else(|| fail(format!("unknown key `{name}`")))?;
            // A flag and its opposite are one setting.
            let id = arg.get_id().as_str();
            let opposite = id.strip_prefix("no_").map_or_else(|| format!("no_{id}"), str::to_owned);
            let opposite = find_arg(&command, &opposite.replace('_', "-"));
            if typed(id) || opposite.is_some_and(|arg| typed(arg.get_id().as_str())) {
                continue;
            }
            flags.extend(config_flags(arg, &name, values).map_err(&fail)?);
        }
        let position = line.iter().position(|arg| arg == subcommand).map_or(line.len(), |at| at + 1);
        let mut line = line;
        line.splice(position..position, flags);
        Self::try_parse_from(line)
    }
}

/// Of the names of the environment's variables those that look like settings of ours and are none.
pub fn unknown_variables(names: impl IntoIterator<Item = OsString>) -> Vec<String> {
    let command = Args::command();
    let is_known = |name: &str| {
        let mut arguments = command.get_subcommands().flat_map(clap::Command::get_arguments);
        arguments.any(|arg| arg.get_env().is_some_and(|env| env == name))
    };
    // Kubernetes sets PERILUNE_PORT, PERILUNE_SERVICE_HOST and others for services whose names begin so.
    let is_of_kubernetes =
        |name: &str| name.ends_with("_PORT") || name.contains("_PORT_") || name.contains("_SERVICE_");
    let mut unknown: Vec<String> = names
        .into_iter()
        .filter_map(|name| name.into_string().ok())
        .filter(|name| name.starts_with("PERILUNE_") && !name.starts_with("PERILUNE_TEST_"))
        .filter(|name| !is_of_kubernetes(name) && !is_known(name))
        .collect();
    unknown.sort_unstable();
    unknown
}

/// The argument of `serve` that a key of the file names, as a flag would: by its name or an alias of it.
fn find_arg<'a>(command: &'a clap::Command, name: &str) -> Option<&'a clap::Arg> {
    let serve = command.find_subcommand("serve").expect("the subcommand exists");
    serve.get_arguments().find(|arg| {
        arg.get_id().as_str().replace('_', "-") == name
            || arg.get_all_aliases().is_some_and(|aliases| aliases.contains(&name))
    })
}

/// One entry of the file as it would be typed.
fn config_flags(arg: &clap::Arg, name: &str, values: Vec<String>) -> Result<Vec<OsString>, String> {
    if arg.is_positional() {
        return values.first().map(|value| vec![value.into()]).ok_or(format!("`{name}` has no value"));
    }
    let flag = format!("--{name}");
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        return match values.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["true"] => Ok(vec![flag.into()]),
            ["false"] if ["async-scheduling", "enable-prefix-caching"].contains(&name) => {
                Ok(vec![format!("--no-{name}").into()])
            }
            ["false"] => Ok(Vec::new()),
            _ => Err(format!("`{name}` is true or false")),
        };
    }
    Ok(values.into_iter().map(|value| format!("{flag}={value}").into()).collect())
}
