//! Chat templates render as transformers' own environment renders them.

mod support;

use perilune::chat::{ChatTemplate, TemplateError};
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
