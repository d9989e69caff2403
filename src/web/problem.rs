//! Error responses.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::json::json;
use crate::control::{Refusal, RefusalKind};
use crate::util::is_hidden;

/// Seconds after which a client may try again when there was too much to do.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("5");

/// An error response: a status from 400 to 499 and one line of text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    /// HTTP status, 400 to 499.
    pub status: StatusCode,
    /// Explanation in one line, for people.
    pub message: String,
}

impl Problem {
    /// Makes an error response. Hidden characters in `message` are replaced by spaces, so that it stays one line.
    pub fn new(status: StatusCode, message: impl std::fmt::Display) -> Self {
        let message = message.to_string().replace(is_hidden, " ");
        Self { status, message }
    }

    pub(super) fn bad_request(message: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(super) fn timed_out() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "the request took too long")
    }

    pub(super) fn not_found(message: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal.kind {
            RefusalKind::Invalid => StatusCode::BAD_REQUEST,
            RefusalKind::NotFound => StatusCode::NOT_FOUND,
            RefusalKind::Conflict => StatusCode::CONFLICT,
            RefusalKind::Unusable => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Self::new(status, refusal.message)
    }
}

/// Body of an error response.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(super) struct Fault {
    /// Explanation in one line, for people.
    pub error: String,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, json(&Fault { error: self.message })).into_response();
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        response
    }
}
