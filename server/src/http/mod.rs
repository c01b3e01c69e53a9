//! The accept loop: hyper's HTTP/1 on plain sockets, with the deadlines that `axum::serve` does not set.
//!
//! Each connection has: a deadline for a request's head, which a silent or idle connection runs into as well; a deadline for a reader
//! that takes nothing; a small kernel send buffer, so that such a reader is noticed; a watch for clients that hang up while hyper
//! does not read. HTTP/1 only: hyper's detection of HTTP/2 waits for ever for the first byte of a silent connection.

mod hangup;
mod stall;

use crate::metrics::HttpMetrics;
use axum::Router;
use hangup::Hangups;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use stall::StallGuard;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

#[derive(Debug, Clone, Copy)]
pub struct HttpLimits {
    /// For the whole head of a connection's first request, unless `idle_timeout` is shorter.
    pub header_timeout: Duration,
    /// For the head of each later one, counted from the end of the answer before it. So an idle connection is closed after it. It should be
    /// longer than a proxy keeps idle connections: one that sends a request while its connection is being closed tells its client of an error.
    pub idle_timeout: Duration,
    /// How long a client may take nothing of an answer that waits for it.
    pub stall_timeout: Duration,
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
    /// Nothing is accepted any more.
    Closed,
}

/// Accepts until the phase is `Closed`. Connections are tasks of their own and outlive this call.
pub async fn accept_loop(
    listener: TcpListener,
    router: Router,
    limits: HttpLimits,
    metrics: Arc<HttpMetrics>,
    mut phase: watch::Receiver<Phase>,
) {
    let hangups = Hangups::start(limits.hangup_poll);
    let permits = Arc::new(Semaphore::new(limits.max_connections));
    let connection_phase = phase.clone();
    let (mut full, mut failed) = (Seldom::default(), Seldom::default());
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
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
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
        if let Err(error) = prepare(&stream, &limits) {
            tracing::debug!(%error, "failed to set up a connection");
            continue;
        }
        let connection = Connection {
            stream,
            router: router.clone(),
            limits,
            hangups: hangups.clone(),
            phase: connection_phase.clone(),
            _open: Open::new(metrics.clone(), permit),
        };
        tokio::spawn(connection.serve());
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

fn prepare(stream: &TcpStream, limits: &HttpLimits) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_send_buffer_size(limits.send_buffer)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(limits.stall_timeout))?;
    Ok(())
}

struct Connection {
    stream: TcpStream,
    router: Router,
    limits: HttpLimits,
    hangups: Hangups,
    phase: watch::Receiver<Phase>,
    _open: Open,
}

impl Connection {
    async fn serve(self) {
        let Self { stream, router, limits, hangups, mut phase, _open } = self;
        let stream = Arc::new(stream);
        let hangup = hangups.watch(stream.clone());
        let router = TowerToHyperService::new(router);
        let was_asked = Arc::new(AtomicBool::new(false));
        let asked = was_asked.clone();
        let service = service_fn(move |request| {
            asked.store(true, Ordering::Relaxed);
            router.call(request)
        });
        let mut first_head = std::pin::pin!(tokio::time::sleep(limits.header_timeout));
        let io = TokioIo::new(StallGuard::new(stream.clone(), limits.stall_timeout));
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
                    () = reach(&mut phase, Phase::Draining), if is_serving => News::Draining,
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
                        if error.is_parse_version_h2() {
                            // Whoever reads nothing misses it.
                            let _ = stream.try_write(HTTP2_REFUSAL);
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

/// What a client that begins with HTTP/2 is told in its language: SETTINGS, and GOAWAY with the reason HTTP_1_1_REQUIRED (RFC 9113, 6.8 and 7).
const HTTP2_REFUSAL: &[u8] = b"\0\0\0\x04\0\0\0\0\0\
\0\0\x21\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0dthis server speaks HTTP/1";

/// What a connection is told besides its requests.
enum News {
    HungUp,
    /// It has not sent the head of a request in time.
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
