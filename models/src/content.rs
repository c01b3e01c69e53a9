//! The bytes of a file of weights: mapped, or built into the binary. What was packed is let go, some at a time.

use crate::LoadError;
use kernels::FileMap;
use std::ops::{Deref, Range};
use std::path::Path;

/// The bytes of a file.
pub(crate) enum Content {
    Mapped(FileMap),
    Embedded(&'static [u8]),
}

impl Content {
    /// The map that these bytes are in, if the content is mapped.
    pub(crate) fn map(&self) -> Option<&FileMap> {
        match self {
            Content::Mapped(map) => Some(map),
            Content::Embedded(_) => None,
        }
    }
}

impl Deref for Content {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Content::Mapped(map) => map,
            Content::Embedded(bytes) => bytes,
        }
    }
}

/// The content of a file, or `None` where there is none.
pub(crate) fn map_file(path: &Path) -> Result<Option<Content>, LoadError> {
    let failed = |reason| crate::FileError { path: path.display().to_string(), reason };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error).into()),
    };
    Ok(Some(Content::Mapped(FileMap::new(file).map_err(failed)?)))
}

/// Bytes of a file that are let go by one call.
const RELEASED: usize = 1 << 20;

/// Lets rows of a matrix of `num_rows` go that are not read again, some at a time.
pub(crate) fn release_rows(map: Option<&FileMap>, data: &[u8], num_rows: usize, rows: Range<usize>) {
    let (Some(map), row) = (map, data.len() / num_rows) else { return };
    let (start, end) = (rows.start * row, rows.end * row);
    if end == data.len() || start / RELEASED != end / RELEASED {
        map.release(&data[start / RELEASED * RELEASED..end]);
    }
}
