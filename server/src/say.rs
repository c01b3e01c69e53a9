//! What commands say to people and programs: `println!` panics where nobody listens, as in `perilune plan | head -1` or on a full disk.

use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use crate::exit_code::EXIT_FAILURE;

/// A result, a line on standard output, at once. A reader that has left has read what it wanted; everything else that keeps the line from
/// being written is an error.
pub fn result(text: impl Display) -> Result<(), NotSaid> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(NotSaid(error)),
        _ => Ok(()),
    }
}

/// The same as the end of a command.
pub fn last(text: impl Display) -> ExitCode {
    match result(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(error, EXIT_FAILURE),
    }
}

/// A line on standard error beside the result. Whether anybody reads it changes nothing.
pub fn note(text: impl Display) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// The line about what went wrong, and the exit code `code`.
pub fn fail(error: impl Display, code: u8) -> ExitCode {
    note(format_args!("error: {error}"));
    ExitCode::from(code)
}

#[derive(Debug, thiserror::Error)]
#[error("failed to write to standard output: {0}")]
pub struct NotSaid(std::io::Error);
