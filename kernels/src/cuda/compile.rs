//! What is compiled, and where the results are kept: one folder of files named by a hash of everything that decides their
//! content. A file is written under another name and then renamed, so that a reader sees all of it or none.

use super::cubin::Cubin;
use super::error::{CudaError, Result};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A file of kernels, in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    pub name: &'static str,
    pub text: &'static str,
}

/// The headers that sources may include.
pub(crate) const HEADERS: [Source; 10] = [
    Source { name: "attention.cuh", text: include_str!("attention.cuh") },
    Source { name: "attention_rows.cuh", text: include_str!("attention_rows.cuh") },
    Source { name: "common.cuh", text: include_str!("common.cuh") },
    Source { name: "gemm.cuh", text: include_str!("gemm.cuh") },
    Source { name: "hopper.cuh", text: include_str!("hopper.cuh") },
    Source { name: "norm.cuh", text: include_str!("norm.cuh") },
    Source { name: "ptx.cuh", text: include_str!("ptx.cuh") },
    Source { name: "rotate.cuh", text: include_str!("rotate.cuh") },
    Source { name: "tokens.cuh", text: include_str!("tokens.cuh") },
    Source { name: "wgmma.cuh", text: include_str!("wgmma.cuh") },
];

/// The headers that a source includes, itself or through another: a change of the others leaves its results as they are.
pub(crate) fn headers_of(source: Source) -> Vec<Source> {
    let mut found: Vec<Source> = Vec::new();
    let mut open = vec![source];
    while let Some(source) = open.pop() {
        for header in HEADERS {
            let line = format!("#include \"{}\"", header.name);
            if !found.contains(&header) && source.text.contains(&line) {
                found.push(header);
                open.push(header);
            }
        }
    }
    found.sort_by_key(|header| header.name);
    found
}

/// Instances of one source to compile together.
#[derive(Clone, Debug)]
pub struct Job {
    pub source: Source,
    /// C++ name expressions, such as `rms_norm<float>`.
    pub expressions: Vec<String>,
    /// Macros, `NAME` or `NAME=VALUE`.
    pub defines: Vec<String>,
}

/// A compiled job.
#[derive(Clone, Debug)]
pub enum Image {
    /// Machine code for one architecture.
    Cubin(Cubin),
    /// A library for the emulator; instance i has the symbols `emu_launch_i` and `emu_params_i`.
    Library { path: PathBuf, expressions: Vec<String> },
}

/// A folder of results.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// The folder is made when the first file is.
    pub fn new(folder: impl AsRef<Path>) -> Self {
        // Compilers run in other folders. Only an empty path has no absolute form, and writing to it fails later.
        let folder = std::path::absolute(&folder).unwrap_or_else(|_| folder.as_ref().to_path_buf());
        Self { folder }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The file of this key; `make` writes it to the path that it is given if it is not there.
    pub fn get_or_make(
        &self,
        key: &Key,
        extension: &str,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let path = self.folder.join(format!("{}.{extension}", key.hex()));
        if path.exists() {
            return Ok(path);
        }
        let io = |what: &str, e: std::io::Error| {
            CudaError::NoCompiler(format!("{what} {}: {e}", self.folder.display()))
        };
        std::fs::create_dir_all(&self.folder).map_err(|e| io("cannot make the cache folder", e))?;
        let draft = self.folder.join(unique(&key.hex()));
        let made = make(&draft).and_then(|()| {
            std::fs::rename(&draft, &path).map_err(|e| io("cannot write into the cache folder", e))
        });
        if made.is_err() {
            // The error says what happened; a draft that stays behind harms nobody.
            let _ = std::fs::remove_file(&draft);
        }
        made.map(|()| path)
    }
}

/// A name that no other thread or process uses.
pub(crate) fn unique(stem: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{stem}.{}.{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A hash over named parts.
pub struct Key(blake3::Hasher);

impl Key {
    /// Over the job, the headers and everything else that decides the result.
    pub fn of(job: &Job, headers: &[Source], rest: &[&str]) -> Self {
        let mut key = Self(blake3::Hasher::new());
        key.add(job.source.name).add(job.source.text);
        job.expressions.iter().for_each(|e| {
            key.add(e);
        });
        key.add("defines");
        job.defines.iter().for_each(|d| {
            key.add(d);
        });
        key.add("headers");
        for header in headers {
            key.add(header.name).add(header.text);
        }
        rest.iter().for_each(|part| {
            key.add(part);
        });
        key
    }

    /// Each part with its length, so that moving a boundary changes the hash.
    fn add(&mut self, part: &str) -> &mut Self {
        self.0.update(&(part.len() as u64).to_le_bytes());
        self.0.update(part.as_bytes());
        self
    }

    pub fn hex(&self) -> String {
        self.0.finalize().to_hex()[..32].to_string()
    }
}
