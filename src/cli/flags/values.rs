//! Values on the command line and in files: times, sizes, rates, yes and no. Each fault says what is expected.

use std::fmt::Display;
use std::time::Duration;

use bytesize::ByteSize;

use crate::metainfo::is_name;

/// Bytes; below, nothing sensible fits.
const LEAST_SIZE: u64 = 1 << 20;

/// A limit; `None`: there is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::cli) struct Bound<T>(pub Option<T>);

pub(in crate::cli) fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    humantime::parse_duration(text).map_err(|_| "expected a time such as 90s, 2min or 1h".to_owned())
}

pub(in crate::cli) fn patience(text: &str) -> Result<Bound<Duration>, String> {
    duration(text).map(|time| Bound(Some(time).filter(|time| !time.is_zero())))
}

/// Yes or no, as a file, a variable or a flag may say it.
pub(in crate::cli) fn truth(text: &str) -> Result<bool, String> {
    match text {
        "true" | "yes" | "on" | "1" => Ok(true),
        "false" | "no" | "off" | "0" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

fn bytes(text: &str, example: impl Display) -> Result<u64, String> {
    text.parse::<ByteSize>().map(|size| size.as_u64()).map_err(|_| format!("expected a {example}"))
}

pub(in crate::cli) fn memory(text: &str) -> Result<u64, String> {
    match bytes(text, "size such as 512MiB or 20GiB")? {
        size @ LEAST_SIZE.. => Ok(size),
        _ => Err("expected at least 1MiB".into()),
    }
}

pub(in crate::cli) fn cache_size(text: &str) -> Result<Bound<u64>, String> {
    match text {
        "unlimited" => Ok(Bound(None)),
        _ => memory(text).map(|size| Bound(Some(size))),
    }
}

pub(in crate::cli) fn rate(text: &str) -> Result<Bound<u64>, String> {
    if text == "unlimited" {
        return Ok(Bound(None));
    }
    let size = bytes(text.strip_suffix("/s").unwrap_or(text), "rate such as 500KB or 2MiB, for a second")?;
    Ok(Bound(Some(size).filter(|size| *size > 0)))
}

pub(in crate::cli) fn some_rate(text: &str) -> Result<u64, String> {
    rate(text)?.0.ok_or_else(|| "expected a rate above 0, such as 2MiB".to_owned())
}

/// Trackers of one tier.
pub(in crate::cli) type Tier = Vec<String>;

pub(in crate::cli) fn name(text: &str) -> Result<String, String> {
    if is_name(text) { Ok(text.to_owned()) } else { Err("expected the name of a file or directory".into()) }
}

/// One or more URLs of trackers, separated by commas.
pub(in crate::cli) fn tier(text: &str) -> Result<Tier, String> {
    text.split(',').map(|url| checked(url, &["http", "https", "udp", "ws", "wss"])).collect()
}

/// The URL of a web seed.
pub(in crate::cli) fn web_seed(text: &str) -> Result<String, String> {
    checked(text, &["http", "https", "ftp"])
}

/// A URL with one of these schemes, as it was given.
fn checked(text: &str, schemes: &[&str]) -> Result<String, String> {
    let text = text.trim();
    let url = reqwest::Url::parse(text).ok().filter(|url| url.has_host() && !text.contains(char::is_control));
    match url {
        Some(url) if schemes.contains(&url.scheme()) => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is not a URL of {}", schemes.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiers_are_lists_of_urls() {
        assert_eq!(tier("http://a/announce"), Ok(vec!["http://a/announce".into()]));
        assert_eq!(tier("udp://a:1, https://b/?x=%20"), Ok(vec!["udp://a:1".into(), "https://b/?x=%20".into()]));
        for nonsense in ["", "http://a,", "a", "ftp://a", "http://", "magnet:?xt=x"] {
            assert!(tier(nonsense).is_err(), "{nonsense}");
        }
        assert!(web_seed("ftp://a/").is_ok() && web_seed("udp://a:1").is_err());
    }
}
