//! The examples of README.md and of every page in docs/ work as printed, against the embedded model.

use perilune_tests::examples::{PRINTED, Page, run};
use perilune_tests::tree::{files, read, root, short};
use std::collections::BTreeSet;

#[test]
fn the_examples_of_readme_work_as_printed() {
    let page = Page::load(&root().join("README.md"));
    for feature in ["/v1/chat/completions", "image_url", "\"stream\": true"] {
        assert!(
            page.examples.iter().any(|example| example.command.contains(feature)),
            "README has no example of {feature}"
        );
    }
    let printed = run(&page);
    for (example, printed) in page.examples.iter().zip(printed) {
        let command = &example.command;
        assert!(command.contains(PRINTED), "the example does not name {PRINTED}:\n{command}");
        if command.contains("\"stream\": true") {
            assert!(printed.trim_end().ends_with("data: [DONE]"), "{command}\n{printed}");
            continue;
        }
        let reply: serde_json::Value =
            serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"));
        let answer = reply["choices"][0]["message"]["content"].as_str().expect("an answer");
        assert!(
            !command.contains("image_url") || page.text.contains(&format!("> {answer}")),
            "README prints another answer: {answer}"
        );
    }
}

#[test]
fn the_examples_of_every_page_work_as_printed() {
    for path in files("docs", &[".md"]) {
        run(&Page::load(&path));
    }
}

#[test]
fn readme_names_the_command_that_ci_runs() {
    let readme = read(&root().join("README.md"));
    let ci = read(&root().join(".ci/run"));
    assert!(readme.contains("cargo test --workspace"));
    assert!(readme.contains("`tests/page/run`"));
    assert!(ci.contains("\ntests/page/run"));
    assert!(ci.contains("cargo test --workspace"));
    assert!(ci.contains("cargo fmt --all --check"));
    assert!(ci.contains("-- -D warnings"));
}

/// Words that begin with two dashes, without what follows `=`.
fn flags(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| c.is_whitespace() || "\"'`,;:|()[]=<>".contains(c));
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let words = words.map(|word| word.trim_end_matches('.')).filter(|word| word.starts_with("--"));
    words.filter(|word| word.len() > 2 && word.chars().all(is_name)).map(str::to_string).collect()
}

/// Those of the program by its help; those of benches and scripts by their text.
#[test]
fn flags_that_documents_name_are_there() {
    let help = |arguments: &[&str]| {
        String::from_utf8(perilune_tests::run(&[arguments, &["--help"]].concat()).stdout).expect("text")
    };
    let overview = help(&[]);
    let commands = overview.lines().skip_while(|line| *line != "Commands:").skip(1);
    let commands = commands.map_while(|line| line.split_whitespace().next()).filter(|name| *name != "help");
    let mut known = flags(&overview);
    known.extend(commands.flat_map(|command| flags(&help(&[command]))));
    known.extend(flags(&help(&["kernels", "build"])));
    assert!(known.contains("--max-num-seqs") && known.contains("--nvrtc-dir"), "{known:?}");
    for (folder, endings) in [
        ("tools", &[".py"][..]),
        ("kernels/benches", &[".rs"]),
        ("models/benches", &[".rs"]),
        ("tests", &[".py", "run"]),
    ] {
        known.extend(files(folder, endings).iter().flat_map(|path| flags(&read(path))));
    }
    let of_others = [
        "--bench",
        "--check",
        "--fmad",
        "--nocapture",
        "--path",
        "--profile",
        "--release",
        "--test",
        "--unix-socket",
        "--workspace",
    ];
    for path in files(".", &[".md"]) {
        for span in read(&path).split('`').skip(1).step_by(2) {
            for flag in flags(span).iter().filter(|flag| !of_others.contains(&flag.as_str())) {
                assert!(known.contains(flag), "{} names {flag}, which nothing takes", short(&path));
            }
        }
    }
}
