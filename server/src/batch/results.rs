//! What came of each line, in OpenAI's form, in logs on disk. A custom_id is in them at most once, however often the process died.

use super::lines::{Key, key};
use crate::disk::log::Log;
use crate::error::ApiError;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::HashSet;
use std::io;
use std::path::Path;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LineResult {
    pub id: String,
    pub custom_id: String,
    pub response: Option<LineResponse>,
    /// Why there is no response.
    pub error: Option<LineError>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LineResponse {
    pub status_code: u16,
    pub request_id: String,
    pub body: Value,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineError {
    pub code: String,
    pub message: String,
}

impl LineResult {
    /// The request's id in the log and in `x-request-id` is the line's own.
    pub fn answered(id: String, custom_id: String, status_code: u16, body: Value) -> Self {
        let response = Some(LineResponse { status_code, request_id: id.clone(), body });
        Self { id, custom_id, response, error: None }
    }

    pub fn not_run(custom_id: String, code: &str, message: &str) -> Self {
        let id = format!("batch_req_{}", uuid::Uuid::new_v4().simple());
        let error = LineError { code: code.into(), message: message.into() };
        Self { id, custom_id, response: None, error: Some(error) }
    }

    pub fn is_success(&self) -> bool {
        self.response.as_ref().is_some_and(|response| response.status_code == 200)
    }
}

pub fn failed_with(id: String, custom_id: String, error: &ApiError) -> LineResult {
    let body = serde_json::from_str(&error.json()).expect("an error object is JSON");
    LineResult::answered(id, custom_id, error.parts().status.as_u16(), body)
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub completed: usize,
    pub failed: usize,
}

/// The logs of one batch.
#[derive(Debug)]
pub struct Results {
    successes: Log,
    /// `None`: failures are with the successes.
    failures: Option<Log>,
    done: HashSet<Key>,
    counts: Counts,
}

impl Results {
    pub fn open(successes: &Path, failures: Option<&Path>) -> io::Result<Self> {
        let mut done = HashSet::new();
        let mut counts = Counts::default();
        let mut take = |line: &[u8]| {
            let Ok(result) = serde_json::from_slice::<LineResult>(line) else { return false };
            if done.insert(key(&result.custom_id)) {
                counts.add(&result);
            }
            true
        };
        let successes = Log::open(successes, &mut take)?;
        let failures = failures.map(|path| Log::open(path, &mut take)).transpose()?;
        Ok(Self { successes, failures, done, counts })
    }

    pub fn is_done(&self, custom_id: &str) -> bool {
        self.done.contains(&key(custom_id))
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Adds results. Those of lines that are done are dropped; after a failure what is not in a log is not done.
    pub fn add(&mut self, results: &[LineResult]) -> io::Result<()> {
        let new = results.iter().filter(|result| !self.is_done(&result.custom_id));
        let (good, bad): (Vec<_>, Vec<_>) =
            new.partition(|result| result.is_success() || self.failures.is_none());
        self.successes.append(&to_lines(&good)?)?;
        self.mark(&good);
        if let Some(failures) = &mut self.failures {
            failures.append(&to_lines(&bad)?)?;
            self.mark(&bad);
        }
        Ok(())
    }

    fn mark(&mut self, written: &[&LineResult]) {
        for result in written {
            self.done.insert(key(&result.custom_id));
            self.counts.add(result);
        }
    }

    pub fn sync(&self) -> io::Result<()> {
        self.successes.sync()?;
        self.failures.as_ref().map_or(Ok(()), Log::sync)
    }

    /// Whether there are successes, and failures in a log of their own.
    pub fn has(&self) -> (bool, bool) {
        (!self.successes.is_empty(), self.failures.as_ref().is_some_and(|log| !log.is_empty()))
    }
}

impl Counts {
    fn add(&mut self, result: &LineResult) {
        if result.is_success() {
            self.completed += 1;
        } else {
            self.failed += 1;
        }
    }
}

fn to_lines(results: &[&LineResult]) -> io::Result<Vec<u8>> {
    let mut lines = Vec::new();
    for result in results {
        serde_json::to_writer(&mut lines, result)?;
        lines.push(b'\n');
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::tests::Folder;
    use serde_json::json;

    fn answered(custom_id: &str, status: u16) -> LineResult {
        LineResult::answered("id".into(), custom_id.into(), status, json!({"text": "a\nb"}))
    }

    #[test]
    fn what_is_in_a_log_is_done_once() {
        let folder = Folder::new("results");
        let (good, bad) = (folder.0.join("good"), folder.0.join("bad"));
        let mut results = Results::open(&good, Some(&bad)).expect("opens");
        results.add(&[answered("a", 200), answered("b", 400)]).expect("writes");
        results
            .add(&[answered("a", 400), LineResult::not_run("c".into(), "batch_expired", "late")])
            .expect("writes");
        let all = Counts { completed: 1, failed: 2 };
        assert_eq!((results.counts(), results.has()), (all, (true, true)));
        // A process that was killed in the middle of a line.
        let text = std::fs::read_to_string(&bad).expect("reads");
        std::fs::write(&bad, &text[..text.len() - 5]).expect("writes");
        let mut results = Results::open(&good, Some(&bad)).expect("opens again");
        assert_eq!(results.counts(), Counts { completed: 1, failed: 1 });
        let done = ["a", "b", "c", "d"].map(|id| results.is_done(id));
        assert_eq!(done, [true, true, false, false]);
        results.add(&[answered("c", 200)]).expect("writes");
        assert_eq!(results.counts(), Counts { completed: 2, failed: 1 });
        assert_eq!(std::fs::read_to_string(&good).expect("reads").lines().count(), 2);
        assert_eq!(std::fs::read_to_string(&bad).expect("reads").lines().count(), 1);
    }

    #[test]
    fn one_log_for_everything() {
        let folder = Folder::new("one-log");
        let path = folder.0.join("out.jsonl");
        let mut results = Results::open(&path, None).expect("opens");
        results.add(&[answered("a", 200), answered("b", 400)]).expect("writes");
        assert_eq!(Results::open(&path, None).expect("opens").counts(), Counts { completed: 1, failed: 1 });
    }
}
