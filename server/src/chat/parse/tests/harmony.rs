//! Harmony: thinking, what is said before calls, the answer, and calls, whole and in pieces, with markers as text and as control tokens.

use super::*;

const CALL: &str = "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{\"days\": 2}";
const WEATHER: (&str, &str) = ("get_weather", "{\"days\": 2}");

fn reasoning() -> Option<(&'static str, &'static str, bool)> {
    let format = ReasoningFormat::named("harmony").expect("a name");
    Some((format.start, format.end, format.is_implied))
}

#[test]
fn messages_are_told_apart_by_their_headers() {
    let options = options(Some(ToolFormat::Harmony), reasoning());
    let whole: &[(&str, Told)] = &[
        (
            "<|channel|>analysis<|message|>1 < 2.<|end|><|start|>assistant<|channel|>final<|message|>Yes.\n<|return|>",
            ("1 < 2.", "Yes.\n", &[], End::Whole),
        ),
        // The end of the turn is not shown.
        (
            "<|channel|>analysis<|message|>So.<|end|><|start|>assistant<|channel|>final<|message|>Yes",
            ("So.", "Yes", &[], End::Whole),
        ),
        ("<|channel|>final<|message|>At once.", ("", "At once.", &[], End::Whole)),
        ("<|channel|>analysis<|message|>Hm", ("Hm", "", &[], End::InReasoning)),
        // Said before a call, thought again, called.
        (
            "<|channel|>analysis<|message|>A.<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>\
             <|start|>assistant<|channel|>analysis<|message|>B.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather \
             <|constrain|>json<|message|>{\"days\": 2}<|call|>",
            ("A.B.", "I look.", &[WEATHER], End::Whole),
        ),
        // The recipient before the channel, in the first header and in another; without a type; a name without its folder.
        (
            " to=functions.get_weather<|channel|>commentary json<|message|>{\"days\": 2}<|call|>",
            ("", "", &[WEATHER], End::Whole),
        ),
        (
            "<|channel|>analysis<|message|>A.<|end|><|start|>assistant to=functions.get_weather<|channel|>commentary<|message|>{\"days\": 2}",
            ("A.", "", &[WEATHER], End::Whole),
        ),
        (
            "<|channel|>commentary to=get_weather code<|message|>{\"days\": 2}<|call|>",
            ("", "", &[WEATHER], End::Whole),
        ),
        ("<|channel|>commentary to=functions.now<|message|><|call|>", ("", "", &[("now", "{}")], End::Whole)),
        // Tools of its training that nobody has are no calls.
        ("<|channel|>analysis to=python code<|message|>1 + 1<|call|>", ("1 + 1", "", &[], End::Whole)),
    ];
    for (text, told) in whole {
        expect(&options, text, *told);
    }
    expect(&options, CALL, ("", "", &[WEATHER], End::Whole));
    let cut = "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{\"days\":";
    expect(&options, cut, ("", "", &[("get_weather", "{\"days\":")], End::InCall));
}

#[test]
fn thinking_that_is_text_and_calls_that_nobody_can_make() {
    let text = format!("<|channel|>analysis<|message|>So.<|end|><|start|>assistant{CALL}<|call|>");
    let as_text = options(Some(ToolFormat::Harmony), None);
    expect(&as_text, &text, ("", "So.", &[WEATHER], End::Whole));
    let without = ParseOptions {
        tools: Some((ToolFormat::Harmony, Arc::default())),
        ..options(Some(ToolFormat::Harmony), reasoning())
    };
    expect(&without, &text, ("So.", "{\"days\": 2}", &[], End::Whole));
}

#[test]
fn what_is_no_header_is_text() {
    let options = options(Some(ToolFormat::Harmony), reasoning());
    for text in ["to=functions", "to=me, with love", "to=functions.now and so on", "Plain."] {
        let (said, end) = check(&options, text);
        assert_eq!((said.text.as_str(), said.calls.len(), end), (text, 0, End::Whole), "{text}");
    }
    let long = format!("<|start|>{}", "assistant ".repeat(60));
    assert_eq!(check(&options, &long).0.text, long);
    // Cut within a header: nothing of it is told.
    let (said, _) = check_until(&options, "<|channel|>final<|message|>A<|end|><|start|>assis", Ending::Cut);
    assert_eq!(said.text, "A");
}
