//! `tools`, `tool_choice`, `parallel_tool_calls`, and the deprecated `functions` and `function_call`: checked, and made one.

use crate::error::ApiError;
use crate::openai::tools::{Function, ToolChoice, ToolUse};
use serde_json::{Map, Value};
use std::collections::HashSet;

/// As they were sent.
pub struct ToolFields {
    pub tools: Option<Vec<Value>>,
    pub tool_choice: Option<Value>,
    pub parallel_tool_calls: Option<bool>,
    pub functions: Option<Vec<Value>>,
    pub function_call: Option<Value>,
}

/// Several servers of tools (MCP) behind one client have more than the 128 that OpenAI's API takes.
const NUM_TOOLS_MAX: usize = 1024;
/// As OpenAI's API has it.
const NAME_LEN_MAX: usize = 64;

/// `None` where no tool may be called. The second value: the request spoke of `functions`, and is answered so.
pub fn lower(fields: ToolFields) -> Result<(Option<ToolUse>, bool), ApiError> {
    let ToolFields { tools, tool_choice, parallel_tool_calls, functions, function_call } = fields;
    match (tools, functions) {
        (Some(_), Some(_)) => {
            Err(ApiError::invalid("functions", "is what `tools` was called before: only one can be given"))
        }
        (tools, None) => {
            if function_call.is_some_and(|choice| !is_idle(&choice)) {
                return Err(ApiError::invalid("function_call", "is only allowed when `functions` are given"));
            }
            let parallel = parallel_tool_calls.unwrap_or(true);
            Ok((lower_tools(tools, tool_choice, parallel)?, false))
        }
        (None, Some(functions)) => {
            if tool_choice.is_some_and(|choice| !is_idle(&choice)) {
                return Err(ApiError::invalid("tool_choice", "is only allowed when `tools` are given"));
            }
            let functions = lower_list("functions", functions, lower_function)?;
            let choice = lower_function_call(function_call, &functions)?;
            Ok((choice.map(|choice| ToolUse::new(functions, choice, false)), true))
        }
    }
}

/// Asks for what happens anyway where there are no tools.
fn is_idle(choice: &Value) -> bool {
    choice == "none" || choice == "auto"
}

fn lower_tools(
    tools: Option<Vec<Value>>,
    choice: Option<Value>,
    parallel: bool,
) -> Result<Option<ToolUse>, ApiError> {
    let Some(tools) = tools else {
        return match choice {
            Some(choice) if !is_idle(&choice) => {
                Err(ApiError::invalid("tool_choice", "is only allowed when `tools` are given"))
            }
            _ => Ok(None),
        };
    };
    let mut functions = lower_list("tools", tools, lower_tool)?;
    let choice = match choice {
        None => Some(ToolChoice::Auto),
        Some(Value::String(word)) => match word.as_str() {
            "none" => None,
            "auto" => Some(ToolChoice::Auto),
            "required" => Some(ToolChoice::Required),
            _ => return Err(unknown_choice("tool_choice")),
        },
        Some(Value::Object(choice)) => Some(lower_choice(choice, &mut functions)?),
        Some(_) => return Err(unknown_choice("tool_choice")),
    };
    Ok(choice.map(|choice| ToolUse::new(functions, choice, parallel)))
}

fn unknown_choice(path: &str) -> ApiError {
    ApiError::invalid(
        path,
        "expected none, auto, required, {\"type\": \"function\", \"function\": {\"name\": …}}, or an object of type allowed_tools",
    )
}

fn lower_choice(choice: Map<String, Value>, functions: &mut Vec<Function>) -> Result<ToolChoice, ApiError> {
    match choice.get("type").and_then(Value::as_str) {
        Some("function") => {
            let function = choice.get("function").unwrap_or(&Value::Null);
            find(functions, &function["name"], "tool_choice.function.name").map(ToolChoice::Named)
        }
        Some("allowed_tools") => {
            let path = "tool_choice.allowed_tools";
            let allowed = choice.get("allowed_tools").unwrap_or(&Value::Null);
            let mode = match allowed["mode"].as_str() {
                Some("auto") => ToolChoice::Auto,
                Some("required") => ToolChoice::Required,
                _ => return Err(ApiError::invalid(format!("{path}.mode"), "expected auto or required")),
            };
            let tools = allowed["tools"].as_array().filter(|tools| !tools.is_empty());
            let tools =
                tools.ok_or_else(|| ApiError::invalid(format!("{path}.tools"), "is missing or empty"))?;
            let known: HashSet<&str> = functions.iter().map(|function| function.name.as_str()).collect();
            let mut kept = HashSet::new();
            for (i, tool) in tools.iter().enumerate() {
                let path = format!("{path}.tools[{i}].function.name");
                let name = name_in(&tool["function"]["name"], &path)?;
                kept.insert(*known.get(name).ok_or_else(|| no_such_tool(name, &path))?);
            }
            let kept: HashSet<String> = kept.into_iter().map(str::to_owned).collect();
            functions.retain(|function| kept.contains(&function.name));
            Ok(mode)
        }
        _ => Err(unknown_choice("tool_choice")),
    }
}

fn lower_function_call(
    choice: Option<Value>,
    functions: &[Function],
) -> Result<Option<ToolChoice>, ApiError> {
    match choice {
        None => Ok(Some(ToolChoice::Auto)),
        Some(Value::String(word)) if word == "auto" => Ok(Some(ToolChoice::Auto)),
        Some(Value::String(word)) if word == "none" => Ok(None),
        Some(Value::Object(choice)) => {
            let name = choice.get("name").unwrap_or(&Value::Null);
            find(functions, name, "function_call.name").map(|index| Some(ToolChoice::Named(index)))
        }
        Some(_) => Err(ApiError::invalid("function_call", "expected none, auto or {\"name\": …}")),
    }
}

/// The index of the function of that name.
fn find(functions: &[Function], name: &Value, path: &str) -> Result<usize, ApiError> {
    let name = name_in(name, path)?;
    let found = functions.iter().position(|function| function.name == name);
    found.ok_or_else(|| no_such_tool(name, path))
}

fn name_in<'a>(name: &'a Value, path: &str) -> Result<&'a str, ApiError> {
    name.as_str().ok_or_else(|| ApiError::invalid(path, "is missing or not a string"))
}

fn no_such_tool(name: &str, path: &str) -> ApiError {
    ApiError::invalid(path, format!("there is no tool `{name}` in this request"))
}

fn lower_list(
    field: &str,
    list: Vec<Value>,
    lower: impl Fn(&str, Value) -> Result<Function, ApiError>,
) -> Result<Vec<Function>, ApiError> {
    if list.is_empty() || list.len() > NUM_TOOLS_MAX {
        let message = format!("{} entries are not in [1, {NUM_TOOLS_MAX}]", list.len());
        return Err(ApiError::invalid(field, message));
    }
    let mut functions: Vec<Function> = Vec::with_capacity(list.len());
    let mut names = HashSet::with_capacity(list.len());
    for (i, value) in list.into_iter().enumerate() {
        let function = lower(&format!("{field}[{i}]"), value)?;
        if !names.insert(function.name.clone()) {
            let path = if field == "tools" {
                format!("tools[{i}].function.name")
            } else {
                format!("{field}[{i}].name")
            };
            return Err(ApiError::invalid(path, format!("`{}` is given twice", function.name)));
        }
        functions.push(function);
    }
    Ok(functions)
}

fn lower_tool(path: &str, tool: Value) -> Result<Function, ApiError> {
    let Value::Object(mut tool) = tool else {
        return Err(ApiError::invalid(path, "expected an object"));
    };
    match tool.get("type") {
        None | Some(Value::Null) => {
            return Err(ApiError::invalid(format!("{path}.type"), "is missing"));
        }
        Some(Value::String(kind)) if kind == "function" => {}
        Some(kind) => {
            let message = format!("tools of type {kind} are not understood; known is function");
            return Err(ApiError::unsupported(format!("{path}.type"), message));
        }
    }
    let path = format!("{path}.function");
    let function = tool.shift_remove("function").ok_or_else(|| ApiError::invalid(&path, "is missing"))?;
    // Some clients put it beside the function.
    let outer_strict = tool.shift_remove("strict");
    let mut function = lower_function(&path, function)?;
    if outer_strict == Some(Value::Bool(true)) {
        function.strict = true;
    }
    Ok(function)
}

fn lower_function(path: &str, function: Value) -> Result<Function, ApiError> {
    let Value::Object(mut shown) = function else {
        return Err(ApiError::invalid(path, "expected an object"));
    };
    let at = |field: &str| format!("{path}.{field}");
    let name = match shown.get("name") {
        Some(Value::String(name)) => name.clone(),
        None | Some(Value::Null) => return Err(ApiError::invalid(at("name"), "is missing")),
        Some(_) => return Err(ApiError::invalid(at("name"), "expected a string")),
    };
    check_name(&at("name"), &name)?;
    if !matches!(shown.get("description"), None | Some(Value::Null | Value::String(_))) {
        return Err(ApiError::invalid(at("description"), "expected a string"));
    }
    let strict = match shown.shift_remove("strict") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(strict)) => strict,
        Some(_) => return Err(ApiError::invalid(at("strict"), "expected a boolean")),
    };
    let parameters = match shown.get("parameters") {
        None | Some(Value::Null) => Value::Object(Map::new()),
        Some(parameters @ Value::Object(_)) => parameters.clone(),
        Some(_) => {
            return Err(ApiError::invalid(at("parameters"), "expected a JSON schema, which is an object"));
        }
    };
    Ok(Function { name, parameters, strict, path: path.to_owned(), shown })
}

/// OpenAI's pattern.
fn check_name(path: &str, name: &str) -> Result<(), ApiError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || name.len() > NAME_LEN_MAX || !name.chars().all(fits) {
        let message = format!("does not match ^[a-zA-Z0-9_-]{{1,{NAME_LEN_MAX}}}$");
        return Err(ApiError::invalid(path, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn lower_json(request: Value) -> Result<(Option<ToolUse>, bool), String> {
        let field = |name: &str| request.get(name).cloned();
        let list = |name: &str| field(name).and_then(|list| list.as_array().cloned());
        lower(ToolFields {
            tools: list("tools"),
            tool_choice: field("tool_choice"),
            parallel_tool_calls: field("parallel_tool_calls").and_then(|flag| flag.as_bool()),
            functions: list("functions"),
            function_call: field("function_call"),
        })
        .map_err(|error| error.json())
    }

    fn tool(name: &str) -> Value {
        json!({"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}})
    }

    #[test]
    fn choices() {
        let two = json!([tool("a"), tool("b")]);
        for (choice, expected) in [
            (json!(null), Some((2, ToolChoice::Auto))),
            (json!("auto"), Some((2, ToolChoice::Auto))),
            (json!("none"), None),
            (json!("required"), Some((2, ToolChoice::Required))),
            (json!({"type": "function", "function": {"name": "b"}}), Some((2, ToolChoice::Named(1)))),
            (
                json!({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [tool("b")]}}),
                Some((1, ToolChoice::Required)),
            ),
        ] {
            let mut request = json!({"tools": two});
            if !choice.is_null() {
                request["tool_choice"] = choice.clone();
            }
            let (used, is_legacy) = lower_json(request).unwrap_or_else(|error| panic!("{choice}: {error}"));
            assert_eq!(used.map(|used| (used.functions().len(), used.choice)), expected, "{choice}");
            assert!(!is_legacy);
        }
        let (used, _) = lower_json(json!({"tools": two, "parallel_tool_calls": false})).expect("valid");
        assert!(!used.expect("tools").parallel);
        let functions = json!([{"name": "a"}, {"name": "b"}]);
        for (choice, expected) in [
            (json!("auto"), Some(ToolChoice::Auto)),
            (json!("none"), None),
            (json!({"name": "b"}), Some(ToolChoice::Named(1))),
        ] {
            let (used, is_legacy) =
                lower_json(json!({"functions": functions, "function_call": choice})).expect("valid");
            assert_eq!(
                (used.map(|used| (used.choice, used.parallel)), is_legacy),
                (expected.map(|c| (c, false)), true)
            );
        }
        for idle in [json!({}), json!({"tool_choice": "none"}), json!({"function_call": "auto"})] {
            assert_eq!(lower_json(idle), Ok((None, false)));
        }
    }

    #[test]
    fn templates_see_what_was_sent() {
        let sent = json!({"type": "function", "function": {
            "name": "f", "description": "d", "strict": true, "parameters": {"type": "object"}, "x-more": 1,
        }});
        let (used, _) = lower_json(json!({"tools": [sent]})).expect("valid");
        let used = used.expect("tools");
        assert!(used.functions()[0].strict);
        let expected = json!({"type": "function", "function": {
            "name": "f", "description": "d", "parameters": {"type": "object"}, "x-more": 1,
        }});
        assert_eq!(used.shown(), json!([expected]));
    }

    #[test]
    fn refusals_name_the_field() {
        let long = "x".repeat(65);
        for (request, param) in [
            (json!({"tools": []}), "tools"),
            (json!({"tools": vec![tool("a"); 1025]}), "tools"),
            (json!({"tools": [1]}), "tools[0]"),
            (json!({"tools": [{"function": {"name": "a"}}]}), "tools[0].type"),
            (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
            (json!({"tools": [{"type": "function"}]}), "tools[0].function"),
            (json!({"tools": [tool("a"), {"type": "function", "function": {}}]}), "tools[1].function.name"),
            (json!({"tools": [tool("a b")]}), "tools[0].function.name"),
            (json!({"tools": [tool(&long)]}), "tools[0].function.name"),
            (json!({"tools": [tool("a"), tool("b"), tool("a")]}), "tools[2].function.name"),
            (
                json!({"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]}),
                "tools[0].function.parameters",
            ),
            (
                json!({"tools": [{"type": "function", "function": {"name": "a", "strict": 1}}]}),
                "tools[0].function.strict",
            ),
            (json!({"tools": [tool("a")], "tool_choice": "always"}), "tool_choice"),
            (json!({"tools": [tool("a")], "tool_choice": 1}), "tool_choice"),
            (
                json!({"tools": [tool("a")], "tool_choice": {"type": "function", "function": {"name": "b"}}}),
                "tool_choice.function.name",
            ),
            (json!({"tools": [tool("a")], "tool_choice": {"type": "function"}}), "tool_choice.function.name"),
            (
                json!({"tools": [tool("a")], "tool_choice": {"type": "allowed_tools"}}),
                "tool_choice.allowed_tools.mode",
            ),
            (
                json!({"tools": [tool("a")], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [tool("b")]}}}),
                "tool_choice.allowed_tools.tools[0].function.name",
            ),
            (json!({"tool_choice": "required"}), "tool_choice"),
            (json!({"function_call": {"name": "a"}}), "function_call"),
            (json!({"tools": [tool("a")], "functions": [{"name": "a"}]}), "functions"),
            (json!({"functions": [{"name": "a"}], "function_call": {"name": "b"}}), "function_call.name"),
            (json!({"functions": [{"name": "a"}, {"name": "a"}]}), "functions[1].name"),
            (json!({"functions": [{"name": "a"}], "tool_choice": "required"}), "tool_choice"),
        ] {
            let error = lower_json(request.clone()).expect_err("refused");
            assert!(error.contains(&format!("\"param\":\"{param}\"")), "{request}: {error}");
        }
    }
}
