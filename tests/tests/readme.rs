//! The curl examples of README.md work as printed, against the embedded model.

use perilune_tests::Server;
use perilune_tests::tree::{read, root};
use std::process::Command;

/// The address that README uses; the test's server is on another port.
const PRINTED: &str = "http://127.0.0.1:8000";

#[test]
fn the_curl_examples_work_as_printed() {
    let readme = read(&root().join("README.md"));
    let blocks = readme.split("```sh\n").skip(1).filter_map(|rest| rest.split("\n```").next());
    let examples: Vec<&str> = blocks.filter(|block| block.contains("curl ")).collect();
    for feature in ["/v1/chat/completions", "image_url", "\"stream\": true"] {
        assert!(
            examples.iter().any(|block| block.contains(feature)),
            "README has no curl example of {feature}"
        );
    }
    let server = Server::start(&[]);
    for example in examples {
        let command = example.replace(PRINTED, server.url());
        assert_ne!(command, example, "the example does not name {PRINTED}:\n{example}");
        let output =
            Command::new("bash").args(["-c", &command]).current_dir(root()).output().expect("bash runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{command}\n{}", String::from_utf8_lossy(&output.stderr));
        assert!(!text.contains("\"error\""), "{command}\n{text}");
        if example.contains("\"stream\": true") {
            assert!(text.trim_end().ends_with("data: [DONE]"), "{command}\n{text}");
        } else {
            let reply: serde_json::Value =
                serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
            let answer = reply["choices"][0]["message"]["content"].as_str().expect("an answer");
            assert!(
                !example.contains("image_url") || readme.contains(&format!("> {answer}")),
                "README prints another answer: {answer}"
            );
        }
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
