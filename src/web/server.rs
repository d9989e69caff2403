//! The listeners of the server, and serving their connections, bounded in number, size and time.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::http::Request;
use axum::{Router, middleware};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

use super::api::MAX_UPLOAD;
use super::connections::Listener;
use super::guard::{self, Guard};
use super::shared::Shared;
use super::{api, socket};
use crate::control::Mount;

/// Time limit for the headers of a request, and for the pause between two requests of a connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest request line and headers, in bytes. Browsers send a few kilobytes.
const MAX_HEADER: usize = 16 * 1024;
/// Memory of a listener for responses that wait to be sent, in bytes. The status of a hundred torrents has some 100 KiB.
const RESPONSE_MEMORY: usize = 16 << 20;
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
    let mut acceptor = Acceptor::new(Listener::new(MAX_UPLOAD, RESPONSE_MEMORY), router);
    loop {
        match listener.accept().await {
            Ok((stream, _)) if socket::is_authorized(&stream) => acceptor.serve(stream, None).await,
            Ok(_) => {}
            Err(error) => pause(&error).await,
        }
    }
}

async fn accept_tcp(listener: TcpListener, router: Router) {
    let mut acceptor = Acceptor::new(Listener::new(MAX_UPLOAD, RESPONSE_MEMORY), router);
    loop {
        match listener.accept().await {
            Ok((stream, addr)) => {
                let _ = stream.set_nodelay(true);
                acceptor.serve(stream, Some(addr.ip())).await;
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

/// Accepts connections. Dropping it closes them.
struct Acceptor {
    listener: Arc<Listener>,
    router: Router,
    tasks: JoinSet<()>,
}

impl Acceptor {
    fn new(listener: Arc<Listener>, router: Router) -> Self {
        Self { listener, router, tasks: JoinSet::new() }
    }

    /// Serves a connection from an address, `None` on the Unix socket. Waits while no other can be closed for it.
    async fn serve(&mut self, stream: impl AsyncRead + AsyncWrite + Send + 'static, addr: Option<IpAddr>) {
        while self.tasks.try_join_next().is_some() {}
        let admitted = self.listener.admit(addr).await;
        let router = TowerToHyperService::new(self.router.clone());
        self.tasks.spawn(async move {
            let (io, connection) = (TokioIo::new(admitted.watch(stream)), admitted.connection());
            let service = service_fn(move |mut request: Request<Incoming>| {
                // A request without a body is answered without the client's doing.
                let work = request.body().is_end_stream().then(|| connection.work());
                request.extensions_mut().insert(connection.clone());
                let response = router.call(request);
                async move {
                    let response = response.await;
                    drop(work);
                    response
                }
            });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(MAX_HEADER)
                .serve_connection(io, service);
            tokio::select! {
                served = served => if let Err(error) = served {
                    tracing::debug!("control connection failed: {error}");
                },
                () = admitted.closed() => tracing::debug!("control connection closed to make room for another"),
            }
        });
    }
}
