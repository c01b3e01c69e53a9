//! Every format, whole and in pieces: the same events however the text was cut, nothing lost where it is malformed, no panic on
//! anything.

mod any_text;
mod harmony;
mod one_by_one;
mod pieces;
mod solar_open;

use super::*;
use pieces::*;
use serde_json::{Value, json};

/// Two calls in each format, as its models write them.
fn two_calls(format: ToolFormat) -> &'static str {
    match format {
        ToolFormat::KimiK2 => {
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{\"city\": \"Köln\", \"days\": 2}\
             <|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>"
        }
        ToolFormat::Hermes => {
            "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Köln\", \"days\": 2}}\n</tool_call>\n\
             <tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>"
        }
        ToolFormat::Qwen3Coder => {
            "<tool_call>\n<function=get_weather>\n<parameter=city>\nKöln\n</parameter>\n<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>\n\
             <tool_call>\n<function=now>\n</function>\n</tool_call>"
        }
        ToolFormat::SeedOss => {
            "<seed:tool_call>\n<function=get_weather>\n<parameter=city>Köln</parameter>\n<parameter=days>2</parameter>\n</function>\n</seed:tool_call>\n\
             <seed:tool_call>\n<function=now>\n</function>\n</seed:tool_call>"
        }
        ToolFormat::MiniMaxM2 => {
            "<minimax:tool_call>\n<invoke name=\"get_weather\">\n<parameter name=\"city\">Köln</parameter>\n<parameter name=\"days\">2</parameter>\n\
             </invoke>\n<invoke name=\"now\">\n</invoke>\n</minimax:tool_call>"
        }
        ToolFormat::Glm => {
            "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Köln</arg_value>\n<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>\n\
             <tool_call>now\n</tool_call>"
        }
        ToolFormat::Llama3Json => {
            "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Köln\", \"days\": 2}}; {\"name\": \"now\", \"parameters\": {}}"
        }
        ToolFormat::Pythonic => "[get_weather(city=\"Köln\", days=2), now()]",
        ToolFormat::DeepSeekV3 => {
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{\"city\": \"Köln\", \"days\": 2}\n```<｜tool▁call▁end｜>\n\
             <｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
        }
        ToolFormat::DeepSeekV31 => {
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{\"city\": \"Köln\", \"days\": 2}<｜tool▁call▁end｜>\
             <｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
        }
        ToolFormat::MistralList => {
            "[TOOL_CALLS] [{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Köln\", \"days\": 2}}, {\"name\": \"now\", \"arguments\": {}}]"
        }
        ToolFormat::Mistral => {
            "[TOOL_CALLS]get_weather{\"city\": \"Köln\", \"days\": 2}[TOOL_CALLS]now[CALL_ID]abc123def[ARGS]{}"
        }
        ToolFormat::Harmony => {
            "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{\"city\": \"Köln\", \"days\": 2}<|call|>\
             <|start|>assistant<|channel|>commentary to=functions.now <|constrain|>json<|message|>{}<|call|>"
        }
        ToolFormat::SolarOpen => {
            "<|tool_calls|><|tool_call:begin|>a1b2c3d4e5<|tool_call:name|>get_weather<|tool_call:args|>{\"city\": \"Köln\", \"days\": 2}\
             <|tool_call:end|><|tool_call:begin|>f6g7h8i9j0<|tool_call:name|>now<|tool_call:args|>{}<|tool_call:end|><|calls|>"
        }
    }
}

/// Thinking, text, calls by name and arguments, and how it ended.
type Told<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], End);

/// Whole and in pieces, with markers as text and as control tokens.
fn expect(options: &ParseOptions, text: &str, (reasoning, answer, calls, end): Told) {
    for (said, found_end) in [check(options, text), check_controls(options, text)] {
        let found: Vec<_> = said.calls.iter().map(|call| (call.1.as_str(), call.2.as_str())).collect();
        assert_eq!(
            (said.reasoning.as_str(), said.text.as_str(), &found[..], found_end),
            (reasoning, answer, calls, end),
            "{text}"
        );
    }
}

#[test]
fn calls_of_every_format() {
    for format in ToolFormat::ALL {
        let options = options(Some(format), None);
        let text = two_calls(format);
        let (said, end) = check(&options, text);
        assert_eq!(
            said.calls(),
            [("get_weather", json!({"city": "Köln", "days": 2})), ("now", json!({}))],
            "{format:?}"
        );
        assert_eq!((said.text.as_str(), said.reasoning.as_str(), end), ("", "", End::Whole), "{format:?}");
        assert_eq!(check_controls(&options, text), (said.clone(), end), "{format:?}");
        // White space around calls is nobody's, other text is content; without marker a call stands alone.
        let around = format!("\n{text}\n");
        assert_eq!(check(&options, &around).0, said, "{format:?}");
        if !matches!(format, ToolFormat::Llama3Json | ToolFormat::Pythonic) {
            let (with_text, _) = check(&options, &format!("Let me see. {text}\nDone."));
            assert_eq!(
                (with_text.text.as_str(), &with_text.calls),
                ("Let me see. \nDone.", &said.calls),
                "{format:?}"
            );
        }
    }
}

#[test]
fn thinking_of_every_kind() {
    for (start, end) in [("◁think▷", "◁/think▷"), ("<think>", "</think>"), ("<seed:think>", "</seed:think>")]
    {
        for format in [None, Some(ToolFormat::KimiK2), Some(ToolFormat::Hermes)] {
            let closed = options(format, Some((start, end, false)));
            let open = options(format, Some((start, end, true)));
            let said = |options: &ParseOptions, text: &str| {
                let (said, end) = check(options, text);
                assert_eq!(check_controls(options, text), (said.clone(), end), "{text}");
                (said.reasoning, said.text, end)
            };
            let both = ("\nHmm, 1 < 2.\n".to_owned(), "\n\nYes.".to_owned(), End::Whole);
            assert_eq!(said(&closed, &format!("{start}\nHmm, 1 < 2.\n{end}\n\nYes.")), both);
            assert_eq!(said(&closed, &format!(" \n{start}\nHmm, 1 < 2.\n{end}\n\nYes.")), both);
            assert_eq!(said(&open, &format!("\nHmm, 1 < 2.\n{end}\n\nYes.")), both);
            assert_eq!(said(&open, &format!("{start}\nHmm, 1 < 2.\n{end}\n\nYes.")), both);
            // It ends in the middle: all of it is thinking.
            assert_eq!(said(&closed, &format!("{start}Hm")), ("Hm".into(), "".into(), End::InReasoning));
            assert_eq!(said(&open, "Hm"), ("Hm".into(), "".into(), End::InReasoning));
            // A beginning of a marker that ends there is what it is.
            let partly: String = end.chars().take(3).collect();
            assert_eq!(check(&open, &format!("Hm{partly}")).0.reasoning, format!("Hm{partly}"));
            assert_eq!(said(&closed, "Hello"), ("".into(), "Hello".into(), End::Whole));
            assert_eq!(said(&closed, ""), ("".into(), "".into(), End::Whole));
            // Only at the beginning is it thinking.
            let (later, _) = check(&closed, &format!("I write {start} and {end}."));
            assert_eq!(later.text, format!("I write {start} and {end}."));
        }
    }
}

#[test]
fn a_call_ends_the_thinking() {
    for format in ToolFormat::ALL {
        if matches!(format, ToolFormat::Llama3Json | ToolFormat::Pythonic) {
            continue;
        }
        let options = options(Some(format), Some(("<think>", "</think>", false)));
        let (said, end) = check(&options, &format!("<think>I call.{}", two_calls(format)));
        assert_eq!(
            (said.reasoning.as_str(), said.calls().len(), end),
            ("I call.", 2, End::Whole),
            "{format:?}"
        );
        // The marker alone is a thought.
        let opener = format.markers()[0];
        let (said, _) = check(&options, &format!("<think>What is {opener}? Nothing.</think>Right."));
        assert_eq!(
            (said.reasoning, said.text),
            (format!("What is {opener}? Nothing."), "Right.".into()),
            "{format:?}"
        );
    }
}

#[test]
fn an_output_cut_off_anywhere_is_a_beginning_of_the_whole() {
    for format in ToolFormat::ALL {
        let options = options(Some(format), Some(("<think>", "</think>", false)));
        let text = format!("<think>So.</think>{}", two_calls(format));
        let (whole, _) = check(&options, &text);
        for (at, _) in text.char_indices() {
            let (said, end) = run(&options, &[Piece::Text(text[..at].into())]);
            assert!(whole.reasoning.starts_with(&said.reasoning) || at < 7 + 3 + 8, "{}", &text[..at]);
            for (call, whole) in said.calls.iter().zip(&whole.calls) {
                assert_eq!((&call.0, &call.1), (&whole.0, &whole.1));
                assert!(whole.2.starts_with(&call.2) || call.2 == "{}", "{}", &text[..at]);
            }
            let complete =
                said.calls.last().is_none_or(|call| serde_json::from_str::<Value>(&call.2).is_ok());
            assert!(complete || end == End::InCall, "{format:?} {:?} {end:?} {said:?}", &text[..at]);
        }
    }
}

/// Nothing of a call's markup is content where the output was cut, with markers of text or of control tokens, and what is told of calls
/// is a beginning of what would have been told.
#[test]
fn a_call_cut_before_its_name_is_no_text() {
    for format in ToolFormat::ALL {
        let options = options(Some(format), Some(("<think>", "</think>", false)));
        let text = format!("<think>So.</think>{}", two_calls(format));
        let (whole, _) = check(&options, &text);
        let answer = text.find("</think>").expect("it thinks") + "</think>".len();
        for (at, _) in text.char_indices().skip_while(|&(at, _)| at <= answer) {
            let (said, _) = run_until(&options, &[Piece::Text(text[..at].into())], Ending::Cut);
            let context = format!("{format:?} {:?}: {said:?}", &text[..at]);
            // A beginning of a marker of a few characters may be anything.
            let is_short = |text: &str| text.trim_start().chars().count() < CUT_MARKER_CHARS;
            assert!(is_short(&said.text) && text[..at].ends_with(&said.text), "{context}");
            for (call, whole) in said.calls.iter().zip(&whole.calls) {
                assert_eq!((&call.0, &call.1), (&whole.0, &whole.1), "{context}");
                assert!(whole.2.starts_with(&call.2) || call.2 == "{}", "{context}");
            }
            let pieces = with_controls(&text[..at], format.markers());
            let (hidden, _) = run_until(&options, &pieces, Ending::Cut);
            assert!(is_short(&hidden.text), "{format:?} {:?}: {hidden:?}", &text[..at]);
        }
    }
}

#[test]
fn what_is_text_stays_text_where_the_output_is_cut() {
    use ToolFormat::{Hermes, KimiK2, Llama3Json, Mistral, Pythonic, Qwen3Coder};
    // The format, what was there when it was cut, and the text of it.
    for (format, written, text) in [
        (Hermes, "See <tool_call>\n{\"name\": \"get_", "See "),
        (Hermes, "See <tool_call>\n{\"arguments\": {\"city\": \"Rome\"}, \"na", "See "),
        (Hermes, "See <tool_call>no call", "See <tool_call>no call"),
        (Hermes, "See <tool_ca", "See "),
        (Hermes, "See <too", "See <too"),
        (Hermes, "a < b", "a < b"),
        (Hermes, "a <", "a <"),
        (Hermes, "<tool_call>{\"other\": ", "<tool_call>{\"other\": "),
        (Qwen3Coder, "<tool_call>\n<function=get_", ""),
        (Qwen3Coder, "<tool_call>\n<div", "<tool_call>\n<div"),
        (KimiK2, "Now. <|tool_calls_section_begin|><|tool_call_begin|>functions.f", "Now. "),
        (Mistral, "[TOOL_CALLS]get_wea", ""),
        (Mistral, "[TOOL_CALLS]in words, and more", "[TOOL_CALLS]in words, and more"),
        // Without a marker it is a call only as long as it names a tool.
        (Llama3Json, "{\"name\": \"get_wea", ""),
        (Llama3Json, "{\"name\": \"Bo", "{\"name\": \"Bo"),
        (Llama3Json, "{\"na", ""),
        (Llama3Json, "{\"id\": \"4711", "{\"id\": \"4711"),
        (Llama3Json, "{\"nam\": 1", "{\"nam\": 1"),
        (Llama3Json, "{\"answer", "{\"answer"),
        (Llama3Json, "{\"id\": \"4711\", \"name\": \"no", ""),
        (Llama3Json, "<|python_tag|>{\"id\": \"4711", ""),
        (Pythonic, "[get_wea", ""),
        (Pythonic, "[1, 2", "[1, 2"),
        (Pythonic, "[a list", "[a list"),
    ] {
        let (said, _) = check_until(&options(Some(format), None), written, Ending::Cut);
        assert_eq!((said.text.as_str(), said.calls.len()), (text, 0), "{format:?} {written}");
    }
    // Thinking that is cut in its end marker.
    let thinks = options(Some(Hermes), Some(("<think>", "</think>", false)));
    for (written, reasoning) in [("<think>Hm</thin", "Hm"), ("<think>Hm</th", "Hm</th"), ("<thin", "")] {
        let (said, _) = check_until(&thinks, written, Ending::Cut);
        assert_eq!((said.reasoning.as_str(), said.text.as_str()), (reasoning, ""), "{written}");
    }
    let kimi = options(Some(KimiK2), Some(("◁think▷", "◁/think▷", false)));
    assert_eq!(check_until(&kimi, "◁think▷Hm ◁", Ending::Cut).0.reasoning, "Hm ");
}

#[test]
fn malformed_calls_are_text() {
    use ToolFormat::{
        DeepSeekV3, Hermes, KimiK2, Llama3Json, Mistral, MistralList, Pythonic, Qwen3Coder, SeedOss,
    };
    for (format, text) in [
        (KimiK2, "<|tool_calls_section_begin|>no call"),
        (KimiK2, "<|tool_call_begin|>what is this<|tool_call_argument_begin|>{}"),
        (KimiK2, "a <|tool_calls_section_begin|><|tool_call_begin|>functions.f"),
        (KimiK2, "<|tool_calls_section_begin|><|tool_calls_section_end|>"),
        (KimiK2, "<|tool_call_"),
        (Hermes, "<tool_call>get_weather</tool_call>"),
        (Hermes, "<tool_call>{\"city\": 1}</tool_call>"),
        (Hermes, "<tool_call>{\"name\": 1, \"arguments\": {}}</tool_call>"),
        (Hermes, "<tool_call>{\"name\": \"a b\"}</tool_call>"),
        (Hermes, "<tool_call>\n{\"name\": \"f\", "),
        (Hermes, "<tool_call>{} and <tool_call"),
        (Hermes, "<tool_call>{\"arguments\": {\"a\": 1}}</tool_call> end"),
        (Qwen3Coder, "<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>"),
        (SeedOss, "<seed:tool_call><function=a b>"),
        (SeedOss, "<seed:tool_call>\n<func"),
        (Llama3Json, "{\"name\": \"Bob\", \"parameters\": {\"age\": 3}}"),
        (Llama3Json, "{\"answer\": 42}"),
        (Llama3Json, "{\"name\": \"now\"}"),
        (Llama3Json, "Use {\"name\": \"now\", \"parameters\": {}}"),
        (Llama3Json, "<|python_tag|>print(1)"),
        (Pythonic, "[1, 2, 3]"),
        (Pythonic, "[other(a=1)]"),
        (Pythonic, "[get_weather(\"Köln\")]"),
        (Pythonic, "[get_weather"),
        (Pythonic, "[link](http://x)"),
        (DeepSeekV3, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>a b\n```json\n{}"),
        (MistralList, "[TOOL_CALLS] [1]"),
        (Mistral, "[TOOL_CALLS]in words, and more{"),
    ] {
        let (said, end) = check(&options(Some(format), None), text);
        assert_eq!((said.text.as_str(), said.calls(), end), (text, vec![], End::Whole), "{format:?}");
        // As control tokens the markers are no text.
        let (hidden, _) = check_controls(&options(Some(format), None), text);
        let visible = format.markers().iter().fold(text.to_owned(), |text, marker| text.replace(marker, ""));
        assert_eq!((hidden.text, hidden.calls.len()), (visible, 0), "{format:?} {text}");
    }
}

#[test]
fn what_models_write_besides_the_book() {
    use ToolFormat::{DeepSeekV31, Hermes, KimiK2, Llama3Json, Mistral, Pythonic, SeedOss};
    let weather = |arguments: Value| vec![("get_weather", arguments)];
    /// A format, what the model writes, the calls in it, and the text that is left.
    type Case<'a> = (ToolFormat, &'a str, Vec<(&'a str, Value)>, &'a str);
    let cases: [Case; 21] = [
        (
            KimiK2,
            "<|tool_call_begin|>get_weather<|tool_call_argument_begin|> {\"city\": \"a\\\"b\"} \n<|tool_call_end|>",
            weather(json!({"city": "a\"b"})),
            "",
        ),
        (
            KimiK2,
            "<|tool_calls_section_begin|>\n<|tool_call_begin|>functions.now:0<|tool_call_argument_begin|><|tool_call_end|>\n<|tool_calls_section_end|> ok",
            vec![("now", json!({}))],
            " ok",
        ),
        (
            KimiK2,
            "<|tool_call_begin|>functions.now:0<|tool_call_argument_begin|>{\"a\":<|tool_call_end|>",
            vec![("now", json!({"not JSON": "{\"a\":"}))],
            "",
        ),
        (
            KimiK2,
            "<|tool_call_begin|>functions.now:0<|tool_call_argument_begin|>nothing at all<|tool_call_end|>",
            vec![("now", json!({"not JSON": "nothing at all"}))],
            "",
        ),
        (KimiK2, "<|tool_call_begin|>functions.now:0<|tool_call_end|>", vec![("now", json!({}))], ""),
        (
            KimiK2,
            "<|tool_call_begin|>functions.now:0<|tool_call_argument_begin|>{\"a\": \"x\ny\"}<|tool_call_end|>",
            vec![("now", json!({"a": "x\ny"}))],
            "",
        ),
        (
            Hermes,
            "<tool_call>{\"arguments\": {\"days\": 1}, \"name\": \"get_weather\"}</tool_call>",
            weather(json!({"days": 1})),
            "",
        ),
        (
            Hermes,
            "<tool_call>{\"name\": \"get_weather\", \"arguments\": \"{\\\"days\\\": 1}\"}</tool_call>",
            weather(json!({"days": 1})),
            "",
        ),
        (Hermes, "<tool_call>{\"name\": \"now\"}</tool_call>", vec![("now", json!({}))], ""),
        (
            Hermes,
            "<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"city\": \"</tool_call>\"}}",
            weather(json!({"city": "</tool_call>"})),
            "",
        ),
        (
            Hermes,
            "<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"days\": 1}, \"id\": \"x\"}</tool_call>x",
            weather(json!({"days": 1})),
            "x",
        ),
        (
            Hermes,
            "<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"days\": }</tool_call>",
            weather(json!({"not JSON": "{\"days\": "})),
            "}</tool_call>",
        ),
        (
            Llama3Json,
            "<|python_tag|>{\"type\": \"function\", \"name\": \"other\", \"parameters\": {\"a\": []}}",
            vec![("other", json!({"a": []}))],
            "",
        ),
        (
            Llama3Json,
            "{\"name\": \"now\", \"parameters\": {}}\n\nThat is it.",
            vec![("now", json!({}))],
            "\n\nThat is it.",
        ),
        (
            Pythonic,
            "<|python_start|>[get_weather(city='it\\'s', tags=['a', (1, None)], hourly=True,)]<|python_end|>",
            weather(json!({"city": "it's", "tags": ["a", [1, null]], "hourly": true})),
            "",
        ),
        (
            Pythonic,
            "[now(), get_weather(days=1, city=x)]",
            vec![("now", json!({})), ("get_weather", json!({"not JSON": "{\"days\": 1, \"city\": "}))],
            ")]",
        ),
        (
            DeepSeekV31,
            "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{\"a\": 1}<｜tool▁call▁end｜>",
            vec![("function", json!({"a": 1}))],
            "",
        ),
        (Mistral, "[TOOL_CALLS]get_weather[ARGS]{\"days\": 1} and", weather(json!({"days": 1})), " and"),
        (
            Mistral,
            "[TOOL_CALLS]{\"name\": \"get_weather\", \"arguments\": {\"days\": 1}}",
            weather(json!({"days": 1})),
            "",
        ),
        (
            SeedOss,
            "<seed:tool_call><function=get_weather><parameter=city>a \"b\"\n\\ c</parameter><parameter=hourly>True</parameter><parameter=tags>[1, \"x\"]</parameter><parameter=note>null</parameter></seed:tool_call>",
            weather(json!({"city": "a \"b\"\n\\ c", "hourly": true, "tags": [1, "x"], "note": null})),
            "",
        ),
        (
            SeedOss,
            "<seed:tool_call><function=get_weather><parameter=days>soon</parameter><parameter=city></parameter></function></seed:tool_call>",
            weather(json!({"days": "soon", "city": ""})),
            "",
        ),
    ];
    for (format, text, calls, rest) in cases {
        let (said, _) = check(&options(Some(format), None), text);
        assert_eq!((said.calls(), said.text.as_str()), (calls, rest), "{text}");
    }
}

#[test]
fn ids_are_the_models_or_new_and_never_the_same_twice() {
    let ids = |format, text: &str| {
        check(&options(Some(format), None), text).0.calls.into_iter().map(|call| call.0).collect::<Vec<_>>()
    };
    assert_eq!(
        ids(ToolFormat::KimiK2, two_calls(ToolFormat::KimiK2)),
        ["functions.get_weather:0", "functions.now:1"]
    );
    let call = "<|tool_call_begin|>functions.now:0<|tool_call_argument_begin|>{}<|tool_call_end|>";
    let twice = ids(ToolFormat::KimiK2, &format!("{call}{call}"));
    assert!(twice[0] == "functions.now:0" && twice[1].starts_with("call_"), "{twice:?}");
    let mistral = ids(ToolFormat::Mistral, two_calls(ToolFormat::Mistral));
    assert!(mistral[0].len() == 9 && mistral[1] == "abc123def", "{mistral:?}");
    let hermes = ids(ToolFormat::Hermes, two_calls(ToolFormat::Hermes));
    assert!(hermes.iter().all(|id| id.starts_with("call_") && id.len() == 29), "{hermes:?}");
}

#[test]
fn formats_are_told_from_templates_and_by_name() {
    for (template, tools, reasoning) in [
        ("…<|tool_calls_section_begin|>…", Some(ToolFormat::KimiK2), None),
        ("…<|tool_calls_section_begin|>…◁think▷", Some(ToolFormat::KimiK2), Some("◁think▷")),
        ("<|im_user|>user<|im_middle|>", None, Some("◁think▷")),
        ("<tool_call>\\n{\\\"name\\\": <function-name>…<think>", Some(ToolFormat::Hermes), Some("<think>")),
        ("<tool_call>\\n<function=example>", Some(ToolFormat::Qwen3Coder), None),
        ("<tool_call>{name}\\n<arg_key>…<think>", Some(ToolFormat::Glm), Some("<think>")),
        ("<minimax:tool_call>…<invoke name=…<think>", Some(ToolFormat::MiniMaxM2), Some("<think>")),
        ("<seed:tool_call>\\n<function=…<seed:think>", Some(ToolFormat::SeedOss), Some("<seed:think>")),
        ("<｜tool▁calls▁begin｜>…```json", Some(ToolFormat::DeepSeekV3), None),
        ("<｜tool▁calls▁begin｜>…</think>", Some(ToolFormat::DeepSeekV31), Some("<think>")),
        ("[TOOL_CALLS]…[ARGS]", Some(ToolFormat::Mistral), None),
        ("[TOOL_CALLS]…", Some(ToolFormat::MistralList), None),
        (
            "Respond in the format {\"name\": function name, \"parameters\": dictionary of argument name and its value}",
            Some(ToolFormat::Llama3Json),
            None,
        ),
        (
            "<|start|>assistant<|channel|>analysis<|message|>…",
            Some(ToolFormat::Harmony),
            Some("<|channel|>analysis<|message|>"),
        ),
        (
            "{{ '[THINK]' + part.thinking + '[/THINK]' }}[TOOL_CALLS]x[ARGS]",
            Some(ToolFormat::Mistral),
            Some("[THINK]"),
        ),
        (
            "<|begin|>assistant<|think|>…<|tool_calls|>…<|tool_call:begin|>",
            Some(ToolFormat::SolarOpen),
            Some("<|think|>"),
        ),
        ("{{ message.content }}", None, None),
    ] {
        let found = OutputFormat::detect(template);
        assert_eq!(
            (found.tools, found.reasoning.map(|reasoning| reasoning.start)),
            (tools, reasoning),
            "{template}"
        );
    }
    for format in ToolFormat::ALL {
        assert_eq!(ToolFormat::named(format.name()), Some(format));
    }
    assert_eq!(ToolFormat::named("none"), None);
    assert!(ReasoningFormat::named("deepseek_r1").is_some_and(|format| format.is_implied));
}
