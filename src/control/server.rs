//! Connections, bounded in number, size and time.

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

use super::api::{self, Shared};
use super::guard::{self, Guard};
use super::{Mount, socket};

/// Connections at a time; more wait.
const MAX_CONNECTIONS: usize = 64;
/// For a request's head, and between two requests.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
/// Bytes of a request's head.
const MAX_HEAD: usize = 16 * 1024;
/// A client that neither sends nor takes a byte for so long while we wait for it is let go.
const STALL_LIMIT: Duration = Duration::from_secs(120);
/// After a failure to accept.
const PAUSE: Duration = Duration::from_millis(100);

/// What answers for one mount. Dropping it ends every connection and takes the socket away.
#[derive(Debug)]
pub struct Server {
    tasks: Vec<AbortHandle>,
    socket: Option<PathBuf>,
    http: Option<SocketAddr>,
}

/// Where all of it is to be served over TCP, too: bound, and not yet answering.
#[derive(Debug)]
pub struct Http {
    listener: std::net::TcpListener,
    token: Option<String>,
}

/// Why it cannot be.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Anybody could ask.
    #[error("{0} can be reached by others: give a token with --http-token, or use 127.0.0.1")]
    Open(SocketAddr),
    /// The address.
    #[error("cannot serve HTTP on {addr}: {source}; choose another with --http")]
    Bind {
        /// The address asked for.
        addr: SocketAddr,
        /// The operating system's reason.
        source: io::Error,
    },
}

impl Http {
    /// Takes the address; others than loopback only with a token, which every request must bear.
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

    /// Where it is.
    pub fn addr(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }
}

impl Server {
    /// Answers at the mount's own socket, to its owner and root alone, and over TCP if asked to. What cannot be is
    /// said in the log. Must be called within a tokio runtime.
    pub fn start(mount: Mount, http: Option<Http>) -> Self {
        let device = mount.device;
        let addr = http.as_ref().and_then(Http::addr);
        let router = api::router(Shared::new(mount, addr));
        let mut server = Self { tasks: Vec::new(), socket: None, http: addr };
        if let Err(error) = server.listen(device, router.clone()) {
            tracing::warn!("`torrentfs status` will not find this mount: {error}");
        }
        if let Some(Http { listener, token }) = http {
            let guard = Arc::new(Guard { token });
            let router = router.layer(middleware::from_fn_with_state(guard, guard::check));
            match TcpListener::from_std(listener) {
                Ok(listener) => server.tasks.push(tokio::spawn(accept_tcp(listener, router)).abort_handle()),
                Err(error) => tracing::warn!("no HTTP: {error}"),
            }
        }
        server
    }

    /// Where it answers over TCP.
    pub fn http(&self) -> Option<SocketAddr> {
        self.http
    }

    fn listen(&mut self, device: Option<(u32, u32)>, router: Router) -> io::Result<()> {
        let device = device.ok_or_else(|| io::Error::other("its device number is not known"))?;
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
            Ok((stream, _)) if socket::may_speak(&stream) => connections.serve(stream, router.clone()),
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
    tracing::debug!("cannot take a connection: {error}");
    sleep(PAUSE).await;
}

/// Those being served. Dropping it ends them.
struct Connections {
    tasks: JoinSet<()>,
    places: Arc<Semaphore>,
}

impl Default for Connections {
    fn default() -> Self {
        Self { tasks: JoinSet::new(), places: Arc::new(Semaphore::new(MAX_CONNECTIONS)) }
    }
}

impl Connections {
    /// Waits until one more may be taken.
    async fn room(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        // The semaphore is never closed.
        let _ = self.places.acquire().await;
    }

    fn serve(&mut self, stream: impl AsyncRead + AsyncWrite + Send + 'static, router: Router) {
        // `room` was waited for, and nobody else takes places.
        let Ok(place) = self.places.clone().try_acquire_owned() else { return };
        self.tasks.spawn(async move {
            let io = TokioIo::new(Patient { stream: Box::pin(stream), stalled: None });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_LIMIT)
                .max_buf_size(MAX_HEAD)
                .serve_connection(io, TowerToHyperService::new(router))
                .await;
            if let Err(error) = served {
                tracing::debug!("a control connection ended: {error}");
            }
            drop(place);
        });
    }
}

/// A connection that fails when the other end stalls.
struct Patient<S> {
    stream: Pin<Box<S>>,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    /// Passes a result on; one that has been pending for too long becomes an error.
    fn judge<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.stalled = None;
            return result;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(STALL_LIMIT)));
        match stalled.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead> AsyncRead for Patient<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // Reading is bounded by hyper while a head is read, and by the handlers' time while a body is; between, a
        // client that waits for a long answer is silent by right.
        self.stream.as_mut().poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = self.stream.as_mut().poll_write(cx, bytes);
        self.judge(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = self.stream.as_mut().poll_write_vectored(cx, parts);
        self.judge(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = self.stream.as_mut().poll_flush(cx);
        self.judge(cx, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = self.stream.as_mut().poll_shutdown(cx);
        self.judge(cx, result)
    }
}
