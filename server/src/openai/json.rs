//! Small pieces of JSON, written by hand into a stream's buffer.

use bytes::{BufMut, BytesMut};
use serde::Serialize;

/// A value as JSON, without a `String` on the way.
pub fn value<T: Serialize + ?Sized>(out: &mut BytesMut, value: &T) {
    serde_json::to_writer(out.writer(), value).expect("writing to memory cannot fail, and keys are strings");
}

pub fn raw(out: &mut BytesMut, text: &str) {
    out.extend_from_slice(text.as_bytes());
}
