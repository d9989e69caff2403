//! Parsers of values on the command line and in configuration files. Each error names the expected form.

use std::fmt::Display;
use std::time::Duration;

use bytesize::ByteSize;

use crate::metainfo::is_name;

/// Smallest size of a cache, in bytes: less would not hold a few blocks.
const MIN_SIZE: u64 = 1 << 20;

/// A limit that may be absent: `None` means unlimited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::cli) struct Limit<T>(pub Option<T>);

/// Parses a time such as "90s", "2min" or "90" (seconds).
pub(in crate::cli) fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    humantime::parse_duration(text).map_err(|_| "expected a time such as 90s, 2min or 1h".to_owned())
}

/// Parses a time after which to give up; zero means never.
pub(in crate::cli) fn timeout(text: &str) -> Result<Limit<Duration>, String> {
    duration(text).map(|time| Limit(Some(time).filter(|time| !time.is_zero())))
}

/// Parses a boolean, in the spellings of configuration files, environment variables and flags.
pub(in crate::cli) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" | "yes" | "on" | "1" => Ok(true),
        "false" | "no" | "off" | "0" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

fn bytes(text: &str, example: impl Display) -> Result<u64, String> {
    text.parse::<ByteSize>().map(|size| size.as_u64()).map_err(|_| format!("expected a {example}"))
}

/// Parses a size of at least [`MIN_SIZE`].
pub(in crate::cli) fn size(text: &str) -> Result<u64, String> {
    match bytes(text, "size such as 512MiB or 20GiB")? {
        size @ MIN_SIZE.. => Ok(size),
        _ => Err("expected at least 1MiB".into()),
    }
}

/// Parses a size, or "unlimited".
pub(in crate::cli) fn size_limit(text: &str) -> Result<Limit<u64>, String> {
    match text {
        "unlimited" => Ok(Limit(None)),
        _ => size(text).map(|size| Limit(Some(size))),
    }
}

/// Parses bytes per second; 0 and "unlimited" mean no limit.
pub(in crate::cli) fn rate_limit(text: &str) -> Result<Limit<u64>, String> {
    if text == "unlimited" {
        return Ok(Limit(None));
    }
    let size = bytes(text.strip_suffix("/s").unwrap_or(text), "rate such as 500KB or 2MiB, for a second")?;
    Ok(Limit(Some(size).filter(|size| *size > 0)))
}

/// Parses a number; 0 and "unlimited" mean no limit.
pub(in crate::cli) fn count_limit(text: &str) -> Result<Limit<usize>, String> {
    if text == "unlimited" {
        return Ok(Limit(None));
    }
    let count = text.parse::<u32>().map_err(|_| "expected a number, or \"unlimited\"".to_owned())?;
    Ok(Limit(Some(count as usize).filter(|count| *count > 0)))
}

/// Parses bytes per second above zero.
pub(in crate::cli) fn rate(text: &str) -> Result<u64, String> {
    rate_limit(text)?.0.ok_or_else(|| "expected a rate above 0, such as 2MiB".to_owned())
}

/// The trackers of one tier (BEP 12).
pub(in crate::cli) type Tier = Vec<String>;

/// Parses the announce URLs of one tier, separated by commas.
pub(in crate::cli) fn tier(text: &str) -> Result<Tier, String> {
    text.split(',').map(|url| url_of(url, &["http", "https", "udp", "ws", "wss"])).collect()
}

/// Parses the URL of a web seed.
pub(in crate::cli) fn web_seed(text: &str) -> Result<String, String> {
    url_of(text, &["http", "https", "ftp"])
}

/// Returns a URL as it was given, if it has one of these schemes and a host.
fn url_of(text: &str, schemes: &[&str]) -> Result<String, String> {
    let text = text.trim();
    let url = reqwest::Url::parse(text).ok().filter(|url| url.has_host() && !text.contains(char::is_control));
    match url {
        Some(url) if schemes.contains(&url.scheme()) => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is not a URL of {}", schemes.join(", "))),
    }
}

/// Parses the name of a torrent, which becomes the name of a file or directory.
pub(in crate::cli) fn name(text: &str) -> Result<String, String> {
    if is_name(text) { Ok(text.to_owned()) } else { Err("expected the name of a file or directory".into()) }
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
