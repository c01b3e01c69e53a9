//! The invariants of ARCHITECTURE.md, read from manifests and sources.

use perilune_tests::imports::Imports;
use perilune_tests::tree::{files, read, root, short};
use std::path::Path;

/// The dependencies that a crate names, without those for tests.
fn dependencies(crate_folder: &str) -> Vec<String> {
    let manifest = read(&root().join(crate_folder).join("Cargo.toml"));
    let section = manifest.split("[dependencies]").nth(1).expect("a [dependencies] section");
    let section = section.split("\n[").next().unwrap_or_default();
    let names = section.lines().filter_map(|line| line.split(['.', '=', ' ']).next());
    names.filter(|name| !name.is_empty() && !name.starts_with('#')).map(str::to_string).collect()
}

/// Lines of code that contain one of `words`, outside comments, as `file:line: text`.
fn code_with(folder: &str, words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for path in files(folder, &[".rs"]) {
        for (number, line) in read(&path).lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if words.iter().any(|word| code.contains(word)) && !path.ends_with("tests/tests/tidy.rs") {
                found.push(format!("{}:{}: {}", short(&path), number + 1, line.trim()));
            }
        }
    }
    found
}

#[test]
fn the_scheduler_is_pure() {
    assert_eq!(dependencies("scheduler"), ["blake3"]);
    let words = [
        "Instant",
        "SystemTime",
        "thread::spawn",
        "thread::Builder",
        "thread::sleep",
        "std::fs",
        "std::net",
        "std::env",
        "println!",
        "rand::",
    ];
    assert_eq!(code_with("scheduler/src", &words), [""; 0]);
}

#[test]
fn the_layers_depend_downwards_only() {
    let inside = |name: &&String| ["scheduler", "kernels", "models", "perilune"].contains(&name.as_str());
    let of = |folder: &str| dependencies(folder).iter().filter(inside).cloned().collect::<Vec<_>>();
    assert_eq!(of("scheduler"), [""; 0]);
    assert_eq!(of("kernels"), [""; 0]);
    assert_eq!(of("models"), ["kernels", "scheduler"]);
    assert_eq!(of("server"), ["models", "scheduler"]);
    assert_eq!(of("tests"), [""; 0]);
}

/// So that a file can be read with those that it names, and without those that name it.
#[test]
fn imports_within_a_crate_run_one_way() {
    for folder in ["kernels/src", "models/src", "scheduler/src", "server/src"] {
        assert_eq!(Imports::of(folder).circles(), Vec::<Vec<&str>>::new(), "{folder}");
    }
}

#[test]
fn only_the_server_knows_http_and_tokio() {
    for folder in ["scheduler", "kernels", "models"] {
        for name in dependencies(folder) {
            let forbidden = ["tokio", "axum", "hyper", "tower", "ureq", "tokenizers", "minijinja", "image"];
            assert!(!forbidden.contains(&name.as_str()), "{folder} depends on {name}");
        }
    }
}

#[test]
fn unsafe_code_is_where_it_may_be() {
    let allowed = |path: &str| path.starts_with("kernels/") || path.starts_with("tests/src/process.rs");
    for line in code_with(".", &["unsafe {", "unsafe fn", "unsafe impl"]) {
        assert!(allowed(&line), "unsafe code outside kernels: {line}");
    }
}

#[test]
fn only_the_edge_reads_arguments_and_environment() {
    let words = ["std::env::", "env::var", "env::args"];
    for folder in ["scheduler/src", "kernels/src", "models/src"] {
        assert_eq!(code_with(folder, &words), [""; 0]);
    }
    for line in code_with("server/src", &words) {
        let edge = ["server/src/main.rs", "server/src/args/", "server/src/source/", "server/src/cli/"];
        assert!(edge.iter().any(|place| line.starts_with(place)), "reads the environment: {line}");
    }
}

/// A second way out would be one without the checks of the first.
#[test]
fn requests_reach_other_machines_through_one_door() {
    let words = ["ureq::", "TcpStream::connect", "to_socket_addrs", "lookup_host"];
    let doors = ["server/src/chat/image/remote", "server/src/source/", "server/src/cli/"];
    let lines = code_with("server/src", &words);
    assert!(lines.iter().any(|line| line.starts_with(doors[0])), "the door is where it was");
    // Which addresses the server itself is to listen on.
    let own = "server/src/config/net.rs";
    for line in lines {
        let is_known = doors.iter().chain([&own]).any(|door| line.starts_with(door));
        assert!(is_known, "reaches other machines: {line}");
    }
}

#[test]
fn nothing_is_left_undone() {
    let words = ["todo!(", "unimplemented!(", "#[ignore", "dbg!("];
    for folder in ["scheduler", "kernels", "models", "server"] {
        assert_eq!(code_with(folder, &words), [""; 0]);
    }
}

#[test]
fn every_file_says_what_it_is_for() {
    for path in files(".", &[".rs"]) {
        let first = read(&path).lines().next().unwrap_or_default().to_string();
        assert!(first.starts_with("//"), "{} does not open with its purpose", short(&path));
    }
}

#[test]
fn files_stay_readable() {
    for path in files(".", &[".rs"]) {
        let lines = read(&path).lines().count();
        assert!(lines <= 700, "{} has {lines} lines: two purposes in one?", short(&path));
    }
}

/// The server's tests are few binaries, which name their files: one that none of them names would never run.
#[test]
fn every_test_of_the_server_is_in_a_binary() {
    let manifest = read(&root().join("server/Cargo.toml"));
    let named = |line: &str| {
        line.strip_prefix("name = \"").and_then(|rest| rest.strip_suffix('"')).map(str::to_string)
    };
    let tests = manifest.split("[[test]]").skip(1);
    let binaries: Vec<String> = tests.filter_map(|part| part.lines().find_map(named)).collect();
    let folder = root().join("server/tests");
    let sources: Vec<String> = binaries.iter().map(|name| read(&folder.join(format!("{name}.rs")))).collect();
    for entry in std::fs::read_dir(&folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
        let Some(name) = entry.file_name().and_then(|name| name.to_str()?.strip_suffix(".rs")) else {
            continue;
        };
        let line = format!("mod {name};");
        let has_it = |source: &String| source.lines().any(|other| other == line);
        assert!(
            binaries.iter().any(|binary| binary == name) || sources.iter().any(has_it),
            "server/tests/{name}.rs is in no test binary: add `{line}` to one of {binaries:?}, and `use crate::harness;` to it"
        );
    }
}

/// What a link to a heading is called.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn links_in_documents_lead_somewhere() {
    for path in files(".", &[".md"]) {
        for target in read(&path).split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.contains("://") || target.starts_with("data:") {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let folder = path.parent().unwrap_or(Path::new("."));
            let file = if file.is_empty() { path.clone() } else { folder.join(file) };
            assert!(file.exists(), "{} links to {target}, which is not there", short(&path));
            if !heading.is_empty() {
                let text = read(&file);
                let headings = text.lines().filter_map(|line| line.strip_prefix('#'));
                let mut anchors = headings.map(|line| anchor(line.trim_start_matches('#')));
                assert!(
                    anchors.any(|known| known == heading),
                    "{} links to {target}, no heading",
                    short(&path)
                );
            }
        }
    }
}

/// In spans of code and in blocks: from the root, or with folders before them.
#[test]
fn files_that_documents_name_are_there() {
    let known: Vec<String> = files(".", &[""]).iter().map(|path| format!("/{}", short(path))).collect();
    let is_there = |name: &str| {
        let (at_end, within) = (format!("/{name}"), format!("/{name}/"));
        root().join(name).exists()
            || known.iter().any(|path| path.ends_with(&at_end) || path.contains(&within))
    };
    let folders =
        ["kernels/", "models/", "scheduler/", "server/", "tests/", "tools/", "deploy/", "docs/", ".ci/"];
    let endings = [".rs", ".py", ".cu", ".cuh", ".mjs"];
    let is_name = |word: &&str| {
        let is_file = endings.iter().any(|ending| word.ends_with(ending));
        let is_plain = word.chars().all(|c| c.is_ascii_alphanumeric() || "._/-".contains(c));
        // OP stands for the name of an op.
        (is_file || folders.iter().any(|folder| word.starts_with(folder)))
            && is_plain
            && !word.contains("OP.")
    };
    let mut num_names = 0;
    for path in files(".", &[".md"]) {
        for span in read(&path).split('`').skip(1).step_by(2) {
            let words = span.split_whitespace().map(|word| word.trim_end_matches([',', ':', ';', '.', '/']));
            for name in words.filter(is_name) {
                num_names += 1;
                assert!(is_there(name), "{} names {name}, which is not there", short(&path));
            }
        }
    }
    assert!(num_names > 100, "documents name files: {num_names}");
}

#[test]
fn the_fixtures_stay_small() {
    let mut bytes = 0;
    let mut folders = vec![
        root().join("models/tests/fixtures"),
        root().join("server/tests/fixtures"),
        root().join("tests/fixtures"),
    ];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let meta = entry.metadata().expect("metadata");
            if meta.is_dir() { folders.push(entry.path()) } else { bytes += meta.len() }
        }
    }
    assert!(bytes < 4_000_000, "fixtures take {bytes} bytes");
}
