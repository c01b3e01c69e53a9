//! The model inside the binary: `server/demo`, in the published format. A toy for trying the server out.

/// What it is called in the API.
pub const NAME: &str = "perilune-demo";

/// Name and content of each file.
pub static FILES: &[(&str, &[u8])] = &[];
