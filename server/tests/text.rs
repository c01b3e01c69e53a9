//! From text to tokens and back: tokenizers, templates, grammars, and the files of a model. No server.

mod constrained;
mod gguf;
mod hub;
mod prompt;
mod random;
mod schema_errors;
mod support;
mod templates;
mod tokenizer;
mod tool_grammars;
mod white_space;
