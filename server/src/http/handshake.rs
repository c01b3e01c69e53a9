//! How a connection begins where TLS is asked for. It is no part of accepting: a client that is slow here keeps nobody waiting.

use super::socket::Socket;
use super::stall::StallGuard;
use super::transport::Transport;
use crate::metrics::HttpMetrics;
use crate::tls::Tls;
use rustls::Error as TlsError;
use std::io::{Error, ErrorKind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

/// How handshakes end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Ok,
    /// It took longer than a request's head may.
    Timeout,
    /// The client hung up in the middle.
    Closed,
    /// The client speaks HTTP without TLS.
    PlainHttp,
    /// No certificate where one is required, or one that no authority of `--ssl-ca-certs` vouches for, or that is out of date.
    ClientCertificate,
    /// The client said why, such as that it knows no authority that vouches for the server.
    RefusedByClient,
    /// No version, cipher or protocol in common.
    NothingInCommon,
    /// Not TLS, or not as it should be.
    Malformed,
}

impl Outcome {
    pub const ALL: [Self; 8] = [
        Self::Ok,
        Self::Timeout,
        Self::Closed,
        Self::PlainHttp,
        Self::ClientCertificate,
        Self::RefusedByClient,
        Self::NothingInCommon,
        Self::Malformed,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Timeout => "timeout",
            Self::Closed => "closed",
            Self::PlainHttp => "plain_http",
            Self::ClientCertificate => "client_certificate",
            Self::RefusedByClient => "refused_by_client",
            Self::NothingInCommon => "nothing_in_common",
            Self::Malformed => "malformed",
        }
    }

    fn of(error: &Error) -> Self {
        match error.get_ref().and_then(|error| error.downcast_ref::<TlsError>()) {
            None => Self::Closed,
            Some(TlsError::NoCertificatesPresented | TlsError::InvalidCertificate(_)) => {
                Self::ClientCertificate
            }
            Some(TlsError::AlertReceived(_)) => Self::RefusedByClient,
            Some(TlsError::PeerIncompatible(_) | TlsError::NoApplicationProtocol) => Self::NothingInCommon,
            Some(_) => Self::Malformed,
        }
    }
}

/// Why there is no connection.
pub struct Failed {
    pub outcome: Outcome,
    pub error: Error,
}

impl Failed {
    pub fn timeout() -> Self {
        Self { outcome: Outcome::Timeout, error: Error::new(ErrorKind::TimedOut, "the client is too slow") }
    }
}

/// `None`: it was closed before it said anything, as load balancers do that only look whether somebody listens.
pub async fn shake_hands(tls: &Tls, mut stream: StallGuard) -> Result<Option<Transport>, Failed> {
    let fail = |error: Error| Failed { outcome: Outcome::of(&error), error };
    let Some(first) = stream.peek_first().await.map_err(fail)? else { return Ok(None) };
    if first.is_ascii_uppercase() {
        let _ = tokio::time::timeout(LINGER, refuse(&mut stream)).await;
        let error = Error::new(ErrorKind::InvalidData, "the client speaks http, not https");
        return Err(Failed { outcome: Outcome::PlainHttp, error });
    }
    let stream = TlsAcceptor::from(tls.get()).accept(stream).await.map_err(fail)?;
    Ok(Some(Transport::Tls(Box::new(stream))))
}

/// How long the client has to take its refusal and go.
const LINGER: Duration = Duration::from_secs(2);

/// What the client sends is read to its end: closing a connection that has something unread resets it, and the answer may be lost.
async fn refuse(stream: &mut StallGuard) -> std::io::Result<()> {
    stream.write_all(PLAIN_HTTP_REFUSAL).await?;
    stream.shutdown().await?;
    let mut rest = [0; 1024];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}

/// As other errors of the API.
const PLAIN_HTTP_REFUSAL: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: 167\r\n\r\n\
{\"error\":{\"message\":\"this port speaks https: begin the address with https:// instead of http://\",\"type\":\"invalid_request_error\",\"param\":null,\"code\":\"https_required\"}}\n";

/// Counts failures, and tells at most one a minute with how many there were: whoever can reach the port can make as many as they like.
pub struct Failures {
    metrics: Arc<HttpMetrics>,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    last: Option<Instant>,
    num_untold: u64,
}

const TELL_EVERY: Duration = Duration::from_secs(60);

impl Told {
    /// How many there were since one was told, this one included; `None`: not yet.
    fn tell(&mut self, now: Instant) -> Option<u64> {
        self.num_untold += 1;
        if self.last.is_some_and(|last| now.duration_since(last) < TELL_EVERY) {
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.num_untold))
    }
}

impl Failures {
    pub fn new(metrics: Arc<HttpMetrics>) -> Self {
        Self { metrics, told: Mutex::default() }
    }

    pub fn note(&self, socket: &Socket, failed: &Failed) {
        let Failed { outcome, error } = failed;
        self.metrics.handshake(outcome.name());
        let client = socket.client().map(|address| address.to_string());
        let outcome = outcome.name();
        match self.told.lock().unwrap_or_else(PoisonError::into_inner).tell(Instant::now()) {
            Some(count) => tracing::warn!(client, outcome, %error, count, "failed handshakes"),
            None => tracing::debug!(client, outcome, %error, "failed handshake"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_has_the_length_it_says() {
        let text = std::str::from_utf8(PLAIN_HTTP_REFUSAL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with(&format!("content-length: {}", body.len())), "{}", body.len());
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["error"]["code"], "https_required");
    }

    #[test]
    fn the_first_failure_is_told_and_then_one_a_minute() {
        let (mut told, start) = (Told::default(), Instant::now());
        let mut at = |seconds: u64| told.tell(start + Duration::from_secs(seconds));
        assert_eq!((at(0), at(1), at(59)), (Some(1), None, None));
        assert_eq!((at(60), at(61), at(500)), (Some(3), None, Some(2)));
    }
}
