//! The content of a file or a download that names a torrent: all of its metainfo, or a magnet link.

use bytes::Bytes;

use super::bencode::{Field, Limits, decode_prefix, dict};
use super::error::MetainfoError;
use super::gzip::{gunzip, is_gzip};
use super::magnet::{Magnet, MagnetError};
use super::sniff;
use super::text;
use super::torrent::Metainfo;

/// Length limit in bytes of a file that contains a magnet link: ample for one with many trackers and some comments.
const MAX_LINK_FILE: usize = 64 << 10;

/// The content of a file that names a torrent, whatever the name of the file.
#[derive(Clone, Debug)]
pub enum Document {
    /// A `.torrent` file.
    Torrent(Box<Metainfo>),
    /// A magnet link or an info hash: alone, in an Internet shortcut, or as rtorrent saves it.
    Magnet(Magnet),
}

/// Why a file names no torrent. Each message is one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// It is neither a usable `.torrent` file nor a magnet link.
    #[error(transparent)]
    Metainfo(#[from] MetainfoError),
    /// It contains a malformed magnet link.
    #[error(transparent)]
    Magnet(#[from] MagnetError),
    /// It contains several magnet links.
    #[error("the file contains more than one magnet link")]
    Several,
}

dict! {
    struct Link {
        uri: Vec<u8> = "magnet-uri",
    }
}

impl Document {
    /// Parses the content of a file, which may be compressed with gzip.
    pub fn parse(bytes: impl Into<Bytes>) -> Result<Self, DocumentError> {
        let bytes = &bytes.into();
        let fault = match Metainfo::parse_owned(bytes.clone()) {
            Ok(metainfo) => return Ok(Self::Torrent(Box::new(metainfo))),
            Err(fault @ (MetainfoError::Other(_) | MetainfoError::Missing { key: "info", .. })) => fault,
            Err(fault) => return Err(fault.into()),
        };
        if is_gzip(bytes) {
            return Self::link_in(&gunzip(bytes, MAX_LINK_FILE).unwrap_or_default(), fault);
        }
        Self::link_in(bytes, fault)
    }

    fn link_in(bytes: &[u8], fault: MetainfoError) -> Result<Self, DocumentError> {
        if bytes.len() > MAX_LINK_FILE {
            return Err(fault.into());
        }
        if let Ok((Field::Is(Link { uri: Field::Is(uri) }), _)) = decode_prefix::<Field<Link>>(bytes, &Limits::TORRENT)
        {
            return Ok(Self::Magnet(Magnet::parse(&text::decode(&uri))?));
        }
        let link = links(&text::decode(bytes)).ok_or(fault)?;
        Ok(Self::Magnet(link?))
    }

    /// Parses the content of a file whose name says that it contains a magnet link.
    pub fn parse_link_file(bytes: impl Into<Bytes>) -> Result<Self, DocumentError> {
        let bytes = bytes.into();
        Self::parse(bytes.clone()).map_err(|error| match error {
            DocumentError::Metainfo(MetainfoError::Other(_)) => MagnetError::NoLink(sniff::kind(&bytes)).into(),
            error => error,
        })
    }
}

/// Returns the one link in a text. Empty lines and lines that start with `#` or `;` are ignored.
fn links(text: &str) -> Option<Result<Magnet, DocumentError>> {
    let lines = text.lines().map(text::unquote).filter(|line| !line.is_empty() && !line.starts_with(['#', ';']));
    // The shortcuts of Windows (`.url`) and of freedesktop.org (`.desktop`).
    let is_shortcut = lines.clone().next()?.starts_with('[');
    let entry = |line| match is_shortcut {
        true => shortcut_target(line),
        false => Some(line),
    };
    let mut lines = lines.filter_map(entry);
    let first = lines.next()?;
    let mut link = Magnet::from_text(first)?;
    let mut wrapped = first.to_owned();
    for line in lines {
        match Magnet::from_text(line) {
            Some(other)
                if other.as_ref().ok().map(|magnet| magnet.info_hash)
                    != link.as_ref().ok().map(|magnet| magnet.info_hash) =>
            {
                return Some(Err(DocumentError::Several));
            }
            Some(_) => {}
            // A link that a mail program has wrapped.
            None if !line.contains(char::is_whitespace) => {
                wrapped.push_str(line);
                link = Magnet::from_text(&wrapped)?;
            }
            None => break,
        }
    }
    Some(link.map_err(DocumentError::from))
}

/// Returns the target in a line `URL=…` of a shortcut.
fn shortcut_target(line: &str) -> Option<&str> {
    let (key, value) = line.split_once('=')?;
    let key = key.split('[').next()?.trim();
    key.eq_ignore_ascii_case("url").then(|| text::unquote(value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HASH: &str = "0123456789012345678901234567890123456789";

    fn link(bytes: &[u8]) -> Result<String, String> {
        match Document::parse(bytes.to_vec()) {
            Ok(Document::Magnet(magnet)) => Ok(magnet.to_string()),
            Ok(Document::Torrent(torrent)) => Err(format!("torrent {}", torrent.name)),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn a_file_contains_one_link() {
        let plain = format!("magnet:?xt=urn:btih:{HASH}&dn=x");
        let utf16 = |mark: &[u8], order: fn(u16) -> [u8; 2]| {
            [mark, &plain.encode_utf16().flat_map(order).collect::<Vec<_>>()].concat()
        };
        let files = [
            plain.clone().into_bytes(),
            format!("\n# mine\n {plain} \r\n\n").into_bytes(),
            format!("\u{feff}{plain}\r\n").into_bytes(),
            utf16(b"\xff\xfe", u16::to_le_bytes),
            utf16(b"\xfe\xff", u16::to_be_bytes),
            utf16(b"", u16::to_le_bytes),
            format!("\"{plain}\"\n").into_bytes(),
            format!("'{plain}'").into_bytes(),
            format!("{plain}\n{plain}\n").into_bytes(),
            format!("{plain}\nThe film of the year").into_bytes(),
            plain.replace("&dn", "\n&dn").into_bytes(),
            plain.replace('&', "&amp;").into_bytes(),
            format!("[InternetShortcut]\r\nIDList=\r\nURL={plain}\r\n").into_bytes(),
            format!("[Desktop Entry]\nType=Link\nURL[$e]={plain}\nIcon=text\n").into_bytes(),
            format!("d10:magnet-uri{}:{plain}e", plain.len()).into_bytes(),
            format!("{plain}\0").into_bytes(),
        ];
        for file in files {
            assert_eq!(link(&file), Ok(plain.clone()), "{}", file.escape_ascii());
        }
        assert_eq!(link(HASH.as_bytes()), Ok(format!("magnet:?xt=urn:btih:{HASH}")));
    }

    #[test]
    fn other_files_are_errors() {
        let other = HASH.replace('0', "f");
        assert_eq!(
            link(format!("{HASH}\n{other}").as_bytes()),
            Err("the file contains more than one magnet link".into())
        );
        assert!(link(b"magnet:?dn=x").unwrap_err().contains("names no torrent"));
        assert!(link(b"<html>magnet:?xt=urn:btih:").unwrap_err().contains("web page"));
        assert!(link(b"").unwrap_err().contains("empty"));
        assert!(link(format!("read this\nmagnet:?xt=urn:btih:{HASH}").as_bytes()).unwrap_err().contains("text"));
        let named = |bytes: &[u8]| Document::parse_link_file(bytes.to_vec()).unwrap_err().to_string();
        assert_eq!(named(b""), "the file contains no magnet link: it is empty");
        assert_eq!(named(b"# only\n"), "the file contains no magnet link: it looks like text");
        assert!(named(b"magnet:?dn=x").contains("names no torrent"));
    }

    proptest! {
        #[test]
        fn random_files_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), text in "(magnet:[?])?[\\PC\n]{0,80}") {
            let _ = (Document::parse(bytes).is_ok(), Document::parse(text).is_ok());
        }
    }
}
