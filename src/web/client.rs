//! The client side of a mount's socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::problem::{Fault, Problem};
use crate::control::orders::NewTorrent;

/// Time limit for a request and its whole response, so that a process that hangs does not hang the command.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest accepted response in bytes. The status of a thousand torrents with all their peers fits.
const MAX_RESPONSE: usize = 64 << 20;

const JSON: &str = "application/json";

/// A torrent to add.
#[derive(Clone, Debug)]
pub enum New {
    /// A `.torrent` file.
    File(Vec<u8>),
    /// A magnet link, info hash or URL.
    Named(NewTorrent),
}

/// Error of a request to a mount.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No process listens on the socket.
    #[error("its process does not answer: {0}")]
    Connect(#[source] io::Error),
    /// The connection failed, or the response is unusable.
    #[error("its process did not answer: {0}")]
    Broken(String),
    /// The mount refused the request.
    #[error(transparent)]
    Refused(#[from] Problem),
}

/// Client of one mount. Opens a connection for each request.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Makes a client that connects to the socket at this path.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Returns the path of the socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Sends a GET request.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.request(Method::GET, path, Body::empty()).await
    }

    /// Sends a request with a JSON body.
    pub async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Broken(error.to_string()))?;
        self.request(method, path, Body::from(body)).await
    }

    /// Adds a torrent to the mount. Has no time limit: the metadata of a magnet link may take long to find.
    pub async fn add<T: DeserializeOwned>(&self, new: &New) -> Result<T, ClientError> {
        let (kind, body) = match new {
            New::File(bytes) => ("application/x-bittorrent", bytes.clone()),
            New::Named(named) => {
                (JSON, serde_json::to_vec(named).map_err(|error| ClientError::Broken(error.to_string()))?)
            }
        };
        read(self.exchange(Method::POST, "/torrents", kind, Body::from(body)).await?)
    }

    async fn request<T: DeserializeOwned>(&self, method: Method, path: &str, body: Body) -> Result<T, ClientError> {
        let exchanged = tokio::time::timeout(REQUEST_TIMEOUT, self.exchange(method, path, JSON, body)).await;
        read(
            exchanged
                .map_err(|_| ClientError::Broken(format!("no response within {} s", REQUEST_TIMEOUT.as_secs())))??,
        )
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        kind: &'static str,
        body: Body,
    ) -> Result<(StatusCode, Vec<u8>), ClientError> {
        let broken = |error: &dyn std::fmt::Display| ClientError::Broken(error.to_string());
        let stream = UnixStream::connect(&self.socket).await.map_err(ClientError::Connect)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
        // The task ends when `sender` is dropped, at the end of this function.
        let task = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, kind)
            .body(body)
            .map_err(|error| broken(&error))?;
        let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_RESPONSE).collect().await.map_err(|error| broken(&error))?;
        task.abort();
        Ok((status, body.to_bytes().into()))
    }
}

fn read<T: DeserializeOwned>((status, body): (StatusCode, Vec<u8>)) -> Result<T, ClientError> {
    if status.is_success() {
        return serde_json::from_slice(&body).map_err(|error| ClientError::Broken(error.to_string()));
    }
    let message = serde_json::from_slice(&body).map(|Fault { error }| error);
    Err(Problem::new(status, message.unwrap_or_else(|_| status.to_string())).into())
}
