//! What is made of files that change while the server serves: certificates and keys that are rotated. They are looked at now and then, since
//! who mounts secrets into a container sends no signal, and at once after SIGHUP, for who does. What cannot be used is told, and what was made
//! before it stays in use.

use crate::metrics::HttpMetrics;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;
use tokio::signal::unix::Signal;
use tokio::time::MissedTickBehavior;

/// Files of text that people make are far shorter.
const FILE_LEN_MAX: u64 = 1 << 20;

/// Between two looks at the files. What has changed is taken when the next look finds it unchanged, so that a certificate does not come without
/// its key, nor half a file.
pub const PERIOD: Duration = Duration::from_secs(10);

/// A file, by the flag that names it.
#[derive(Debug, Clone)]
pub struct NamedFile {
    pub flag: &'static str,
    pub path: PathBuf,
}

/// A file that cannot be used, or not with the others.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("--{flag}: {message}")]
pub struct FileError {
    pub flag: &'static str,
    /// Begins with the file's path.
    pub message: String,
}

impl NamedFile {
    /// `what` goes on after the path, as in `is empty`.
    pub fn error(&self, what: impl std::fmt::Display) -> FileError {
        FileError { flag: self.flag, message: format!("{} {what}", self.path.display()) }
    }

    fn read(&self) -> Result<Vec<u8>, FileError> {
        let mut content = Vec::new();
        File::open(&self.path)
            .and_then(|file| file.take(FILE_LEN_MAX + 1).read_to_end(&mut content))
            .map_err(|error| self.error(format_args!("cannot be read: {error}")))?;
        match content.len() as u64 > FILE_LEN_MAX {
            true => Err(self.error(format_args!("is longer than {FILE_LEN_MAX} bytes"))),
            false => Ok(content),
        }
    }
}

/// The contents are in the order of the files.
type Build<T> = Box<dyn Fn(&[NamedFile], &[Vec<u8>]) -> Result<T, FileError> + Send + Sync>;

/// A `T` made of files, the newest that could be made.
pub struct FromFiles<T> {
    what: &'static str,
    files: Vec<NamedFile>,
    build: Build<T>,
    current: RwLock<Arc<T>>,
    state: Mutex<State>,
}

struct State {
    /// Of the files that the current one was made of.
    in_use: blake3::Hash,
    /// Of the files as they were last looked at.
    looked_at: blake3::Hash,
    /// What was told of them, so that it is told once.
    told: Option<FileError>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// Nobody said that something has changed.
    Timer,
    Signal,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Reloaded {
    Unchanged,
    /// It has changed, and may be changing still.
    Changing,
    Taken,
    Failed(FileError),
    /// As before, and told before.
    StillFailed,
}

impl<T> FromFiles<T> {
    /// `what` is made, for the log and metrics. Fails as a later reload does.
    pub fn open(what: &'static str, files: Vec<NamedFile>, build: Build<T>) -> Result<Self, FileError> {
        let contents = read_all(&files)?;
        let current = RwLock::new(Arc::new(build(&files, &contents)?));
        let digest = digest(&contents);
        let state = Mutex::new(State { in_use: digest, looked_at: digest, told: None });
        Ok(Self { what, files, build, current, state })
    }

    pub fn get(&self) -> Arc<T> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn files(&self) -> &[NamedFile] {
        &self.files
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Without what was made: that may be secret.
impl<T> std::fmt::Debug for FromFiles<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct(self.what).field("files", &self.files).finish_non_exhaustive()
    }
}

/// Some `FromFiles<T>`.
pub trait Reload: Send + Sync {
    fn what(&self) -> &'static str;

    /// Looks at the files, and makes what they say where that is news. Reads from disk.
    fn reload(&self, occasion: Occasion) -> Reloaded;
}

impl<T: Send + Sync> Reload for FromFiles<T> {
    fn what(&self) -> &'static str {
        self.what
    }

    fn reload(&self, occasion: Occasion) -> Reloaded {
        let mut state = self.state();
        let made = read_all(&self.files).and_then(|contents| {
            let digest = digest(&contents);
            if digest == state.in_use {
                return Ok(None);
            }
            if occasion == Occasion::Timer && digest != state.looked_at {
                state.looked_at = digest;
                return Ok(Some((digest, None)));
            }
            Ok(Some((digest, Some((self.build)(&self.files, &contents)?))))
        });
        match made {
            Ok(None) => {
                (state.looked_at, state.told) = (state.in_use, None);
                Reloaded::Unchanged
            }
            Ok(Some((_, None))) => Reloaded::Changing,
            Ok(Some((digest, Some(made)))) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(made);
                *state = State { in_use: digest, looked_at: digest, told: None };
                Reloaded::Taken
            }
            Err(error) if occasion == Occasion::Timer && state.told.as_ref() == Some(&error) => {
                Reloaded::StillFailed
            }
            Err(error) => {
                state.told = Some(FileError { message: error.message.clone(), ..error });
                Reloaded::Failed(error)
            }
        }
    }
}

fn read_all(files: &[NamedFile]) -> Result<Vec<Vec<u8>>, FileError> {
    files.iter().map(NamedFile::read).collect()
}

fn digest(contents: &[Vec<u8>]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for content in contents {
        hasher.update(&(content.len() as u64).to_le_bytes());
        hasher.update(content);
    }
    hasher.finalize()
}

/// Reloads for as long as the process serves.
pub async fn watch(sources: Vec<Arc<dyn Reload>>, mut hangup: Signal, metrics: Arc<HttpMetrics>) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let occasion = tokio::select! {
            _ = ticks.tick() => Occasion::Timer,
            _ = hangup.recv() => Occasion::Signal,
        };
        for source in &sources {
            let of_task = source.clone();
            let Ok(reloaded) = tokio::task::spawn_blocking(move || of_task.reload(occasion)).await else {
                continue;
            };
            tell(source.what(), occasion, reloaded, &metrics);
        }
    }
}

fn tell(what: &'static str, occasion: Occasion, reloaded: Reloaded, metrics: &HttpMetrics) {
    match reloaded {
        Reloaded::Unchanged => {
            metrics.reloaded(what, true);
            if occasion == Occasion::Signal {
                tracing::info!(what, "read again: unchanged");
            }
        }
        Reloaded::Changing | Reloaded::StillFailed => {}
        Reloaded::Taken => {
            metrics.reloaded(what, true);
            tracing::info!(what, "read again: in use from now on");
        }
        Reloaded::Failed(error) => {
            metrics.reloaded(what, false);
            tracing::error!(what, %error, "failed to read again: what was in use stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::env;

    fn numbers(path: PathBuf) -> Result<FromFiles<u32>, FileError> {
        let files = vec![NamedFile { flag: "number-file", path }];
        let build = |files: &[NamedFile], contents: &[Vec<u8>]| {
            let text = String::from_utf8_lossy(&contents[0]);
            text.trim().parse().map_err(|error| files[0].error(format_args!("is no number: {error}")))
        };
        FromFiles::open("number", files, Box::new(build))
    }

    #[test]
    fn changes_are_taken_when_they_have_settled_and_mistakes_change_nothing() {
        let path = env::temp_dir().join(format!("perilune-{}-reload", std::process::id()));
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        let _ = std::fs::remove_file(&path);
        let missing = numbers(path.clone()).err().unwrap();
        assert!(
            missing.to_string().starts_with(&format!("--number-file: {} cannot be read: ", path.display()))
        );
        write("x");
        assert!(numbers(path.clone()).err().unwrap().message.contains(" is no number: "));
        write("1");
        let source = numbers(path.clone()).unwrap();
        let reload = |occasion| (source.reload(occasion), *source.get());
        use Occasion::*;
        use Reloaded::*;
        assert_eq!(reload(Timer), (Unchanged, 1));
        write("2");
        assert_eq!(reload(Timer), (Changing, 1));
        write("3");
        assert_eq!((reload(Timer), reload(Timer)), ((Changing, 1), (Taken, 3)));
        // Who says that all is there is believed.
        write("4");
        assert_eq!((reload(Signal), reload(Signal)), ((Taken, 4), (Unchanged, 4)));
        // A mistake is told once, and whenever somebody asks.
        write("four");
        assert_eq!(reload(Timer), (Changing, 4));
        assert!(matches!(reload(Timer), (Failed(_), 4)));
        assert_eq!(reload(Timer), (StillFailed, 4));
        assert!(matches!(reload(Signal), (Failed(_), 4)));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(reload(Timer), (Failed(_), 4)), "another one");
        assert_eq!(reload(Timer), (StillFailed, 4));
        write("4");
        assert_eq!(reload(Timer), (Unchanged, 4));
        std::fs::write(&path, vec![b'1'; (1 << 20) + 1]).unwrap();
        let (Failed(error), 4) = reload(Signal) else { panic!("too long") };
        assert!(error.message.contains("is longer than 1048576 bytes"), "{error}");
        std::fs::remove_file(&path).unwrap();
    }
}
