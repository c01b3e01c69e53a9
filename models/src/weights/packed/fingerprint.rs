//! What packed weights were made of and how, as one number: where it is the same, packing again would give the same bytes.
//!
//! Of each file with weights: its name, length and time of change, its whole head, and a sample from within each tensor. Length and time
//! see every ordinary change. The samples see what keeps both, such as another training of the same model copied with its times: then
//! nearly all values differ. The tensors themselves are not read, which would take as long as packing them.

use crate::content::Content;
use crate::files::CONFIG_FILE;
use crate::parts::WeightLayout;
use crate::storage::Storage;
use crate::weights::packed::file::FORMAT_VERSION;
use crate::{FileError, LoadError, ModelFiles};
use kernels::{CPU_LAYOUT_VERSION, FileMap};
use std::io;
use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

/// Bytes from the middle of each tensor.
const SAMPLE: usize = 64;

/// A mapped file with weights.
pub(in crate::weights) struct SourceFile<'a> {
    /// As messages name it.
    path: &'a str,
    map: &'a FileMap,
    /// Of its tensors, in order.
    ranges: Vec<Range<usize>>,
}

impl<'a> SourceFile<'a> {
    /// `None`: it is not a file.
    pub fn new(path: &'a str, content: &'a Content, ranges: Vec<Range<usize>>) -> Option<Self> {
        content.map().map(|map| Self { path, map, ranges })
    }

    fn head(&self) -> &[u8] {
        &self.map[..self.ranges.first().map_or(self.map.len(), |first| first.start)]
    }

    fn add_to(&self, hash: &mut Hash) -> io::Result<()> {
        let name = self.path.rsplit(['/', '\\']).next().unwrap_or(self.path);
        let metadata = self.map.file().metadata()?;
        hash.part(name.as_bytes());
        hash.number(metadata.len());
        hash.number(nanoseconds(metadata.modified()?));
        hash.part(self.head());
        for range in &self.ranges {
            let mut sample = [0; SAMPLE];
            let len = range.len().min(SAMPLE);
            self.map.read_at(range.start + (range.len() - len) / 2, &mut sample[..len])?;
            hash.part(&sample[..len]);
        }
        self.map.release(self.head());
        Ok(())
    }
}

/// Since 1970; what is before is no time that a change could have left by accident.
fn nanoseconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// Of parts with their lengths, so that no two lists of parts are the same bytes.
struct Hash(blake3::Hasher);

impl Hash {
    fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }

    fn part(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }
}

/// In 32 hexadecimal digits.
pub(super) fn of(files: &ModelFiles, sources: &[SourceFile], storage: &Storage) -> Result<String, LoadError> {
    let mut hash = Hash(blake3::Hasher::new());
    // Bytes are kept as the machine has them, and another release may round or name anew.
    let endian = if cfg!(target_endian = "little") { "little" } else { "big" };
    for text in ["perilune packed weights", env!("CARGO_PKG_VERSION"), endian] {
        hash.part(text.as_bytes());
    }
    hash.number(FORMAT_VERSION.into());
    hash.number(CPU_LAYOUT_VERSION.into());
    hash.part(format!("{:?} {:?}", storage.float, storage.quantization).as_bytes());
    // What was packed before there was another form stays good.
    if storage.layout != WeightLayout::Plain {
        hash.part(storage.layout.name().as_bytes());
    }
    if storage.screens_head {
        hash.part(b"screened head");
    }
    // The forms of published weights, and how matrices are taken apart.
    hash.part(&files.read(CONFIG_FILE)?.unwrap_or_default());
    for source in sources {
        let failed = |error| FileError { path: source.path.to_string(), reason: error };
        source.add_to(&mut hash).map_err(failed)?;
    }
    Ok(hash.0.finalize().to_hex()[..32].to_string())
}
