//! The accept loop: hyper's HTTP/1 on plain sockets or within TLS, with the deadlines that `axum::serve` does not set.
//!
//! Each connection has: a deadline for a request's head, which a silent or idle connection runs into as well; a deadline for a reader
//! that takes nothing; a small kernel send buffer, so that such a reader is noticed; a watch for clients that hang up while hyper
//! does not read. HTTP/1 only: hyper's detection of HTTP/2 waits for ever for the first byte of a silent connection.

mod handshake;
mod hangup;
mod listen;
mod socket;
mod stall;
mod transport;

use crate::metrics::HttpMetrics;
use crate::tls::Tls;
use axum::Router;
use axum::http::uri::PathAndQuery;
use axum::http::{Request, Uri};
use handshake::{Failed, Failures, Outcome, shake_hands};
use hangup::{Hangup, Hangups};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use stall::StallGuard;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Sleep;
use transport::Transport;

pub use listen::{ListenOn, SocketFile};
pub use socket::{Address, Listener, Socket};

#[derive(Debug, Clone, Copy)]
pub struct HttpLimits {
    /// For TLS and the whole head of a connection's first request, unless `idle_timeout` is shorter.
    pub header_timeout: Duration,
    /// For the head of each later one, counted from the end of the answer before it. So an idle connection is closed after it. It should be
    /// longer than a proxy keeps idle connections: one that sends a request while its connection is being closed tells its client of an error.
    pub idle_timeout: Duration,
    /// How long a client may take nothing of an answer that waits for it.
    pub stall_timeout: Duration,
    /// How long clients have for their last bytes when the server has no more time to go down in.
    pub flush_timeout: Duration,
    pub hangup_poll: Duration,
    pub send_buffer: usize,
    pub max_connections: usize,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(75),
            stall_timeout: Duration::from_secs(30),
            flush_timeout: Duration::from_secs(2),
            hangup_poll: Duration::from_millis(250),
            send_buffer: 64 * 1024,
            max_connections: 16_384,
        }
    }
}

/// How far the process is on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Serving,
    /// New requests are refused, connections are closed after the answer they are at.
    Draining,
    /// Nothing is accepted any more. Connections that were asked something take their answer, the others are closed.
    Closed,
}

/// What connections are served with.
pub struct Front {
    pub router: Router,
    pub limits: HttpLimits,
    /// The beginning of paths that a proxy may leave on or take off, as `/models/a`; empty: none.
    pub root_path: Arc<str>,
    /// `None`: HTTP in the clear.
    pub tls: Option<Arc<Tls>>,
    pub metrics: Arc<HttpMetrics>,
    pub phase: watch::Receiver<Phase>,
}

/// Accepts until the phase is `Closed`. Connections are tasks of their own and outlive this call.
pub async fn accept_loop(listener: Listener, front: Front) {
    let Front { router, limits, root_path, tls, metrics, mut phase } = front;
    if tls.is_some() {
        metrics.announce_handshakes(&Outcome::ALL.map(Outcome::name));
    }
    let hangups = Hangups::start(limits.hangup_poll);
    let permits = Arc::new(Semaphore::new(limits.max_connections));
    let connection_phase = phase.clone();
    let (mut full, mut failed) = (Seldom::default(), Seldom::default());
    let failures = Arc::new(Failures::new(metrics.clone()));
    loop {
        if permits.available_permits() == 0
            && let Some(times) = full.now()
        {
            let connections = limits.max_connections;
            tracing::warn!(connections, times, "all connections are taken, others wait");
        }
        let permit = tokio::select! {
            permit = permits.clone().acquire_owned() => permit.expect("the semaphore is never closed"),
            () = reach(&mut phase, Phase::Closed) => return,
        };
        let socket = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(socket) => socket,
                Err(error) => {
                    // Out of file descriptors, or a client that left while it was queued: neither ends the server.
                    if let Some(times) = failed.now() {
                        tracing::warn!(%error, times, "failed to accept a connection");
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
            },
            () = reach(&mut phase, Phase::Closed) => return,
        };
        if let Err(error) = prepare(&socket, &limits) {
            tracing::debug!(%error, "failed to set up a connection");
            continue;
        }
        let connection = Connection {
            socket: Arc::new(socket),
            router: router.clone(),
            limits,
            root_path: root_path.clone(),
            tls: tls.clone(),
            failures: failures.clone(),
            phase: connection_phase.clone(),
            open: Open::new(metrics.clone(), permit),
        };
        tokio::spawn(connection.serve(hangups.clone()));
    }
}

/// What happens many times a second is told every ten seconds.
#[derive(Default)]
struct Seldom {
    told: Option<Instant>,
    times: u64,
}

impl Seldom {
    /// Where it is time to tell: how many times it happened since it was told last.
    fn now(&mut self) -> Option<u64> {
        self.times += 1;
        if self.told.is_some_and(|told| told.elapsed() < Duration::from_secs(10)) {
            return None;
        }
        self.told = Some(Instant::now());
        Some(std::mem::take(&mut self.times))
    }
}

/// Waits for a phase or a later one; a server that is gone has reached them all.
async fn reach(phase: &mut watch::Receiver<Phase>, reached: Phase) {
    let _ = phase.wait_for(|phase| *phase >= reached).await.map(drop);
}

fn prepare(socket: &Socket, limits: &HttpLimits) -> std::io::Result<()> {
    let options = SockRef::from(socket);
    options.set_send_buffer_size(limits.send_buffer)?;
    if let Socket::Tcp(stream) = socket {
        stream.set_nodelay(true)?;
        #[cfg(target_os = "linux")]
        options.set_tcp_user_timeout(Some(limits.stall_timeout))?;
    }
    Ok(())
}

struct Connection {
    socket: Arc<Socket>,
    router: Router,
    limits: HttpLimits,
    root_path: Arc<str>,
    tls: Option<Arc<Tls>>,
    failures: Arc<Failures>,
    phase: watch::Receiver<Phase>,
    open: Open,
}

impl Connection {
    async fn serve(mut self, hangups: Hangups) {
        let hangup = hangups.watch(self.socket.clone());
        let mut first_head = std::pin::pin!(tokio::time::sleep(self.limits.header_timeout));
        if let Some(io) = self.begin(first_head.as_mut()).await {
            self.serve_http(io, first_head, hangup).await;
        }
    }

    /// `None`: there will be no request.
    async fn begin(&mut self, deadline: Pin<&mut Sleep>) -> Option<Transport> {
        let stream = StallGuard::new(self.socket.clone(), self.limits.stall_timeout);
        let Some(tls) = &self.tls else { return Some(Transport::Plain(stream)) };
        let later = if *self.phase.borrow() == Phase::Serving { Phase::Draining } else { Phase::Closed };
        let failed = tokio::select! {
            shaken = shake_hands(tls, stream) => match shaken {
                Ok(io) => {
                    if io.is_some() {
                        self.open.metrics.handshake(Outcome::Ok.name());
                    }
                    return io;
                }
                Err(failed) => failed,
            },
            () = deadline => Failed::timeout(),
            // It has asked for nothing yet.
            () = reach(&mut self.phase, later) => return None,
        };
        self.failures.note(&self.socket, &failed);
        None
    }

    async fn serve_http(self, io: Transport, mut first_head: Pin<&mut Sleep>, hangup: Hangup) {
        let Self { socket, router, limits, root_path, tls, mut phase, open: _open, .. } = self;
        let io = TokioIo::new(io);
        let router = TowerToHyperService::new(router);
        let was_asked = Arc::new(AtomicBool::new(false));
        let asked = was_asked.clone();
        let service = service_fn(move |mut request| {
            asked.store(true, Ordering::Relaxed);
            take_off(&root_path, &mut request);
            router.call(request)
        });
        // Who comes while the server drains is told so, once.
        let mut draining = *phase.borrow() != Phase::Serving;
        let seen = phase.clone();
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.idle_timeout)
            .max_buf_size(64 * 1024)
            // A token's chunk is short: to copy it behind its length costs less than to tell the kernel of three pieces.
            .writev(false)
            .keep_alive(!draining)
            .serve_connection(io, service);
        let mut connection = std::pin::pin!(connection);
        loop {
            let is_serving = !draining;
            let is_new = || !was_asked.load(Ordering::Relaxed);
            let mut news = std::pin::pin!(async {
                tokio::select! {
                    () = hangup.hung_up() => News::HungUp,
                    () = reach(&mut phase, if is_serving { Phase::Draining } else { Phase::Closed }), if is_serving || is_new() => {
                        if is_serving { News::Draining } else { News::Silent }
                    }
                    () = first_head.as_mut(), if is_new() => News::Silent,
                }
            });
            let mut is_registered = false;
            let next = std::future::poll_fn(|context| {
                // The task's waker stays where the first poll left it, and every token polls this: news are asked for when there are some.
                let has_news =
                    hangup.has_hung_up() || (is_serving && seen.has_changed().unwrap_or(true)) || is_new();
                if (has_news || !std::mem::replace(&mut is_registered, true))
                    && let Poll::Ready(news) = news.as_mut().poll(context)
                {
                    return Poll::Ready(Err(news));
                }
                connection.as_mut().poll(context).map(Ok)
            });
            match next.await {
                Ok(ended) => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "connection ended");
                        // Within TLS the two agree on HTTP/1 before either says something.
                        if error.is_parse_version_h2() && tls.is_none() {
                            // Whoever reads nothing misses it.
                            let _ = socket.try_write(HTTP2_REFUSAL);
                        }
                    }
                    return;
                }
                // The first request may have come at the same moment.
                Err(News::Silent) if !is_new() => {}
                Err(News::HungUp | News::Silent) => return,
                Err(News::Draining) => {
                    draining = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

/// Takes a prefix off a request's path, where it is there.
fn take_off<B>(root: &str, request: &mut Request<B>) {
    let path = request.uri().path();
    let Some(rest) = path.strip_prefix(root).filter(|_| !root.is_empty()) else { return };
    if !rest.is_empty() && !rest.starts_with('/') {
        return;
    }
    let query = request.uri().query().map_or_else(String::new, |query| format!("?{query}"));
    let target = format!("{}{query}", if rest.is_empty() { "/" } else { rest });
    // What is behind the first slash of a path is a path.
    if let Ok(target) = PathAndQuery::try_from(target) {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.path_and_query = Some(target);
        *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    }
}

/// What a client that begins with HTTP/2 is told in its language: SETTINGS, and GOAWAY with the reason HTTP_1_1_REQUIRED (RFC 9113, 6.8 and 7).
const HTTP2_REFUSAL: &[u8] = b"\0\0\0\x04\0\0\0\0\0\
\0\0\x21\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0dthis server speaks HTTP/1";

/// What a connection is told besides its requests.
enum News {
    HungUp,
    /// It has not sent the head of a request in time, and the server's end may be that time.
    Silent,
    Draining,
}

/// Counts an open connection and gives its permit back.
struct Open {
    metrics: Arc<HttpMetrics>,
    _permit: OwnedSemaphorePermit,
}

impl Open {
    fn new(metrics: Arc<HttpMetrics>, permit: OwnedSemaphorePermit) -> Self {
        metrics.connections.inc();
        Self { metrics, _permit: permit }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.metrics.connections.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_are_taken_off_whole_or_not_at_all() {
        let taken = |root: &str, target: &str| {
            let mut request = Request::builder().uri(target).body(()).unwrap();
            take_off(root, &mut request);
            request.uri().to_string()
        };
        for (target, rest) in [
            ("/models/a/v1/models?x=/models/a", "/v1/models?x=/models/a"),
            ("/models/a", "/"),
            ("/models/a?x", "/?x"),
            ("/models/a/", "/"),
            ("/models/a//v1", "//v1"),
            ("/models/ab/v1", "/models/ab/v1"),
            ("/v1/models", "/v1/models"),
            ("/v1/models/a", "/v1/models/a"),
            ("http://x/models/a/v1", "http://x/v1"),
            ("/models/a/models/a", "/models/a"),
            ("/models/%61/v1", "/models/%61/v1"),
            ("*", "*"),
        ] {
            assert_eq!(taken("/models/a", target), rest, "{target}");
            assert_eq!(taken("", target), target);
        }
    }
}
