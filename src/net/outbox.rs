//! The queue of messages from the driver to a connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tokio::sync::mpsc;

use crate::wire::Message;

/// Capacity of an outbox, in batches of messages.
const CAPACITY: usize = 128;
/// Maximum number of messages in an outbox, if they are in more than one batch: answers to a peer that sends and does not
/// read must not fill memory.
const MAX_MESSAGES: usize = 4096;

/// The queue of messages to a peer.
#[derive(Clone, Debug)]
pub struct Outbox {
    batches: mpsc::Sender<Vec<Message>>,
    /// Number of messages in the queue; `None` without a socket.
    unsent: Option<Arc<AtomicUsize>>,
}

/// The outbox is full, or the connection has ended, which [`Incoming::Closed`] reports. Returns the messages.
#[derive(Debug)]
pub struct OutboxFull(pub Vec<Message>);

/// Returns an outbox and its other end.
pub(super) fn channel() -> (Outbox, Queue) {
    let (batches, queue) = mpsc::channel(CAPACITY);
    let unsent = Arc::new(AtomicUsize::new(0));
    (Outbox { batches, unsent: Some(unsent.clone()) }, Queue { batches: queue, unsent })
}

impl Outbox {
    /// Returns an outbox without a socket, which counts batches only, and its other end.
    pub(super) fn unbounded_by_messages() -> (Self, mpsc::Receiver<Vec<Message>>) {
        let (batches, queue) = mpsc::channel(CAPACITY);
        (Self { batches, unsent: None }, queue)
    }

    /// Queues messages, in order. Never blocks. An empty outbox takes any number.
    pub fn send(&self, messages: Vec<Message>) -> Result<(), OutboxFull> {
        let count = messages.len();
        if let Some(unsent) = &self.unsent {
            // Only this side adds.
            let before = unsent.load(Relaxed);
            if before > 0 && before + count > MAX_MESSAGES {
                return Err(OutboxFull(messages));
            }
            unsent.fetch_add(count, Relaxed);
        }
        self.batches.try_send(messages).map_err(|error| {
            if let Some(unsent) = &self.unsent {
                unsent.fetch_sub(count, Relaxed);
            }
            OutboxFull(error.into_inner())
        })
    }
}

/// The other end of an [`Outbox`].
pub(super) struct Queue {
    batches: mpsc::Receiver<Vec<Message>>,
    unsent: Arc<AtomicUsize>,
}

impl Queue {
    pub(super) async fn recv(&mut self) -> Option<Vec<Message>> {
        let batch = self.batches.recv().await?;
        self.unsent.fetch_sub(batch.len(), Relaxed);
        Some(batch)
    }

    pub(super) fn try_recv(&mut self) -> Option<Vec<Message>> {
        let batch = self.batches.try_recv().ok()?;
        self.unsent.fetch_sub(batch.len(), Relaxed);
        Some(batch)
    }
}
