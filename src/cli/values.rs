//! Values on the command line and in files: times, sizes, rates, yes and no. Each fault says what is expected.

use std::fmt::Display;
use std::time::Duration;

use bytesize::ByteSize;

/// Bytes; below, nothing sensible fits.
const LEAST_SIZE: u64 = 1 << 20;

/// A limit; `None`: there is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Bound<T>(pub Option<T>);

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    humantime::parse_duration(text).map_err(|_| "expected a time such as 90s, 2min or 1h".to_owned())
}

pub(super) fn patience(text: &str) -> Result<Bound<Duration>, String> {
    duration(text).map(|time| Bound(Some(time).filter(|time| !time.is_zero())))
}

/// Yes or no, as a file, a variable or a flag may say it.
pub(super) fn truth(text: &str) -> Result<bool, String> {
    match text {
        "true" | "yes" | "on" | "1" => Ok(true),
        "false" | "no" | "off" | "0" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

fn bytes(text: &str, example: impl Display) -> Result<u64, String> {
    text.parse::<ByteSize>().map(|size| size.as_u64()).map_err(|_| format!("expected a {example}"))
}

pub(super) fn memory(text: &str) -> Result<u64, String> {
    match bytes(text, "size such as 512MiB or 20GiB")? {
        size @ LEAST_SIZE.. => Ok(size),
        _ => Err("expected at least 1MiB".into()),
    }
}

pub(super) fn cache_size(text: &str) -> Result<Bound<u64>, String> {
    match text {
        "unlimited" => Ok(Bound(None)),
        _ => memory(text).map(|size| Bound(Some(size))),
    }
}

pub(super) fn rate(text: &str) -> Result<Bound<u64>, String> {
    if text == "unlimited" {
        return Ok(Bound(None));
    }
    let size = bytes(text.strip_suffix("/s").unwrap_or(text), "rate such as 500KB or 2MiB, for a second")?;
    Ok(Bound(Some(size).filter(|size| *size > 0)))
}

pub(super) fn some_rate(text: &str) -> Result<u64, String> {
    rate(text)?.0.ok_or_else(|| "expected a rate above 0, such as 2MiB".to_owned())
}
