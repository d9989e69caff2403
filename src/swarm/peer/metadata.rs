//! Serving the torrent's metadata to one peer (BEP 9).

use std::collections::VecDeque;

use bytes::Bytes;

use crate::wire::{METADATA_PIECE_LEN, MetadataMessage};

/// How many copies of the metadata one peer may fetch: enough for a client that starts over, too few for an attack on
/// our upload bandwidth.
const MAX_COPIES: u32 = 3;

/// The metadata pieces that one peer has requested.
#[derive(Debug, Default)]
pub(in crate::swarm) struct MetadataUploads {
    /// Number of all accepted requests.
    accepted: u32,
    /// Those that are not answered.
    waiting: VecDeque<u32>,
}

impl MetadataUploads {
    /// Queues a request for a piece of metadata of `len` bytes. Returns false if it does not exist or the peer has fetched
    /// enough.
    pub(in crate::swarm) fn accept(&mut self, len: usize, piece: u32) -> bool {
        // It fits: a torrent file is at most 96 MiB.
        let pieces = (len as u32).div_ceil(METADATA_PIECE_LEN);
        if piece >= pieces || self.accepted >= MAX_COPIES * pieces {
            return false;
        }
        self.accepted += 1;
        self.waiting.push_back(piece);
        true
    }

    /// Returns whether a request is not answered.
    pub(in crate::swarm) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Withdraws a request that is not answered.
    pub(in crate::swarm) fn withdraw(&mut self) -> Option<u32> {
        self.waiting.pop_front()
    }

    /// Returns the next piece to send.
    pub(in crate::swarm) fn next(&mut self, metadata: &Bytes) -> Option<MetadataMessage> {
        let piece = self.waiting.pop_front()?;
        let begin = piece as usize * METADATA_PIECE_LEN as usize;
        let data = metadata.slice(begin..metadata.len().min(begin + METADATA_PIECE_LEN as usize));
        Some(MetadataMessage::Data { piece, total: Some(metadata.len() as u32), data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_gets_each_piece_a_few_times_and_none_that_does_not_exist() {
        let metadata = Bytes::from(vec![7; METADATA_PIECE_LEN as usize + 1]);
        let mut uploads = MetadataUploads::default();
        assert!(!uploads.accept(metadata.len(), 2) && !uploads.accept(metadata.len(), u32::MAX));
        for _ in 0..MAX_COPIES {
            assert!(uploads.accept(metadata.len(), 0) && uploads.accept(metadata.len(), 1));
        }
        assert!(!uploads.accept(metadata.len(), 0));
        let total = Some(METADATA_PIECE_LEN + 1);
        for _ in 0..MAX_COPIES {
            let data = metadata.slice(..METADATA_PIECE_LEN as usize);
            assert_eq!(uploads.next(&metadata), Some(MetadataMessage::Data { piece: 0, total, data }));
            let data = metadata.slice(METADATA_PIECE_LEN as usize..);
            assert_eq!(uploads.next(&metadata), Some(MetadataMessage::Data { piece: 1, total, data }));
        }
        assert_eq!(uploads.next(&metadata), None);
        assert!(!MetadataUploads::default().accept(0, 0));
    }
}
