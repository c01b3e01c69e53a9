//! Why a grammar is not taken.

/// Whose fault it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrammarFault {
    /// It is malformed, or nothing can satisfy it.
    Invalid,
    /// It asks for what is not enforced here.
    Unsupported,
    /// Compiling it takes more time or memory than one request may use.
    TooComplex,
    /// Too many are being compiled at this time.
    Busy,
    /// The server's.
    Internal,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{message}", place(pointer))]
pub struct GrammarError {
    pub fault: GrammarFault,
    /// Where in a schema, as a JSON pointer (RFC 6901) with `#` before it.
    pub pointer: Option<String>,
    /// Which of the request's schemas, where it has several.
    pub part: Option<String>,
    pub message: String,
}

fn place(pointer: &Option<String>) -> String {
    pointer.as_ref().map_or_else(String::new, |pointer| format!("at {pointer}: "))
}

impl GrammarError {
    pub fn new(fault: GrammarFault, message: impl Into<String>) -> Self {
        Self { fault, pointer: None, part: None, message: message.into() }
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(GrammarFault::Invalid, message)
    }

    pub fn at(self, pointer: impl Into<String>) -> Self {
        Self { pointer: Some(format!("#{}", pointer.into())), ..self }
    }

    pub fn in_part(self, part: &str) -> Self {
        Self { part: Some(part.to_owned()), ..self }
    }
}
