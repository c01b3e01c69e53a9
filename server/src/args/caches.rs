//! Where things are kept for the next start, unless a flag says otherwise.

use std::path::PathBuf;

/// Where compiled kernels are kept unless a folder is given: `None` for a user without a home.
pub fn default_kernel_cache() -> Option<PathBuf> {
    own_cache().map(|cache| cache.join("kernels"))
}

/// Where packed weights are kept unless a folder is given: `None` for a user without a home.
pub fn default_weights_cache() -> Option<PathBuf> {
    own_cache().map(|cache| cache.join("weights"))
}

fn own_cache() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = folder("XDG_CACHE_HOME").or_else(|| folder("HOME").map(|home| home.join(".cache")))?;
    Some(cache.join("perilune"))
}
