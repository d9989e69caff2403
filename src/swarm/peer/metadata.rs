//! Serving the torrent's metadata to one peer (BEP 9).

use bytes::Bytes;

use crate::wire::{METADATA_PIECE_LEN, MetadataMessage};

/// How many copies of the metadata one peer may fetch: enough for a client that starts over, too few for an attack on
/// our upload bandwidth.
const MAX_COPIES: u32 = 3;

/// The metadata pieces sent to one peer.
#[derive(Debug, Default)]
pub(in crate::swarm) struct MetadataUploads {
    sent: u32,
}

impl MetadataUploads {
    /// Answers a request for a piece of `metadata`: the piece, or a reject if it does not exist or the peer has fetched
    /// enough.
    pub(in crate::swarm) fn answer(&mut self, metadata: &Bytes, piece: u32) -> MetadataMessage {
        // It fits: a torrent file is at most 96 MiB.
        let total = metadata.len() as u32;
        let begin = u64::from(piece) * u64::from(METADATA_PIECE_LEN);
        if begin >= u64::from(total) || self.sent >= MAX_COPIES * total.div_ceil(METADATA_PIECE_LEN) {
            return MetadataMessage::Reject { piece };
        }
        self.sent += 1;
        let begin = begin as usize;
        let data = metadata.slice(begin..metadata.len().min(begin + METADATA_PIECE_LEN as usize));
        MetadataMessage::Data { piece, total, data }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_gets_each_piece_a_few_times_and_none_that_does_not_exist() {
        let metadata = Bytes::from(vec![7; METADATA_PIECE_LEN as usize + 1]);
        let mut uploads = MetadataUploads::default();
        assert_eq!(uploads.answer(&metadata, 2), MetadataMessage::Reject { piece: 2 });
        assert_eq!(uploads.answer(&metadata, u32::MAX), MetadataMessage::Reject { piece: u32::MAX });
        for _ in 0..MAX_COPIES {
            let (total, data) = (METADATA_PIECE_LEN + 1, metadata.slice(..METADATA_PIECE_LEN as usize));
            assert_eq!(uploads.answer(&metadata, 0), MetadataMessage::Data { piece: 0, total, data });
            let data = metadata.slice(METADATA_PIECE_LEN as usize..);
            assert_eq!(uploads.answer(&metadata, 1), MetadataMessage::Data { piece: 1, total, data });
        }
        assert_eq!(uploads.answer(&metadata, 0), MetadataMessage::Reject { piece: 0 });
        assert_eq!(MetadataUploads::default().answer(&Bytes::new(), 0), MetadataMessage::Reject { piece: 0 });
    }
}
