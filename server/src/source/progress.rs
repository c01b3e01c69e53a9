//! How far a download is: a bar where somebody watches, log lines where not.

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;

/// Smaller files are there before anybody looks.
const MIN_LOGGED_BYTES: u64 = 50 << 20;
const STYLE: &str = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";

pub(super) struct Progress {
    bar: ProgressBar,
    file: String,
    total: Option<u64>,
    /// Tenths that were logged; `None` where a bar is shown.
    logged: Option<u64>,
}

impl Progress {
    pub fn new(file: &str, start: u64, total: Option<u64>) -> Self {
        let watched = std::io::stderr().is_terminal();
        let target = if watched { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar =
            ProgressBar::with_draw_target(total, target).with_message(file.to_string()).with_position(start);
        if let Ok(style) = ProgressStyle::with_template(STYLE) {
            bar.set_style(style);
        }
        if !watched {
            let size = total.map_or("unknown".to_string(), |total| HumanBytes(total).to_string());
            tracing::info!(file, %size, at = start, "downloading");
        }
        Self { bar, file: file.to_string(), total, logged: (!watched).then_some(0) }
    }

    pub fn advance(&mut self, bytes: u64) {
        self.bar.inc(bytes);
        let (Some(logged), Some(total)) =
            (self.logged, self.total.filter(|total| *total >= MIN_LOGGED_BYTES))
        else {
            return;
        };
        let tenth = self.bar.position() * 10 / total;
        if tenth > logged && tenth < 10 {
            self.logged = Some(tenth);
            tracing::info!(file = self.file, percent = tenth * 10, "downloading");
        }
    }

    pub fn restart(&mut self) {
        self.bar.set_position(0);
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
        tracing::info!(file = self.file, bytes = self.bar.position(), "downloaded");
    }
}
