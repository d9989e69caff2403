//! Entry points of the fuzz targets.

use super::{datagram, reply, scrape};
use crate::metainfo::InfoHash;

/// Checks that a reply is rejected or bounded, and that nothing after or before a whole one changes what it says.
pub fn fuzz_reply(body: &[u8]) {
    match reply::parse(body) {
        Ok(reply) => {
            assert!(reply.answer.peers == reply.peers.len() && reply.peers.len() <= reply::MAX_PEERS);
            assert!(reply.peers.iter().all(|peer| peer.port() != 0));
            assert!(reply.tracker_id.iter().all(|id| (1..=256).contains(&id.len())));
            let texts = [&reply.answer.warning, &reply.ignored];
            assert!(texts.into_iter().flatten().all(|text| !text.is_empty() && !text.contains(char::is_control)));
            if reply::is_whole(body) {
                let longer = [b"\xef\xbb\xbf\r\n", body, b"\0<!-- -->"].concat();
                let longer = reply::parse(&longer).map(|longer| (longer.peers, longer.interval, longer.answer));
                assert_eq!(longer, Ok((reply.peers, reply.interval, reply.answer)));
            }
        }
        Err(error) => assert!(!error.to_string().contains(char::is_control)),
    }
    // A reply that is cut off says no more than the whole one.
    for end in [body.len() / 2, body.len().saturating_sub(1)] {
        let _ = (reply::parse(&body[..end]), reply::is_whole(&body[..end]));
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
