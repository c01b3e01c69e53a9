//! Bodies of requests: read within limits of size and time, and counted as long as they, or what was parsed of them, are in memory. One
//! bound holds for all connections together: without one, as many clients as there are connections could each send what one may.

use crate::error::ApiError;
use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use prometheus::IntGauge;
use serde_json::Value;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// What bodies take together, in bytes.
pub struct BodyMemory {
    limit: usize,
    used: AtomicUsize,
    gauge: IntGauge,
}

/// Bodies up to this size may take what larger ones leave free, so that uploads of pictures keep no short request out.
const SHORT: usize = 64 << 10;

impl BodyMemory {
    pub fn new(limit: usize, gauge: IntGauge) -> Self {
        Self { limit, used: AtomicUsize::new(0), gauge }
    }

    /// What there is for a body of `len` bytes and all others.
    fn room(&self, len: usize) -> usize {
        if len <= SHORT { self.limit } else { self.limit - self.limit / 8 }
    }

    /// A share for what this process reads itself, a line of a batch, which can wait: half of all is left to clients. `None`: not now. A share
    /// above that half is taken when nothing else is.
    pub fn hold_patiently(self: &Arc<Self>, bytes: usize) -> Option<Held> {
        let room = self.limit / 2;
        let mut held = Held::new(self.clone());
        held.grow_within(bytes.min(room), room).then_some(held)
    }

    /// Whether a body of this many bytes could be taken now.
    fn has_room(&self, len: usize) -> bool {
        self.used.load(Ordering::Relaxed).saturating_add(len) <= self.room(len)
    }
}

/// A share of the memory, given back when it is dropped.
pub struct Held {
    memory: Arc<BodyMemory>,
    bytes: usize,
}

impl Held {
    fn new(memory: Arc<BodyMemory>) -> Self {
        Self { memory, bytes: 0 }
    }

    /// Takes what is missing to `bytes`, or nothing.
    fn grow(&mut self, bytes: usize) -> bool {
        self.grow_within(bytes, self.memory.room(bytes))
    }

    fn grow_within(&mut self, bytes: usize, room: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        let add = |used: usize| used.checked_add(more).filter(|&used| used <= room);
        let is_taken = self.memory.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok();
        if is_taken {
            self.bytes += more;
            self.memory.gauge.add(more as i64);
        }
        is_taken
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.memory.used.fetch_sub(self.bytes, Ordering::Relaxed);
        self.memory.gauge.sub(self.bytes as i64);
    }
}

/// A body, counted until it is dropped.
pub struct RequestBody {
    bytes: Bytes,
    /// `None`: it is counted by who made the request.
    held: Option<Held>,
}

impl RequestBody {
    /// The bytes are gone; what was parsed of them is counted until this is dropped.
    pub fn parsed(self) -> Option<Held> {
        self.held
    }
}

impl Deref for RequestBody {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A body of this process's own, which is in memory already.
pub async fn own(body: Body, len_max: usize) -> Result<RequestBody, ApiError> {
    let body = Limited::new(body, len_max).collect().await;
    let body = body.map_err(|_| ApiError::BodyTooLarge { limit: len_max })?;
    Ok(RequestBody { bytes: body.to_bytes(), held: None })
}

/// For one body.
#[derive(Debug, Clone, Copy)]
pub struct BodyLimits {
    /// In bytes.
    pub len_max: usize,
    /// For a whole body, and longer for a long one that comes steadily.
    pub timeout: Duration,
}

/// Whoever sends this many bytes a second is not too slow, however long a body of pictures takes.
const BYTES_A_SECOND: u64 = 64 << 10;

/// Reads a whole body. One for which there is no memory is refused before it comes where the client asked first (`Expect: 100-continue`),
/// else when it has come: who is still sending would not read an answer.
pub async fn read(
    body: Body,
    headers: &HeaderMap,
    limits: BodyLimits,
    memory: &Arc<BodyMemory>,
) -> Result<RequestBody, ApiError> {
    let BodyLimits { len_max: limit, timeout } = limits;
    let len = content_length(headers);
    if len.is_some_and(|len| len > limit as u64) {
        return Err(ApiError::BodyTooLarge { limit });
    }
    let mut has_room = len.is_none_or(|len| memory.has_room(len as usize));
    if !has_room && headers.contains_key(header::EXPECT) {
        return Err(ApiError::BodyMemoryFull { is_read: false });
    }
    let mut deadline = tokio::time::Instant::now() + timeout;
    let mut body = Limited::new(body, limit);
    let mut held = Held::new(memory.clone());
    let mut first = Bytes::new();
    let mut whole: Vec<u8> = Vec::new();
    let mut overhead = 0;
    loop {
        let frame = match tokio::time::timeout_at(deadline, body.frame()).await {
            Err(_) => return Err(ApiError::BodyTooSlow),
            Ok(None) => break,
            Ok(Some(Err(error))) if error.is::<LengthLimitError>() => {
                return Err(ApiError::BodyTooLarge { limit });
            }
            Ok(Some(Err(_))) => return Err(ApiError::InvalidJson("the body ended early".into())),
            Ok(Some(Ok(frame))) => frame,
        };
        // The others are trailers.
        let Ok(data) = frame.into_data() else { continue };
        deadline += Duration::from_micros(data.len() as u64 * 1_000_000 / BYTES_A_SECOND);
        if !has_room {
            continue;
        }
        // Most bodies come in one piece, which needs no copy.
        let is_first = first.is_empty() && whole.is_empty();
        let needed = first.len() + whole.len() + data.len();
        let capacity = match is_first {
            true => needed,
            false if needed <= whole.capacity() => whole.capacity(),
            false => needed.max(2 * whole.capacity()).min(len.map_or(limit, |len| len as usize)),
        };
        has_room = held.grow(capacity);
        // Piece by piece: a long body would hold up this thread's other connections.
        overhead += parsed_overhead(&data);
        if !has_room {
            // What came is of no use any more.
            held = Held::new(memory.clone());
            (first, whole) = Default::default();
        } else if is_first {
            first = data;
        } else {
            whole.reserve_exact(capacity - whole.len());
            whole.extend_from_slice(&std::mem::take(&mut first));
            whole.extend_from_slice(&data);
        }
    }
    if !has_room {
        return Err(ApiError::BodyMemoryFull { is_read: true });
    }
    let bytes = if whole.is_empty() { first } else { whole.into() };
    let parsed = bytes.len() + overhead;
    if parsed > memory.room(parsed) {
        return Err(ApiError::BodyTooComplex { bytes: parsed, limit: memory.limit });
    }
    match held.grow(parsed) {
        true => Ok(RequestBody { bytes, held: Some(held) }),
        false => Err(ApiError::BodyMemoryFull { is_read: true }),
    }
}

pub fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok())
}

/// About what JSON takes when it is parsed, beyond its strings: a value for each sign that begins one, in lists that grow by doubling. Signs
/// in strings count too; pictures have none of them.
pub fn parsed_overhead(json: &[u8]) -> usize {
    let is_sign = |byte: &&u8| matches!(byte, b',' | b':' | b'[' | b'{');
    json.iter().filter(is_sign).count() * 2 * size_of::<Value>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(limit: usize) -> Arc<BodyMemory> {
        Arc::new(BodyMemory::new(limit, IntGauge::new("x", "x").expect("a gauge")))
    }

    #[test]
    fn shares_are_taken_whole_and_given_back() {
        let memory = memory(8 << 20);
        let mut large = Held::new(memory.clone());
        assert!(large.grow(6 << 20) && !large.grow((7 << 20) + 1), "an eighth is for short ones");
        assert_eq!((large.bytes, memory.used.load(Ordering::Relaxed)), (6 << 20, 6 << 20));
        assert!(large.grow(7 << 20) && large.grow(100), "never less");
        assert_eq!(large.bytes, 7 << 20);
        let short: Vec<Held> = std::iter::repeat_with(|| Held::new(memory.clone()))
            .map_while(|mut held| held.grow(SHORT).then_some(held))
            .collect();
        assert_eq!(short.len(), (1 << 20) / SHORT);
        assert!(!memory.has_room(1));
        drop((large, short));
        assert_eq!((memory.used.load(Ordering::Relaxed), memory.gauge.get()), (0, 0));
        assert!(memory.has_room(7 << 20) && !memory.has_room((7 << 20) + 1) && !memory.has_room(usize::MAX));
    }

    #[test]
    fn what_can_wait_leaves_half_to_clients() {
        let memory = memory(8 << 20);
        let first = memory.hold_patiently(3 << 20).expect("room");
        assert!(memory.hold_patiently((1 << 20) + 1).is_none());
        let second = memory.hold_patiently(1 << 20).expect("all of the half");
        assert!(memory.hold_patiently(1).is_none() && memory.has_room(SHORT));
        drop((first, second));
        let mut upload = Held::new(memory.clone());
        assert!(upload.grow(1));
        assert!(memory.hold_patiently(64 << 20).is_none(), "not beside anything else");
        drop(upload);
        assert_eq!(memory.hold_patiently(64 << 20).expect("alone").bytes, 4 << 20);
        assert_eq!((memory.used.load(Ordering::Relaxed), memory.gauge.get()), (0, 0));
    }

    #[test]
    fn lists_of_little_take_more_than_their_text() {
        let ids = format!("[{}0]", "0,".repeat(1000));
        assert!(parsed_overhead(ids.as_bytes()) > 1000 * size_of::<Value>());
        assert_eq!(parsed_overhead(b"\"data:image/png;base64,AAAA\""), 2 * 2 * size_of::<Value>());
    }
}
