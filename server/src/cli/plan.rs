//! `perilune plan`: what fits, computed from the model's configuration alone. It takes the flags of `serve`, so that a command line is
//! planned by changing one word.

use crate::args::ServeArgs;
use crate::config::Config;
use crate::exit_code::{EXIT_LOAD, EXIT_MEMORY, EXIT_USAGE};
use crate::say::{self, fail};
use crate::source::{self, HubSettings, Needed};
use clap::Args as ClapArgs;
use models::LoadError;
use std::process::ExitCode;

#[derive(Debug, ClapArgs)]
pub struct PlanArgs {
    #[command(flatten)]
    pub serve: ServeArgs,

    /// As JSON
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: PlanArgs) -> ExitCode {
    let PlanArgs { serve, json } = args;
    let config = match Config::try_from(serve) {
        Ok(config) => config,
        Err(error) => return fail(error, EXIT_USAGE),
    };
    let found = match source::find(config.model.as_deref(), Needed::WithoutWeights, &HubSettings::from_env())
    {
        Ok(found) => found,
        Err(error) => return fail(error, EXIT_LOAD),
    };
    match models::plan(&found.files, &config.load) {
        Ok(plan) if json => say::last(serde_json::to_string_pretty(&plan).expect("a plan is plain data")),
        Ok(plan) => say::last(format_args!("{}: {}", found.name, plan.to_string().trim_end())),
        Err(error) => {
            let code = if matches!(error, LoadError::DoesNotFit(_)) { EXIT_MEMORY } else { EXIT_LOAD };
            fail(error, code)
        }
    }
}
