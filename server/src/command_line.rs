//! The command line as a whole: subcommands, and the configuration file that one of them names, worked in.

use crate::args::{ServeArgs, foreign};
use crate::cli::bench::BenchArgs;
use crate::cli::bench_engine::BenchEngineArgs;
use crate::cli::chat::ChatArgs;
use crate::cli::kernels::KernelsArgs;
use crate::cli::merge_lora::MergeLoraArgs;
use crate::cli::plan::PlanArgs;
use crate::cli::quantize::QuantizeArgs;
use crate::cli::run_batch::RunBatchArgs;
use clap::error::{ContextKind, ContextValue, ErrorKind};
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

/// Subcommands with the flags of `serve`.
const SERVING: [&str; 4] = ["serve", "plan", "run-batch", "bench-engine"];

impl Args {
    /// Parses a command line, with the configuration file that it names worked in. Flags win over the environment, and that over the
    /// file.
    pub fn parse_from_line(line: Vec<OsString>) -> Result<Self, clap::Error> {
        let serves = line.get(1).and_then(|name| name.to_str()).is_some_and(|name| SERVING.contains(&name));
        if serves && let Some(error) = clustered(&line) {
            return Err(error);
        }
        let mut command = Self::command();
        let hint = |error| if serves { with_hint(error) } else { error };
        let matches = command.try_get_matches_from_mut(&line).map_err(hint)?;
        let Some((subcommand, serve)) = matches.subcommand().filter(|(name, _)| SERVING.contains(name))
        else {
            return Self::from_arg_matches(&matches);
        };
        let Some(path) = serve.get_one::<PathBuf>("config") else { return Self::from_arg_matches(&matches) };
        let fail = |message: String| {
            let message = format!("--config {}: {message}", path.display());
            Self::command().error(ErrorKind::InvalidValue, message)
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
            let arg = find_arg(&command, &name).ok_or_else(|| {
                let hint = foreign::instead_of(&format!("--{name}")).map(|hint| format!(": {hint}"));
                fail(format!("unknown key `{name}`{}", hint.unwrap_or_default()))
            })?;
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

/// A flag of another server's is told what to use instead. What the parser guesses from its spelling would lead elsewhere.
fn with_hint(error: clap::Error) -> clap::Error {
    let told = match (error.kind(), error.get(ContextKind::InvalidArg)) {
        (ErrorKind::UnknownArgument, Some(ContextValue::String(flag))) => {
            foreign::instead_of(flag).map(|hint| unexpected(flag, hint))
        }
        _ => None,
    };
    told.unwrap_or(error)
}

/// The error of the first flag such as `-ngl`, which the parser takes for `-n`, `-g` and `-l`.
fn clustered(line: &[OsString]) -> Option<clap::Error> {
    let typed = line.iter().filter_map(|arg| arg.to_str()).take_while(|arg| *arg != "--");
    let flag = typed.into_iter().find(|arg| foreign::is_clustered(arg))?;
    Some(unexpected(flag, foreign::instead_of(flag)?))
}

fn unexpected(flag: &str, hint: &str) -> clap::Error {
    Args::command().error(ErrorKind::UnknownArgument, format!("there is no `{flag}` here: {hint}"))
}

/// What is not UTF-8 of a line and an environment in which something is not.
pub fn not_utf8(line: &[OsString], variables: impl IntoIterator<Item = (OsString, OsString)>) -> String {
    if let Some(argument) = line.iter().find(|argument| argument.to_str().is_none()) {
        return format!("the argument {argument:?} is not UTF-8");
    }
    let ours = |name: &OsString| name.to_str().is_some_and(|name| name.starts_with("PERILUNE_"));
    let variable = variables.into_iter().find(|(name, value)| ours(name) && value.to_str().is_none());
    let name = variable.and_then(|(name, _)| name.into_string().ok());
    format!("the environment's {} is not UTF-8", name.as_deref().unwrap_or("PERILUNE_ setting"))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn error_of(line: &[&str]) -> String {
        Args::parse_from_line(line.iter().map(OsString::from).collect()).expect_err("refused").to_string()
    }

    #[test]
    fn flags_of_other_servers_are_told_what_is_instead() {
        let check = |line: &[&str], expected: &str| {
            let said = error_of(&[&["perilune"], line].concat());
            assert!(said.starts_with(&format!("error: {expected}")), "{line:?}: {said}");
        };
        check(&["serve", "--ctx-size", "4096"], "there is no `--ctx-size` here: use --max-model-len");
        check(&["serve", "--ctx_size=4096"], "there is no `--ctx_size` here: use --max-model-len");
        check(&["plan", "x", "-c", "4096"], "there is no `-c` here: use --max-model-len");
        check(&["serve", "x", "-ngl", "99"], "there is no `-ngl` here: --device cuda");
        // It would be help for `f`.
        check(&["serve", "-hf", "org/name"], "there is no `-hf` here: a name on the hub");
        check(
            &["bench-engine", "--tensor-parallel-size", "2"],
            "there is no `--tensor-parallel-size` here: ",
        );
        check(&["serve", "--nonsense"], "unexpected argument");
        // Where flags are others.
        check(&["chat", "-c"], "unexpected argument");
        check(&["kernels", "build", "-t"], "unexpected argument");
    }

    /// What is ours is not told to be somebody else's, and what is told to use is ours.
    #[test]
    fn hints_name_flags_that_exist() {
        let command = Args::command();
        let ours = |flag: &str| {
            let name = flag.trim_start_matches('-');
            match flag.starts_with("--") {
                true => find_arg(&command, name).is_some_and(|arg| !arg.is_positional()),
                false => ["h", "V"].contains(&name),
            }
        };
        for (i, (names, instead)) in foreign::FLAGS.iter().enumerate() {
            for name in *names {
                assert!(!ours(name), "{name}");
                assert!(foreign::FLAGS[..i].iter().all(|(others, _)| !others.contains(name)), "{name} twice");
            }
            let words = instead.split([' ', ',', ';', '.']);
            words.filter(|word| word.starts_with("--")).for_each(|flag| assert!(ours(flag), "{flag}"));
        }
    }
}
