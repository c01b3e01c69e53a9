//! The list of bugs that `tools/mutate_scheduler.py` plants stays true to the sources: each can still be planted, in one place.

use std::path::Path;

struct Mutant {
    name: String,
    file: String,
    old: String,
    new: String,
}

fn mutants() -> Vec<Mutant> {
    let text = include_str!("mutants.txt");
    let lines_of = |part: &str, prefix: &str| -> Vec<String> {
        part.lines().filter_map(|line| line.strip_prefix(prefix)).map(str::to_owned).collect()
    };
    let parse = |part: &str| Mutant {
        name: part.lines().next().unwrap().to_owned(),
        file: lines_of(part, "@ ").concat(),
        old: lines_of(part, "- ").join("\n"),
        new: lines_of(part, "+ ").join("\n"),
    };
    text.split("\n# ").skip(1).map(parse).collect()
}

#[test]
fn every_bug_can_be_planted() {
    let mutants = mutants();
    assert!(mutants.len() >= 40);
    for Mutant { name, file, old, new } in mutants {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(&file);
        let source = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {file}: {error}"));
        assert_eq!(source.matches(&old).count(), 1, "{name}: occurrences in {file}");
        assert_ne!(old, new, "{name}: changes nothing");
    }
}
