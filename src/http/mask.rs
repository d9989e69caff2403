//! Masking of URLs and magnet links for logs, errors and `/proc/mounts`.
//!
//! Private trackers identify a user by a secret in the URL, so every part of a URL that may hold one is masked.

use std::fmt::{self, Write};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use reqwest::Url;

use crate::util::printable;

/// Length from which a path segment counts as a passkey, in bytes, unless it has a dot, as file names do. Common
/// passkeys have 16 characters or more.
const PASSKEY_LEN: usize = 16;
/// Characters shown of text that is not a URL: enough to recognize it, too few for a passkey.
const UNREADABLE: usize = 12;

/// Percent-encoding of a masked URL inside a magnet link; it leaves the mask `***` readable.
const LINK: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'*');

/// Displays a URL with `***` in place of user names, passwords, queries, and path segments that look like a passkey. In
/// a magnet link, each URL is masked in this way.
#[derive(Clone, Copy)]
pub struct Masked<'a>(pub &'a str);

impl fmt::Display for Masked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("magnet:?")) {
            return magnet(self.0, f);
        }
        match Url::parse(self.0) {
            Ok(url) => write_url(&url, f),
            // A secret could be anywhere in it.
            Err(_) => f.write_str(&printable(self.0.as_bytes(), UNREADABLE)),
        }
    }
}

fn magnet(link: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (scheme, query) = link.split_at(8);
    f.write_str(scheme)?;
    for (n, field) in query.split('&').enumerate() {
        if n > 0 {
            f.write_char('&')?;
        }
        let value = field.split_once('=').map(|(key, value)| (key, percent_decode_str(value).decode_utf8_lossy()));
        match value.filter(|(_, value)| value.contains("://")) {
            None => f.write_str(field)?,
            Some((key, url)) => {
                let shown = Masked(&url).to_string();
                if shown.contains("***") || Url::parse(&url).is_err() {
                    write!(f, "{key}={}", utf8_percent_encode(&shown, LINK))?;
                } else {
                    // A field without a secret is copied unchanged.
                    f.write_str(field)?;
                }
            }
        }
    }
    Ok(())
}

fn write_url(url: &Url, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "{}:", url.scheme())?;
    if let Some(host) = url.host_str() {
        let user = if url.username().is_empty() && url.password().is_none() { "" } else { "***@" };
        write!(f, "//{user}{host}")?;
    }
    if let Some(port) = url.port() {
        write!(f, ":{port}")?;
    }
    match url.path_segments() {
        Some(segments) => {
            for segment in segments {
                f.write_char('/')?;
                f.write_str(if is_secret(segment) { "***" } else { segment })?;
            }
        }
        None => f.write_str(if url.path().is_empty() { "" } else { "***" })?,
    }
    if url.query().is_some() { f.write_str("?***") } else { Ok(()) }
}

fn is_secret(segment: &str) -> bool {
    segment.len() >= PASSKEY_LEN && !segment.contains('.')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_secrets_are_masked() {
        let passkey = "0123456789abcdef0123456789abcdef";
        for (text, shown) in [
            ("http://t.example/announce", "http://t.example/announce"),
            ("https://u:p@t.example:8443/0123456789abcdef/announce?k=1", "https://***@t.example:8443/***/announce?***"),
            ("https://u@t.example/", "https://***@t.example/"),
            ("udp://t.example:1337", "udp://t.example:1337"),
            ("udp://[::1]:1337/announce", "udp://[::1]:1337/announce"),
            (
                "https://t.example/debian-12.8.0-amd64-netinst.iso.torrent",
                "https://t.example/debian-12.8.0-amd64-netinst.iso.torrent",
            ),
            ("socks5://me:secret@127.0.0.1:1080", "socks5://***@127.0.0.1:1080"),
            ("mailto:somebody-secret", "mailto:***"),
            ("nonsense-with-a-secret", "nonsense-wi…"),
        ] {
            assert_eq!(Masked(text).to_string(), shown);
        }
        let link = "magnet:?xt=urn:btih:c12fe1c06bba254a9dc9f519b335aa7c1367a88a&dn=a+film&x.pe=127.0.0.1:5";
        assert_eq!(Masked(link).to_string(), link);
        let public = format!("{link}&tr=http%3A%2F%2Ft.example%2Fannounce&tr=udp://t.example:80");
        assert_eq!(Masked(&public).to_string(), public);
        let private = format!("{link}&tr=http%3A%2F%2Ft.example%2F{passkey}%2Fannounce&ws=https://a:b@c/?x");
        let shown = format!("{link}&tr=http%3A%2F%2Ft.example%2F***%2Fannounce&ws=https%3A%2F%2F***%40c%2F%3F***");
        assert_eq!(Masked(&private).to_string(), shown);
        assert!(!Masked(&format!("MAGNET:?tr=http://[{passkey}")).to_string().contains(passkey));
    }

    proptest! {
        #[test]
        fn a_secret_is_never_displayed(secret in "[0-9a-f]{32}", place in 0..6) {
            let text = match place {
                0 => format!("https://{secret}@t.example/announce"),
                1 => format!("https://u:{secret}@t.example/announce"),
                2 => format!("https://t.example/{secret}/announce"),
                3 => format!("https://t.example/announce?{secret}"),
                4 => format!("magnet:?tr=https%3a%2f%2ft.example%2fannounce%3fkey%3d{secret}"),
                _ => format!("not a URL, {secret}"),
            };
            prop_assert!(!Masked(&text).to_string().contains(&secret), "{}", Masked(&text));
        }

        #[test]
        fn arbitrary_text_does_not_panic(text: String) {
            let _ = Masked(&text).to_string();
        }
    }
}
