//! The file of packed weights.
//!
//! ```text
//! "PERIPACK" | bytes of the header: u64 | hash of the header: 32 bytes | header: JSON | pad | data: parts at multiples of 64 bytes
//! ```
//! The header names the parts and has a hash for each block of the data. All blocks are checked when the file is opened, by all threads:
//! a file that was cut, damaged or written by something else is never served, and its pages are there when the first token is computed.
//! The header is written last.

use super::folder;
use kernels::{CACHE_LINE, Device, FileMap, SharedBytes};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

/// Of this layout; part of every fingerprint.
pub(super) const FORMAT_VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"PERIPACK";
const HASH: usize = 32;
const HEADER_START: usize = MAGIC.len() + 8 + HASH;
/// The data begins at a multiple of it, and is written by whole blocks: so the system can keep it in huge pages, and map it by them.
const DATA_ALIGN: usize = 2 << 20;
/// Bytes of data that have a hash: some huge pages.
const BLOCK: usize = 4 << 20;
/// Hexadecimal digits of a block's hash.
const BLOCK_HASH: usize = 32;

/// A file that is to be written.
pub(super) struct Target {
    pub path: PathBuf,
    /// Of all files in the folder.
    pub max_bytes: u64,
    pub fingerprint: String,
    /// The model's files, for people.
    pub source: String,
}

/// Something packed that is to be written.
pub(in crate::weights) struct Entry {
    /// The first tensor that it is made of.
    pub key: String,
    /// Types and shape.
    pub form: String,
    pub parts: Vec<SharedBytes>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    fingerprint: String,
    /// For people.
    source: String,
    data_start: usize,
    data_len: usize,
    /// One after the other.
    block_hashes: String,
    entries: Vec<Place>,
}

#[derive(Serialize, Deserialize)]
struct Place {
    key: String,
    form: String,
    /// Start and length within the data.
    parts: Vec<[usize; 2]>,
}

/// A file that was checked.
pub(in crate::weights) struct PackedFile {
    path: PathBuf,
    map: Arc<FileMap>,
    data_start: usize,
    places: BTreeMap<String, Place>,
}

impl PackedFile {
    /// `None`: there is no file. An error says why the one that is there is not the one that was written.
    pub fn open(path: &Path, fingerprint: &str, device: &Device) -> Result<Option<Self>, String> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        // Files that were not used for long go first; where times cannot be set, the oldest do.
        let _ = file.set_modified(SystemTime::now());
        let map = FileMap::new(file).map_err(|error| error.to_string())?;
        map.prefer_huge_pages();
        let header = read_header(&map)?;
        if header.fingerprint != fingerprint {
            return Err("it was made of other weights".into());
        }
        check_data(&map, &header, device)?;
        let Header { data_start, entries, .. } = header;
        let places = entries.into_iter().map(|place| (place.key.clone(), place)).collect();
        Ok(Some(Self { path: path.into(), map: Arc::new(map), data_start, places }))
    }

    /// Of all parts.
    pub fn total_bytes(&self) -> u64 {
        self.places.values().flat_map(|place| &place.parts).map(|[_, len]| *len as u64).sum()
    }

    pub fn into_path(self) -> PathBuf {
        self.path
    }

    pub fn find(&self, key: &str, form: &str, part_bytes: &[u64]) -> Option<Vec<SharedBytes>> {
        let place = self.places.get(key).filter(|place| place.form == form)?;
        if !place.parts.iter().map(|[_, len]| *len as u64).eq(part_bytes.iter().copied()) {
            return None;
        }
        let part = |[start, len]: &[usize; 2]| {
            let start = self.data_start + start;
            SharedBytes::of_file(&self.map, start..start + len)
        };
        Some(place.parts.iter().map(part).collect())
    }
}

fn read_header(file: &[u8]) -> Result<Header, String> {
    let start = file.get(..HEADER_START).ok_or("it is cut short")?;
    if start[..MAGIC.len()] != MAGIC {
        return Err("it does not begin as such a file does".into());
    }
    let len = u64::from_le_bytes(start[MAGIC.len()..][..8].try_into().expect("eight bytes"));
    let end = usize::try_from(len).ok().and_then(|len| HEADER_START.checked_add(len));
    let text = end.and_then(|end| file.get(HEADER_START..end)).ok_or("it is cut short")?;
    if blake3::hash(text).as_bytes()[..] != start[MAGIC.len() + 8..] {
        return Err("its header is damaged".into());
    }
    let header: Header = serde_json::from_slice(text).map_err(|error| format!("header: {error}"))?;
    let Header { data_start, data_len, block_hashes, entries, .. } = &header;
    if data_start.checked_add(*data_len) != Some(file.len()) || !data_start.is_multiple_of(DATA_ALIGN) {
        return Err(format!("it has {} bytes, its header is of another length", file.len()));
    }
    let within = |[start, len]: &[usize; 2]| {
        start.is_multiple_of(CACHE_LINE) && start.checked_add(*len).is_some_and(|end| end <= *data_len)
    };
    if block_hashes.len() != data_len.div_ceil(BLOCK) * BLOCK_HASH || !block_hashes.is_ascii() {
        return Err("its header has another number of blocks".into());
    }
    match entries.iter().flat_map(|place| &place.parts).all(within) {
        true => Ok(header),
        false => Err("its header names parts that are not in it".into()),
    }
}

fn check_data(file: &[u8], header: &Header, device: &Device) -> Result<(), String> {
    let data = &file[header.data_start..];
    let num_blocks = data.len().div_ceil(BLOCK);
    let first_bad = AtomicUsize::new(usize::MAX);
    device.for_each(num_blocks, &|index, _| {
        let expected = &header.block_hashes[index * BLOCK_HASH..(index + 1) * BLOCK_HASH];
        if block_hash(&data[index * BLOCK..data.len().min((index + 1) * BLOCK)]) != expected {
            first_bad.fetch_min(index, Ordering::Relaxed);
        }
    });
    match first_bad.into_inner() {
        usize::MAX => Ok(()),
        index => Err(format!("its data is damaged from byte {} on", header.data_start + index * BLOCK)),
    }
}

fn block_hash(block: &[u8]) -> String {
    blake3::hash(block).to_hex()[..BLOCK_HASH].to_string()
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub path: PathBuf,
    pub bytes: u64,
    /// Files that had to go for it.
    pub removed: usize,
}

/// Writes a file of packed weights beside its place, syncs it and puts it there.
pub(super) fn write(target: &Target, entries: &[Entry]) -> io::Result<Written> {
    let (places, data_len) = lay_out(entries);
    let mut header = Header {
        fingerprint: target.fingerprint.clone(),
        source: target.source.clone(),
        data_start: 0,
        data_len,
        block_hashes: "0".repeat(data_len.div_ceil(BLOCK) * BLOCK_HASH),
        entries: places,
    };
    header.data_start = data_start(&header);
    let bytes = (header.data_start + data_len) as u64;
    let removed = folder::make_room(&target.path, bytes, target.max_bytes)?;
    folder::replace(&target.path, |file| {
        file.seek(SeekFrom::Start(header.data_start as u64))?;
        let block = Vec::with_capacity(BLOCK);
        let mut out = Blocks { file, block, hashes: String::new(), at: 0 };
        let parts = entries.iter().flat_map(|entry| &entry.parts);
        let places: Vec<[usize; 2]> = header.entries.iter().flat_map(|place| place.parts.clone()).collect();
        for (part, [start, _]) in parts.zip(places) {
            out.write(&vec![0; start - out.at])?;
            out.write(part.as_slice())?;
        }
        header.block_hashes = out.finish()?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&start_of(&serde_json::to_vec(&header)?))
    })?;
    Ok(Written { path: target.path.clone(), bytes, removed })
}

/// Parts one after the other, and the bytes of all.
fn lay_out(entries: &[Entry]) -> (Vec<Place>, usize) {
    let mut at = 0usize;
    let mut lay = |part: &SharedBytes| {
        let range: Range<usize> =
            at.next_multiple_of(CACHE_LINE)..at.next_multiple_of(CACHE_LINE) + part.len();
        at = range.end;
        [range.start, part.len()]
    };
    let place = |entry: &Entry| Place {
        key: entry.key.clone(),
        form: entry.form.clone(),
        parts: entry.parts.iter().map(&mut lay).collect(),
    };
    (entries.iter().map(place).collect(), at)
}

/// Behind a header of this length, whatever number it then holds.
fn data_start(header: &Header) -> usize {
    let len = serde_json::to_vec(header).expect("a header is plain data").len();
    (HEADER_START + len + "18446744073709551615".len()).next_multiple_of(DATA_ALIGN)
}

fn start_of(header: &[u8]) -> Vec<u8> {
    let len = (header.len() as u64).to_le_bytes();
    [&MAGIC[..], &len, blake3::hash(header).as_bytes(), header].concat()
}

/// Data on its way into a file, hashed and written block by block.
struct Blocks<'a> {
    file: &'a mut File,
    /// Of the block that is being filled.
    block: Vec<u8>,
    hashes: String,
    at: usize,
}

impl Blocks<'_> {
    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.at += bytes.len();
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(BLOCK - self.block.len()));
            self.block.extend_from_slice(now);
            bytes = rest;
            if self.block.len() == BLOCK {
                self.end_block()?;
            }
        }
        Ok(())
    }

    fn end_block(&mut self) -> io::Result<()> {
        self.hashes.push_str(&block_hash(&self.block));
        self.file.write_all(&self.block)?;
        self.block.clear();
        Ok(())
    }

    fn finish(mut self) -> io::Result<String> {
        if !self.block.is_empty() {
            self.end_block()?;
        }
        Ok(self.hashes)
    }
}
