//! Faults and servers' words in one short line.

use std::error::Error;

/// The innermost cause says what happened; what is around it only repeats where. Without the URL, which may be secret.
pub(super) fn words(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return if error.is_connect() { "no connection in time".into() } else { "no answer in time".into() };
    }
    let mut cause = error.source();
    while let Some(deeper) = cause.and_then(Error::source) {
        cause = Some(deeper);
    }
    cause.map_or_else(|| "the request cannot be made".into(), |cause| printable(&cause.to_string()))
}

/// A server's words in one short line.
pub(super) fn printable(text: &str) -> String {
    text.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
