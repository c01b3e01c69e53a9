//! The API described by the API: `/openapi.json` (OpenAPI 3.1) and `/docs`, a page to read it. Paths come from the router's own table,
//! schemas from the types that requests are read into and responses written from, so neither can say what the code does not.

mod operations;
mod page;

use crate::route::{Access, Route};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use operations::{Body, OPERATIONS, Operation};
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};
use std::sync::OnceLock;

/// The document of these routes, which are those of this server.
pub fn json_document(routes: fn() -> Vec<Route>, root_path: &str) -> Response {
    static TEXT: OnceLock<String> = OnceLock::new();
    let text = TEXT.get_or_init(|| document(&routes()).to_string());
    let json = [(header::CONTENT_TYPE, "application/json")];
    if root_path.is_empty() {
        return (json, text.as_str()).into_response();
    }
    let servers = json!([{ "url": root_path }]);
    (json, format!("{{\"servers\":{servers},{}", &text[1..])).into_response()
}

/// Nothing on the page comes from elsewhere, and nothing on it runs.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'; form-action 'none'";

/// The same to read.
pub fn docs_page(routes: fn() -> Vec<Route>) -> Response {
    static TEXT: OnceLock<String> = OnceLock::new();
    let text = TEXT.get_or_init(|| page::render(&document(&routes())));
    let mut response = ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], text.as_str()).into_response();
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY));
    response
}

/// The whole document.
pub fn document(routes: &[Route]) -> Value {
    let mut describer = Describer::new();
    let mut paths: Map<String, Value> = Map::new();
    for route in routes {
        let path = documented(route.path);
        let canonical = canonical(route.pair);
        if canonical != route.path {
            let target = documented(canonical).replace('~', "~0").replace('/', "~1");
            paths.insert(path, json!({ "$ref": format!("#/paths/{target}") }));
            continue;
        }
        let operation = describer.operation(route.method, route.path, route.access);
        let item = paths.entry(path).or_insert_with(|| json!({}));
        item[route.method.to_lowercase()] = operation;
    }
    let error = describer.responses.subschema_for::<crate::error::Envelope>().to_value();
    json!({
        "openapi": "3.1.0",
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": {
            "title": "Perilune",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "OpenAI-compatible inference server. A field of a request that is `null` counts as absent. Fields that are not \
                listed have no effect and are named in the response header `x-ignored-params`; those that would constrain the answer are \
                refused with 400.",
        },
        "paths": paths,
        "components": {
            "schemas": describer.definitions(),
            "responses": {
                "Error": { "description": "What is wrong.", "content": { "application/json": { "schema": error } } },
            },
            "securitySchemes": { "key": { "type": "http", "scheme": "bearer" } },
        },
    })
}

/// Whether the requests of `POST path` have a field of this name.
pub fn takes_field(path: &str, field: &str) -> bool {
    let described =
        OPERATIONS.iter().find(|operation| operation.path() == path && operation.method() == "POST");
    let Some(Body::Json(parts)) = described.map(|operation| &operation.request) else { return false };
    let mut describer = Describer::new();
    for part in *parts {
        part(&mut describer.requests);
    }
    describer.requests.definitions().values().any(|schema| schema["properties"].get(field).is_some())
}

/// The path under which a route is described; the same route has a second one, with or without `/v1`.
fn canonical(pair: [&'static str; 2]) -> &'static str {
    pair.into_iter()
        .find(|path| OPERATIONS.iter().any(|operation| operation.path() == *path))
        .unwrap_or(pair[0])
}

/// OpenAPI has no wildcards over several segments.
fn documented(path: &str) -> String {
    path.replace("{*", "{")
}

/// Collects schemas while operations are described. Requests and responses are seen from opposite sides: what may be left out differs.
struct Describer {
    requests: SchemaGenerator,
    responses: SchemaGenerator,
}

impl Describer {
    fn new() -> Self {
        let settings = || {
            SchemaSettings::draft2020_12().with(|settings| {
                settings.definitions_path = "/components/schemas".into();
                settings.meta_schema = None;
            })
        };
        Self { requests: settings().into_generator(), responses: settings().for_serialize().into_generator() }
    }

    fn definitions(mut self) -> Map<String, Value> {
        let mut all = self.requests.take_definitions(true);
        for (name, schema) in self.responses.take_definitions(true) {
            all.entry(name).or_insert(schema);
        }
        all
    }

    fn operation(&mut self, method: &str, path: &str, access: Access) -> Value {
        let described =
            OPERATIONS.iter().find(|operation| operation.path() == path && operation.method() == method);
        let fallback = Operation::new("", "");
        let operation = described.unwrap_or(&fallback);
        let mut value = json!({ "operationId": operation_id(method, path) });
        if !operation.summary.is_empty() {
            value["summary"] = operation.summary.into();
        }
        let parameters: Vec<Value> = path_parameters(path).chain(self.query_parameters(operation)).collect();
        if !parameters.is_empty() {
            value["parameters"] = parameters.into();
        }
        match (&operation.request, method) {
            (Body::None, "POST") if described.is_none() => {
                value["requestBody"] = content("application/json", json!({ "type": "object" }));
            }
            (Body::None, _) => {}
            (body, _) => {
                let mut request = self.request(body, operation.required);
                request["required"] = true.into();
                value["requestBody"] = request;
            }
        }
        value["responses"] = self.responses_of(operation);
        value["security"] = match access {
            Access::Open => json!([]),
            // Where the server has keys, one of them; where it has none, nothing.
            Access::Key => json!([{ "key": [] }, {}]),
        };
        value
    }

    fn query_parameters(&mut self, operation: &Operation) -> Vec<Value> {
        let Some(query) = operation.query else { return Vec::new() };
        // A generator of its own: the type is taken apart and appears nowhere as a whole.
        let mut generator = Describer::new().requests;
        let reference = query(&mut generator).to_value();
        let definitions = generator.take_definitions(true);
        let name = reference["$ref"].as_str().and_then(|path| path.rsplit('/').next()).unwrap_or_default();
        let properties = definitions.get(name).and_then(|schema| schema["properties"].as_object());
        let parameter = |(name, schema): (&String, &Value)| {
            let mut schema = schema.clone();
            let description = schema.as_object_mut().and_then(|schema| schema.shift_remove("description"));
            let mut parameter = json!({ "name": name, "in": "query", "required": false });
            if let Some(description) = description {
                parameter["description"] = description;
            }
            parameter["schema"] = schema;
            parameter
        };
        properties.into_iter().flatten().map(parameter).collect()
    }

    fn request(&mut self, body: &Body, required: &[&str]) -> Value {
        let (kind, parts) = match body {
            Body::None => return Value::Null,
            Body::Json(parts) => ("application/json", *parts),
            Body::Multipart(parts) => ("multipart/form-data", *parts),
            Body::Other(kind) => return content(kind, json!({})),
        };
        let mut schemas: Vec<Value> = parts.iter().map(|part| part(&mut self.requests).to_value()).collect();
        if !required.is_empty() {
            schemas.push(json!({ "required": required }));
        }
        let schema = match schemas.len() {
            1 => schemas.remove(0),
            _ => json!({ "allOf": schemas }),
        };
        content(kind, schema)
    }

    fn responses_of(&mut self, operation: &Operation) -> Value {
        let mut response = match &operation.response {
            Body::None => json!({}),
            Body::Json(parts) => match parts {
                [part] => content("application/json", part(&mut self.responses).to_value()),
                parts => {
                    let schemas: Vec<Value> =
                        parts.iter().map(|part| part(&mut self.responses).to_value()).collect();
                    content("application/json", json!({ "anyOf": schemas }))
                }
            },
            Body::Multipart(_) => json!({}),
            Body::Other(kind) => content(kind, json!({})),
        };
        if operation.streams {
            response["content"]["text/event-stream"] = json!({ "schema": {
                "type": "string",
                "description": "Lines `data: ` with a JSON object each, separated by empty lines; the last is `data: [DONE]`. Anthropic's events have a line `event: ` before, and end with `message_stop` or `error`.",
            } });
        }
        response["description"] = "OK".into();
        json!({ "200": response, "default": { "$ref": "#/components/responses/Error" } })
    }
}

fn content(kind: &str, schema: Value) -> Value {
    json!({ "content": { kind: { "schema": schema } } })
}

fn path_parameters(path: &str) -> impl Iterator<Item = Value> {
    path.split('/').filter_map(|segment| {
        let name = segment.strip_prefix('{')?.strip_suffix('}')?.trim_start_matches('*');
        Some(json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
    })
}

fn operation_id(method: &str, path: &str) -> String {
    let words =
        path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty() && *word != "v1");
    words.fold(method.to_lowercase(), |id, word| id + "_" + word)
}
