//! Solar Open: thinking, what is said before calls, the answer, and calls, whole and in pieces, with markers as text and as control tokens.

use super::*;

const HEADER: &str = "<|begin|>assistant";
const WEATHER: (&str, &str) = ("get_weather", "{\"days\": 2}");
const NOW: (&str, &str) = ("now", "{}");

fn call(id: &str, name: &str, arguments: &str) -> String {
    format!("<|tool_call:begin|>{id}<|tool_call:name|>{name}<|tool_call:args|>{arguments}<|tool_call:end|>")
}

fn solar() -> ParseOptions {
    let format = ReasoningFormat::named("solar_open").expect("a name");
    options(Some(ToolFormat::SolarOpen), Some((format.start, format.end, format.is_implied)))
}

#[test]
fn messages_are_told_apart_by_their_tokens() {
    let weather = call("a1b2c3d4e5", WEATHER.0, WEATHER.1);
    let now = call("zzzzzzzzz0", NOW.0, NOW.1);
    let cases: &[(String, Told)] = &[
        // What ends the turn is shown or not.
        (
            format!("<|think|>1 < 2.<|end|>{HEADER}<|content|>Yes.\n<|flush|>"),
            ("1 < 2.", "Yes.\n", &[], End::Whole),
        ),
        (format!("<|think|>So.<|end|>{HEADER}<|content|>Yes"), ("So.", "Yes", &[], End::Whole)),
        (format!("<|think|>So.<|end|>{HEADER}<|content|>Yes<|end|>"), ("So.", "Yes", &[], End::Whole)),
        // Behind a prompt that has no thinking; the header again.
        ("<|content|>At once.<|flush|>".into(), ("", "At once.", &[], End::Whole)),
        (format!("{HEADER}<|content|>At once."), ("", "At once.", &[], End::Whole)),
        (
            format!("{HEADER}<|think|>A.<|end|>{HEADER}\n<|content|>B."),
            ("A.", "B.", &[], End::Whole),
        ),
        ("<|think|><|end|><|content|>B.".into(), ("", "B.", &[], End::Whole)),
        // Calls, with and without what ends them.
        (
            format!("<|think|>A.<|end|>{HEADER}<|tool_calls|>{weather}{now}<|calls|>"),
            ("A.", "", &[WEATHER, NOW], End::Whole),
        ),
        (
            format!("<|think|>A.<|end|>{HEADER}<|tool_calls|>\n{weather}\n{now}\n"),
            ("A.", "", &[WEATHER, NOW], End::Whole),
        ),
        (
            format!("<|tool_calls|>{weather}{HEADER}<|content|>Done.<|flush|>"),
            ("", "Done.", &[WEATHER], End::Whole),
        ),
        // Text before calls, and thoughts between.
        (
            format!(
                "<|think|>A.<|end|>{HEADER}<|content|>Let me look.<|end|>{HEADER}<|think|>B.<|end|>{HEADER}<|tool_calls|>{weather}<|calls|>"
            ),
            ("A.B.", "Let me look.", &[WEATHER], End::Whole),
        ),
        // Nothing at the end of a call, and no arguments.
        (
            "<|tool_calls|><|tool_call:begin|>a<|tool_call:name|>get_weather<|tool_call:args|>{\"days\": 2}<|calls|>"
                .into(),
            ("", "", &[WEATHER], End::Whole),
        ),
        (
            "<|tool_calls|><|tool_call:begin|>a<|tool_call:name|>now<|tool_call:end|><|calls|>".into(),
            ("", "", &[NOW], End::Whole),
        ),
        // Who forgets to end the thinking has ended it with what follows.
        (
            format!("<|think|>A.{HEADER}<|tool_calls|>{weather}<|calls|>"),
            ("A.", "", &[WEATHER], End::Whole),
        ),
        (format!("<|think|>A.<|tool_calls|>{weather}"), ("A.", "", &[WEATHER], End::Whole)),
        ("<|think|>A.<|content|>B.".into(), ("A.", "B.", &[], End::Whole)),
        // Headers without a message.
        (format!("<|think|>A.<|end|>{HEADER}"), ("A.", "", &[], End::Whole)),
        (format!("<|content|>A.<|end|>{HEADER}<|end|>{HEADER}<|flush|>"), ("", "A.", &[], End::Whole)),
        ("<|think|>Hm".into(), ("Hm", "", &[], End::InReasoning)),
    ];
    for (text, told) in cases {
        expect(&solar(), text, *told);
    }
    let cut = "<|tool_calls|><|tool_call:begin|>a<|tool_call:name|>get_weather<|tool_call:args|>{\"days\":";
    expect(&solar(), cut, ("", "", &[("get_weather", "{\"days\":")], End::InCall));
}

#[test]
fn thinking_that_is_text_and_calls_that_nobody_can_make() {
    let weather = call("a1b2c3d4e5", WEATHER.0, WEATHER.1);
    let text = format!("<|think|>So.<|end|>{HEADER}<|tool_calls|>{weather}<|calls|>");
    let as_text = options(Some(ToolFormat::SolarOpen), None);
    expect(&as_text, &text, ("", "So.", &[WEATHER], End::Whole));
    let without = ParseOptions { tools: Some((ToolFormat::SolarOpen, Arc::default())), ..solar() };
    expect(&without, &text, ("So.", "{\"days\": 2}", &[], End::Whole));
}

#[test]
fn ids_are_the_models_where_they_are_good() {
    let calls = ["a1b2c3d4e5", "", "a1b2c3d4e5"].map(|id| call(id, NOW.0, NOW.1)).concat();
    let (said, _) = check(&solar(), &format!("<|tool_calls|>{calls}<|calls|>"));
    let ids: Vec<&str> = said.calls.iter().map(|call| call.0.as_str()).collect();
    assert_eq!(ids[0], "a1b2c3d4e5");
    // That each is another is checked where they are told.
    let is_one =
        |id: &str| id.len() == 10 && id.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    assert!(ids.len() == 3 && ids.iter().all(|id| is_one(id)), "{ids:?}");
}

#[test]
fn what_is_no_message_is_text() {
    for text in [
        "Plain.",
        "<|begin|>not a role<|content|>",
        "<|begin|>42 or so",
        "<|tool_calls|>none",
        "<|tool_call:begin|>a b<|tool_call:name|>",
        "<|tool_call:begin|>a<|tool_call:args|>{}",
        "<|tool_calls|><|tool_call:begin|>a<|tool_call:name|><|tool_call:args|>{}",
    ] {
        let (said, end) = check(&solar(), text);
        let visible = text.replace("<|content|>", "");
        assert_eq!((said.text, said.calls.len(), end), (visible, 0, End::Whole), "{text}");
    }
    // As control tokens the markers are no text, and no role is.
    let (said, _) = check_controls(&solar(), "<|begin|>user<|content|>Hi<|tool_calls|>none<|calls|>");
    assert_eq!((said.text.as_str(), said.calls.len()), ("Hinone", 0));
}

/// In its thinking, in a header and in a call, markers as text and as control tokens.
#[test]
fn a_cut_output_tells_nothing_of_its_frame() {
    let weather = call("a1b2c3d4e5", WEATHER.0, WEATHER.1);
    let content = format!("<|think|>So.<|end|>{HEADER}<|content|>Let me look.");
    let whole = format!("{content}<|end|>{HEADER}<|tool_calls|>{weather}<|calls|>");
    for (at, _) in whole.char_indices().skip("<|think|>".len()) {
        let pieces = with_controls(&whole[..at], ToolFormat::SolarOpen.markers());
        // A control token is there or is not.
        if pieces.last().is_some_and(|last| matches!(last, Piece::Text(text) if text.contains('<'))) {
            continue;
        }
        let (said, end) = run_until(&solar(), &pieces, Ending::Cut);
        assert!("So.".starts_with(&said.reasoning) && "Let me look.".starts_with(&said.text), "{said:?}");
        let in_thinking = at <= whole.find("<|end|>").expect("thinking ends");
        assert_eq!(end == End::InReasoning, in_thinking, "{:?}", &whole[..at]);
        let is_told = whole[..at].contains("<|tool_call:args|>");
        assert_eq!(said.calls.len(), usize::from(is_told), "{:?}", &whole[..at]);
        assert!(at < content.len() || said.text == "Let me look.", "{said:?}");
    }
}
