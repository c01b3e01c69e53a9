//! From messages to tokens and back: tokenizer, chat template, pictures, incremental decoding, stop strings.

pub mod decoder;
pub mod effort;
pub mod image;
mod jinja;
pub mod parse;
mod picture;
pub mod prompt;
mod pyjson;
mod pyrepr;
mod special;
pub mod stop;
mod strftime;
pub mod template;
mod text;
mod tiktoken;
pub mod tokenizer;
mod tokenizer_json;
mod vocabulary;

pub use decoder::IncrementalDecoder;
pub use image::{ImageInputError, ImageLimits, RgbPicture};
pub use picture::Picture;
pub use prompt::{Ending, Message, Part, Prompt, PromptBuilder, PromptError, PromptRequest, Rendered};
pub use stop::{StopInclusion, StopMatcher};
pub use template::{ChatTemplate, TemplateError};
pub use text::Shown;
pub use tokenizer::{SpecialNames, Specials, Tokenizer, TokenizerError};
