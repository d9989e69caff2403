//! Sizes, rates, times and counts as people read them.

pub(super) mod status;
mod table;

use std::path::Path;
use std::time::{Duration, SystemTime};

pub(super) use table::{Align, Table, clip};

use crate::util::is_hidden;

/// Returns a size with three significant digits, as in "1.50 GiB".
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    // From 999.5 on, three digits would round up to "1000": use the next unit.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    match (unit, value) {
        (0, _) => format!("{bytes} B"),
        (_, ..9.995) => format!("{value:.2} {}", UNITS[unit]),
        (_, ..99.95) => format!("{value:.1} {}", UNITS[unit]),
        _ => format!("{value:.0} {}", UNITS[unit]),
    }
}

/// Returns a rate, as in "1.50 MiB/s"; "-" for none.
pub(super) fn rate(bytes: u64) -> String {
    if bytes == 0 { "-".into() } else { format!("{}/s", size(bytes)) }
}

/// Returns a part as a percentage. Rounds down, so that only the whole is "100 %".
pub(super) fn share(part: u64, whole: u64) -> String {
    match u128::from(part) * 1000 / u128::from(whole.max(1)) {
        _ if part >= whole => "100 %".into(),
        tenths => format!("{}.{} %", tenths / 10, tenths % 10),
    }
}

/// Returns a time in its two largest units, as in "3h 25m".
pub(super) fn duration(seconds: u64) -> String {
    let text = humantime::format_duration(Duration::from_secs(seconds)).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// Returns a number with its noun, as in "1 file" and "2 files".
pub(super) fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// Returns a date given in seconds since 1970, as in "2026-11-25 03:52:00 UTC".
pub(super) fn date(seconds: i64) -> String {
    let time =
        u64::try_from(seconds).ok().and_then(|since| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(since)));
    match time.map(humantime::format_rfc3339_seconds) {
        // The metainfo parser refuses dates after the year 9999, which humantime cannot format.
        Some(time) => time.to_string().replace('T', " ").replace('Z', " UTC"),
        None => format!("{seconds} s after 1970"),
    }
}

/// Returns a path without hidden characters, which a terminal would obey.
pub(super) fn shown(path: &Path) -> String {
    path.display().to_string().replace(is_hidden, "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "0.98 KiB"),
            (1536, "1.50 KiB"),
            (10 << 10, "10.0 KiB"),
            (100 << 20, "100 MiB"),
            (1023 << 20, "1.00 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!((share(0, 0), share(999, 1000), share(1, 1000)), ("100 %".into(), "99.9 %".into(), "0.1 %".into()));
        assert_eq!(duration(3 * 3600 + 25 * 60 + 7), "3h 25m");
    }
}
