//! The folder of packed weights: how large it grows, and how a file gets there.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Of every file of packed weights.
pub(super) const ENDING: &str = "weights";
/// Of one that is being written.
const UNFINISHED: &str = "unfinished";
/// A file that nobody has gone on writing for so long was left behind.
const ABANDONED: Duration = Duration::from_secs(3600);

/// Removes files that were not used for longest, until `bytes` more fit into `max_bytes`; returns how many. An error where they never
/// do. The file that is about to be replaced does not count.
pub(super) fn make_room(path: &Path, bytes: u64, max_bytes: u64) -> io::Result<usize> {
    if bytes > max_bytes {
        let message = format!("it would take {bytes} bytes of the {max_bytes} that the cache may have");
        return Err(io::Error::new(io::ErrorKind::QuotaExceeded, message));
    }
    let folder = path.parent().expect("a file is in a folder");
    fs::create_dir_all(folder)?;
    let mut kept = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let (other, metadata) = (entry.path(), entry.metadata()?);
        let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        let age = SystemTime::now().duration_since(used).unwrap_or_default();
        match other.extension().and_then(|ending| ending.to_str()) {
            Some(ENDING) if other != path => kept.push((used, metadata.len(), other)),
            Some(UNFINISHED) if age > ABANDONED => remove(&other)?,
            _ => {}
        }
    }
    kept.sort();
    let mut total: u64 = kept.iter().map(|(_, len, _)| len).sum();
    let mut removed = 0;
    for (_, len, other) in kept {
        if total + bytes <= max_bytes {
            break;
        }
        remove(&other)?;
        total -= len;
        removed += 1;
    }
    Ok(removed)
}

/// Another process may have been faster.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Writes a file beside its place, syncs it and renames it: whoever opens `path` finds what was there before or all of what is now,
/// also after the power was cut. What was begun and failed is removed.
pub(super) fn replace(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let beside = beside(path);
    let written = (|| {
        let mut file = File::create_new(&beside)?;
        write(&mut file)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&beside);
        return written;
    }
    // Without this the name may be lost in a power cut, and the file with it, which costs packing once more.
    if let Some(folder) = path.parent().and_then(|folder| File::open(folder).ok()) {
        let _ = folder.sync_all();
    }
    Ok(())
}

/// A name that no other process and no other thread of this one has.
fn beside(path: &Path) -> PathBuf {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    path.with_extension(format!("{}-{}.{UNFINISHED}", std::process::id(), now.as_nanos()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let target = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tmp"));
        let folder = target.join(format!("packed-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        folder
    }

    fn file(path: &Path, len: usize, seconds_ago: u64) {
        fs::write(path, vec![7; len]).unwrap();
        let time = SystemTime::now() - Duration::from_secs(seconds_ago);
        File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_was_used_longest_ago_makes_room() {
        let folder = folder("room");
        let new = folder.join("new.weights");
        assert_eq!(make_room(&new, 10, 100).unwrap(), 0);
        file(&folder.join("a.weights"), 40, 30);
        file(&folder.join("b.weights"), 40, 50);
        file(&folder.join("notes.txt"), 400, 500);
        file(&folder.join("x.1.unfinished"), 40, 4000);
        file(&folder.join("y.1.unfinished"), 40, 10);
        file(&new, 40, 99);
        assert_eq!(make_room(&new, 20, 100).unwrap(), 0);
        assert_eq!(make_room(&new, 30, 100).unwrap(), 1);
        assert_eq!(names(&folder), ["a.weights", "new.weights", "notes.txt", "y.1.unfinished"]);
        let error = make_room(&new, 101, 100).unwrap_err();
        assert_eq!(error.to_string(), "it would take 101 bytes of the 100 that the cache may have");
        assert_eq!(names(&folder).len(), 4);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_failure_leaves_what_was_there() {
        let folder = folder("replace");
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("it.weights");
        replace(&path, |file| io::Write::write_all(file, b"first")).unwrap();
        let failed = replace(&path, |file| {
            io::Write::write_all(file, b"second")?;
            Err(io::Error::other("no space"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "no space");
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(names(&folder), ["it.weights"]);
        fs::remove_dir_all(&folder).unwrap();
    }
}
