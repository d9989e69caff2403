//! What peers say beyond the torrent's pieces (BEP 10): metadata (BEP 9), each other's addresses (BEP 11), and calls
//! by appointment (BEP 55; see `holepunch`).
//!
//! Everything here is answered or bounded at once; nothing of it reaches the swarm but addresses. A private torrent's
//! peers are its tracker's alone (BEP 27): there is no peer exchange then.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::driver::Driver;
use super::holepunch::Allowance;
use super::origins::PeerSource;
use crate::net::Transport;
use crate::swarm::{Direction, Event, PeerKey};
use crate::util::is_local;
use crate::wire::{
    ExtensionHandshake, Holepunch, METADATA_PIECE_LEN, Message, MetadataMessage, Pex, PexFlags, UT_HOLEPUNCH,
    UT_METADATA, UT_PEX,
};

/// Our numbers of the extensions: what messages to us bear.
pub(super) const METADATA: u8 = 1;
pub(super) const PEX: u8 = 2;
pub(super) const HOLEPUNCH: u8 = 3;

/// Requests of one peer that we queue, told in the extension handshake.
const OUR_REQQ: u32 = 512;

/// How often peers are told of others, and may tell us (BEP 11).
const PEX_INTERVAL: Duration = Duration::from_secs(60);
/// Addresses of each kind in a message of ours (BEP 11).
const PEX_AT_ONCE: usize = 50;
/// How many times over a peer may have the metadata.
const METADATA_TIMES: u32 = 3;

/// What a peer has of extensions, and what has passed.
#[derive(Debug)]
pub(super) struct Extensions {
    pub(super) direction: Direction,
    /// Their numbers; 0: they have it not.
    metadata: u8,
    pex: u8,
    pub(super) holepunch: u8,
    pub(super) punches: Allowance,
    /// Where they can be called, if they called us.
    listens: Option<u16>,
    /// What they call themselves.
    pub(super) client: Option<String>,
    metadata_served: u32,
    pex_heard: Option<Instant>,
    pex_told: HashSet<SocketAddr>,
    pex_due: Instant,
}

impl Extensions {
    pub(super) fn new(now: Instant, direction: Direction) -> Self {
        Self {
            direction,
            metadata: 0,
            pex: 0,
            holepunch: 0,
            punches: Allowance::new(now),
            listens: None,
            client: None,
            metadata_served: 0,
            pex_heard: None,
            pex_told: HashSet::new(),
            // They have hardly said what they have yet.
            pex_due: now + Duration::from_secs(2),
        }
    }

    /// Where others can call this peer.
    pub(super) fn contact(&self, addr: SocketAddr) -> Option<SocketAddr> {
        match self.direction {
            Direction::Outgoing => Some(addr),
            Direction::Incoming => self.listens.map(|port| SocketAddr::new(addr.ip(), port)),
        }
    }
}

/// Our extension handshake to a peer at `addr`.
pub(super) fn greeting(addr: SocketAddr, port: u16, metadata_size: Option<u32>, pex: bool, complete: bool) -> Bytes {
    let mut extensions = BTreeMap::from([(UT_METADATA.to_owned(), METADATA)]);
    if pex {
        extensions.insert(UT_PEX.to_owned(), PEX);
        extensions.insert(UT_HOLEPUNCH.to_owned(), HOLEPUNCH);
    }
    ExtensionHandshake {
        extensions,
        client: Some(concat!("torrentfs ", env!("CARGO_PKG_VERSION")).into()),
        port: (port != 0).then_some(port),
        request_queue: Some(OUR_REQQ),
        your_ip: Some(addr.ip()),
        metadata_size,
        upload_only: complete,
    }
    .encode()
}

/// Whether a peer at `from` may name `addr`: one from afar has no business with the addresses of this network.
pub(super) fn may_name(from: IpAddr, addr: IpAddr) -> bool {
    !is_local(addr) || is_local(from)
}

impl Driver {
    /// A message of an extension came; `id` is our number of it.
    pub(super) fn extended(&mut self, key: PeerKey, id: u8, payload: &Bytes) {
        let done = match id {
            0 => ExtensionHandshake::decode(payload).map(|theirs| self.greeted(key, &theirs)),
            METADATA => MetadataMessage::decode(payload).map(|message| self.serve_metadata(key, message)),
            PEX => Pex::decode(payload).map(|pex| self.heard_of(key, &pex)),
            HOLEPUNCH => Holepunch::decode(payload).map(|message| self.holepunch(key, message)),
            _ => return,
        };
        if let Err(error) = done {
            tracing::debug!(?key, id, "extension message ignored: {error}");
        }
    }

    fn greeted(&mut self, key: PeerKey, theirs: &ExtensionHandshake) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        // A later handshake changes only what it names.
        let Extensions { metadata, pex, holepunch, .. } = &mut peer.extensions;
        for (name, number) in [(UT_METADATA, metadata), (UT_PEX, pex), (UT_HOLEPUNCH, holepunch)] {
            *number = theirs.extensions.get(name).copied().unwrap_or(*number);
        }
        if theirs.client.is_some() {
            peer.extensions.client.clone_from(&theirs.client);
        }
        peer.extensions.listens = theirs.port.or(peer.extensions.listens);
        if let Some(reqq) = theirs.request_queue {
            self.hear(Event::Reqq { peer: key, reqq });
        }
        if theirs.upload_only {
            self.hear(Event::UploadOnly(key));
        }
    }

    fn serve_metadata(&mut self, key: PeerKey, message: Option<MetadataMessage>) {
        let Some(MetadataMessage::Request { piece }) = message else { return };
        let info = &self.metainfo.info;
        let Some(peer) = self.peers.get_mut(&key).filter(|peer| peer.extensions.metadata != 0) else { return };
        // Both fit: a torrent file is at most 96 MiB.
        let total = info.len() as u32;
        let begin = u64::from(piece) * u64::from(METADATA_PIECE_LEN);
        let answer = if begin < u64::from(total)
            && peer.extensions.metadata_served < METADATA_TIMES * total.div_ceil(METADATA_PIECE_LEN)
        {
            peer.extensions.metadata_served += 1;
            let begin = begin as usize;
            let data = info.slice(begin..info.len().min(begin + METADATA_PIECE_LEN as usize));
            MetadataMessage::Data { piece, total, data }
        } else {
            MetadataMessage::Reject { piece }
        };
        peer.outgoing.push(Message::Extended { id: peer.extensions.metadata, payload: answer.encode() });
    }

    /// A peer names others.
    fn heard_of(&mut self, key: PeerKey, pex: &Pex) {
        let now = Instant::now();
        let Some(peer) = self.peers.get_mut(&key).filter(|_| self.pex) else { return };
        // Half of it: messages may be delayed on their way.
        let early = |at: Instant| now.saturating_duration_since(at) < PEX_INTERVAL / 2;
        if peer.extensions.pex_heard.is_some_and(early) {
            return;
        }
        peer.extensions.pex_heard = Some(now);
        let from = peer.addr.ip();
        let relays = peer.extensions.holepunch != 0;
        let mut addrs = Vec::new();
        for (addr, flags) in pex.added.iter().filter(|(addr, _)| may_name(from, addr.ip())) {
            addrs.push(*addr);
            if relays && flags.holepunch {
                self.introductions.add(*addr, key);
            }
        }
        tracing::debug!(?key, "peer names {} others", addrs.len());
        if !addrs.is_empty() {
            self.found(addrs, PeerSource::Pex);
        }
    }

    /// Tells each peer whom else we are connected to, when its time has come.
    pub(super) fn exchange_peers(&mut self, now: Instant) {
        let due = |extensions: &Extensions| extensions.pex != 0 && now >= extensions.pex_due;
        if !self.pex || !self.peers.values().any(|peer| due(&peer.extensions)) {
            return;
        }
        let contacts: BTreeMap<SocketAddr, PexFlags> = self
            .peers
            .iter()
            .filter(|(_, peer)| !self.is_web_seed(peer.addr))
            .filter_map(|(key, peer)| {
                let flags = PexFlags {
                    seed: self.swarm.is_seed(*key),
                    utp: peer.transport == Transport::Utp,
                    encryption: peer.encrypted,
                    holepunch: peer.extensions.holepunch != 0,
                    reachable: peer.extensions.direction == Direction::Outgoing,
                };
                Some((peer.extensions.contact(peer.addr)?, flags))
            })
            .collect();
        for peer in self.peers.values_mut().filter(|peer| due(&peer.extensions)) {
            let (own, to) = (peer.extensions.contact(peer.addr), peer.addr.ip());
            let extensions = &mut peer.extensions;
            extensions.pex_due = now + PEX_INTERVAL;
            let others = contacts.iter().filter(|(addr, _)| Some(**addr) != own && may_name(to, addr.ip()));
            let pex = Pex {
                added: others
                    .filter(|(addr, _)| !extensions.pex_told.contains(addr))
                    .map(|(addr, flags)| (*addr, *flags))
                    .take(PEX_AT_ONCE)
                    .collect(),
                dropped: extensions
                    .pex_told
                    .iter()
                    .filter(|addr| !contacts.contains_key(addr))
                    .copied()
                    .take(PEX_AT_ONCE)
                    .collect(),
            };
            if pex == Pex::default() {
                continue;
            }
            extensions.pex_told.extend(pex.added.iter().map(|(addr, _)| *addr));
            pex.dropped.iter().for_each(|addr| {
                extensions.pex_told.remove(addr);
            });
            peer.outgoing.push(Message::Extended { id: extensions.pex, payload: pex.encode() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_do_not_name_our_neighbours() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for (from, addr, may) in [
            ("1.2.3.4", "5.6.7.8", true),
            ("1.2.3.4", "127.0.0.1", false),
            ("1.2.3.4", "192.168.0.1", false),
            ("1.2.3.4", "::ffff:10.0.0.1", false),
            ("2001:db8::1", "fe80::1", false),
            ("10.0.0.2", "10.0.0.3", true),
            ("127.0.0.1", "5.6.7.8", true),
        ] {
            assert_eq!(may_name(ip(from), ip(addr)), may, "{from} names {addr}");
        }
    }
}
