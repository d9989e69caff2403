//! The extension handshake (BEP 10): a peer's extensions with their message ids, and facts about the peer.

use std::collections::BTreeMap;
use std::net::IpAddr;

use bytes::Bytes;
use serde::Serialize;
use serde::de::{IgnoredAny, MapAccess};
use serde_bytes::ByteBuf;

use super::error::WireError;
use crate::metainfo::bencode::{self, Field, Limits, Shape, dict};
use crate::util::printable_name;

/// Limit on a peer's extensions; further ones are ignored. Clients have about ten.
const MAX_EXTENSIONS: usize = 64;
/// Length limit of an extension's name in bytes; longer ones are ignored.
const MAX_EXTENSION_NAME_LEN: usize = 64;
/// Length limit of a client's name in characters; longer ones are cut.
const MAX_CLIENT_LEN: usize = 64;

/// The content of extension message 0. Every field is optional, and an invalid one counts as missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtensionHandshake {
    /// `m`: the message id for each extension, by name, for messages to the sender. 0 disables an extension. A later
    /// handshake changes only the extensions that it lists.
    pub extensions: BTreeMap<String, u8>,
    /// `v`: name and version of the client, made printable.
    pub client: Option<String>,
    /// `p`: the sender's TCP listening port.
    pub port: Option<u16>,
    /// `reqq`: number of outstanding requests that the sender accepts without dropping any.
    pub request_queue: Option<u32>,
    /// `yourip`: the receiver's address, as the sender sees it.
    pub your_ip: Option<IpAddr>,
    /// `metadata_size`: length of the `info` value in bytes (BEP 9).
    pub metadata_size: Option<u32>,
    /// `upload_only`: whether the sender will download nothing more (BEP 21).
    pub upload_only: bool,
}

dict! {
    struct Raw {
        extensions: Extensions = "m",
        client: Vec<u8> = "v",
        port: i64 = "p",
        request_queue: i64 = "reqq",
        your_ip: Vec<u8> = "yourip",
        metadata_size: i64 = "metadata_size",
        upload_only: i64 = "upload_only",
    }
}

struct Extensions(BTreeMap<String, u8>);

impl Shape for Extensions {
    const KIND: &'static str = "a dictionary of numbers";

    fn dict<'de, A: MapAccess<'de>>(mut dict: A) -> Result<Option<Self>, A::Error> {
        let mut extensions = BTreeMap::new();
        while let Some(name) = dict.next_key::<ByteBuf>()? {
            let name = name.into_vec();
            if extensions.len() == MAX_EXTENSIONS || name.len() > MAX_EXTENSION_NAME_LEN {
                dict.next_value::<IgnoredAny>()?;
                continue;
            }
            let number = dict.next_value::<Field<i64>>()?.ok().and_then(|number| u8::try_from(number).ok());
            if let (Ok(name), Some(number)) = (String::from_utf8(name), number) {
                extensions.insert(name, number);
            }
        }
        Ok(Some(Self(extensions)))
    }
}

// The fields may be in any order: the encoder sorts the keys.
#[derive(Serialize)]
struct Encoded<'a> {
    m: &'a BTreeMap<String, u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    v: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reqq: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    yourip: Option<ByteBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata_size: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upload_only: Option<u8>,
}

impl ExtensionHandshake {
    /// Encodes the payload of a `Message::Extended` with `id` 0.
    pub fn encode(&self) -> Bytes {
        let encoded = Encoded {
            m: &self.extensions,
            v: self.client.as_deref(),
            p: self.port,
            reqq: self.request_queue,
            yourip: self.your_ip.map(|ip| match ip {
                IpAddr::V4(ip) => ByteBuf::from(ip.octets()),
                IpAddr::V6(ip) => ByteBuf::from(ip.octets()),
            }),
            metadata_size: self.metadata_size,
            upload_only: self.upload_only.then_some(1),
        };
        // Encoding fails only if a key is not a string. Field names are strings.
        serde_bencode::to_bytes(&encoded).expect("the keys are strings").into()
    }

    /// Decodes a payload. Bytes after the dictionary are ignored.
    pub fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let (raw, _) = bencode::decode_prefix::<Field<Raw>>(payload, &Limits::PEER)?;
        let raw = raw
            .ok()
            .ok_or_else(|| bencode::BencodeError::Kind("the extension handshake is not a dictionary".into()))?;
        Ok(Self {
            extensions: raw.extensions.ok().map(|Extensions(map)| map).unwrap_or_default(),
            client: raw.client.ok().map(|name| printable_name(&name, MAX_CLIENT_LEN)).filter(|name| !name.is_empty()),
            port: number(raw.port).filter(|port| *port != 0),
            request_queue: number(raw.request_queue),
            your_ip: raw.your_ip.ok().and_then(|octets| ip(&octets)),
            metadata_size: number(raw.metadata_size),
            upload_only: raw.upload_only.ok().is_some_and(|flag| flag != 0),
        })
    }
}

fn number<T: TryFrom<i64>>(field: Field<i64>) -> Option<T> {
    field.ok().and_then(|number| T::try_from(number).ok())
}

fn ip(octets: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(octets).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_example_of_bep_10() {
        let payload = b"d1:md11:LT_metadatai1e6:\xc2\xb5T_PEXe";
        assert!(ExtensionHandshake::decode(payload).is_err(), "a key without a value");
        let payload = b"d1:md11:LT_metadatai1e7:\xc2\xb5T_PEXi2ee1:pi6881e1:v13:\xc2\xb5Torrent 1.2e";
        let read = ExtensionHandshake::decode(payload).unwrap();
        let expected = ExtensionHandshake {
            extensions: [("LT_metadata".to_owned(), 1), ("µT_PEX".to_owned(), 2)].into(),
            client: Some("µTorrent 1.2".into()),
            port: Some(6881),
            ..Default::default()
        };
        assert_eq!(read, expected);
        assert_eq!(expected.encode().as_ref(), payload);
    }

    #[test]
    fn invalid_fields_count_as_missing() {
        let payload = b"d1:md1:ai300e1:bi-1e1:c1:x1:di0ee1:pi70000e4:reqqi-1e6:yourip5:abcde1:vi7e11:upload_onlylee";
        let read = ExtensionHandshake::decode(payload).unwrap();
        let expected = ExtensionHandshake { extensions: [("d".to_owned(), 0)].into(), ..Default::default() };
        assert_eq!(read, expected);
        assert_eq!(ExtensionHandshake::decode(b"de").unwrap(), ExtensionHandshake::default());
        assert!(ExtensionHandshake::decode(b"le").is_err());
        assert!(ExtensionHandshake::decode(b"").is_err());
        assert!(ExtensionHandshake::decode(&[b'l'; 100_000]).is_err());
    }

    #[test]
    fn client_names_are_printable_and_short() {
        let read =
            |name: &str| ExtensionHandshake::decode(format!("d1:v{}:{name}e", name.len()).as_bytes()).unwrap().client;
        assert_eq!(read("evil\x1b[31m\n").as_deref(), Some("evil[31m"));
        assert_eq!(read(&"é".repeat(1000)).unwrap().chars().count(), MAX_CLIENT_LEN);
        assert_eq!(read(""), None);
    }

    #[test]
    fn the_number_of_extensions_is_bounded() {
        let many: String = (0..500).map(|n| format!("3:{n:03}i1e")).collect();
        let read = ExtensionHandshake::decode(format!("d1:md{many}ee").as_bytes()).unwrap();
        assert_eq!(read.extensions.len(), MAX_EXTENSIONS);
    }

    proptest! {
        #[test]
        fn a_handshake_decodes_to_itself(
            extensions in proptest::collection::btree_map("[a-z_]{1,12}", any::<u8>(), 0..8),
            client in proptest::option::of("[a-zA-Z0-9 .µ]{1,30}"),
            port in proptest::option::of(1u16..),
            request_queue: Option<u32>,
            your_ip: Option<IpAddr>,
            metadata_size: Option<u32>,
            upload_only: bool,
        ) {
            let handshake = ExtensionHandshake {
                extensions, client, port, request_queue, your_ip, metadata_size, upload_only,
            };
            prop_assert_eq!(ExtensionHandshake::decode(&handshake.encode()), Ok(handshake));
        }

        #[test]
        fn random_bytes_do_not_panic(bytes in proptest::collection::vec(
            prop_oneof![proptest::sample::select(b"deli01:mpv".to_vec()), any::<u8>()], 0..80,
        )) {
            let _ = ExtensionHandshake::decode(&bytes);
        }
    }
}
