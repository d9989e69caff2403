//! Bodies of requests and responses, bounded in size, in time and in memory for all of them together.

use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody, to_bytes};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use tokio::time::timeout;

use super::connections::{Connection, Memory, Taken};
use super::problem::Problem;

/// Longest pause of a client that sends a body.
const PAUSE_LIMIT: Duration = Duration::from_secs(10);

/// Capacity for a body of unknown length, in bytes: the size from which an allocation is a mapping of its own (see
/// [`tune_allocator`](crate::sys::process::tune_allocator)).
const CAPACITY: usize = 8 << 20;

/// A received body, and the memory that it takes.
#[derive(Debug)]
pub(super) struct Received {
    pub bytes: Vec<u8>,
    memory: Option<Taken>,
}

impl Received {
    /// Drops the bytes, but keeps their memory taken while the result exists.
    pub fn into_memory(self) -> Option<Taken> {
        self.memory
    }
}

/// Receives a body of at most `max` bytes. Memory is taken as bytes arrive, so a client that sends none takes none.
pub(super) async fn receive(mut body: Body, max: usize, memory: &Memory) -> Result<Received, Problem> {
    let too_long =
        || Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is too long: {max} bytes are allowed"));
    let hint = body.size_hint();
    if hint.lower() > max as u64 {
        return Err(too_long());
    }
    // A large allocation takes no memory until it is filled, and a buffer that grows would leave holes in the heap.
    let capacity = hint.exact().map_or(CAPACITY.min(max), |len| len as usize);
    let mut received = Received { bytes: Vec::with_capacity(capacity), memory: None };
    loop {
        let frame = match timeout(PAUSE_LIMIT, body.frame()).await {
            Ok(None) => return Ok(received),
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(_))) => return Err(Problem::bad_request("the body is incomplete")),
            Err(_) => return Err(Problem::timed_out()),
        };
        // Other frames are trailers.
        let Ok(data) = frame.into_data() else { continue };
        if data.len() > max - received.bytes.len() {
            return Err(too_long());
        }
        let Some(taken) = memory.take(data.len()) else {
            return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, "too many uploads at a time; try again later"));
        };
        match &mut received.memory {
            Some(memory) => memory.merge(taken),
            None => received.memory = Some(taken),
        }
        received.bytes.extend_from_slice(&data);
    }
}

/// Takes memory for a response that is made as a whole, until it is sent; refuses if there is none.
pub(super) async fn bounded(connection: &Connection, response: Response) -> Response {
    /// A body and its memory.
    struct Held(Bytes, #[allow(dead_code, reason = "dropped with the body")] Taken);

    impl AsRef<[u8]> for Held {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    let (parts, body) = response.into_parts();
    // Cannot fail, and copies nothing: the body is one piece in memory.
    let bytes = to_bytes(body, usize::MAX).await.unwrap_or_default();
    if bytes.is_empty() {
        return Response::from_parts(parts, Body::empty());
    }
    match connection.listener.responses.take(bytes.len()) {
        Some(taken) => Response::from_parts(parts, Body::from(Bytes::from_owner(Held(bytes, taken)))),
        None => Problem::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too many large responses are being sent to clients that read slowly; try again later",
        )
        .into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::connections::Listener;
    use super::*;
    use futures_util::{StreamExt, stream};

    fn body(pieces: usize, len: usize) -> Body {
        Body::from_stream(stream::iter((0..pieces).map(move |_| Ok::<_, std::io::Error>(vec![7; len]))))
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_are_bounded_in_size_time_and_memory() {
        let listener = Listener::new(10 << 10, 10 << 10);
        let status = |result: Result<Received, Problem>| result.map_or_else(|problem| problem.status.as_u16(), |_| 200);
        let received = receive(body(8, 1024), 8 << 10, &listener.uploads).await.unwrap();
        assert_eq!(received.bytes, vec![7; 8 << 10]);
        // 2 KiB are left.
        assert_eq!(status(receive(body(2, 1024), 8 << 10, &listener.uploads).await), 200);
        assert_eq!(status(receive(body(3, 1024), 8 << 10, &listener.uploads).await), 429);
        let memory = received.into_memory();
        assert_eq!(status(receive(body(3, 1024), 8 << 10, &listener.uploads).await), 429);
        drop(memory);
        assert_eq!(status(receive(body(9, 1024), 8 << 10, &listener.uploads).await), 413);
        assert_eq!(status(receive(Body::from(vec![7; 9 << 10]), 8 << 10, &listener.uploads).await), 413);
        let stalled = stream::iter([Ok::<_, std::io::Error>(vec![7; 10])]).chain(stream::pending());
        assert_eq!(status(receive(Body::from_stream(stalled), 8 << 10, &listener.uploads).await), 408);
        assert_eq!(status(receive(body(10, 1024), 10 << 10, &listener.uploads).await), 200);
    }

    #[tokio::test]
    async fn responses_take_memory_until_they_are_sent() {
        let listener = Listener::new(0, 10 << 10);
        let connection = listener.admit(None).await.connection();
        let first = bounded(&connection, vec![7; 9 << 10].into_response()).await;
        assert_eq!(first.status(), 200);
        assert_eq!(bounded(&connection, vec![7; 2 << 10].into_response()).await.status(), 429);
        assert_eq!(to_bytes(first.into_body(), usize::MAX).await.unwrap(), vec![7; 9 << 10]);
        // One response is sent, however long.
        assert_eq!(bounded(&connection, vec![7; 20 << 10].into_response()).await.status(), 200);
    }
}
