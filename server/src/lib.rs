//! The server: HTTP in, tokens out.

pub mod chat;
pub mod source;
