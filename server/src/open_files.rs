//! How many files and connections a process may have open. A shell allows 1,024 unless it is asked for more, which is fewer than the streams that
//! one server can have; and a server whose connections take all of them can read no picture from disk and write no batch.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit as far as it goes without privileges, and says what it is then; `None`: there is none.
pub fn raise() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // Kernels that have a limit of their own refuse to go without one.
    let wanted = maximum.unwrap_or(1 << 16);
    if current.is_some_and(|current| current < wanted) {
        // What is refused stays as it was.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum });
    }
    getrlimit(Resource::Nofile).current
}

/// How many of at most `wanted` connections there is room for among `files`, with some left for everything else.
pub fn connections(files: u64, wanted: usize) -> usize {
    let others = (files / 4).clamp(24, 256);
    let room = usize::try_from(files.saturating_sub(others).max(1)).unwrap_or(usize::MAX);
    if room < wanted {
        tracing::warn!(
            connections = room,
            open_files = files,
            "the limit of open files allows few connections (ulimit -n)"
        );
    }
    room.min(wanted)
}

#[cfg(test)]
mod tests {
    use super::connections;

    #[test]
    fn some_files_are_left() {
        for (files, wanted, expected) in [
            (1 << 20, 16_384, 16_384),
            (16_640, 16_384, 16_384),
            (16_639, 16_384, 16_383),
            (1024, 16_384, 768),
            (64, 16_384, 40),
            (24, 9, 1),
            (0, 9, 1),
        ] {
            assert_eq!(connections(files, wanted), expected, "{files} {wanted}");
        }
    }
}
