//! Work in the blocking pool: hashing and storing pieces, reading blocks for uploads.

use std::time::Duration;

use bytes::Bytes;
use sha1::{Digest, Sha1};

use super::{Done, Driver};
use crate::metainfo::{BLOCK_LEN, PieceIndex, Verdict};
use crate::store::{Lookup, VerifyError};
use crate::swarm::{Event, PeerKey};
use crate::wire::{Message, Request};

/// Pause before a piece that could not be checked is fetched again: a faulty disk must not use up the link.
const HASHES_RETRY: Duration = Duration::from_secs(5);

impl Driver {
    /// Loads the metadata for peers, unless that is under way.
    pub(super) fn load_metadata(&mut self) {
        if std::mem::replace(&mut self.loading, true) {
            return;
        }
        let (info, done) = (self.metainfo.info.clone(), self.done.clone());
        tokio::task::spawn_blocking(move || {
            if let Err(error) = info.load() {
                let hash = info.info_hash();
                tracing::error!(
                    "cannot read the metadata of torrent {hash} from the cache directory: {error}; check the disk"
                );
            }
            let _ = done.blocking_send(Done::MetadataLoaded);
        });
    }

    /// Hashes a piece whose blocks are all here, and stores it if it is good.
    pub(super) fn check(&mut self, piece: PieceIndex, digests: bool) {
        let Some(buffer) = self.partials.take(piece) else {
            // The swarm has counted a block that never reached the buffer: have the piece fetched again.
            tracing::error!(%piece, "a complete piece has no buffer");
            self.enqueue(Event::Checked { piece, good: false, bad_blocks: Vec::new(), digests: Vec::new() });
            return;
        };
        self.checking += 1;
        let (store, done) = (self.store.clone(), self.done.clone());
        tokio::task::spawn_blocking(move || {
            let data = buffer.freeze();
            let (verdict, digests) = match store.verify(piece, data.clone()) {
                Ok(verified) => {
                    store.put(verified);
                    (Verdict::Good, if digests { block_digests(&data) } else { Vec::new() })
                }
                Err(VerifyError::Bad { blocks }) => (Verdict::Bad { blocks }, block_digests(&data)),
                Err(VerifyError::Hashes(error)) => {
                    tracing::error!(
                        "cannot read the hashes of torrent {} from the cache directory: {error}; piece {piece} cannot be \
                         checked and will be downloaded again; check the disk",
                        store.info_hash()
                    );
                    // Its senders are not to blame. It counts as stored and lost, and not at once, for the fault may last.
                    std::thread::sleep(HASHES_RETRY);
                    (Verdict::Good, Vec::new())
                }
            };
            // The task drains this channel until no check is under way.
            let _ = done.blocking_send(Done::Checked { piece, verdict, digests });
        });
    }

    /// Reports a checked piece to the swarm.
    pub(super) fn checked(&mut self, piece: PieceIndex, verdict: Verdict, digests: Vec<u64>) {
        self.checking -= 1;
        self.partials.remove(piece);
        let (good, bad_blocks) = match verdict {
            Verdict::Good => (true, Vec::new()),
            Verdict::Bad { blocks } => (false, blocks),
        };
        self.dispatch(Event::Checked { piece, good, bad_blocks, digests });
        // If the disk fails and the memory is full it may have been evicted already.
        if good && !self.store.has(piece) {
            self.dispatch(Event::Evicted(piece));
        }
        let now = self.clock.now();
        if self.share.piece_done(now) {
            self.update_allowed(now);
        }
        self.update_room();
    }

    /// Reads a block and queues it for a peer.
    pub(super) fn read_for_upload(&mut self, peer: PeerKey, request: Request) {
        let Some(piece) = self.metainfo.layout.lengths().piece(request.piece) else {
            return self.upload(peer, request, None);
        };
        let mut data = vec![0; request.length as usize];
        match self.store.peek_now(piece, request.begin, &mut data) {
            Lookup::Hit => self.upload(peer, request, Some(data.into())),
            Lookup::Missing => self.upload(peer, request, None),
            Lookup::WouldBlock => {
                let (store, done) = (self.store.clone(), self.done.clone());
                tokio::task::spawn_blocking(move || {
                    let read = store.peek(piece, request.begin, &mut data);
                    let data = matches!(read, Ok(Lookup::Hit)).then(|| data.into());
                    let _ = done.blocking_send(Done::Read { peer, request, data });
                });
            }
        }
    }

    /// Queues a block for a peer; without `data`, reports that it could not be read.
    pub(super) fn upload(&mut self, key: PeerKey, request: Request, data: Option<Bytes>) {
        match data {
            Some(data) => {
                self.queue_message(key, Message::Piece { piece: request.piece, begin: request.begin, data });
            }
            None => self.enqueue(Event::Uploaded { peer: key, request, sent: false }),
        }
    }
}

/// Returns a short digest of each block, by which the sender of wrong bytes is found when the piece is good later.
fn block_digests(data: &[u8]) -> Vec<u64> {
    data.chunks(BLOCK_LEN as usize)
        .map(|block| {
            let digest: [u8; 20] = Sha1::digest(block).into();
            u64::from_le_bytes([digest[0], digest[1], digest[2], digest[3], digest[4], digest[5], digest[6], digest[7]])
        })
        .collect()
}
