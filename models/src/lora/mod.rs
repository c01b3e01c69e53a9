//! Low-rank adapters (LoRA), for each request its own: `y = W x + s · B (A x)`, beside the model's weights and not merged into them.

mod adapter;
mod error;
mod spec;

pub use adapter::Adapter;
pub use error::AdapterError;
pub use spec::AdapterSpec;
