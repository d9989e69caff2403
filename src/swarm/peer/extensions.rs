//! One peer's extensions (BEP 10): the numbers that it gave them, and what has passed.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use bytes::Bytes;

use super::holepunch::PerMinute;
use super::metadata::MetadataUploads;
use super::pex::PeerExchange;
use crate::swarm::uploads::MAX_QUEUE;
use crate::wire::{CLIENT_NAME, ExtensionHandshake, UT_HOLEPUNCH, UT_METADATA, UT_PEX};

/// Our number of `ut_metadata`: messages to us carry it.
pub(in crate::swarm) const METADATA: u8 = 1;
/// Our number of `ut_pex`.
pub(in crate::swarm) const PEX: u8 = 2;
/// Our number of `ut_holepunch`.
pub(in crate::swarm) const HOLEPUNCH: u8 = 3;

/// The extensions of one peer.
#[derive(Debug)]
pub(in crate::swarm) struct Extensions {
    /// The peer's number of `ut_metadata`, for messages to it; 0: not supported.
    pub(in crate::swarm) metadata: u8,
    /// The peer's number of `ut_pex`; 0: not supported.
    pub(in crate::swarm) pex: u8,
    /// The peer's number of `ut_holepunch`; 0: not supported.
    pub(in crate::swarm) holepunch: u8,
    /// The TCP port at which the peer can be dialed.
    pub(in crate::swarm) listen_port: Option<u16>,
    /// The client and its version, as the peer states them.
    pub(in crate::swarm) client: Option<String>,
    pub(in crate::swarm) metadata_uploads: MetadataUploads,
    /// Number of extension messages to the peer that have not left the socket.
    pub(in crate::swarm) unsent: usize,
    pub(in crate::swarm) exchange: PeerExchange,
    /// Limits the hole punching messages that we handle.
    pub(in crate::swarm) punches: PerMinute,
}

impl Extensions {
    pub(in crate::swarm) fn new(now: Instant) -> Self {
        Self {
            metadata: 0,
            pex: 0,
            holepunch: 0,
            listen_port: None,
            client: None,
            metadata_uploads: MetadataUploads::default(),
            unsent: 0,
            exchange: PeerExchange::new(now),
            punches: PerMinute::new(now),
        }
    }

    /// Takes over the peer's extension handshake. A later handshake changes only what it names.
    pub(in crate::swarm) fn update(&mut self, theirs: &ExtensionHandshake) {
        let Self { metadata, pex, holepunch, .. } = self;
        for (name, number) in [(UT_METADATA, metadata), (UT_PEX, pex), (UT_HOLEPUNCH, holepunch)] {
            *number = theirs.extensions.get(name).copied().unwrap_or(*number);
        }
        if theirs.client.is_some() {
            self.client.clone_from(&theirs.client);
        }
        self.listen_port = theirs.port.or(self.listen_port);
    }
}

/// Returns the payload of our extension handshake to a peer at `ip`. `our_port` is 0 if nobody can dial us.
pub(in crate::swarm) fn our_handshake(
    ip: IpAddr,
    our_port: u16,
    metadata_size: Option<u32>,
    pex: bool,
    upload_only: bool,
) -> Bytes {
    let mut extensions = BTreeMap::from([(UT_METADATA.to_owned(), METADATA)]);
    if pex {
        extensions.insert(UT_PEX.to_owned(), PEX);
        extensions.insert(UT_HOLEPUNCH.to_owned(), HOLEPUNCH);
    }
    ExtensionHandshake {
        extensions,
        client: Some(CLIENT_NAME.into()),
        port: (our_port != 0).then_some(our_port),
        request_queue: Some(MAX_QUEUE as u32),
        your_ip: Some(ip),
        metadata_size,
        upload_only,
    }
    .encode()
}
