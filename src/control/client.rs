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

/// To the whole of an answer.
const LIMIT: Duration = Duration::from_secs(60);
/// Bytes of an answer.
const MAX_ANSWER: usize = 64 << 20;

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

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: Body) -> Result<T, ClientError> {
        let broken = |error: &dyn std::fmt::Display| ClientError::Broken(error.to_string());
        let asked = tokio::time::timeout(LIMIT, self.exchange(method, path, body)).await;
        let (status, body) = asked.map_err(|_| broken(&format!("nothing within {} s", LIMIT.as_secs())))??;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|error| broken(&error));
        }
        let said = serde_json::from_slice(&body).map(|Fault { error }| error);
        Err(Refusal::new(status, said.unwrap_or_else(|_| status.to_string())).into())
    }

    async fn exchange(&self, method: Method, path: &str, body: Body) -> Result<(StatusCode, Vec<u8>), ClientError> {
        let broken = |error: &dyn std::fmt::Display| ClientError::Broken(error.to_string());
        let stream = UnixStream::connect(&self.socket).await.map_err(ClientError::Connect)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
        // It ends with the sender, which lives as long as this.
        let task = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(|error| broken(&error))?;
        let answer = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(|error| broken(&error))?;
        task.abort();
        Ok((status, body.to_bytes().into()))
    }
}
