//! The listeners and connections of the server, bounded in number, size and time.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::{Router, middleware};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Sleep, sleep};

use super::guard::{self, Guard};
use super::shared::Shared;
use super::{api, socket};
use crate::control::Mount;

/// Connections served at the same time per listener; further ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 64;
/// Time limit for the headers of a request, and for the pause between two requests of a connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest request line and headers, in bytes. Browsers send a few kilobytes.
const MAX_HEADER: usize = 16 * 1024;
/// Time after which a connection is closed whose client accepts no byte of a response. A paused player may resume within
/// it.
const STALL_TIMEOUT: Duration = Duration::from_secs(120);
/// Pause after a failed `accept`, so that a lack of file descriptors does not cause a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The server of one mount. Dropping it closes every connection and removes the socket.
#[derive(Debug)]
pub struct Server {
    tasks: Vec<AbortHandle>,
    socket: Option<PathBuf>,
    http: Option<SocketAddr>,
}

/// A bound TCP listener that does not accept yet.
#[derive(Debug)]
pub struct Http {
    listener: std::net::TcpListener,
    token: Option<String>,
}

/// Error of [`Http::bind`].
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Other machines could connect, and no token is set.
    #[error(
        "cannot serve HTTP on {0} without a token, other machines can connect to it; set one with --http-token, or use \
         127.0.0.1"
    )]
    Open(SocketAddr),
    /// The address cannot be bound.
    #[error("cannot serve HTTP on {addr}: {source}; choose another address with --http")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// The operating system's reason.
        source: io::Error,
    },
}

impl Http {
    /// Binds an address. With a token, every request must carry it; without one, only loopback addresses are allowed.
    pub fn bind(addr: SocketAddr, token: Option<String>) -> Result<Self, HttpError> {
        if token.is_none() && !addr.ip().to_canonical().is_loopback() {
            return Err(HttpError::Open(addr));
        }
        let bound = std::net::TcpListener::bind(addr).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok(listener)
        });
        let listener = bound.map_err(|source| HttpError::Bind { addr, source })?;
        Ok(Self { listener, token })
    }

    /// Returns the bound address.
    pub fn addr(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }
}

impl Server {
    /// Starts to serve on the mount's own Unix socket, for its owner and root only, and on `http` if given. Failures are
    /// logged: the mount works without its server. Must be called within a tokio runtime.
    pub fn start(mount: Mount, http: Option<Http>) -> Self {
        let device = mount.device;
        let addr = http.as_ref().and_then(Http::addr);
        let router = api::router(Shared::new(mount, addr));
        let mut server = Self { tasks: Vec::new(), socket: None, http: addr };
        if let Err(error) = server.listen(device, router.clone()) {
            tracing::warn!("cannot open the control socket, `torrentfs status` will not find this mount: {error}");
        }
        if let Some(Http { listener, token }) = http {
            let guard = Arc::new(Guard { token });
            let router = router.layer(middleware::from_fn_with_state(guard, guard::check));
            match TcpListener::from_std(listener) {
                Ok(listener) => server.tasks.push(tokio::spawn(accept_tcp(listener, router)).abort_handle()),
                Err(error) => tracing::warn!("cannot serve HTTP: {error}"),
            }
        }
        server
    }

    /// Returns the address of the TCP listener.
    pub fn http(&self) -> Option<SocketAddr> {
        self.http
    }

    fn listen(&mut self, device: Option<(u32, u32)>, router: Router) -> io::Result<()> {
        let device = device.ok_or_else(|| io::Error::other("the device number of the mount is unknown"))?;
        let (listener, path) = socket::bind(device)?;
        self.socket = Some(path);
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        self.tasks.push(tokio::spawn(accept_unix(listener, router)).abort_handle());
        Ok(())
    }
}

async fn accept_unix(listener: UnixListener, router: Router) {
    let mut connections = Connections::default();
    loop {
        connections.room().await;
        match listener.accept().await {
            Ok((stream, _)) if socket::is_authorized(&stream) => connections.serve(stream, router.clone()),
            Ok(_) => {}
            Err(error) => pause(&error).await,
        }
    }
}

async fn accept_tcp(listener: TcpListener, router: Router) {
    let mut connections = Connections::default();
    loop {
        connections.room().await;
        match listener.accept().await {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                connections.serve(stream, router.clone());
            }
            Err(error) => pause(&error).await,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        if let Some(socket) = &self.socket {
            let _ = std::fs::remove_file(socket);
        }
    }
}

async fn pause(error: &io::Error) {
    tracing::debug!("cannot accept a control connection: {error}");
    sleep(ACCEPT_PAUSE).await;
}

/// Open connections of one listener. Dropping it closes them.
struct Connections {
    tasks: JoinSet<()>,
    permits: Arc<Semaphore>,
}

impl Default for Connections {
    fn default() -> Self {
        Self { tasks: JoinSet::new(), permits: Arc::new(Semaphore::new(MAX_CONNECTIONS)) }
    }
}

impl Connections {
    /// Waits until another connection may be accepted.
    async fn room(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        // The semaphore is never closed.
        let _ = self.permits.acquire().await;
    }

    fn serve(&mut self, stream: impl AsyncRead + AsyncWrite + Send + 'static, router: Router) {
        // Cannot fail after `room`, since only the accept loop takes permits.
        let Ok(permit) = self.permits.clone().try_acquire_owned() else { return };
        self.tasks.spawn(async move {
            let io = TokioIo::new(WriteTimeout { stream: Box::pin(stream), stalled: None });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(MAX_HEADER)
                .serve_connection(io, TowerToHyperService::new(router))
                .await;
            if let Err(error) = served {
                tracing::debug!("control connection failed: {error}");
            }
            drop(permit);
        });
    }
}

/// A stream whose writes fail with a time-out if the other end accepts nothing for [`STALL_TIMEOUT`].
struct WriteTimeout<S> {
    stream: Pin<Box<S>>,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> WriteTimeout<S> {
    /// Returns a write's result, or an error if writes have been pending for too long.
    fn check<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.stalled = None;
            return result;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(STALL_TIMEOUT)));
        match stalled.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead> AsyncRead for WriteTimeout<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // No limit here: hyper limits the time for headers and the handlers that for bodies. In between, a client that
        // waits for a long response has nothing to send.
        self.stream.as_mut().poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite> AsyncWrite for WriteTimeout<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = self.stream.as_mut().poll_write(cx, bytes);
        self.check(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = self.stream.as_mut().poll_write_vectored(cx, parts);
        self.check(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = self.stream.as_mut().poll_flush(cx);
        self.check(cx, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = self.stream.as_mut().poll_shutdown(cx);
        self.check(cx, result)
    }
}
