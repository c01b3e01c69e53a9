//! A file of lines that only grows. A process that dies while it writes leaves a torn last line: opening cuts it off, and everything
//! after the first line that is not what it should be, which a power cut can leave.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::Path;

#[derive(Debug)]
pub struct Log {
    file: File,
    len: u64,
}

impl Log {
    /// Opens or begins a log. `take` sees each whole line without its end, in order, and says whether it is one.
    pub fn open(path: &Path, mut take: impl FnMut(&[u8]) -> bool) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)?;
        let mut reader = BufReader::with_capacity(1 << 16, &file);
        let (mut len, mut line) = (0, Vec::new());
        loop {
            line.clear();
            let read = reader.read_until(b'\n', &mut line)?;
            if read == 0 || line.pop() != Some(b'\n') || !take(&line) {
                break;
            }
            len += read as u64;
        }
        drop(reader);
        let mut log = Self { file, len };
        log.cut()?;
        Ok(log)
    }

    fn cut(&mut self) -> io::Result<()> {
        self.file.set_len(self.len)?;
        self.file.seek(SeekFrom::Start(self.len)).map(drop)
    }

    /// Adds whole lines, each with its end; on a failure none of them.
    pub fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        if let Err(error) = self.file.write_all(lines) {
            // What this fails to cut, the next opening does.
            let _ = self.cut();
            return Err(error);
        }
        self.len += lines.len() as u64;
        Ok(())
    }

    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Folder;
    use super::*;

    fn lines(path: &Path) -> Vec<String> {
        let mut seen = Vec::new();
        Log::open(path, |line| {
            let fine = line.starts_with(b"{") && line.ends_with(b"}");
            if fine {
                seen.push(String::from_utf8_lossy(line).into_owned());
            }
            fine
        })
        .expect("opens");
        seen
    }

    /// Whatever is cut off or overwritten at the end, what comes before stays and appending goes on after it.
    #[test]
    fn every_torn_end_is_cut_off() {
        let folder = Folder::new("log");
        let path = folder.0.join("log.jsonl");
        let whole = "{a}\n{bb}\n{}\n";
        for cut in 0..=whole.len() {
            for rest in ["", "\0\0\0", "x\n", "{c"] {
                std::fs::write(&path, format!("{}{rest}", &whole[..cut])).expect("writes");
                let before = whole[..cut].matches('\n').count();
                // A rest may complete a torn line to something that is not one, never to one.
                assert_eq!(lines(&path).len(), before, "{cut} {rest:?}");
                let mut log = Log::open(&path, |_| true).expect("opens");
                log.append(b"{new}\n").expect("appends");
                log.sync().expect("syncs");
                assert_eq!(lines(&path).len(), before + 1, "{cut} {rest:?}");
                assert_eq!(lines(&path).last().map(String::as_str), Some("{new}"));
            }
        }
    }
}
