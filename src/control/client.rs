//! The other end of a mount's socket.

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

use super::Refusal;
use super::api::Fault;
use super::orders::NewTorrent;

/// To the whole of an answer.
const LIMIT: Duration = Duration::from_secs(20);
/// Bytes of an answer.
const MAX_ANSWER: usize = 64 << 20;

const JSON: &str = "application/json";

/// A torrent to be added.
#[derive(Clone, Debug)]
pub enum New {
    /// A `.torrent` file.
    File(Vec<u8>),
    /// What names it.
    Named(NewTorrent),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("its process does not answer: {0}")]
    Connect(#[source] io::Error),
    /// It began to answer, and failed.
    #[error("its process did not answer: {0}")]
    Broken(String),
    /// It said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Speaks to one mount; a connection for each question.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Through the socket at this path.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Where it is.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.ask(Method::GET, path, Body::empty()).await
    }

    /// Orders.
    pub async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Broken(error.to_string()))?;
        self.ask(method, path, Body::from(body)).await
    }

    /// Gives the mount one more torrent: a `.torrent` file's bytes, or what names one. Waits as long as it takes.
    pub async fn add<T: DeserializeOwned>(&self, new: &New) -> Result<T, ClientError> {
        let (kind, body) = match new {
            New::File(bytes) => ("application/x-bittorrent", bytes.clone()),
            New::Named(named) => {
                (JSON, serde_json::to_vec(named).map_err(|error| ClientError::Broken(error.to_string()))?)
            }
        };
        read(self.exchange(Method::POST, "/torrents", kind, Body::from(body)).await?)
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: Body) -> Result<T, ClientError> {
        let asked = tokio::time::timeout(LIMIT, self.exchange(method, path, JSON, body)).await;
        read(asked.map_err(|_| ClientError::Broken(format!("nothing within {} s", LIMIT.as_secs())))??)
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
        // It ends with the sender, which lives as long as this.
        let task = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, kind)
            .body(body)
            .map_err(|error| broken(&error))?;
        let answer = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(|error| broken(&error))?;
        task.abort();
        Ok((status, body.to_bytes().into()))
    }
}

fn read<T: DeserializeOwned>((status, body): (StatusCode, Vec<u8>)) -> Result<T, ClientError> {
    if status.is_success() {
        return serde_json::from_slice(&body).map_err(|error| ClientError::Broken(error.to_string()));
    }
    let said = serde_json::from_slice(&body).map(|Fault { error }| error);
    Err(Refusal::new(status, said.unwrap_or_else(|_| status.to_string())).into())
}
