//! Entry points of the fuzz targets.

use super::{datagram, reply, scrape};
use crate::metainfo::InfoHash;

/// Checks that a reply is rejected or bounded.
pub fn fuzz_reply(body: &[u8]) {
    match reply::parse(body) {
        Ok(reply) => {
            assert!(reply.answer.peers == reply.peers.len() && reply.peers.iter().all(|peer| peer.port() != 0));
            assert!(reply.answer.warning.is_none_or(|text| !text.contains(char::is_control)));
        }
        Err(error) => assert!(!error.to_string().contains(char::is_control)),
    }
}

/// Checks the same for scrape replies and UDP datagrams.
pub fn fuzz_counts_and_datagram(bytes: &[u8]) {
    if let Err(error) = scrape::parse(bytes, InfoHash([b'y'; 20])) {
        assert!(!error.to_string().contains(char::is_control));
    }
    let transaction = datagram::TransactionId(0x6161_6161);
    match datagram::parse(bytes, datagram::Action::Announce, transaction) {
        datagram::Received::Stray => {}
        datagram::Received::Error(error) => assert!(!error.to_string().contains(char::is_control)),
        datagram::Received::Reply(body) => {
            for v6 in [false, true] {
                if let Ok(reply) = datagram::parse_announce(body, v6) {
                    assert!(reply.peers.len() <= body.len() / 6 && reply.peers.iter().all(|peer| peer.port() != 0));
                }
            }
            let _ = (datagram::parse_connect(body), datagram::parse_scrape(body));
        }
    }
}
