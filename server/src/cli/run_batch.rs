//! `perilune run-batch`: the lines of a file through a model, without a server. The output grows line by line; the same command after a
//! stop or a crash goes on with the lines that are missing in it.

use crate::args::ServeArgs;
use crate::batch::job::{Job, JobEnd, lock};
use crate::batch::lines::{self, Mistake, Rules};
use crate::batch::results::{Counts, LineResult, Results};
use crate::config::Config;
use crate::exit_code::{EXIT_ENGINE, EXIT_FAILURE, EXIT_LOAD, EXIT_USAGE};
use crate::offline::Offline;
use crate::run::{ModelSource, Signals, serve_options};
use crate::say::{self, fail};
use crate::serve::{LoadedModel, StartError};
use crate::source::{self, HubSettings, Needed};
use crate::{load, logging};
use anyhow::{Context, bail};
use clap::Args as ClapArgs;
use models::LoadFormat;
use scheduler::ModelRunner;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Every line has a result, and not all of them are answers.
pub const EXIT_LINES: u8 = 5;

#[derive(Debug, ClapArgs)]
pub struct RunBatchArgs {
    /// Requests, one a line, in the form of OpenAI's batches; each names its own route
    #[arg(short, long, value_name = "FILE")]
    pub input_file: PathBuf,

    /// Results, one a line, in no order; what is in it already is not run again
    #[arg(short, long, value_name = "FILE")]
    pub output_file: PathBuf,

    /// The same as MODEL
    #[arg(long = "model", value_name = "MODEL")]
    pub model_flag: Option<String>,

    #[command(flatten)]
    pub serve: ServeArgs,
}

pub fn run(args: RunBatchArgs) -> ExitCode {
    let RunBatchArgs { input_file, output_file, model_flag, mut serve } = args;
    serve.model = model_flag.or(serve.model);
    // Nobody else is waiting.
    serve.data.batch_concurrency.get_or_insert(serve.max_num_seqs);
    let config = match Config::try_from(serve) {
        Ok(config) => config,
        Err(error) => return fail(error, EXIT_USAGE),
    };
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| "warn".into());
    let _log = logging::init(config.log_format, Some(&filter), std::env::var_os("NO_COLOR").is_some());
    let rules = Rules { endpoint: None, num_lines_max: usize::MAX, line_len_max: config.limits.body_len_max };
    // All that can be wrong with the files is said before a model is loaded.
    let (total, results) = match open(&input_file, &output_file, &rules) {
        Ok(opened) => opened,
        Err(error) => return fail(format!("{error:#}"), EXIT_USAGE),
    };
    let needed = match config.load.load_format {
        LoadFormat::Auto => Needed::All,
        LoadFormat::Dummy => Needed::WithoutWeights,
    };
    let found = match source::find(config.model.as_deref(), needed, &HubSettings::from_env()) {
        Ok(found) => found,
        Err(error) => return fail(error, EXIT_LOAD),
    };
    let (files, options) = (found.files.clone(), config.load.clone());
    let root = config.model.clone().unwrap_or_else(|| found.name.clone());
    let load = move || load::load(&files, &options, load::WriteCache::Now);
    let source = ModelSource { files: found.files, name: found.name, root, load };
    let job =
        Job { input: input_file, rules, results: Arc::new(Mutex::new(results)), keep_engine_failures: false };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(error, EXIT_FAILURE),
    };
    runtime.block_on(work(config, source, job, total, load::exit_code))
}

/// The number of lines, and the results that are there.
fn open(input: &Path, output: &Path, rules: &Rules) -> anyhow::Result<(usize, Results)> {
    let file = File::open(input).with_context(|| format!("failed to read {}", input.display()))?;
    let checked = lines::check(BufReader::new(file), rules)
        .with_context(|| format!("failed to read {}", input.display()))?;
    let total = match checked {
        Ok(total) => total,
        Err(mistakes) => bail!("{}: {}", input.display(), list(&mistakes)),
    };
    if let (Ok(a), Ok(b)) = (input.canonicalize(), output.canonicalize())
        && a == b
    {
        bail!("the output is the input");
    }
    check_output(output)?;
    let results =
        Results::open(output, None).with_context(|| format!("failed to open {}", output.display()))?;
    Ok((total, results))
}

fn list(mistakes: &[Mistake]) -> String {
    let one = |Mistake { line, message, .. }: &Mistake| match line {
        Some(line) => format!("line {line}: {message}"),
        None => message.clone(),
    };
    mistakes.iter().map(one).collect::<Vec<_>>().join("\n  ")
}

/// Opening a log cuts off what is none, which is right for our own and wrong for a file that is something else.
fn check_output(path: &Path) -> anyhow::Result<()> {
    let Ok(file) = File::open(path) else { return Ok(()) };
    let mut reader = BufReader::new(file);
    let (mut line, mut number) = (Vec::new(), 0);
    loop {
        line.clear();
        number += 1;
        reader.read_until(b'\n', &mut line).with_context(|| format!("failed to read {}", path.display()))?;
        // The last line may be torn, if there are whole ones or it begins as ours do.
        if line.pop() != Some(b'\n') {
            return match line.is_empty() || number > 1 || line.starts_with(b"{\"id\":\"batch_req_") {
                true => Ok(()),
                false => bail!("{} is there and has no results of a batch in it", path.display()),
            };
        }
        if serde_json::from_slice::<LineResult>(&line).is_err() {
            bail!("{}: line {number} is not the result of a batch", path.display());
        }
    }
}

async fn work<R, E, L>(
    config: Config,
    source: ModelSource<L>,
    job: Job,
    total: usize,
    exit_code: fn(&E) -> u8,
) -> ExitCode
where
    R: ModelRunner,
    R::Error: std::fmt::Display,
    E: std::fmt::Display + Send + 'static,
    L: FnOnce() -> Result<LoadedModel<R>, E> + Send + 'static,
{
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => return fail(error, EXIT_FAILURE),
    };
    let concurrency = config.data.batches.concurrency;
    let ModelSource { files, name, root, load } = source;
    let options = serve_options(config, name, root);
    let offline = match Offline::start(options, files, load).await {
        Ok(offline) => offline,
        Err(StartError::Load(error)) => return fail(&error, exit_code(&error)),
        Err(error) => return fail(error, EXIT_LOAD),
    };
    let progress = Progress::new(total);
    let stop = async {
        signals.next().await;
    };
    let end = job.run(&offline.runner(concurrency), stop, |counts| progress.report(counts)).await;
    let synced = lock(&job.results).sync();
    offline.stop().await;
    let counts = lock(&job.results).counts();
    let end = match (end, synced) {
        (Ok(end), Ok(())) => end,
        (Err(error), _) | (_, Err(error)) => return fail(error, EXIT_FAILURE),
    };
    match end {
        JobEnd::Done => {
            say::note(format_args!("{total} lines: {} answered, {} failed", counts.completed, counts.failed));
            if counts.failed > 0 { ExitCode::from(EXIT_LINES) } else { ExitCode::SUCCESS }
        }
        JobEnd::EngineFailed => fail("the engine failed; the same command goes on", EXIT_ENGINE),
        JobEnd::Stopped | JobEnd::Draining => {
            let Counts { completed, failed } = counts;
            let message =
                format!("stopped after {} of {total} lines; the same command goes on", completed + failed);
            fail(message, EXIT_FAILURE)
        }
    }
}

/// A line now and then.
struct Progress {
    total: usize,
    last: Mutex<Instant>,
}

const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

impl Progress {
    fn new(total: usize) -> Self {
        Self { total, last: Mutex::new(Instant::now()) }
    }

    fn report(&self, Counts { completed, failed }: Counts) {
        let mut last = lock(&self.last);
        if last.elapsed() >= PROGRESS_INTERVAL {
            *last = Instant::now();
            say::note(format_args!("{} of {} lines, {failed} failed", completed + failed, self.total));
        }
    }
}
