//! The arguments of a call between markers: JSON as a rule, and whatever else a model writes there passed on as it is.

use super::calls::Context;
use super::json::{JsonScanner, Scan, escape_controls};
use super::markers::{Found, Match, find, starts_with};

#[derive(Debug)]
pub(super) enum Arguments {
    /// White space, and perhaps the fence of a code block.
    Before,
    Json(JsonScanner),
    /// The JSON is complete; white space and the fence may follow.
    After,
    /// It is not JSON, or more than that.
    Raw,
}

const FENCES: [&str; 2] = ["```json", "```"];

impl Arguments {
    /// Passes on what belongs to the arguments, up to one of the markers `ends`, which is taken in. Says which one; `None`: not yet.
    pub fn step(&mut self, ends: &[&str], context: &mut Context<'_>) -> Option<usize> {
        loop {
            match self {
                Self::Before | Self::After => {
                    let is_more = context.input.skip_white();
                    if !is_more {
                        return None;
                    }
                    // What may be the beginning of a marker or a fence is no part of the arguments, even at the end of the output.
                    let rest = context.input.rest();
                    match starts_with(rest, ends, false) {
                        Match::Yes(end) => return Some(take_marker(ends, end, context)),
                        Match::Partly => return None,
                        Match::No => {}
                    }
                    match starts_with(rest, &FENCES, false) {
                        // "```" may still become "```json".
                        Match::Yes(1) if FENCES[0].starts_with(rest) => return None,
                        Match::Yes(fence) => {
                            context.input.advance(FENCES[fence].len());
                            context.input.commit();
                        }
                        Match::Partly => return None,
                        Match::No if matches!(self, Self::Before) => *self = Self::Json(JsonScanner::new()),
                        Match::No => *self = Self::Raw,
                    }
                }
                Self::Json(scanner) => {
                    let plain = context.input.plain();
                    let before = scanner.clone();
                    let (len, scan) = scanner.take(plain);
                    let mut json = String::with_capacity(len);
                    escape_controls(&plain[..len], &before, &mut json);
                    let is_stuck =
                        scan == Scan::Bad || (len == plain.len() && !context.input.rest()[len..].is_empty());
                    context.input.advance(len);
                    context.arguments(&json);
                    if scan == Scan::Done {
                        *self = Self::After;
                    } else if is_stuck {
                        *self = Self::Raw;
                    } else {
                        return None;
                    }
                }
                Self::Raw => {
                    let (rest, is_end) = (context.input.rest(), context.input.is_end());
                    let found = find(rest, ends, is_end);
                    let len = match found {
                        Found::At(at, _) => at,
                        Found::Held(held) => rest.len() - held,
                    };
                    context.input.advance(len);
                    context.taken_arguments();
                    return match found {
                        Found::At(_, end) => Some(take_marker(ends, end, context)),
                        Found::Held(_) => None,
                    };
                }
            }
        }
    }
}

fn take_marker(ends: &[&str], end: usize, context: &mut Context<'_>) -> usize {
    context.input.advance(ends[end].len());
    context.input.commit();
    end
}
