//! The model inside the binary: `server/demo`, in the published format. A toy for trying the server out.

/// What it is called in the API.
pub const NAME: &str = "perilune-demo";

/// Name and content of each file, as the build script found them.
pub static FILES: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// Aligned as a map of a file would be.
#[allow(dead_code, reason = "a build without a model has no use for it")]
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

#[cfg(test)]
mod tests {
    use super::*;

    /// An empty folder is a build without a model; half a model is a mistake.
    #[test]
    fn the_model_is_whole_and_aligned() {
        let has = |name: &str| FILES.iter().any(|(n, _)| *n == name);
        for name in ["config.json", "model.safetensors", "tokenizer_config.json", "preprocessor_config.json"]
        {
            assert_eq!(has(name), !FILES.is_empty(), "{name}");
        }
        for (name, content) in FILES {
            assert!(content.as_ptr().addr().is_multiple_of(64), "{name}");
        }
    }
}
