//! Chat templates render as transformers' own environment renders them.

use crate::support;

use perilune::chat::{ChatTemplate, TemplateError};
use serde_json::Value;
use support::{fixture, read_json};

#[test]
fn every_case_is_byte_identical() {
    let mut names: Vec<String> = std::fs::read_dir(fixture("templates"))
        .expect("fixtures")
        .map(|entry| entry.expect("entry").file_name().into_string().expect("UTF-8"))
        .filter(|name| name.ends_with(".json"))
        .collect();
    names.sort();
    assert!(names.len() >= 9, "{names:?}");
    let mut differences = Vec::new();
    for name in names {
        let file = read_json(&format!("templates/{name}"));
        let path = format!("templates/{}", file["template"].as_str().expect("template"));
        let source = std::fs::read_to_string(fixture(&path)).expect("template file");
        let template = ChatTemplate::from_source(&source).unwrap_or_else(|error| panic!("{path}: {error}"));
        for case in file["cases"].as_array().expect("cases") {
            let result = template.render(&case["context"]);
            let same = match (&result, case["expected"].as_str(), case["error"].as_str()) {
                (Ok(text), Some(expected), None) => text == expected,
                (Err(TemplateError::Raised(message)), None, Some(expected)) => message == expected,
                _ => false,
            };
            if !same {
                differences.push(format!(
                    "{name} {}\nexpected {}\n     got {result:?}",
                    case["name"],
                    case.get("expected").unwrap_or(&case["error"])
                ));
            }
        }
    }
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}

/// What the model was trained on, written by tools/train_demo/check_format.py: tools, calls, results, thoughts.
#[test]
fn the_embedded_models_template_writes_what_it_was_trained_on() {
    let config = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/demo/tokenizer_config.json"))
        .expect("the embedded model's files");
    let config: Value = serde_json::from_str(&config).expect("JSON");
    let template =
        ChatTemplate::from_source(config["chat_template"].as_str().expect("a template")).expect("parses");
    let file = read_json("demo_template.json");
    let cases = file["cases"].as_array().expect("cases");
    assert!(cases.len() >= 6, "{}", cases.len());
    for case in cases {
        let text = template.render(&case["context"]).expect("renders");
        assert_eq!(text, case["expected"].as_str().expect("text"), "{}", case["context"]);
    }
}
