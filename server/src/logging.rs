//! Log lines on standard error: text for people, JSON for machines. Prompts are never in them.
//!
//! A thread of its own writes them. Whoever logs waits for nobody: where standard error is a pipe that is not read, a terminal that was
//! stopped or a full disk, lines are lost and requests are answered.

use crate::config::LogFormat;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::time::Duration;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

/// Lines that may wait to be written. Most are shorter than 300 bytes.
const MAX_WAITING: usize = 4096;

/// How long the last lines have on the way out.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// `filter` is in the form of `RUST_LOG`. Colours only where a person looks, and not against their wish.
///
/// Lines of the process's end are written when what this returns is dropped.
#[must_use]
pub fn init(format: LogFormat, filter: Option<&str>, no_color: bool) -> Option<Log> {
    let filter =
        filter.and_then(|filter| EnvFilter::try_new(filter).ok()).unwrap_or_else(|| EnvFilter::new("info"));
    // A system that gives no thread gives none to the engine either, and what is said of that has to come out: lines are written by who logs.
    let (log, lines) = match Log::start(std::io::stderr()) {
        Ok((log, lines)) => (Some(log), BoxMakeWriter::new(lines)),
        Err(_) => (None, BoxMakeWriter::new(std::io::stderr)),
    };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_writer(lines)
        .with_ansi(std::io::stderr().is_terminal() && !no_color);
    // A second call, as in tests, changes nothing.
    let _ = match format {
        LogFormat::Text => subscriber.try_init(),
        LogFormat::Json => subscriber.json().flatten_event(true).with_current_span(false).try_init(),
    };
    log
}

enum Message {
    Line(Vec<u8>),
    /// All lines before it are written.
    Flush(Sender<()>),
}

/// The lines of a process until it ends.
pub struct Log(Lines);

impl Log {
    fn start(output: impl Write + Send + 'static) -> std::io::Result<(Self, Lines)> {
        let (sender, receiver) = sync_channel(MAX_WAITING);
        let lines = Lines { sender, lost: Arc::default() };
        let lost = lines.lost.clone();
        std::thread::Builder::new().name("log".into()).spawn(move || write(&receiver, output, &lost))?;
        Ok((Self(lines.clone()), lines))
    }

    /// Waits until what was logged is written, if that takes no longer than a second.
    pub fn flush(&self) {
        let (done, wait) = channel();
        let mut message = Message::Flush(done);
        // The queue may be full, and `send` would wait for ever.
        for _ in 0..10 {
            match self.0.sender.try_send(message) {
                Ok(()) => break,
                Err(TrySendError::Disconnected(_)) => return,
                Err(TrySendError::Full(back)) => message = back,
            }
            std::thread::sleep(FLUSH_TIMEOUT / 10);
        }
        let _ = wait.recv_timeout(FLUSH_TIMEOUT);
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Writes what comes. A line that cannot be written is lost: there is no place to say so.
fn write(messages: &Receiver<Message>, mut output: impl Write, lost: &AtomicU64) {
    loop {
        let message = match messages.try_recv() {
            Ok(message) => message,
            Err(_) => {
                // Lines are lost while others wait. Now none does, and there is room for one more.
                let lines = lost.swap(0, Ordering::Relaxed);
                if lines > 0 {
                    tracing::warn!(lines, "lines of this log were lost: nobody read standard error");
                }
                let Ok(message) = messages.recv() else { return };
                message
            }
        };
        match message {
            Message::Line(line) => {
                let _ = output.write_all(&line);
            }
            Message::Flush(done) => {
                let _ = done.send(());
            }
        }
    }
}

/// Where lines are put that wait to be written.
#[derive(Clone)]
struct Lines {
    sender: SyncSender<Message>,
    lost: Arc<AtomicU64>,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = &'a Lines;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

impl Write for &Lines {
    /// Takes one whole line, as the subscriber writes them.
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        if self.sender.try_send(Message::Line(line.to_vec())).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
