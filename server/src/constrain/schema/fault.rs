//! What is wrong with a schema, and where in it: JSON pointers.

use super::super::error::{GrammarError, GrammarFault};

/// A pointer grown by one step for the time of a call.
pub(super) fn within<T>(pointer: &mut String, step: &str, work: impl FnOnce(&mut String) -> T) -> T {
    let len = pointer.len();
    pointer.push('/');
    pointer.push_str(&step.replace('~', "~0").replace('/', "~1"));
    let result = work(pointer);
    pointer.truncate(len);
    result
}

pub(super) fn invalid(pointer: &str, keyword: &str, message: &str) -> GrammarError {
    fail(GrammarFault::Invalid, pointer, keyword, message)
}

pub(super) fn unsupported(pointer: &str, keyword: &str, message: &str) -> GrammarError {
    fail(GrammarFault::Unsupported, pointer, keyword, message)
}

pub(super) fn fail(fault: GrammarFault, pointer: &str, keyword: &str, message: &str) -> GrammarError {
    let mut pointer = pointer.to_owned();
    within(&mut pointer, keyword, |pointer| {
        GrammarError::new(fault, format!("`{keyword}` {message}")).at(&**pointer)
    })
}
