//! Pictures of a request, from URLs to what the model takes: fetched and processed on blocking threads, each in its own lane, so that a
//! slow host holds up neither pictures that are here nor, as these do not either, prompts without any.
//!
//! ```text
//!   URL ──data:──────────────────────┐
//!    └──http(s):── fetch lane ── bytes ── digest ── known? ─▶ frames
//!                                            └── decode, resize, patches ─▶ kept by digest
//! ```

use crate::blocking::{Blocking, Lane};
use crate::chat::image::cache::{Found, Frames, ProcessedImages, key, salted};
use crate::chat::image::remote::{ByteBudget, RemoteFetcher, RemotePolicy};
use crate::chat::image::{ImageInputError, ImageLimits, Media, decode, is_remote, read_data_url};
use crate::chat::{Message, Part, Picture};
use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::raw_prompt::{RawMessage, RawPart};
use futures::StreamExt;
use models::{ImageProcessor, ProcessedImage};
use scheduler::{Digest, ImageInput};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the configuration says about pictures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PictureOptions {
    pub limits: ImageLimits,
    pub remote: RemotePolicy,
    /// Bytes of processed pictures that are kept for requests to come.
    pub cache_bytes: usize,
    /// In one request, frames of animations counted one by one.
    pub max_pictures: usize,
}

impl Default for PictureOptions {
    fn default() -> Self {
        Self {
            limits: ImageLimits::default(),
            remote: RemotePolicy::default(),
            cache_bytes: 256 << 20,
            max_pictures: 64,
        }
    }
}

/// A picture as a request names it.
#[derive(Debug, Clone, Copy)]
struct Named<'a> {
    url: &'a str,
    media: Media,
    place: Place,
}

/// Where it is in the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    message: usize,
    part: usize,
    /// The part's field that holds the URL.
    field: &'static str,
}

impl RawPart {
    fn picture(&self, message: usize, part: usize) -> Option<Named<'_>> {
        let (url, media, field) = match self {
            RawPart::Text(_) => return None,
            RawPart::ImageUrl(url) => (url, Media::Image, "image_url"),
            RawPart::VideoUrl(url) => (url, Media::Video, "video_url"),
        };
        Some(Named { url, media, place: Place { message, part, field } })
    }
}

impl RawMessage {
    /// Of a message that has no pictures.
    fn into_text(self) -> Message {
        let Self { mut message, parts } = self;
        message.content = parts
            .into_iter()
            .filter_map(|part| match part {
                RawPart::Text(text) => Some(Part::Text(text)),
                RawPart::ImageUrl(_) | RawPart::VideoUrl(_) => None,
            })
            .collect();
        message
    }
}

fn named(messages: &[RawMessage]) -> Vec<Named<'_>> {
    let parts = messages.iter().enumerate().flat_map(|(m, message)| {
        message.parts.iter().enumerate().filter_map(move |(p, part)| part.picture(m, p))
    });
    parts.collect()
}

impl Place {
    fn invalid(self, message: impl ToString) -> ApiError {
        let Place { message: m, part: p, field } = self;
        ApiError::invalid(format!("messages[{m}].content[{p}].{field}"), message.to_string())
    }
}

/// Remote pictures of one request, each once, and what is needed to get them.
struct Fetches {
    urls: Vec<(String, Place)>,
    fetcher: Arc<RemoteFetcher>,
    lane: Lane,
    metrics: Arc<Metrics>,
}

/// Remote pictures of one request, by their URL.
#[derive(Debug, Default)]
struct Fetched(HashMap<String, Vec<u8>>);

impl Fetches {
    /// Gets them, or fails with the first that cannot be got.
    async fn run(self) -> Result<Fetched, ApiError> {
        let Self { urls, fetcher, lane, metrics } = self;
        let budget = ByteBudget::new(fetcher.policy().max_request_bytes);
        let timeout = fetcher.policy().timeout;
        let (urls, places): (Vec<_>, Vec<_>) = urls.into_iter().unzip();
        let fetches = urls.into_iter().map(move |url| {
            let (fetcher, lane, budget) = (fetcher.clone(), lane.clone(), budget.clone());
            async move {
                lane.run(move |blocking| {
                    let bytes = fetcher.fetch(blocking, &url, &budget);
                    (url, bytes)
                })
                .await
            }
        });
        let mut fetches = futures::stream::iter(fetches).buffered(FETCHES_OF_REQUEST_MAX);
        let mut fetched = HashMap::with_capacity(places.len());
        // Each is given its time, but not one after the other without end.
        let limit = ROUNDS_MAX * timeout;
        let deadline = tokio::time::Instant::now() + limit;
        for place in places {
            let Ok(next) = tokio::time::timeout_at(deadline, fetches.next()).await else {
                metrics.media_fetched(false);
                return Err(place.invalid(ImageInputError::RemoteTooSlow { limit }));
            };
            let (url, bytes) = next.expect("as many fetches as places")?;
            metrics.media_fetched(bytes.is_ok());
            fetched.insert(url, bytes.map_err(|error| place.invalid(error))?);
        }
        Ok(Fetched(fetched))
    }
}

pub struct Pictures {
    processor: Option<Arc<dyn ImageProcessor>>,
    limits: ImageLimits,
    max_pictures: usize,
    processed: ProcessedImages,
    fetcher: Arc<RemoteFetcher>,
    fetches: Lane,
    processing: Lane,
    metrics: Arc<Metrics>,
}

/// Fetches that run at a time, of all requests and of one.
const FETCHES_MAX: usize = 16;
const FETCHES_OF_REQUEST_MAX: usize = 4;
/// How often the time of one fetch all fetches of a request may take.
const ROUNDS_MAX: u32 = 4;

impl Pictures {
    pub fn new(
        options: PictureOptions,
        processor: Option<Arc<dyn ImageProcessor>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let PictureOptions { limits, remote, cache_bytes, max_pictures } = options;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            processor,
            limits,
            max_pictures,
            processed: ProcessedImages::new(cache_bytes),
            fetcher: Arc::new(RemoteFetcher::new(remote, limits.max_bytes)),
            fetches: Lane::new(FETCHES_MAX),
            processing: Lane::new(2 * cores),
            metrics,
        }
    }

    /// The messages with their pictures in the model's form, and how long it took to get there. What was processed for another `salt` is
    /// not known here, nor are its embeddings: neither a time nor a count tells whose pictures were here before.
    pub async fn see(
        self: &Arc<Self>,
        messages: Vec<RawMessage>,
        salt: Digest,
    ) -> Result<(Vec<Message>, Duration), ApiError> {
        let start = Instant::now();
        if named(&messages).is_empty() {
            return Ok((messages.into_iter().map(RawMessage::into_text).collect(), Duration::ZERO));
        }
        let fetches = self.plan_fetches(&named(&messages))?;
        let fetched = fetches.run().await?;
        let pictures = self.clone();
        let process = move |blocking: &Blocking| pictures.process_all(blocking, messages, &fetched, salt);
        let messages = self.processing.run(process).await??;
        Ok((messages, start.elapsed()))
    }

    /// What has to be fetched for a request. What is certain to be refused is refused before.
    fn plan_fetches(&self, named: &[Named<'_>]) -> Result<Fetches, ApiError> {
        if let Some(first) = named.first()
            && self.processor.is_none()
        {
            return Err(first.place.invalid(ImageInputError::NoEyes));
        }
        if let Some(surplus) = named.get(self.max_pictures) {
            return Err(surplus.place.invalid(self.too_many()));
        }
        let mut known = HashSet::new();
        let remote = named.iter().filter(|named| is_remote(named.url) && known.insert(named.url));
        let urls: Vec<_> = remote.map(|named| (named.url.to_owned(), named.place)).collect();
        if let Some((_, place)) = urls.first()
            && !self.fetcher.policy().is_enabled()
        {
            return Err(place.invalid(ImageInputError::Remote));
        }
        Ok(Fetches {
            urls,
            fetcher: self.fetcher.clone(),
            lane: self.fetches.clone(),
            metrics: self.metrics.clone(),
        })
    }

    fn process_all(
        &self,
        blocking: &Blocking,
        messages: Vec<RawMessage>,
        fetched: &Fetched,
        salt: Digest,
    ) -> Result<Vec<Message>, ApiError> {
        let mut num_pictures = 0;
        let mut built = Vec::with_capacity(messages.len());
        for (m, RawMessage { mut message, parts }) in messages.into_iter().enumerate() {
            for (p, part) in parts.into_iter().enumerate() {
                if let Some(named) = part.picture(m, p) {
                    let frames = self.frames(blocking, named, fetched, salt)?;
                    num_pictures += frames.len();
                    if num_pictures > self.max_pictures {
                        return Err(named.place.invalid(self.too_many()));
                    }
                    message.content.extend(frames.iter().cloned().map(Part::Image));
                } else if let RawPart::Text(text) = part {
                    message.content.push(Part::Text(text));
                }
            }
            built.push(message);
        }
        Ok(built)
    }

    /// The frames of one picture.
    fn frames(
        &self,
        blocking: &Blocking,
        named: Named<'_>,
        fetched: &Fetched,
        salt: Digest,
    ) -> Result<Frames, ApiError> {
        let invalid = |error: ImageInputError| named.place.invalid(error);
        let frames = match fetched.0.get(named.url) {
            Some(bytes) => self.process(blocking, bytes, salt),
            None => {
                let bytes = read_data_url(blocking, named.url, named.media, &self.limits).map_err(invalid)?;
                self.process(blocking, &bytes, salt)
            }
        };
        frames.map_err(invalid)
    }

    fn process(&self, blocking: &Blocking, bytes: &[u8], salt: Digest) -> Result<Frames, ImageInputError> {
        let (outcome, found) = self.processed.get(key(&salt, bytes), || {
            let processor = self.processor.as_ref().ok_or(ImageInputError::NoEyes)?;
            let mut frames = Vec::new();
            decode(blocking, bytes, (&self.limits, processor.transparency()), &mut |picture| {
                let image = processor.process(&picture.rgb, picture.width, picture.height);
                frames.push(match image.map_err(|error| ImageInputError::Unsuitable(error.to_string()))? {
                    ProcessedImage::Rows(image) => {
                        ImageInput { digest: salted(&salt, image.digest), ..image }.into()
                    }
                    // Blocks of tokens have the salt of their request.
                    ProcessedImage::Tokens(tokens) => Picture::Tokens(tokens.into()),
                });
                Ok(())
            })?;
            Ok(frames.into())
        });
        self.metrics.picture_looked_up(found == Found::Cached, self.processed.bytes());
        outcome
    }

    fn too_many(&self) -> String {
        format!("a request may hold {} pictures, frames of animations counted", self.max_pictures)
    }
}
