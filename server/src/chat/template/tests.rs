//! Templates against what jinja2 renders, and against requests that mean harm.

use super::*;
use serde_json::json;

fn render(template: &ChatTemplate, messages: serde_json::Value) -> Result<String, TemplateError> {
    template.render(&json!({ "messages": messages, "tools": null, "add_generation_prompt": true }))
}

fn named(name: &str) -> ChatTemplate {
    ChatTemplate::named(name).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn check(template: &str, messages: serde_json::Value, expected: &str) {
    assert_eq!(render(&named(template), messages).expect("renders"), expected);
}

#[test]
fn kimi_has_no_newlines_and_one_pad_for_a_picture() {
    check(
        "kimi",
        json!([{ "role": "user", "content": [{ "type": "text", "text": "What?\n" }, { "type": "image" }] }]),
        "<|im_system|>system<|im_middle|>You are a helpful assistant<|im_end|><|im_user|>user<|im_middle|>What?\n\
         <|media_start|>image<|media_content|><|media_pad|><|media_end|><|im_end|><|im_assistant|>assistant<|im_middle|>",
    );
    check(
        "kimi",
        json!([{ "role": "system", "content": "S" }, { "role": "user", "content": "U" }]),
        "<|im_system|>system<|im_middle|>S<|im_end|><|im_user|>user<|im_middle|>U<|im_end|><|im_assistant|>assistant<|im_middle|>",
    );
}

#[test]
fn chameleon_has_no_roles_and_ends_every_turn() {
    let messages = json!([
        { "role": "user", "content": [{ "type": "text", "text": "What is" }, { "type": "image" }, { "type": "text", "text": "?" }] },
        { "role": "assistant", "content": "A cat." }, { "role": "user", "content": "Sure?" },
    ]);
    let context =
        json!({ "messages": messages, "bos_token": "<s>", "tools": null, "add_generation_prompt": true });
    let expected = "<s>What is<image>?<reserved08706>A cat.<reserved08706>Sure?<reserved08706>";
    assert_eq!(named("chameleon").render(&context).expect("renders"), expected);
    let files: &'static [(&str, &[u8])] = &[("config.json", br#"{"model_type": "chameleon"}"#)];
    let own = ChatTemplate::load(&ModelFiles::Embedded(files)).expect("loads").expect("a template");
    assert_eq!(own.content_format(), ContentFormat::Both);
    assert_eq!(own.source(), named("chameleon").source());
    let refused = render(&own, json!([{ "role": "tool", "content": "1" }])).expect_err("no such role");
    assert_eq!(
        refused.to_string(),
        "chat template refuses the conversation: the chameleon template has no role tool"
    );
}

#[test]
fn alpaca_is_the_training_text() {
    let start = "Below is an instruction that describes a task";
    check(
        "alpaca",
        json!([{ "role": "user", "content": "Say hi." }]),
        &format!(
            "{start}. Write a response that appropriately completes the request.\n\n### Instruction:\nSay hi.\n\n### Response:"
        ),
    );
    check(
        "alpaca",
        json!([{ "role": "user", "content": "Sort.", "input": "3 1 2" }]),
        &format!(
            "{start}, paired with an input that provides further context. Write a response that appropriately completes the \
             request.\n\n### Instruction:\nSort.\n\n### Input:\n3 1 2\n\n### Response:"
        ),
    );
    check(
        "alpaca",
        json!([{ "role": "system", "content": "Be brief." }, { "role": "user", "content": "Hi" }]),
        "Be brief.\n\n### Instruction:\nHi\n\n### Response:",
    );
}

#[test]
fn chatml_and_llama_2() {
    let turns = json!([
        { "role": "system", "content": "S" }, { "role": "user", "content": "U" },
        { "role": "assistant", "content": "A" }, { "role": "user", "content": "V" }
    ]);
    check(
        "chatml",
        turns.clone(),
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n",
    );
    check("llama-2", turns, "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST] A </s><s>[INST] V [/INST]");
    let error =
        render(&named("llama-2"), json!([{ "role": "assistant", "content": "A" }])).expect_err("refused");
    assert!(matches!(error, TemplateError::Raised(message) if message.starts_with("roles must alternate")));
}

#[test]
fn the_content_format_is_found_by_trying() {
    let check = |source: &str, expected| {
        assert_eq!(ChatTemplate::from_source(source).expect("parses").content_format(), expected, "{source}");
    };
    check("{% for m in messages %}{{ m.content }}{% endfor %}", ContentFormat::String);
    check("{% for m in messages %}{{ 'x' + m.content }}{% endfor %}", ContentFormat::String);
    check("{% for m in messages %}{{ m.content|tojson }}{% endfor %}", ContentFormat::String);
    check(
        "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}",
        ContentFormat::Parts,
    );
    assert_eq!(named("kimi").content_format(), ContentFormat::Both);
    assert_eq!(named("chatml").content_format(), ContentFormat::Both);
    assert_eq!(named("alpaca").content_format(), ContentFormat::String);
    assert_eq!(named("llama-2").content_format(), ContentFormat::String);
}

#[test]
fn the_form_of_calls_is_found_by_trying() {
    let check = |message: &str, content_is_none, arguments_are_text| {
        let source = format!("{{% for m in messages %}}{message}{{% endfor %}}");
        let template = ChatTemplate::from_source(&source).expect("parses");
        assert_eq!(template.call_form(), CallForm { content_is_none, arguments_are_text }, "{message}");
    };
    let calls =
        "{% for c in m.tool_calls %}{{ c.function.name }}{{ c.function.arguments|tojson }}{% endfor %}";
    // None is a word where it is printed, and an error where it is searched.
    check(&format!("{{{{ m.content }}}}{calls}"), false, false);
    check(&format!("{{{{ m.content.split('x')[0] }}}}{calls}"), false, false);
    check(&format!("{{% if 'x' in m.content %}}y{{% endif %}}{calls}"), false, false);
    check(
        &format!("{{% if m.content is none %}}{calls}{{% else %}}{{{{ m.content }}}}{{% endif %}}"),
        true,
        false,
    );
    let joined = "{% for c in m.tool_calls %}{{ c.function.name + ' ' + c.function.arguments }}{% endfor %}";
    check(&format!("{{{{ m.content }}}}{joined}"), false, true);
    check(
        &format!("{{% if m.content is none %}}{joined}{{% else %}}{{{{ m.content }}}}{{% endif %}}"),
        true,
        true,
    );
    check("{{ m.content }}", false, false);
}

#[test]
fn thinking_is_among_the_parts_only_where_no_field_is_read() {
    let check = |message: &str, expected: bool| {
        let source = format!("{{% for m in messages %}}{message}{{% endfor %}}");
        let template = ChatTemplate::from_source(&source).expect("parses");
        assert_eq!(template.takes_thinking_parts(), expected, "{message}");
    };
    let parts = "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.thinking or p.text }}{% endfor %}{% endif %}";
    check(parts, true);
    check(&format!("{parts}{{{{ m.reasoning_content }}}}"), false);
    check("{{ m.content }}", false);
    check("{% for p in m.content %}{{ p.text }}{% endfor %}", false);
}

static JINJA: (&str, &[u8]) = ("chat_template.jinja", b"jinja");
static JSON: (&str, &[u8]) = ("chat_template.json", br#"{"chat_template": "json"}"#);
static CONFIG: (&str, &[u8]) = ("tokenizer_config.json", br#"{"chat_template": "config"}"#);
static NAMED: (&str, &[u8]) = (
    "tokenizer_config.json",
    br#"{"chat_template": [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]}"#,
);

fn load(files: &'static [(&'static str, &'static [u8])]) -> Result<Option<ChatTemplate>, TemplateError> {
    ChatTemplate::load(&ModelFiles::Embedded(files))
}

#[test]
fn the_first_source_wins() {
    let text = |files| render(&load(files).expect("loads").expect("has one"), json!([])).expect("renders");
    static ALL: [(&str, &[u8]); 3] = [CONFIG, JSON, JINJA];
    assert_eq!(text(&ALL), "jinja");
    assert_eq!(text(&ALL[..2]), "json");
    assert_eq!(text(&ALL[..1]), "config");
    static OTHER: [(&str, &[u8]); 1] = [("tokenizer_config.json", b"{}")];
    assert!(load(&OTHER).expect("loads").is_none());
    assert!(load(&[]).expect("loads").is_none());
}

#[test]
fn tools_choose_the_template_for_tools() {
    static FILES: [(&str, &[u8]); 1] = [NAMED];
    let template = load(&FILES).expect("loads").expect("has one");
    let render = |tools| template.render(&json!({ "messages": [], "tools": tools })).expect("renders");
    assert_eq!(render(json!(null)), "plain");
    assert_eq!(render(json!([])), "plain");
    assert_eq!(render(json!([{ "type": "function" }])), "tools");
}

#[test]
fn bad_templates_name_their_file() {
    static BROKEN: [(&str, &[u8]); 1] = [("chat_template.jinja", b"{% if %}")];
    static NOT_JSON: [(&str, &[u8]); 1] = [("tokenizer_config.json", b"{")];
    static NO_DEFAULT: [(&str, &[u8]); 1] =
        [("tokenizer_config.json", br#"{"chat_template": [{"name": "rag", "template": "x"}]}"#)];
    static NUMBER: [(&str, &[u8]); 1] = [("tokenizer_config.json", br#"{"chat_template": 3}"#)];
    for (files, expected) in [
        (&BROKEN, "embedded chat_template.jinja"),
        (&NOT_JSON, "embedded tokenizer_config.json"),
        (&NO_DEFAULT, "no template named default"),
        (&NUMBER, "neither a string nor a list"),
    ] {
        let error = load(files).err().expect("refused").to_string();
        assert!(error.contains(expected), "{error}");
    }
    let error = ChatTemplate::named("no-such-template").err().expect("refused").to_string();
    assert_eq!(
        error,
        "no chat template file or built-in template \"no-such-template\"; built in are alpaca, chameleon, chatml, kimi, llama-2"
    );
}

#[test]
fn templates_cannot_reach_files_or_run_for_ever() {
    for source in [
        "{% include '/etc/passwd' %}",
        "{{ ''.__class__.__mro__ }}",
        "{% import 'os' as os %}{{ os.x() }}",
        "{{ self.__init__() }}",
    ] {
        let template = ChatTemplate::from_source(source).expect("parses");
        assert!(matches!(render(&template, json!([])), Err(TemplateError::Render(_))), "{source}");
    }
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}";
    let template = ChatTemplate::from_source(endless).expect("parses");
    assert!(matches!(render(&template, json!([])), Err(TemplateError::OutOfFuel)));
}

#[test]
fn variables_with_a_default_of_their_own_name_are_read() {
    for (source, reads) in [
        ("{%- set effort = effort if effort is defined else 'high' -%}{{ effort }}", true),
        ("{% set effort = effort | default('high') %}", true),
        ("{% set\neffort=(effort or 'high')%}", true),
        ("{{ effort }}{% set effort = 1 %}", true),
        ("{% set effort = 'high' %}{% set effort = effort ~ '!' %}{{ effort }}", false),
        ("{% set effort = 'effort' %}{{ effort }}", false),
        ("{% set effort = messages[0].effort %}{{ effort }}", false),
        ("{% set efforts = 1 %}{{ efforts }}", false),
    ] {
        assert_eq!(ChatTemplate::from_source(source).expect("parses").reads("effort"), reads, "{source}");
    }
}
