//! The API's batch object, which is also what is on disk, and its states.
//!
//! ```text
//!   validating ──▶ in_progress ──▶ finalizing ──▶ completed
//!     │   │            │   └────── the window ended ──▶ expired
//!     │   └─ cancel ───┴──▶ cancelling ──▶ cancelled
//!     └──▶ failed: the file is wrong, nothing ran
//! ```

use super::lines::Mistake;
use super::results::Counts;
use crate::service::unix_time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "BatchStatus")]
pub enum Status {
    Validating,
    Failed,
    InProgress,
    Finalizing,
    Completed,
    Expired,
    Cancelling,
    Cancelled,
}

impl Status {
    pub fn is_terminal(self) -> bool {
        matches!(self, Status::Failed | Status::Completed | Status::Expired | Status::Cancelled)
    }

    pub fn name(self) -> &'static str {
        match self {
            Status::Validating => "validating",
            Status::Failed => "failed",
            Status::InProgress => "in_progress",
            Status::Finalizing => "finalizing",
            Status::Completed => "completed",
            Status::Expired => "expired",
            Status::Cancelling => "cancelling",
            Status::Cancelled => "cancelled",
        }
    }
}

/// OpenAI's batch object. Times are in Unix seconds, `null` for what has not happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Batch")]
pub struct BatchObject {
    pub id: String,
    /// `batch`.
    pub object: String,
    /// The route that all lines name.
    pub endpoint: String,
    /// What is wrong with the file; `null` unless the batch failed.
    pub errors: Option<ErrorList>,
    pub input_file_id: String,
    pub completion_window: String,
    pub status: Status,
    /// Answers with status 200; `null` until the batch has ended, and where there is none.
    pub output_file_id: Option<String>,
    /// The other lines; `null` until the batch has ended, and where there is none.
    pub error_file_id: Option<String>,
    pub created_at: u64,
    pub in_progress_at: Option<u64>,
    /// When what has not run by then is given up.
    pub expires_at: Option<u64>,
    pub finalizing_at: Option<u64>,
    pub completed_at: Option<u64>,
    pub failed_at: Option<u64>,
    pub expired_at: Option<u64>,
    pub cancelling_at: Option<u64>,
    pub cancelled_at: Option<u64>,
    pub request_counts: RequestCounts,
    pub metadata: Option<Map<String, Value>>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RequestCounts {
    pub total: usize,
    pub completed: usize,
    pub failed: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "BatchErrors")]
pub struct ErrorList {
    /// `list`.
    pub object: String,
    pub data: Vec<BatchError>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BatchError {
    pub code: String,
    pub message: String,
    pub param: Option<String>,
    /// From 1.
    pub line: Option<usize>,
}

/// What a client asked for.
#[derive(Debug, Clone)]
pub struct NewBatch {
    pub input_file_id: String,
    pub endpoint: String,
    pub completion_window: String,
    pub window_s: u64,
    pub metadata: Option<Map<String, Value>>,
}

/// How the lines ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    Completed,
    Cancelled,
    Expired,
}

impl BatchObject {
    pub fn new(id: String, new: NewBatch) -> Self {
        let NewBatch { input_file_id, endpoint, completion_window, window_s, metadata } = new;
        let created_at = unix_time();
        Self {
            id,
            object: "batch".into(),
            endpoint,
            errors: None,
            input_file_id,
            completion_window,
            status: Status::Validating,
            output_file_id: None,
            error_file_id: None,
            created_at,
            in_progress_at: None,
            expires_at: Some(created_at.saturating_add(window_s)),
            finalizing_at: None,
            completed_at: None,
            failed_at: None,
            expired_at: None,
            cancelling_at: None,
            cancelled_at: None,
            request_counts: RequestCounts::default(),
            metadata,
        }
    }

    /// The file is wrong.
    pub fn fail(&mut self, mistakes: Vec<Mistake>) {
        let error = |Mistake { line, code, param, message }: Mistake| BatchError {
            code: code.into(),
            message,
            param: param.map(str::to_owned),
            line,
        };
        self.status = Status::Failed;
        self.failed_at = Some(unix_time());
        self.errors =
            Some(ErrorList { object: "list".into(), data: mistakes.into_iter().map(error).collect() });
    }

    /// The file is right. A batch that was cancelled meanwhile stays so.
    pub fn begin(&mut self, num_lines: usize) {
        self.request_counts.total = num_lines;
        if self.status == Status::Validating {
            self.status = Status::InProgress;
            self.in_progress_at = Some(unix_time());
        }
    }

    pub fn count(&mut self, Counts { completed, failed }: Counts) {
        self.request_counts.completed = completed;
        self.request_counts.failed = failed;
    }

    /// Whether it can be cancelled, and is being cancelled now.
    pub fn cancel(&mut self) -> bool {
        if !matches!(self.status, Status::Validating | Status::InProgress | Status::Cancelling) {
            return false;
        }
        if self.status != Status::Cancelling {
            self.status = Status::Cancelling;
            self.cancelling_at = Some(unix_time());
        }
        true
    }

    /// All lines have results.
    pub fn finalize(&mut self, end: End) {
        if end == End::Completed {
            self.status = Status::Finalizing;
            self.finalizing_at = Some(unix_time());
        }
    }

    pub fn end(&mut self, end: End, output_file_id: Option<String>, error_file_id: Option<String>) {
        let now = Some(unix_time());
        (self.output_file_id, self.error_file_id) = (output_file_id, error_file_id);
        match end {
            End::Completed => (self.status, self.completed_at) = (Status::Completed, now),
            End::Cancelled => (self.status, self.cancelled_at) = (Status::Cancelled, now),
            End::Expired => (self.status, self.expired_at) = (Status::Expired, now),
        }
    }
}

/// Seconds of a completion window: OpenAI's `24h`, or another number of `s`, `m`, `h` or `d` up to 30 days.
pub fn parse_window(text: &str) -> Option<u64> {
    let unit = match text.as_bytes().last()? {
        b's' => 1,
        b'm' => 60,
        b'h' => 3600,
        b'd' => 86_400,
        _ => return None,
    };
    let digits = &text[..text.len() - 1];
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = digits.parse::<u64>().ok().filter(|_| is_number)?.checked_mul(unit)?;
    (1..=30 * 86_400).contains(&seconds).then_some(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows() {
        for (text, seconds) in [("24h", 86_400), ("1s", 1), ("90m", 5400), ("30d", 2_592_000)] {
            assert_eq!(parse_window(text), Some(seconds), "{text}");
        }
        for text in
            ["", "h", "0h", "-1h", "+1h", "1.5h", "24", "24H", "31d", "24hh", "é", "99999999999999999999d"]
        {
            assert_eq!(parse_window(text), None, "{text}");
        }
    }

    #[test]
    fn a_batch_goes_forward_only() {
        let new = || NewBatch {
            input_file_id: "file-1".into(),
            endpoint: "/v1/completions".into(),
            completion_window: "24h".into(),
            window_s: 86_400,
            metadata: None,
        };
        let mut batch = BatchObject::new("batch_1".into(), new());
        assert_eq!(batch.expires_at, Some(batch.created_at + 86_400));
        batch.begin(3);
        assert_eq!((batch.status, batch.request_counts.total), (Status::InProgress, 3));
        batch.finalize(End::Completed);
        assert!(!batch.cancel(), "it is too late");
        batch.end(End::Completed, Some("file-2".into()), None);
        assert!(batch.status.is_terminal() && batch.completed_at.is_some());
        assert!(!batch.cancel());
        let mut batch = BatchObject::new("batch_2".into(), new());
        assert!(batch.cancel() && batch.cancel());
        batch.begin(3);
        assert_eq!((batch.status, batch.in_progress_at), (Status::Cancelling, None));
        batch.end(End::Cancelled, None, Some("file-3".into()));
        assert!(batch.status == Status::Cancelled && batch.cancelled_at.is_some());
    }
}
