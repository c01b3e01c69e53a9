//! `/v1/files`: what batches read and write. Files belong to the server: every key sees all of them.

use crate::app::App;
use crate::batch::job::blocking;
use crate::disk::StoreError;
use crate::disk::files::{About, FileObject, Files, Upload};
use crate::disk::registry::Order;
use crate::error::ApiError;
use crate::openai::fields::{Fields, request_fields};
use crate::request::{Id, bad_query};
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{FromRequest, Multipart, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fs::File;
use std::io::Read;
use std::sync::{Arc, Mutex};
use std::time::Duration;

request_fields! {
    /// The parts of the form, besides `file`.
    pub struct UploadFields {
        /// What the file is for: `batch`, `assistants`, `fine-tune`, `vision`, `user_data` or `evals`. Only `batch` has a use here.
        purpose: String,
        /// As `expires_after[anchor]`, which is `created_at`, and `expires_after[seconds]`, from 3600 to 2592000.
        expires_after: ExpiresAfter,
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct ExpiresAfter {
    anchor: String,
    seconds: String,
}

/// The part with the content, for the API's document.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "only its schema is used")]
pub struct FilePart {
    /// The content, with a file name.
    file: String,
}

#[derive(Deserialize, JsonSchema)]
pub struct FileQuery {
    /// Only files for this.
    purpose: Option<String>,
    /// Most files to list, up to 10000, which is also the default.
    limit: Option<usize>,
    /// `asc` or `desc`, which is the default, by time.
    order: Option<String>,
    /// Go on after the file with this id.
    after: Option<String>,
}

/// One page of a list.
#[derive(Debug, Serialize, JsonSchema)]
pub struct List<T> {
    /// `list`.
    pub object: &'static str,
    pub data: Vec<T>,
    pub first_id: Option<String>,
    pub last_id: Option<String>,
    pub has_more: bool,
}

#[derive(Serialize, JsonSchema)]
pub struct DeletedFile {
    id: String,
    object: &'static str,
    deleted: bool,
}

const PURPOSES: [&str; 6] = ["assistants", "batch", "fine-tune", "vision", "user_data", "evals"];
const EXPIRY_S: std::ops::RangeInclusive<u64> = 3600..=2_592_000;
const NUM_LISTED_MAX: usize = 10_000;
/// Besides the file there are only short fields.
const TEXT_LEN_MAX: usize = 1024;
const NUM_FIELDS_MAX: usize = 16;
const FILENAME_CHARS_MAX: usize = 255;
/// What is written to disk in one go.
const CHUNK: usize = 1 << 20;
/// Beyond the file, for the other parts and what is around them.
const FORM_LEN_MAX: u64 = 64 << 10;

pub async fn upload(State(app): State<Arc<App>>, request: Request) -> Result<Json<FileObject>, ApiError> {
    let store = app.store()?;
    let limit = store.files.limits.file_len_max;
    let len =
        request.headers().get(header::CONTENT_LENGTH).and_then(|len| len.to_str().ok()?.parse::<u64>().ok());
    if len.is_some_and(|len| len > limit + FORM_LEN_MAX) {
        return Err(ApiError::BodyTooLarge { limit: limit as usize });
    }
    store.files.check_room(len.unwrap_or(0).saturating_sub(FORM_LEN_MAX))?;
    let form = Multipart::from_request(request, &app).await.map_err(|_| ApiError::UnsupportedMediaType {
        message: "the content-type header must be multipart/form-data with a boundary".into(),
    })?;
    let Form { file, fields } = Form::read(&app, &store.files, form).await?;
    let (upload, filename) = file.ok_or_else(|| ApiError::invalid("file", "is missing"))?;
    let about = lower(fields, filename)?;
    let store = store.clone();
    Ok(Json(on_disk(move || store.files.finish(upload, about)).await?))
}

/// The parts of an upload.
struct Form {
    file: Option<(Upload, String)>,
    fields: Map<String, Value>,
}

impl Form {
    async fn read(app: &Arc<App>, files: &Files, mut form: Multipart) -> Result<Self, ApiError> {
        let mut read = Self { file: None, fields: Map::new() };
        // A slow sender is one that stops, not one with much to send.
        let patience = app.limits.body_timeout;
        let mut num_fields = 0;
        while let Some(field) = in_time(patience, form.next_field()).await? {
            num_fields += 1;
            let name = field.name().unwrap_or_default().to_owned();
            if num_fields > NUM_FIELDS_MAX {
                return Err(ApiError::invalid(
                    "file",
                    format!("the form has more than {NUM_FIELDS_MAX} parts"),
                ));
            }
            if name == "file" {
                if read.file.is_some() {
                    return Err(ApiError::invalid("file", "is given twice"));
                }
                read.file = Some(receive(app, files, field, patience).await?);
            } else {
                let text = receive_text(&name, field, patience).await?;
                read.add(&name, text);
            }
        }
        Ok(read)
    }

    /// `a[b]` is the member `b` of the object `a`.
    fn add(&mut self, name: &str, text: String) {
        let text = Value::String(text);
        match name.split_once('[').and_then(|(outer, inner)| Some((outer, inner.strip_suffix(']')?))) {
            Some((outer, inner)) => {
                let object = self.fields.entry(outer).or_insert_with(|| Value::Object(Map::new()));
                if let Value::Object(object) = object {
                    object.insert(inner.to_owned(), text);
                }
            }
            None => drop(self.fields.insert(name.to_owned(), text)),
        }
    }
}

async fn in_time<T>(
    patience: Duration,
    part: impl Future<Output = Result<T, MultipartError>>,
) -> Result<T, ApiError> {
    match tokio::time::timeout(patience, part).await {
        Ok(Ok(part)) => Ok(part),
        Ok(Err(error)) => {
            Err(ApiError::invalid("file", format!("the form cannot be read: {}", error.body_text())))
        }
        Err(_) => Err(ApiError::BodyTooSlow),
    }
}

/// Writes the file to disk as it comes; in memory there is never more than a chunk of it.
async fn receive(
    app: &Arc<App>,
    files: &Files,
    mut field: Field<'_>,
    patience: Duration,
) -> Result<(Upload, String), ApiError> {
    let limit = files.limits.file_len_max;
    let filename = field.file_name().unwrap_or("file").chars().take(FILENAME_CHARS_MAX).collect();
    let store = app.store()?.clone();
    let mut upload = on_disk(move || store.files.begin()).await?;
    let mut chunk = Vec::with_capacity(CHUNK);
    loop {
        let bytes = in_time(patience, field.chunk()).await?;
        let is_end = bytes.is_none();
        chunk.extend_from_slice(&bytes.unwrap_or_default());
        if upload.len() + chunk.len() as u64 > limit {
            return Err(ApiError::BodyTooLarge { limit: limit as usize });
        }
        if is_end || chunk.len() >= CHUNK {
            let full = std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK));
            upload = on_disk(move || upload.write(&full).map(|()| upload)).await?;
        }
        if is_end {
            return Ok((upload, filename));
        }
    }
}

async fn receive_text(name: &str, mut field: Field<'_>, patience: Duration) -> Result<String, ApiError> {
    let mut text = Vec::new();
    while let Some(bytes) = in_time(patience, field.chunk()).await? {
        text.extend_from_slice(&bytes);
        if text.len() > TEXT_LEN_MAX {
            return Err(ApiError::invalid(name, format!("is longer than {TEXT_LEN_MAX} bytes")));
        }
    }
    String::from_utf8(text).map_err(|_| ApiError::invalid(name, "is not UTF-8"))
}

fn lower(fields: Map<String, Value>, filename: String) -> Result<About, ApiError> {
    let mut fields = Fields::of(fields);
    let UploadFields { purpose, expires_after } = UploadFields::take(&mut fields)?;
    fields.into_ignored()?;
    let purpose = purpose.ok_or_else(|| ApiError::invalid("purpose", "is missing"))?;
    if !PURPOSES.contains(&purpose.as_str()) {
        let message = format!("{purpose:?} is unknown; known are {}", PURPOSES.join(", "));
        return Err(ApiError::invalid("purpose", message));
    }
    let expires_after = expires_after.map(lower_expiry).transpose()?;
    Ok(About { filename, purpose, expires_after })
}

fn lower_expiry(ExpiresAfter { anchor, seconds }: ExpiresAfter) -> Result<u64, ApiError> {
    if anchor != "created_at" {
        return Err(ApiError::invalid("expires_after.anchor", format!("{anchor:?} is not \"created_at\"")));
    }
    seconds.parse().ok().filter(|seconds| EXPIRY_S.contains(seconds)).ok_or_else(|| {
        let message = format!("{seconds:?} is not a number from {} to {}", EXPIRY_S.start(), EXPIRY_S.end());
        ApiError::invalid("expires_after.seconds", message)
    })
}

/// Disks are slow, and async threads must not wait for them.
pub async fn on_disk<T: Send + 'static, E: Into<ApiError> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(%error, "work on the data folder broke");
        ApiError::Internal
    })?;
    done.map_err(Into::into)
}

fn missing(id: &str) -> ApiError {
    ApiError::NotFound { kind: "File", id: id.chars().take(64).collect() }
}

pub async fn list(
    State(app): State<Arc<App>>,
    query: Result<Query<FileQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<List<FileObject>>, ApiError> {
    let Query(FileQuery { purpose, limit, order, after }) = query.map_err(bad_query)?;
    let order = match order.as_deref() {
        None | Some("desc") => Order::NewestFirst,
        Some("asc") => Order::OldestFirst,
        Some(other) => return Err(ApiError::invalid("order", format!("{other:?} is neither asc nor desc"))),
    };
    let limit = check_limit(limit, NUM_LISTED_MAX, NUM_LISTED_MAX)?;
    let page = app.store()?.files.page(order, after.as_deref(), limit, purpose.as_deref());
    let page = page.ok_or_else(|| ApiError::invalid("after", "there is no such file"))?;
    Ok(Json(List::new(page.items, page.has_more, |file| &file.id)))
}

pub fn check_limit(limit: Option<usize>, default: usize, max: usize) -> Result<usize, ApiError> {
    match limit.unwrap_or(default) {
        limit if (1..=max).contains(&limit) => Ok(limit),
        limit => Err(ApiError::invalid("limit", format!("{limit} is not in [1, {max}]"))),
    }
}

impl<T> List<T> {
    pub fn new(data: Vec<T>, has_more: bool, id: impl Fn(&T) -> &String) -> Self {
        let (first_id, last_id) =
            (data.first().map(|item| id(item).clone()), data.last().map(|item| id(item).clone()));
        Self { object: "list", data, first_id, last_id, has_more }
    }
}

pub async fn retrieve(State(app): State<Arc<App>>, Id(id): Id) -> Result<Json<FileObject>, ApiError> {
    app.store()?.files.get(&id).map(Json).ok_or_else(|| missing(&id))
}

pub async fn remove(State(app): State<Arc<App>>, Id(id): Id) -> Result<Json<DeletedFile>, ApiError> {
    let store = app.store()?.clone();
    if let Some(batch) = store.user_of(&id) {
        return Err(ApiError::Conflict { message: format!("{batch} still reads this file") });
    }
    let asked = id.clone();
    match on_disk(move || store.files.delete(&asked)).await? {
        true => Ok(Json(DeletedFile { id, object: "file", deleted: true })),
        false => Err(missing(&id)),
    }
}

/// The content as it came, never to be taken for a page.
pub async fn content(State(app): State<Arc<App>>, Id(id): Id) -> Result<Response, ApiError> {
    let (store, asked) = (app.store()?.clone(), id.clone());
    let open = move || {
        store
            .files
            .open_content(&asked)
            .map_err(|source| StoreError::Io { context: "failed to open a file", source })
    };
    let (file, object) = on_disk(open).await?.ok_or_else(|| missing(&id))?;
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_LENGTH, object.bytes.into());
    let file = Arc::new(Mutex::new(file));
    let chunks = futures::stream::try_unfold(file, |file| async move {
        let reader = file.clone();
        let chunk = blocking(move || read_chunk(&mut crate::batch::job::lock(&reader))).await?;
        Ok::<_, std::io::Error>((!chunk.is_empty()).then_some((chunk, file)))
    });
    Ok((headers, Body::from_stream(chunks)).into_response())
}

fn read_chunk(file: &mut File) -> std::io::Result<Bytes> {
    let mut chunk = Vec::new();
    file.by_ref().take(CHUNK as u64 / 4).read_to_end(&mut chunk)?;
    Ok(chunk.into())
}
