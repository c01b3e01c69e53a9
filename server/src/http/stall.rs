//! A connection's bytes: a socket whose writes fail when the client has taken nothing for too long. The socket is shared with the
//! watch for hang-ups.

use super::socket::Socket;
use socket2::SockRef;
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

pub struct StallGuard {
    socket: Arc<Socket>,
    timeout: Duration,
    /// Made at the first write that has to wait, and used again for the next one.
    sleep: Option<Pin<Box<Sleep>>>,
    is_waiting: bool,
    /// The connection's first byte, where somebody looked at it.
    first: Option<u8>,
}

impl StallGuard {
    pub fn new(socket: Arc<Socket>, timeout: Duration) -> Self {
        Self { socket, timeout, sleep: None, is_waiting: false, first: None }
    }

    /// Waits for the first byte and leaves it to be read; `None` where the client says nothing and closes.
    pub async fn peek_first(&mut self) -> Result<Option<u8>> {
        let mut byte = [0];
        loop {
            self.socket.readable().await?;
            match self.socket.try_read(&mut byte) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
                Ok(len) => {
                    self.first = (len > 0).then_some(byte[0]);
                    return Ok(self.first);
                }
            }
        }
    }

    fn write(
        &mut self,
        context: &mut Context<'_>,
        try_write: impl Fn(&Socket) -> Result<usize>,
    ) -> Poll<Result<usize>> {
        loop {
            if self.socket.poll_write_ready(context)?.is_pending() {
                return self.wait(context);
            }
            match try_write(&self.socket) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                written => {
                    self.is_waiting = false;
                    return Poll::Ready(written);
                }
            }
        }
    }

    /// A write that waits is given until the deadline, counted from when it began to wait.
    fn wait(&mut self, context: &mut Context<'_>) -> Poll<Result<usize>> {
        let timeout = self.timeout;
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep(timeout)));
        if !self.is_waiting {
            self.is_waiting = true;
            sleep.as_mut().reset(Instant::now() + timeout);
        }
        ready!(sleep.as_mut().poll(context));
        Poll::Ready(Err(Error::new(ErrorKind::TimedOut, "the client reads nothing")))
    }
}

impl AsyncRead for StallGuard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        if buffer.remaining() > 0
            && let Some(first) = self.first.take()
        {
            buffer.put_slice(&[first]);
            return Poll::Ready(Ok(()));
        }
        loop {
            ready!(self.socket.poll_read_ready(context))?;
            match self.socket.try_read(buffer.initialize_unfilled()) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(error) => return Poll::Ready(Err(error)),
                Ok(len) => {
                    buffer.advance(len);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for StallGuard {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize>> {
        self.write(context, |socket| socket.try_write(data))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        self.write(context, |socket| socket.try_write_vectored(data))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Sockets hold nothing back.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(SockRef::from(&*self.socket).shutdown(Shutdown::Write))
    }
}
