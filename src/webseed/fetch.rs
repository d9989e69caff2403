//! The download of one run of requests: received bytes become blocks for the driver.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use reqwest::Response;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::blocks::Blocks;
use super::queue::Queue;
use super::server::{Fault, Part, Server};
use crate::http::describe;
use crate::metainfo::{FileIndex, PieceIndex};
use crate::net::{Incoming, Limits};
use crate::util::lock;
use crate::wire::Message;

/// Time without data after which a response is given up.
const STALL_LIMIT: Duration = Duration::from_secs(30);
/// Bytes of a response that are read although they are not wanted, because a new connection would cost more.
const MAX_DRAIN: u64 = 128 << 10;
/// Time limit for the end of a response whose body is complete.
const END_LIMIT: Duration = Duration::from_secs(1);
/// Content of pad files.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// The context of a fetch.
#[derive(Clone)]
pub(super) struct Fetch<K> {
    pub(super) server: Arc<Server>,
    pub(super) queue: Arc<Mutex<Queue>>,
    pub(super) limits: Arc<Limits>,
    pub(super) key: K,
    pub(super) inbox: mpsc::Sender<(K, Incoming)>,
}

impl<K: Copy> Fetch<K> {
    /// Fetches a run of the torrent's bytes. Ends early, and successfully, once none of its requests is left.
    pub(super) async fn run(&self, run: Range<u64>) -> Result<(), Fault> {
        let mut blocks = Blocks::new(*self.server.metainfo().layout.lengths(), run.start);
        let parts = self.server.parts(&run);
        let last = parts.len().saturating_sub(1);
        for (number, part) in parts.into_iter().enumerate() {
            if !lock(&self.queue).contains_start_in(blocks.pending()..run.end) {
                break;
            }
            match part {
                Part::Zeros(len) => self.zeros(&mut blocks, len).await,
                Part::File(index, bytes) => {
                    // No part follows the last one, so it may continue beyond the run if the server sends more.
                    self.file(&mut blocks, index, bytes, if number == last { None } else { Some(run.end) }).await?;
                    self.server.mark_file_working(index);
                }
                Part::Piece(piece, bytes) => self.piece(&mut blocks, piece, bytes).await?,
            }
        }
        Ok(())
    }

    async fn zeros(&self, blocks: &mut Blocks, len: u64) {
        let mut remaining = len as usize;
        while remaining > 0 {
            let chunk = Bytes::from_static(&ZEROS[..remaining.min(ZEROS.len())]);
            remaining -= chunk.len();
            self.deliver(blocks, chunk).await;
        }
    }

    /// Fetches a byte range of a file. `run_end` is the end of the run in the torrent if more parts follow.
    async fn file(
        &self,
        blocks: &mut Blocks,
        index: FileIndex,
        bytes: Range<u64>,
        run_end: Option<u64>,
    ) -> Result<(), Fault> {
        let Some(file) = self.server.metainfo().layout.file(index) else { return Ok(()) };
        let mut at = bytes.start;
        // Some servers send less than requested.
        while at < bytes.end {
            let mut answer = self.server.request_file(index, &(at..bytes.end)).await?;
            let before = at;
            let whole = answer.bytes.start < at || answer.bytes.end > bytes.end;
            if answer.bytes.start < at {
                // The response starts earlier in the file. Requested blocks before the range are used, too.
                at = answer.bytes.start;
                blocks.jump(file.offset + at);
            }
            let end = answer.bytes.end.min(file.len);
            let useful_end = run_end.unwrap_or(file.offset + end);
            loop {
                let wanted = lock(&self.queue).contains_start_in(blocks.pending()..useful_end);
                if !wanted && (whole || end - at > MAX_DRAIN) {
                    return Ok(());
                }
                if at >= end {
                    break;
                }
                let chunk = self.chunk(&mut answer.response).await.map_err(|why| Fault::retry_file(index, why))?;
                let Some(mut chunk) = chunk else { break };
                chunk.truncate(usize::try_from(end - at).unwrap_or(usize::MAX));
                at += chunk.len() as u64;
                self.deliver(blocks, chunk).await;
            }
            if at <= before || whole && at < bytes.end.min(end) {
                return Err(Fault::retry_file(index, "its answer ends too early"));
            }
            finish(answer.response).await;
        }
        Ok(())
    }

    async fn piece(&self, blocks: &mut Blocks, piece: PieceIndex, bytes: Range<u32>) -> Result<(), Fault> {
        let end = self.server.metainfo().layout.lengths().offset_in(piece, bytes.end);
        let mut answer = self.server.request_piece(piece, &bytes).await?;
        while blocks.at() < end {
            if !lock(&self.queue).contains_start_in(blocks.pending()..end) && end - blocks.at() > MAX_DRAIN {
                return Ok(());
            }
            let Some(mut chunk) = self.chunk(&mut answer.response).await.map_err(Fault::retry)? else {
                return Err(Fault::retry("its answer ends too early"));
            };
            chunk.truncate(usize::try_from(end - blocks.at()).unwrap_or(usize::MAX));
            self.deliver(blocks, chunk).await;
        }
        finish(answer.response).await;
        Ok(())
    }

    /// Returns the next bytes of a body, `None` at its end. An error says why it breaks off.
    async fn chunk(&self, response: &mut Response) -> Result<Option<Bytes>, String> {
        let chunk = timeout(STALL_LIMIT, response.chunk()).await.map_err(|_| "it stopped sending".to_owned())?;
        let chunk = chunk.map_err(|error| describe(&error))?;
        if let Some(chunk) = &chunk {
            self.limits.down.take(chunk.len()).await;
        }
        Ok(chunk)
    }

    /// Passes requested blocks to the driver. Reads nothing more while the driver's inbox is full.
    async fn deliver(&self, blocks: &mut Blocks, mut chunk: Bytes) {
        let lengths = self.server.metainfo().layout.lengths();
        let mut messages = Vec::new();
        {
            let mut queue = lock(&self.queue);
            while let Some((request, data)) = blocks.next(&mut chunk) {
                let piece = lengths.piece(request.piece);
                let at = piece.map(|piece| lengths.offset_in(piece, request.begin));
                if at.and_then(|at| queue.take(at)).is_some() {
                    messages.push(Message::Piece { piece: request.piece, begin: request.begin, data });
                }
            }
        }
        if !messages.is_empty() {
            // An error means that the driver has ended; this task ends soon after.
            let _ = self.inbox.send((self.key, Incoming::Messages(messages))).await;
        }
    }
}

/// Reads the end of a response, so that the connection can be reused.
async fn finish(mut response: Response) {
    let _ = timeout(END_LIMIT, response.chunk()).await;
}
