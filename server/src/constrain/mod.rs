//! Holding an answer to what a request asks for: a JSON schema, a regular expression, a grammar, a budget of thinking. Knows nothing of
//! any dialect's JSON.
//!
//! ```text
//! GrammarSource ──GrammarCompiler──▶ Grammar ─┐
//! ReasoningMarkers, budget ───────────────────┼──▶ ConstraintSpec ──begin()──▶ a scheduler::Constraint for each sequence
//! triggers of tool calls ─────────────────────┘                                  └─ masks: computed by the MaskPool while the model runs
//! ```

mod compiler;
mod error;
mod filter;
mod grammar_state;
mod locate;
mod marker;
mod masks;
mod pool;
pub mod schema;
mod sequence;
mod source;
mod spec;
mod vocabulary;

pub use compiler::{CompilerLimits, Grammar, GrammarCompiler};
pub use error::{GrammarError, GrammarFault};
pub use filter::TokenFilter;
pub use grammar_state::{Ends, Setting};
pub use pool::{Host, MaskPool};
pub use source::{GrammarSource, Pattern, Whitespace};
pub use spec::{AfterCall, BodyPart, CallsPart, ConstraintParts, ConstraintSpec, SequenceSpec, ThinkingPart};
#[cfg(test)]
mod tests;

pub use vocabulary::{Encode, TokenizerEncoder, Vocabulary, Words};
