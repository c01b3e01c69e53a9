//! What the crate promises about itself, read from its manifest and sources: it depends on a hash alone, and the same calls
//! give the same batches, because nothing in it knows the time, chance, other threads or the order of a hash table.

use std::path::Path;

const FORBIDDEN: [&str; 16] = [
    "Instant",
    "SystemTime",
    "UNIX_EPOCH",
    "thread",
    "sync_channel",
    "Mutex",
    "Atomic",
    "rand",
    "getrandom",
    "RandomState",
    "HashMap",
    "HashSet",
    "unsafe",
    "println",
    "eprintln",
    "env",
];

/// Files whose values carry the numbers of a request or of the model; they do no arithmetic with them.
const MAY_NAME_FLOATS: [&str; 3] = ["batch.rs", "image.rs", "sampling.rs"];

fn sources() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        assert!(path.is_file(), "this test reads one folder: {}", path.display());
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        (name, std::fs::read_to_string(path).unwrap())
    };
    let sources: Vec<_> = std::fs::read_dir(folder).unwrap().map(read).collect();
    assert!(sources.len() > 10, "the sources are here");
    sources
}

/// The words of the code, comments and tests left out.
fn words(source: &str) -> Vec<String> {
    let code = source.split("#[cfg(test)]").next().unwrap();
    let lines = code.lines().map(|line| line.split("//").next().unwrap());
    let line_words = |line: &str| -> Vec<String> {
        // Only asks whether a panic is on its way, so that a second one does not hide it.
        let line = line.replace("std::thread::panicking()", "");
        line.split(|c: char| !c.is_alphanumeric() && c != '_').map(str::to_owned).collect()
    };
    lines.flat_map(line_words).collect()
}

#[test]
fn it_depends_on_a_hash_and_on_nothing_else() {
    let manifest = include_str!("../Cargo.toml");
    let sections: Vec<_> = manifest.split("\n[").collect();
    let dependencies: Vec<_> = sections.iter().filter(|section| section.contains("dependencies")).collect();
    let lines = dependencies.iter().flat_map(|section| section.lines()).map(str::trim);
    let lines: Vec<_> = lines.filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    assert_eq!(lines, ["dependencies]", "blake3.workspace = true"]);
}

#[test]
fn it_names_nothing_that_could_differ_from_run_to_run() {
    for (name, source) in sources() {
        for word in words(&source) {
            assert!(!FORBIDDEN.contains(&word.as_str()), "{name} names {word}");
            let is_float = word == "f32" || word == "f64";
            assert!(!is_float || MAY_NAME_FLOATS.contains(&name.as_str()), "{name} names {word}");
        }
    }
}

#[test]
fn a_forbidden_word_would_be_found() {
    let found =
        words("use std::collections::HashMap; // HashSet\nlet x: Option<f32> = std::thread::spawn();");
    assert!(found.contains(&"HashMap".to_owned()));
    assert!(found.contains(&"thread".to_owned()));
    assert!(found.contains(&"f32".to_owned()));
    assert!(!found.contains(&"HashSet".to_owned()));
}
