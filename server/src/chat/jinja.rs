//! A Jinja environment that renders chat templates as Python's does: the differences between minijinja and Jinja2 with transformers'
//! additions are settled here.

use super::pyjson::{JsonStyle, to_json};
use super::pyrepr::python_str;
use super::strftime::strftime;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value, escape_formatter};
use minijinja_contrib::pycompat;
use std::time::SystemTime;

/// What `raise_exception` in a template says: the conversation is not one that the model was made for.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub String);

/// Instructions and copied data of one rendering. A conversation of a thousand turns takes about a hundredth.
const FUEL: u64 = 10_000_000;
const MAX_RECURSION: usize = 100;

pub(super) fn environment() -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_unknown_method_callback(method);
    env.set_fuel(Some(FUEL));
    env.set_recursion_limit(MAX_RECURSION);
    env.set_formatter(|out, state, value| match value.kind() {
        ValueKind::Undefined | ValueKind::String | ValueKind::Invalid => escape_formatter(out, state, value),
        _ => out.write_str(&python_str(value)?).map_err(Error::from),
    });
    env.add_filter("tojson", tojson);
    env.add_filter("string", |value: &Value| match value.kind() {
        // One that is marked as safe stays so.
        ValueKind::String => Ok(value.clone()),
        _ => python_str(value).map(Value::from),
    });
    env.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    env.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map | ValueKind::Undefined)
    });
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(message)))
    });
    env.add_function("strftime_now", |format: String| {
        strftime(SystemTime::now(), &format)
            .map_err(|message| Error::new(ErrorKind::InvalidOperation, message))
    });
    Ok(env)
}

/// As Jinja2 reads a template: every end of a line is `\n`, also within strings.
pub(super) fn with_line_feeds(source: &str) -> String {
    source.replace("\r\n", "\n").replace('\r', "\n")
}

/// transformers marks what the assistant says with `{% generation %}`, for training; to us it is a block like any other. `if true` has the
/// same effect on the whitespace around it.
pub(super) fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        let Some(len) = rest[open..].find("%}") else { break };
        let tag = &rest[open + 2..open + len];
        let name = tag.trim_matches(['-', '+']).trim();
        let replacement = match name {
            "generation" => Some("if true"),
            "endgeneration" => Some("endif"),
            _ => None,
        };
        out.push_str(&rest[..open]);
        match replacement {
            Some(replacement) => {
                out.push_str("{%");
                out.push_str(&tag.replacen(name, &format!(" {replacement} "), 1));
                out.push_str("%}");
            }
            None => out.push_str(&rest[open..open + len + 2]),
        }
        rest = &rest[open + len + 2..];
    }
    out.push_str(rest);
    out
}

/// transformers' filter: `json.dumps(value, ensure_ascii=False, …)`, with nothing escaped for HTML.
fn tojson(value: &Value, arguments: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let positional = |index: usize| arguments.get(index).cloned();
    let get = |index: usize, name: &str| -> Result<Option<Value>, Error> {
        let value = match positional(index) {
            Some(value) => Some(value),
            None => named.get::<Option<Value>>(name)?,
        };
        Ok(value.filter(|value| !value.is_none() && !value.is_undefined()))
    };
    let (ensure_ascii, indent) = (get(0, "ensure_ascii")?, get(1, "indent")?);
    let (separators, sort_keys) = (get(2, "separators")?, get(3, "sort_keys")?);
    named.assert_all_used()?;
    let mut style = JsonStyle {
        ensure_ascii: ensure_ascii.is_some_and(|value| value.is_true()),
        sort_keys: sort_keys.is_some_and(|value| value.is_true()),
        ..JsonStyle::default()
    };
    if let Some(indent) = indent {
        style.indent = Some(match indent.as_str() {
            Some(text) => text.to_string(),
            None => " ".repeat(usize::try_from(indent)?.min(64)),
        });
        style.item_separator = ",".to_string();
    }
    if let Some(separators) = separators {
        let part = |index| separators.get_item_by_index(index).map(|value| value.to_string());
        (style.item_separator, style.key_separator) = (part(0)?, part(1)?);
    }
    to_json(value, &style).map(Value::from)
}

/// Python's methods: those of minijinja-contrib, and the rest that templates use.
fn method(state: &mut State, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    match value.as_str() {
        Some(text) => match string_method(text, name, arguments) {
            Some(result) => result,
            None => pycompat::unknown_method_callback(state, value, name, arguments),
        },
        None => pycompat::unknown_method_callback(state, value, name, arguments),
    }
}

fn string_method(text: &str, name: &str, arguments: &[Value]) -> Option<Result<Value, Error>> {
    let string = |index: usize| arguments.get(index).and_then(Value::as_str);
    let number = |index: usize| arguments.get(index).and_then(Value::as_usize);
    let bad = || Error::new(ErrorKind::InvalidOperation, format!("str.{name}: wrong arguments"));
    let with_string = |f: &dyn Fn(&str) -> Result<Value, Error>| string(0).map_or_else(|| Err(bad()), f);
    let fill = |place: &dyn Fn(usize) -> usize| {
        let fill = string(1).unwrap_or(" ");
        let missing = number(0).ok_or_else(bad)?.min(MAX_WIDTH).saturating_sub(text.chars().count());
        let left = place(missing);
        Ok(Value::from(format!("{}{text}{}", fill.repeat(left), fill.repeat(missing - left))))
    };
    let char_index = |at: Option<usize>| match at {
        Some(at) => Ok(Value::from(text[..at].chars().count())),
        None => Err(Error::new(ErrorKind::InvalidOperation, "substring not found")),
    };
    Some(match name {
        "removeprefix" => with_string(&|prefix| Ok(text.strip_prefix(prefix).unwrap_or(text).into())),
        "removesuffix" => with_string(&|suffix| Ok(text.strip_suffix(suffix).unwrap_or(text).into())),
        "index" => with_string(&|part| char_index(text.find(part))),
        "rindex" => with_string(&|part| char_index(text.rfind(part))),
        "partition" => with_string(&|part| {
            let (before, after) = text.split_once(part).map_or((text, None), |(a, b)| (a, Some(b)));
            Ok(strings(&[before, after.map_or("", |_| part), after.unwrap_or("")]))
        }),
        "rpartition" => with_string(&|part| {
            let (before, after) = text.rsplit_once(part).map_or((None, text), |(a, b)| (Some(a), b));
            Ok(strings(&[before.unwrap_or(""), before.map_or("", |_| part), after]))
        }),
        "rsplit" => with_string(&|part| {
            let limit = number(1).map_or(usize::MAX, |n| n.saturating_add(1));
            let mut parts: Vec<&str> = text.rsplitn(limit, part).collect();
            parts.reverse();
            Ok(strings(&parts))
        }),
        "ljust" => fill(&|_| 0),
        "rjust" => fill(&|missing| missing),
        // Python puts the odd one left where text and width are odd.
        "center" => fill(&|missing| missing / 2 + (missing & number(0).unwrap_or(0) & 1)),
        "zfill" => number(0).ok_or_else(bad).map(|width| {
            let (sign, digits) = match text.strip_prefix(['-', '+']) {
                Some(digits) => text.split_at(text.len() - digits.len()),
                None => ("", text),
            };
            let missing = width.min(MAX_WIDTH).saturating_sub(text.chars().count());
            Value::from(format!("{sign}{}{digits}", "0".repeat(missing)))
        }),
        "swapcase" => Ok(text.chars().map(swap_case).collect::<String>().into()),
        "casefold" => Ok(text.to_lowercase().into()),
        _ => return None,
    })
}

fn strings(parts: &[&str]) -> Value {
    parts.iter().map(|part| Value::from(*part)).collect()
}

/// Wider padding is no template's wish.
const MAX_WIDTH: usize = 4096;

fn swap_case(c: char) -> String {
    if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::context;

    fn render(source: &str) -> Result<String, Error> {
        let mut env = environment()?;
        env.add_template_owned("t", without_generation_tags(source))?;
        let context =
            context! { x => "Ab", n => Value::from(()), list => vec![1, 2], map => context! { k => "<v>" } };
        env.get_template("t")?.render(context)
    }

    fn check(source: &str, expected: &str) {
        assert_eq!(
            render(source).unwrap_or_else(|error| panic!("{source}: {error:#}")),
            expected,
            "{source}"
        );
    }

    #[test]
    fn renders_as_jinja2_does() {
        check("{{ map|tojson }} {{ list|tojson(indent=2) }}", "{\"k\": \"<v>\"} [\n  1,\n  2\n]");
        check(
            "{{ map|tojson(ensure_ascii=True, separators=(',', ':'), sort_keys=true) }}",
            "{\"k\":\"<v>\"}",
        );
        check(
            "{{ n is iterable }} {{ x is iterable }} {{ list is iterable }} {{ 3 is iterable }}",
            "False True True False",
        );
        check(
            "{{ x is sequence }} {{ map is sequence }} {{ list is sequence }} {{ n is sequence }}",
            "True True True False",
        );
        check("{{ n }} {{ true }} {{ list }} {{ undefined_name }}", "None True [1, 2] ");
        check("a\n  {% if true %}\n  b\n  {% endif %}\nc\n", "a\n  b\nc");
        check("{% for i in [1,2,3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "13");
        check("{{ '<a>' }}&", "<a>&");
        check(
            "{{ map }} {{ map|string }} {{ 1e-7 }} {{ 1e-7|string }} {{ [1e22, ('x', 1e-7), (2,)]|string }}",
            "{'k': '<v>'} {'k': '<v>'} 1e-07 1e-07 [1e+22, ('x', 1e-07), (2,)]",
        );
        assert_eq!(with_line_feeds("a\r\n{% if true %}\r\nb\rc\n\r"), "a\n{% if true %}\nb\nc\n\n");
    }

    #[test]
    fn generation_tags_leave_no_trace() {
        check("a {%- generation -%}\n b {% endgeneration %}\nc", "ab c");
        check("a{% generation %}\nb{% endgeneration %}\n\nc {% raw %}{% x %}{% endraw %}", "ab\nc {% x %}");
        check("no tags {{ '{%' }}", "no tags {%");
    }

    #[test]
    fn strings_have_pythons_methods() {
        check("{{ x.removeprefix('A') }} {{ x.removesuffix('z') }} {{ x.swapcase() }}", "b Ab aB");
        check(
            "{{ '-7'.zfill(4) }} {{ 'é'.ljust(3, '.') }} {{ 'é'.rjust(3) }}|{{ 'a'.center(4, '*') }} {{ 'ab'.center(5, '*') }}",
            "-007 é..   é|*a** **ab*",
        );
        check(
            "{{ 'a-b-c'.partition('-') }} {{ 'a-b-c'.rpartition('-') }} {{ 'abc'.rpartition('-') }}",
            "['a', '-', 'b-c'] ['a-b', '-', 'c'] ['', '', 'abc']",
        );
        check("{{ 'a,b,c'.rsplit(',', 1) }} {{ 'éab'.index('b') }} {{ ' x '.strip() }}", "['a,b', 'c'] 2 x");
        assert!(render("{{ 'a'.index('b') }}").is_err());
        assert!(render("{{ x.no_such_method() }}").is_err());
    }

    #[test]
    fn an_endless_template_runs_out_of_fuel() {
        let error =
            render("{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}");
        assert_eq!(error.expect_err("stopped").kind(), ErrorKind::OutOfFuel);
        assert!(render("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").is_err());
    }
}
