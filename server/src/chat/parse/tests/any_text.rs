//! What holds for any text, cut anywhere: the same is said, little is held back, and nothing takes long.

use super::*;
use rustix::time::{ClockId, clock_gettime};

/// Text is told as soon as it cannot become a marker, and arguments as they come.
#[test]
fn nothing_certain_is_held_back() {
    let options = options(Some(ToolFormat::KimiK2), Some(("◁think▷", "◁/think▷", false)));
    let mut parser = Parser::new(options);
    let steps = [
        ("◁th", "", "", ""),
        ("ink▷Hm", "Hm", "", ""),
        (" ◁", "Hm ", "", ""),
        ("x", "Hm ◁x", "", ""),
        ("◁/think▷", "Hm ◁x", "", ""),
        ("\nOf", "Hm ◁x", "\nOf", ""),
        (" course <|tool", "Hm ◁x", "\nOf course ", ""),
        ("s <|tool_call_begin|>functions.now:0", "Hm ◁x", "\nOf course <|tools ", ""),
        ("<|tool_call_argument_begin|>{\"a", "Hm ◁x", "\nOf course <|tools ", "{\"a"),
        ("\": 1", "Hm ◁x", "\nOf course <|tools ", "{\"a\": 1"),
        ("}", "Hm ◁x", "\nOf course <|tools ", "{\"a\": 1}"),
    ];
    let mut said = Said::default();
    for (piece, reasoning, text, arguments) in steps {
        parser.push(piece, &mut said);
        let call = said.calls.first().map_or("", |call| call.2.as_str());
        assert_eq!(
            (said.reasoning.as_str(), said.text.as_str(), call),
            (reasoning, text, arguments),
            "{piece}"
        );
    }
}

/// However much comes, what is held back does not grow with it.
#[test]
fn what_is_held_back_is_bounded() {
    let mut random = Random(11);
    for format in ToolFormat::ALL {
        for _ in 0..60 {
            let text = random_output(format, &mut random, 60);
            let mut parser = Parser::new(options(Some(format), Some(("<think>", "</think>", false))));
            let mut said = Said { may_think_late: format.frames_all(), ..Said::default() };
            for piece in cut(&text, &mut random, 5) {
                parser.push(&piece, &mut said);
                let held = parser.pending.len() - parser.pending.told();
                assert!(held <= 20_000, "{format:?}: {held} bytes of {text:?}");
            }
        }
    }
}

/// Pieces of the format, of other formats, and of nothing, in any order.
fn random_output(format: ToolFormat, random: &mut Random, len: usize) -> String {
    let mut words = vec![
        "{",
        "}",
        "[",
        "]",
        "(",
        ")",
        "\"",
        "'",
        ":",
        ",",
        ";",
        "=",
        " ",
        "\n",
        "\\",
        "é",
        "1",
        "true",
        "{}",
        "\"name\"",
        "\"arguments\"",
        "\"parameters\"",
        "get_weather",
        "now",
        "\"now\"",
        "functions.now:0",
        "function",
        "<function=",
        ">",
        "</function>",
        "<parameter=",
        "city",
        "</parameter>",
        "```json",
        "```",
        "<think>",
        "</think>",
        "<",
        "some words",
        "{\"name\": \"now\", \"arguments\": {",
        "{\"city\": \"x\"}",
        "[now(",
        "a=1",
        "to=functions.now",
        "analysis",
        "assistant",
    ];
    words.extend(format.markers());
    words.extend(format.markers());
    let mut text = if random.below(3) == 0 { two_calls(format).to_owned() } else { String::new() };
    for _ in 0..random.below(len) {
        text.push_str(words[random.below(words.len())]);
    }
    text
}

#[test]
fn any_text_in_any_pieces_says_the_same() {
    let mut random = Random(5);
    let mut with_calls = 0;
    for round in 0..4000 {
        let format = ToolFormat::ALL[round % ToolFormat::ALL.len()];
        let reasoning = [None, Some(("<think>", "</think>", false)), Some(("<think>", "</think>", true))]
            [random.below(3)];
        let options = options(Some(format), reasoning);
        let text = random_output(format, &mut random, 25);
        let pieces = if random.below(2) == 0 {
            vec![Piece::Text(text)]
        } else {
            with_controls(&text, format.markers())
        };
        let whole = run(&options, &pieces);
        with_calls += usize::from(!whole.0.calls.is_empty());
        for _ in 0..3 {
            let cut = cut_pieces(&pieces, &mut random);
            assert_eq!(run(&options, &cut), whole, "{format:?} {cut:?}");
        }
    }
    assert!(with_calls > 800, "{with_calls}");
}

/// Where there is no call and no thinking, the text comes out as it went in.
#[test]
fn text_without_markers_is_untouched() {
    let mut random = Random(9);
    for round in 0..1000 {
        let format = ToolFormat::ALL[round % ToolFormat::ALL.len()];
        let text: String = (0..random.below(40))
            .map(|_| [" ", "<", "◁", "a", "\n", "tool", "|", "é", "."][random.below(9)])
            .collect();
        let options = options(Some(format), Some(("◁think▷", "◁/think▷", false)));
        assert_eq!(check(&options, &text).0.text, text);
    }
}

#[test]
fn arbitrary_bytes_are_survived() {
    let mut random = Random(13);
    for round in 0..500 {
        let bytes: Vec<u8> = (0..random.below(200)).map(|_| random.below(256) as u8).collect();
        let text = String::from_utf8_lossy(&bytes);
        let _ = check(
            &options(
                Some(ToolFormat::ALL[round % ToolFormat::ALL.len()]),
                Some(("<think>", "</think>", round % 2 == 0)),
            ),
            &text,
        );
    }
}

/// Outputs made to be hard cost no more than others, in one-byte pieces too.
#[test]
fn hard_outputs_take_linear_time() {
    for format in ToolFormat::ALL {
        for unit in [
            "[[[[",
            "{\"a\":",
            "<tool_call>",
            "\"",
            "{\"name\":",
            "<",
            " ",
            "[TOOL_CALLS]",
            "<|tool_call_begin|>",
            "<parameter=a>",
            "```",
        ] {
            let time = |n: usize| {
                let pieces = vec![Piece::Text(unit.to_owned()); n / unit.len()];
                let start = thread_cpu();
                let _ = run(&options(Some(format), None), &pieces);
                thread_cpu() - start
            };
            let seconds = time(1 << 14);
            assert!(seconds < 5.0, "{format:?} {unit:?}: {seconds} s for 16 KiB");
        }
    }
}

/// In seconds of this thread, however busy the machine is.
fn thread_cpu() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
