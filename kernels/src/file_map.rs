//! Files as bytes: mapped for reading, and read in place where a map would touch more than is wanted.

use memmap2::{Advice, Mmap};
use std::fs::File;
use std::io;
use std::ops::{Deref, Range};

/// A whole file, mapped for reading. It is not written while it is mapped: one that another process shortens meanwhile stops this
/// one with SIGBUS, as with every mapped file. Replacing it by rename and removing it do no harm.
#[derive(Debug)]
pub struct FileMap {
    file: File,
    /// `None`: the file is empty, which cannot be mapped.
    map: Option<Mmap>,
}

impl FileMap {
    pub fn new(file: File) -> io::Result<Self> {
        if file.metadata()?.len() == 0 {
            return Ok(Self { file, map: None });
        }
        // SAFETY: the map is only read, and as bytes, so any content is valid; that the file stays as long as it is, is said above.
        let map = unsafe { Mmap::map(&file) }?;
        Ok(Self { file, map: Some(map) })
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// Reads bytes at a place by a system call: without the pages around it that a look at the map brings along.
    pub fn read_at(&self, start: usize, out: &mut [u8]) -> io::Result<()> {
        #[cfg(unix)]
        return std::os::unix::fs::FileExt::read_exact_at(&self.file, out, start as u64);
        #[cfg(not(unix))]
        {
            let bytes = self.get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            out.copy_from_slice(bytes);
            Ok(())
        }
    }

    /// All of it is read again and again: the system may map it by huge pages, where it keeps files in such. A refusal only costs speed.
    pub fn prefer_huge_pages(&self) {
        #[cfg(target_os = "linux")]
        if let Some(map) = &self.map {
            let _ = map.advise(Advice::HugePage);
        }
    }

    /// These bytes are read soon: the system may fetch them ahead. A refusal only costs speed.
    pub fn will_need(&self, bytes: &[u8]) {
        #[cfg(unix)]
        if let Some((map, range)) = self.place(bytes) {
            let _ = map.advise_range(Advice::WillNeed, range.start, range.len());
        }
    }

    /// These bytes are not read soon: their pages no longer count as this process's memory. They are read anew when they are looked
    /// at again.
    pub fn release(&self, bytes: &[u8]) {
        #[cfg(unix)]
        if let Some((map, range)) = self.place(bytes) {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: the pages are the file's and were never written by us: what is dropped comes back from the file as it was.
            let _ = unsafe { map.unchecked_advise_range(advice, range.start, range.len()) };
        }
    }

    /// The map, and where in it these bytes are; `None` for bytes that are not in it.
    #[cfg(unix)]
    fn place(&self, bytes: &[u8]) -> Option<(&Mmap, Range<usize>)> {
        let map = self.map.as_ref()?;
        let start = (bytes.as_ptr() as usize).checked_sub(map.as_ptr() as usize)?;
        let range = start..start.checked_add(bytes.len())?;
        (!bytes.is_empty() && range.end <= map.len()).then_some((map, range))
    }
}

impl Deref for FileMap {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_released_comes_back() {
        let folder = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tmp"));
        std::fs::create_dir_all(folder).unwrap();
        let path = folder.join(format!("file-map-{}", std::process::id()));
        let content: Vec<u8> = (0..300_000u32).map(|i| (i * 7 % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let map = FileMap::new(File::open(&path).unwrap()).unwrap();
        std::fs::remove_file(&path).unwrap();
        map.will_need(&map[100..200_000]);
        assert!(map[..] == content[..]);
        map.release(&map[5000..100_000]);
        map.release(&[1, 2, 3]);
        map.release(&map[7..7]);
        assert!(map[..] == content[..]);
        let mut bytes = [0; 1000];
        map.read_at(70_001, &mut bytes).unwrap();
        assert_eq!(bytes, content[70_001..71_001]);
        assert!(map.read_at(299_500, &mut bytes).is_err());
    }
}
