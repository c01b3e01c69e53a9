//! From messages to tokens and back: tokenizer, chat template, pictures, incremental decoding, stop strings.

mod data_url;
pub mod decoder;
pub mod effort;
pub mod image;
mod jinja;
pub mod parse;
pub mod prompt;
mod pyjson;
mod special;
pub mod stop;
mod strftime;
pub mod template;
mod tiktoken;
pub mod tokenizer;
mod tokenizer_json;
mod vocabulary;

pub use decoder::IncrementalDecoder;
pub use image::{ImageInputError, ImageLimits, RgbPicture};
pub use prompt::{Ending, Message, Part, Prompt, PromptBuilder, PromptError, PromptRequest, Rendered};
pub use stop::{StopInclusion, StopMatcher};
pub use template::{ChatTemplate, TemplateError};
pub use tokenizer::{Shown, SpecialNames, Specials, Tokenizer, TokenizerError};
