//! The examples of README.md and of every page in docs/ work as printed, against the embedded model.

use perilune_tests::examples::{PRINTED, Page, run};
use perilune_tests::tree::{files, read, root};

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
