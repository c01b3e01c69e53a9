//! The document as one HTML page without scripts: an index, each operation with its fields, each schema once.

use serde_json::{Map, Value};
use std::fmt::Write;

const STYLE: &str = "
:root{color-scheme:light dark;--line:#8884;--soft:#8881;--accent:#3b6fd4}
body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.5rem;border-top:1px solid var(--line);padding-top:1rem}
h3{font-size:1rem;margin:1.2rem 0 .3rem}
code{font:13px/1.4 ui-monospace,monospace;background:var(--soft);padding:.1em .3em;border-radius:3px}
table{border-collapse:collapse;width:100%}td,th{border-top:1px solid var(--line);padding:.35rem .6rem .35rem 0;text-align:left;vertical-align:top}
td:first-child{white-space:nowrap}a{color:var(--accent);text-decoration:none}a:hover,a:focus{text-decoration:underline}
.method{display:inline-block;min-width:4.2em;font-weight:600}ul{padding-left:1.2rem}li{margin:.15rem 0}";

const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

pub fn render(document: &Value) -> String {
    let mut page = Page { out: String::with_capacity(64 << 10), schemas: &document["components"]["schemas"] };
    page.write(document);
    page.out
}

/// Text as it may stand between tags and in attributes.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

/// The same, with `code` between backticks.
fn prose(text: &str) -> String {
    let pieces = escape(text);
    let mut out = String::new();
    for (i, piece) in pieces.split('`').enumerate() {
        match i % 2 {
            0 => out.push_str(piece),
            _ => drop(write!(out, "<code>{piece}</code>")),
        }
    }
    out
}

struct Page<'a> {
    out: String,
    schemas: &'a Value,
}

impl Page<'_> {
    fn add(&mut self, html: impl AsRef<str>) {
        self.out.push_str(html.as_ref());
        self.out.push('\n');
    }

    fn write(&mut self, document: &Value) {
        let info = &document["info"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let title = format!("{} {}", escape(&text(&info["title"])), escape(&text(&info["version"])));
        self.add("<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">");
        self.add("<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">");
        self.add(format!("<title>{title}: API</title><style>{STYLE}</style></head><body><main>"));
        self.add(format!("<h1>{title}: API</h1><p>{}</p>", prose(&text(&info["description"]))));
        self.add("<p>The same as data: <a href=\"openapi.json\">openapi.json</a></p>");
        let empty = Map::new();
        let paths = document["paths"].as_object().unwrap_or(&empty);
        self.index(paths);
        for (path, method, operation) in operations(paths) {
            self.operation(path, method, operation, &aliases(paths, path));
        }
        self.add("<h2 id=\"schemas\">Objects</h2>");
        for (name, schema) in self.schemas.as_object().unwrap_or(&empty) {
            self.add(format!("<h3 id=\"schema-{0}\"><code>{0}</code></h3>", escape(name)));
            self.schema(schema, &[]);
        }
        self.add("</main></body></html>");
    }

    fn index(&mut self, paths: &Map<String, Value>) {
        self.add("<nav><ul>");
        for (path, method, operation) in operations(paths) {
            let summary = prose(operation["summary"].as_str().unwrap_or_default());
            let (id, method, path) = (anchor(method, path), method.to_uppercase(), escape(path));
            self.add(format!(
                "<li><a href=\"#{id}\"><span class=\"method\">{method}</span> <code>{path}</code></a> {summary}</li>"
            ));
        }
        self.add("</ul></nav>");
    }

    fn operation(&mut self, path: &str, method: &str, operation: &Value, aliases: &[&str]) {
        let shown = format!("{} {}", method.to_uppercase(), escape(path));
        self.add(format!("<h2 id=\"{}\"><code>{shown}</code></h2>", anchor(method, path)));
        if let Some(summary) = operation["summary"].as_str() {
            self.add(format!("<p>{}.</p>", prose(summary)));
        }
        for alias in aliases {
            self.add(format!("<p>Also at <code>{}</code>.</p>", escape(alias)));
        }
        if let Some(parameters) = operation["parameters"].as_array() {
            self.add("<h3>Parameters</h3><table>");
            for parameter in parameters {
                let name = parameter["name"].as_str().unwrap_or_default();
                let mut about = parameter.get("description").cloned().unwrap_or_default();
                if parameter["in"] == "path" {
                    about = "in the path".into();
                }
                self.row(name, false, &parameter["schema"], about.as_str().unwrap_or_default());
            }
            self.add("</table>");
        }
        self.body("Request", &operation["requestBody"]);
        self.body("Response", &operation["responses"]["200"]);
    }

    fn body(&mut self, title: &str, body: &Value) {
        let empty = Map::new();
        for (kind, content) in body["content"].as_object().unwrap_or(&empty) {
            self.add(format!("<h3>{title} <code>{}</code></h3>", escape(kind)));
            let schema = &content["schema"];
            match schema["allOf"].as_array() {
                // The parts of a request, in one list.
                Some(parts) => {
                    let required: Vec<&str> = parts.iter().flat_map(required).collect();
                    for part in parts {
                        let part = self.resolve(part);
                        self.schema(&part, &required);
                    }
                }
                None => {
                    let schema = self.resolve(schema);
                    self.schema(&schema, &[]);
                }
            }
        }
    }

    fn resolve(&self, schema: &Value) -> Value {
        let name = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next());
        name.map_or(schema, |name| &self.schemas[name]).clone()
    }

    /// An object's fields as a table; anything else as its type.
    fn schema(&mut self, schema: &Value, more_required: &[&str]) {
        if let Some(description) = schema["description"].as_str() {
            self.add(format!("<p>{}</p>", prose(description)));
        }
        let Some(properties) = schema["properties"].as_object() else {
            let kind = type_of(schema);
            if !kind.is_empty() {
                self.add(format!("<p>{kind}</p>"));
            }
            return;
        };
        let required: Vec<&str> = required(schema).chain(more_required.iter().copied()).collect();
        self.add("<table>");
        for (name, property) in properties {
            let about = property["description"].as_str().unwrap_or_default();
            self.row(name, required.contains(&name.as_str()), property, about);
        }
        self.add("</table>");
    }

    fn row(&mut self, name: &str, required: bool, schema: &Value, about: &str) {
        let mark = if required { " *" } else { "" };
        self.add(format!(
            "<tr><td><code>{}</code>{mark}</td><td>{}</td><td>{}</td></tr>",
            escape(name),
            type_of(schema),
            prose(about)
        ));
    }
}

fn required(schema: &Value) -> impl Iterator<Item = &str> {
    schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// All that are described in place, not by reference.
fn operations(paths: &Map<String, Value>) -> impl Iterator<Item = (&str, &str, &Value)> {
    paths.iter().flat_map(|(path, item)| {
        let methods = METHODS.into_iter().filter_map(move |method| Some((method, item.get(method)?)));
        methods.map(move |(method, operation)| (path.as_str(), method, operation))
    })
}

fn aliases<'a>(paths: &'a Map<String, Value>, path: &str) -> Vec<&'a str> {
    let target = format!("#/paths/{}", path.replace('~', "~0").replace('/', "~1"));
    let refers = |item: &Value| item["$ref"].as_str() == Some(&target);
    paths.iter().filter(|(_, item)| refers(item)).map(|(path, _)| path.as_str()).collect()
}

fn anchor(method: &str, path: &str) -> String {
    let clean: String = path.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    format!("{method}{clean}")
}

/// A schema's type in a few words, with links to the objects in it.
fn type_of(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
        return format!("<a href=\"#schema-{0}\">{0}</a>", escape(name));
    }
    for key in ["anyOf", "oneOf", "allOf"] {
        if let Some(choices) = schema[key].as_array() {
            // Every field may be null, which is the same as absent.
            let choices = choices.iter().filter(|choice| choice["type"] != "null").map(type_of);
            return choices.collect::<Vec<_>>().join(" or ");
        }
    }
    if let Some(value) = schema.get("const") {
        return format!("<code>{}</code>", escape(&value.to_string()));
    }
    if let Some(values) = schema["enum"].as_array() {
        let values = values.iter().filter(|value| !value.is_null());
        let values = values.map(|value| format!("<code>{}</code>", escape(&value.to_string())));
        return values.collect::<Vec<_>>().join(", ");
    }
    let kinds: Vec<&str> = match &schema["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => {
            kinds.iter().filter_map(Value::as_str).filter(|kind| *kind != "null").collect()
        }
        _ => Vec::new(),
    };
    let one = |kind: &&str| match (*kind, schema.get("items")) {
        ("array", Some(items)) => match type_of(items) {
            items if items.is_empty() => "list".to_owned(),
            items => format!("list of {items}"),
        },
        ("array", None) => "list".to_owned(),
        (kind, _) => escape(kind),
    };
    kinds.iter().map(one).collect::<Vec<_>>().join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn types_in_words() {
        let cases = [
            (json!({"type": ["string", "null"]}), "string"),
            (json!({"type": "array", "items": {"type": "integer"}}), "list of integer"),
            (json!({"type": "array", "items": true}), "list"),
            (
                json!({"anyOf": [{"$ref": "#/components/schemas/A"}, {"type": "null"}]}),
                "<a href=\"#schema-A\">A</a>",
            ),
            (json!({"enum": ["a", null]}), "<code>&quot;a&quot;</code>"),
            (json!(true), ""),
        ];
        for (schema, words) in cases {
            assert_eq!(type_of(&schema), words, "{schema}");
        }
        assert_eq!(prose("a `b<c` d"), "a <code>b&lt;c</code> d");
    }
}
