//! Formats that write arguments one by one, in the forms that models have for them.

use super::*;

fn said(format: ToolFormat, text: &str) -> (Vec<(String, Value)>, String) {
    let options = options(Some(format), None);
    let (said, end) = check(&options, text);
    assert_eq!(check_controls(&options, text), (said.clone(), end), "{text}");
    (said.calls().into_iter().map(|(name, arguments)| (name.to_owned(), arguments)).collect(), said.text)
}

fn one(format: ToolFormat, text: &str) -> Value {
    let (calls, rest) = said(format, text);
    assert_eq!((calls.len(), rest.as_str()), (1, ""), "{text}");
    calls[0].1.clone()
}

#[test]
fn values_of_glm_are_taken_as_they_are() {
    let call = |value: &str, breaks: &str| {
        format!(
            "<tool_call>get_weather{breaks}<arg_key>city</arg_key>{breaks}<arg_value>{value}</arg_value>{breaks}</tool_call>"
        )
    };
    for value in ["Köln", "", " a\n", "\nb\n\n", "1 < 2", "</arg"] {
        for breaks in ["", "\n", "\n\n  "] {
            assert_eq!(one(ToolFormat::Glm, &call(value, breaks)), json!({"city": value}), "{value:?}");
        }
    }
    let typed = |key: &str, value: &str| {
        one(
            ToolFormat::Glm,
            &format!(
                "<tool_call>get_weather\n<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n</tool_call>"
            ),
        )
    };
    assert_eq!(typed("tags", "[1, \"a\"]"), json!({"tags": [1, "a"]}));
    assert_eq!(typed("hourly", "True"), json!({"hourly": true}));
    assert_eq!(typed("note", "null"), json!({"note": null}));
    // A key that the tool has not is text.
    assert_eq!(typed("other", "2"), json!({"other": "2"}));
}

#[test]
fn what_is_no_call_of_glm_is_text() {
    for text in [
        "<tool_call>{\"name\": \"now\"}</tool_call>",
        "<tool_call></tool_call>",
        "<tool_call>two words\n</tool_call>",
        "The tag <tool_call> begins a call",
    ] {
        let (said, _) = check(&options(Some(ToolFormat::Glm), None), text);
        assert_eq!((said.calls.len(), said.text.as_str()), (0, text), "{text}");
    }
    // A call that was begun is one, whatever comes behind it.
    let (calls, rest) = said(ToolFormat::Glm, "<tool_call>now\nHm.");
    assert_eq!((calls, rest.as_str()), (vec![("now".to_owned(), json!({}))], "\nHm."));
}

#[test]
fn calls_of_minimax_are_in_one_block_or_in_several() {
    let now = "<invoke name=\"now\"></invoke>";
    let weather = |value: &str| {
        format!("<invoke name=\"get_weather\"><parameter name=\"city\">{value}</parameter></invoke>")
    };
    let block = |inside: &str| format!("<minimax:tool_call>{inside}</minimax:tool_call>");
    let expected =
        vec![("now".to_owned(), json!({})), ("get_weather".to_owned(), json!({"city": "a \"b\" > c"}))];
    let both = format!("{now}\n{}", weather("a \"b\" > c"));
    for text in [block(&both), format!("{}\n{}", block(now), block(&weather("a \"b\" > c")))] {
        assert_eq!(said(ToolFormat::MiniMaxM2, &text), (expected.clone(), String::new()));
    }
    // One break on either side is the format's.
    assert_eq!(one(ToolFormat::MiniMaxM2, &block(&weather("\n\nx\n"))), json!({"city": "\nx"}));
    let text = block("<invoke name=now></invoke>");
    let (said, _) = check(&options(Some(ToolFormat::MiniMaxM2), None), &text);
    assert_eq!((said.calls.len(), said.text), (0, text));
}
