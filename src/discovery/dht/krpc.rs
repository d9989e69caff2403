//! Encoding and decoding of DHT messages (BEP 5, 32, 43).
//!
//! Lenient about fields that a node leaves out or gets wrong, strict about bounds: datagrams are small, and so is the
//! result.

use std::cmp::Ordering;
use std::fmt;
use std::net::SocketAddr;

use super::address::Family;
use crate::metainfo::InfoHash;
use crate::metainfo::bencode::{self, Field, Limits, List, dict};
use crate::wire::{put_compact, take_compact};

/// Longest datagram read, in bytes. Ours stay under 1,000.
pub(super) const MAX_DATAGRAM: usize = 2048;
/// Bounds of the bencode decoder for one datagram.
const LIMITS: Limits = Limits { bytes: MAX_DATAGRAM, values: 512 };
/// Nodes of each family used from a reply, which should hold 8.
const MAX_NODES: usize = 16;
/// Peers used from a reply. More do not fit a datagram that crosses the internet unfragmented.
const MAX_PEERS: usize = 200;
/// Longest transaction id or token accepted, in bytes. Real ones have 2 to 20.
const MAX_OPAQUE: usize = 64;

/// The id of a node, or a target in the same key space.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct NodeId(pub [u8; 20]);

impl NodeId {
    /// Returns the distance of two ids: their exclusive or, as a big-endian number.
    pub fn distance(&self, other: &Self) -> [u8; 20] {
        std::array::from_fn(|at| self.0[at] ^ other.0[at])
    }

    /// Returns the number of leading bits that two ids share, 0 to 160.
    pub fn common_bits(&self, other: &Self) -> usize {
        let distance = self.distance(other);
        let zeros = distance.iter().take_while(|byte| **byte == 0).count();
        zeros * 8 + distance.get(zeros).map_or(0, |byte| byte.leading_zeros() as usize)
    }

    /// Compares the distances of two other ids to this one.
    pub fn compare(&self, one: &Self, other: &Self) -> Ordering {
        self.distance(one).cmp(&self.distance(other))
    }
}

impl From<InfoHash> for NodeId {
    fn from(info_hash: InfoHash) -> Self {
        Self(info_hash.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&InfoHash(self.0), f)
    }
}

/// A node's id and address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Contact {
    pub id: NodeId,
    pub addr: SocketAddr,
}

/// A query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Query {
    Ping,
    FindNode {
        target: NodeId,
        want: Want,
    },
    GetPeers {
        info_hash: InfoHash,
        want: Want,
    },
    Announce {
        info_hash: InfoHash,
        /// Port of the peer. `None` stands for the source port of the datagram (`implied_port`).
        port: Option<u16>,
        token: Vec<u8>,
    },
}

/// Address families of the nodes to return (BEP 32). If neither is set, the family of the datagram is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Want {
    pub v4: bool,
    pub v6: bool,
}

/// A reply to a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub id: NodeId,
    pub nodes: Vec<Contact>,
    pub peers: Vec<SocketAddr>,
    /// Token that an announce to this node must contain.
    pub token: Option<Vec<u8>>,
}

impl Reply {
    /// Creates a reply without content, as for a ping.
    pub fn empty(id: NodeId) -> Self {
        Self { id, nodes: Vec::new(), peers: Vec::new(), token: None }
    }
}

/// The reason why a query is answered with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QueryError {
    /// Code 203: malformed query.
    Protocol,
    /// Code 204: unknown method.
    UnknownMethod,
}

/// A received message. `tid` is the transaction id chosen by the sender of the query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    Query {
        tid: Vec<u8>,
        id: NodeId,
        /// Whether the sender answers no queries (BEP 43).
        read_only: bool,
        query: Query,
    },
    /// A query that is malformed or unknown to us.
    InvalidQuery {
        tid: Vec<u8>,
        error: QueryError,
    },
    Reply {
        tid: Vec<u8>,
        reply: Reply,
    },
    Error {
        tid: Vec<u8>,
    },
}

dict! {
    struct Raw {
        kind: Vec<u8> = "y",
        tid: Vec<u8> = "t",
        method: Vec<u8> = "q",
        arguments: Arguments = "a",
        reply: RawReply = "r",
        read_only: i64 = "ro",
    }
}

dict! {
    struct Arguments {
        id: Vec<u8> = "id",
        target: Vec<u8> = "target",
        info_hash: Vec<u8> = "info_hash",
        want: List<Vec<u8>, 4> = "want",
        port: i64 = "port",
        implied_port: i64 = "implied_port",
        token: Vec<u8> = "token",
    }
}

dict! {
    struct RawReply {
        id: Vec<u8> = "id",
        nodes: Vec<u8> = "nodes",
        nodes6: Vec<u8> = "nodes6",
        values: List<Vec<u8>, MAX_PEERS> = "values",
        token: Vec<u8> = "token",
    }
}

/// Returns a value of exactly 20 bytes.
fn bytes20(field: Field<Vec<u8>>) -> Option<[u8; 20]> {
    field.ok()?.try_into().ok()
}

fn opaque(field: Field<Vec<u8>>) -> Option<Vec<u8>> {
    field.ok().filter(|bytes| (1..=MAX_OPAQUE).contains(&bytes.len()))
}

/// Decodes a datagram. Returns `None` if it is not a DHT message or lacks what is needed to handle it.
pub(super) fn decode(bytes: &[u8]) -> Option<Message> {
    let raw = bencode::decode::<Field<Raw>>(bytes, &LIMITS).ok()?.ok()?;
    let tid = opaque(raw.tid)?;
    match raw.kind.ok()?.as_slice() {
        b"q" => {
            let method = raw.method.ok()?;
            let read_only = raw.read_only == Field::Is(1);
            Some(match query(&method, raw.arguments.ok()) {
                Ok((id, query)) => Message::Query { tid, id, read_only, query },
                Err(error) => Message::InvalidQuery { tid, error },
            })
        }
        b"r" => {
            let raw = raw.reply.ok()?;
            let id = NodeId(bytes20(raw.id)?);
            let mut nodes = Vec::new();
            for (field, family) in [(raw.nodes, Family::V4), (raw.nodes6, Family::V6)] {
                nodes.extend(contacts(&field.ok().unwrap_or_default(), family).take(MAX_NODES));
            }
            let values = raw.values.ok().into_iter().flat_map(List::valid_items);
            let peers = values.filter_map(|value| take_compact(&value)).collect();
            Some(Message::Reply { tid, reply: Reply { id, nodes, peers, token: opaque(raw.token) } })
        }
        b"e" => Some(Message::Error { tid }),
        _ => None,
    }
}

fn query(method: &[u8], arguments: Option<Arguments>) -> Result<(NodeId, Query), QueryError> {
    let arguments = arguments.ok_or(QueryError::Protocol)?;
    let id = NodeId(bytes20(arguments.id).ok_or(QueryError::Protocol)?);
    let wanted: Vec<Vec<u8>> = arguments.want.ok().into_iter().flat_map(List::valid_items).collect();
    let wants = |family: &[u8]| wanted.iter().any(|wanted| wanted == family);
    let want = Want { v4: wants(b"n4"), v6: wants(b"n6") };
    let hash = |field| bytes20(field).ok_or(QueryError::Protocol);
    let query = match method {
        b"ping" => Query::Ping,
        b"find_node" => Query::FindNode { target: NodeId(hash(arguments.target)?), want },
        b"get_peers" => Query::GetPeers { info_hash: InfoHash(hash(arguments.info_hash)?), want },
        b"announce_peer" => {
            let implied = matches!(arguments.implied_port, Field::Is(flag) if flag != 0);
            let port = arguments.port.ok().and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
            if !implied && port.is_none() {
                return Err(QueryError::Protocol);
            }
            Query::Announce {
                info_hash: InfoHash(hash(arguments.info_hash)?),
                port: port.filter(|_| !implied),
                token: opaque(arguments.token).ok_or(QueryError::Protocol)?,
            }
        }
        _ => return Err(QueryError::UnknownMethod),
    };
    Ok((id, query))
}

/// Returns the length of one node in compact node info, in bytes.
pub(super) fn entry_len(family: Family) -> usize {
    match family {
        Family::V4 => 26,
        Family::V6 => 38,
    }
}

/// Decodes compact node info: ids and addresses. A truncated last entry is dropped.
pub(super) fn contacts(bytes: &[u8], family: Family) -> impl Iterator<Item = Contact> {
    let one = |entry: &[u8]| {
        let (id, addr) = entry.split_first_chunk()?;
        Some(Contact { id: NodeId(*id), addr: take_compact(addr)? })
    };
    bytes.chunks_exact(entry_len(family)).filter_map(one)
}

/// Encodes the contacts of one family as compact node info.
pub(super) fn compact(contacts: &[Contact], family: Family) -> Vec<u8> {
    let mut out = Vec::with_capacity(contacts.len() * entry_len(family));
    for contact in contacts.iter().filter(|contact| Family::of(contact.addr) == family) {
        out.extend_from_slice(&contact.id.0);
        put_compact(contact.addr, &mut out);
    }
    out
}

/// Writes bencode directly. Dictionary keys must be written in sorted order.
struct Writer(Vec<u8>);

impl Writer {
    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn string(self, bytes: &[u8]) -> Self {
        let len = bytes.len().to_string();
        self.raw(len.as_bytes()).raw(b":").raw(bytes)
    }

    fn number(self, number: u16) -> Self {
        self.raw(format!("i{number}e").as_bytes())
    }

    fn want(self, want: Want) -> Self {
        let list = match (want.v4, want.v6) {
            (true, true) => "4:wantl2:n42:n6e",
            (true, false) => "4:wantl2:n4e",
            (false, true) => "4:wantl2:n6e",
            (false, false) => "",
        };
        self.raw(list.as_bytes())
    }
}

/// Encodes a query of ours.
pub(super) fn encode_query(tid: &[u8], id: &NodeId, query: &Query) -> Vec<u8> {
    let out = Writer(Vec::with_capacity(160)).raw(b"d1:ad2:id").string(&id.0);
    let (out, method) = match query {
        Query::Ping => (out, "ping"),
        Query::FindNode { target, want } => (out.raw(b"6:target").string(&target.0).want(*want), "find_node"),
        Query::GetPeers { info_hash, want } => (out.raw(b"9:info_hash").string(&info_hash.0).want(*want), "get_peers"),
        Query::Announce { info_hash, port, token } => {
            let implied = port.is_none().into();
            let out = out.raw(b"12:implied_port").number(implied).raw(b"9:info_hash").string(&info_hash.0);
            (out.raw(b"4:port").number(port.unwrap_or(1)).raw(b"5:token").string(token), "announce_peer")
        }
    };
    out.raw(b"e1:q").string(method.as_bytes()).raw(b"1:t").string(tid).raw(b"1:y1:qe").0
}

/// Encodes a reply to `to`, including the address under which we see it (BEP 42). `tid` is from its query. `families`
/// selects the node lists to include, even if they are empty.
pub(super) fn encode_reply(tid: &[u8], to: SocketAddr, reply: &Reply, families: Want) -> Vec<u8> {
    let mut ip = Vec::new();
    put_compact(to, &mut ip);
    let mut out = Writer(Vec::with_capacity(512)).raw(b"d2:ip").string(&ip).raw(b"1:rd2:id").string(&reply.id.0);
    if families.v4 {
        out = out.raw(b"5:nodes").string(&compact(&reply.nodes, Family::V4));
    }
    if families.v6 {
        out = out.raw(b"6:nodes6").string(&compact(&reply.nodes, Family::V6));
    }
    if let Some(token) = &reply.token {
        out = out.raw(b"5:token").string(token);
    }
    if !reply.peers.is_empty() {
        out = out.raw(b"6:valuesl");
        for peer in &reply.peers {
            let mut value = Vec::new();
            put_compact(*peer, &mut value);
            out = out.string(&value);
        }
        out = out.raw(b"e");
    }
    out.raw(b"e1:t").string(tid).raw(b"1:y1:re").0
}

/// Encodes an error reply.
pub(super) fn encode_error(tid: &[u8], error: QueryError) -> Vec<u8> {
    let (code, text) = match error {
        QueryError::Protocol => (203, "Protocol Error"),
        QueryError::UnknownMethod => (204, "Method Unknown"),
    };
    let out = Writer(Vec::new()).raw(b"d1:el").number(code).string(text.as_bytes());
    out.raw(b"e1:t").string(tid).raw(b"1:y1:ee").0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: NodeId = NodeId(*b"abcdefghij0123456789");
    const OTHER: NodeId = NodeId(*b"mnopqrstuvwxyz123456");
    const NO: Want = Want { v4: false, v6: false };

    fn asked(query: Query) -> Message {
        Message::Query { tid: b"aa".to_vec(), id: ID, read_only: false, query }
    }

    /// The examples of BEP 5.
    #[test]
    fn queries_follow_the_specification() {
        let info_hash = InfoHash(OTHER.0);
        let cases: [(Query, &[u8]); 4] = [
            (Query::Ping, b"d1:ad2:id20:abcdefghij0123456789e1:q4:ping1:t2:aa1:y1:qe"),
            (
                Query::FindNode { target: OTHER, want: NO },
                b"d1:ad2:id20:abcdefghij01234567896:target20:mnopqrstuvwxyz123456e1:q9:find_node1:t2:aa1:y1:qe",
            ),
            (
                Query::GetPeers { info_hash, want: NO },
                b"d1:ad2:id20:abcdefghij01234567899:info_hash20:mnopqrstuvwxyz123456e1:q9:get_peers1:t2:aa1:y1:qe",
            ),
            (
                Query::Announce { info_hash, port: None, token: b"aoeusnth".to_vec() },
                b"d1:ad2:id20:abcdefghij012345678912:implied_porti1e9:info_hash20:mnopqrstuvwxyz1234564:porti1e5:token\
                  8:aoeusnthe1:q13:announce_peer1:t2:aa1:y1:qe",
            ),
        ];
        for (query, bytes) in cases {
            assert_eq!(decode(bytes).unwrap(), asked(query.clone()));
            assert_eq!(encode_query(b"aa", &ID, &query), bytes, "{query:?}");
        }
    }

    #[test]
    fn replies_follow_the_specification() {
        let reply =
            decode(b"d1:rd2:id20:abcdefghij01234567895:token8:aoeusnth6:valuesl6:axje.u6:idhtnmee1:t2:aa1:y1:re");
        let peers = vec!["97.120.106.101:11893".parse().unwrap(), "105.100.104.116:28269".parse().unwrap()];
        let expected = Reply { id: ID, nodes: Vec::new(), peers, token: Some(b"aoeusnth".to_vec()) };
        assert_eq!(reply, Some(Message::Reply { tid: b"aa".to_vec(), reply: expected }));
        let error = b"d1:eli201e23:A Generic Error Ocurrede1:t2:aa1:y1:ee";
        assert_eq!(decode(error), Some(Message::Error { tid: b"aa".to_vec() }));
    }

    #[test]
    fn implied_port_may_be_missing() {
        let bytes = b"d1:ad2:id20:abcdefghij01234567899:info_hash20:mnopqrstuvwxyz1234564:porti6881e5:token1:xe\
                      1:q13:announce_peer1:t2:aa1:y1:qe";
        let expected = Query::Announce { info_hash: InfoHash(OTHER.0), port: Some(6881), token: b"x".to_vec() };
        assert_eq!(decode(bytes), Some(asked(expected)));
    }

    #[test]
    fn both_families_round_trip() {
        let contact = |text: &str| Contact { id: OTHER, addr: text.parse().unwrap() };
        let nodes = vec![contact("1.2.3.4:5"), contact("[2001:db8::1]:6")];
        let peers = vec!["9.8.7.6:5".parse().unwrap(), "[2001:db8::2]:6".parse().unwrap()];
        let reply = Reply { id: ID, nodes, peers, token: Some(b"t".to_vec()) };
        let bytes = encode_reply(b"aa", "1.1.1.1:1".parse().unwrap(), &reply, Want { v4: true, v6: true });
        assert_eq!(decode(&bytes), Some(Message::Reply { tid: b"aa".to_vec(), reply }));
        let wanted = Query::GetPeers { info_hash: InfoHash(OTHER.0), want: Want { v4: true, v6: true } };
        assert_eq!(decode(&encode_query(b"aa", &ID, &wanted)), Some(asked(wanted)));
    }

    #[test]
    fn invalid_queries_are_told_apart_from_other_traffic() {
        let invalid = |error| Some(Message::InvalidQuery { tid: b"aa".to_vec(), error });
        let unknown = b"d1:ad2:id20:abcdefghij0123456789e1:q4:vote1:t2:aa1:y1:qe";
        assert_eq!(decode(unknown), invalid(QueryError::UnknownMethod));
        assert_eq!(decode(b"d1:ad2:id2:abe1:q4:ping1:t2:aa1:y1:qe"), invalid(QueryError::Protocol));
        assert_eq!(decode(b"d1:q4:ping1:t2:aa1:y1:qe"), invalid(QueryError::Protocol));
        assert_eq!(encode_error(b"aa", QueryError::UnknownMethod), b"d1:eli204e14:Method Unknowne1:t2:aa1:y1:ee");
        let nested = [vec![b'l'; 800], vec![b'e'; 800]].concat();
        for junk in
            [&b""[..], b"i1e", b"de", b"d1:t2:aa1:y1:re", b"d1:rd2:id2:abe1:t2:aa1:y1:re", &nested, &[b'1'; 4000]]
        {
            assert_eq!(decode(junk), None);
        }
    }

    #[test]
    fn ids_are_compared_by_exclusive_or() {
        let zero = NodeId([0; 20]);
        let mut near = zero;
        near.0[19] = 1;
        assert_eq!((zero.common_bits(&zero), zero.common_bits(&near)), (160, 159));
        assert_eq!(zero.common_bits(&NodeId([0x80; 20])), 0);
        assert!(zero.compare(&near, &NodeId([1; 20])).is_lt());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
        }

        #[test]
        fn damaged_replies_stay_bounded(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let reply = Reply { id: ID, nodes: vec![Contact { id: OTHER, addr: ([1, 2, 3, 4], 5).into() }],
                peers: vec![([1, 2, 3, 4], 5).into()], token: Some(b"t".to_vec()) };
            let mut bytes = encode_reply(b"aa", ([1, 1, 1, 1], 1).into(), &reply, Want { v4: true, v6: true });
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Some(Message::Reply { reply, .. }) = decode(&bytes) {
                prop_assert!(reply.nodes.len() <= MAX_NODES * 2 && reply.peers.len() <= MAX_PEERS);
            }
        }
    }
}
