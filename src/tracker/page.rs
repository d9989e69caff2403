//! The tracker's status page and its metrics for Prometheus. Pure.

use std::fmt::Write;
use std::time::Duration;

use super::counters::Counters;
use super::table::{Counts, ScrapeCounts};
use crate::metainfo::InfoHash;

/// Number of torrents in the list of the largest swarms, if that is shown.
pub(super) const MAX_SHOWN: usize = 100;

/// Data for both.
pub(super) struct Status<'a> {
    pub counts: Counts,
    pub counters: &'a Counters,
    pub uptime: Duration,
    /// Number of torrents in the lists; `None` if every torrent is served.
    pub allowed: Option<usize>,
    /// The largest swarms; `None` if the page must not show them.
    pub torrents: Option<Vec<(InfoHash, ScrapeCounts)>>,
}

const HEAD: &str = "<!DOCTYPE html>
<html lang=\"en\">
<meta charset=\"utf-8\">
<meta name=\"viewport\" content=\"width=device-width\">
<title>BitTorrent tracker</title>
<style>
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 45rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; font-weight: normal; padding: .2rem .5rem; border-bottom: 1px solid #ddd; }
td { text-align: right; font-variant-numeric: tabular-nums; }
code { font-size: .85rem; word-break: break-all; }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd; } th, td { border-color: #444; } }
</style>
";

// Writing to a `String` cannot fail. No text comes from clients, so nothing needs escaping.

/// Renders the status page.
pub(super) fn html(status: &Status) -> String {
    let mut out = HEAD.to_owned();
    let Counts { torrents, seeders, leechers, completed } = status.counts;
    let counters = status.counters;
    let uptime = humantime::format_duration(Duration::from_secs(status.uptime.as_secs()));
    let _ =
        write!(out, "<h1>BitTorrent tracker</h1>\n<p>torrentfs {}, running for {uptime}.", env!("CARGO_PKG_VERSION"));
    let _ = match status.allowed {
        Some(allowed) => writeln!(out, " It serves only listed torrents ({}).", with_separators(allowed as u64)),
        None => writeln!(out, " It serves every torrent."),
    };
    let mut table = |title: &str, rows: &[(&str, u64)]| {
        let _ = writeln!(out, "<h2>{title}</h2>\n<table>");
        for (name, number) in rows {
            let _ = writeln!(out, "<tr><th>{name}<td>{}", with_separators(*number));
        }
        out.push_str("</table>\n");
    };
    table(
        "Current",
        &[
            ("torrents", torrents as u64),
            ("seeders", seeders as u64),
            ("leechers", leechers as u64),
            ("downloads completed", completed),
        ],
    );
    table(
        "Requests since the start",
        &[
            ("announces over HTTP", counters.http_announces.get()),
            ("announces over UDP", counters.udp_announces.get()),
            ("scrapes", counters.http_scrapes.get() + counters.udp_scrapes.get()),
        ],
    );
    if let Some(torrents) = &status.torrents {
        out.push_str("<h2>Largest swarms</h2>\n<table>\n<tr><th>info hash<td>seeders<td>leechers<td>completed\n");
        for (info_hash, ScrapeCounts { seeders, leechers, completed }) in torrents {
            let _ = writeln!(out, "<tr><th><code>{info_hash}</code><td>{seeders}<td>{leechers}<td>{completed}");
        }
        out.push_str("</table>\n");
    }
    out
}

/// Renders the metrics, in Prometheus' text format.
pub(super) fn metrics(status: &Status) -> String {
    let mut out = String::new();
    let Counts { torrents, seeders, leechers, completed } = status.counts;
    let mut previous = "";
    let mut metric = |series: &'static str, kind: &str, help: &str, value: u64| {
        let name = series.split('{').next().unwrap_or(series);
        if name != previous {
            let _ = writeln!(out, "# HELP torrentfs_tracker_{name} {help}\n# TYPE torrentfs_tracker_{name} {kind}");
            previous = name;
        }
        let _ = writeln!(out, "torrentfs_tracker_{series} {value}");
    };
    metric("torrents", "gauge", "Known torrents.", torrents as u64);
    metric("peers{role=\"seeder\"}", "gauge", "Known peers, by role.", seeders as u64);
    metric("peers{role=\"leecher\"}", "gauge", "Known peers, by role.", leechers as u64);
    metric("completed_total", "counter", "Completed downloads.", completed);
    if let Some(allowed) = status.allowed {
        metric("allowed_torrents", "gauge", "Torrents in the lists of served torrents.", allowed as u64);
    }
    metric("uptime_seconds", "gauge", "Time since the start.", status.uptime.as_secs());
    for (name, help, value) in status.counters.all() {
        metric(name, "counter", help, value);
    }
    out
}

/// Formats a number with thousands separators, as in 1,234,567.
fn with_separators(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn status(counters: &Counters) -> Status<'_> {
        Status {
            counts: Counts { torrents: 1234, seeders: 5_000_000, leechers: 7, completed: 9 },
            counters,
            uptime: Duration::from_millis(3_723_004),
            allowed: None,
            torrents: None,
        }
    }

    #[test]
    fn the_page_shows_numbers_and_info_hashes_only_if_configured() {
        let counters = Counters::default();
        counters.udp_announces.add();
        let page = html(&status(&counters));
        for part in ["running for 1h 2m 3s", "1,234", "5,000,000", "announces over UDP<td>1", "every torrent"] {
            assert!(page.contains(part), "{part}: {page}");
        }
        assert!(!page.contains("<script") && !page.contains("info hash"));
        let scraped = ScrapeCounts { seeders: 1, leechers: 2, completed: 3 };
        let torrents = Some(vec![(InfoHash([0xab; 20]), scraped)]);
        let page = html(&Status { torrents, allowed: Some(1), ..status(&counters) });
        assert!(page.contains(&"ab".repeat(20)) && page.contains("It serves only listed torrents (1)."), "{page}");
    }

    #[test]
    fn metrics_are_in_prometheus_format() {
        let counters = Counters::default();
        counters.http_announces.add();
        let text = metrics(&Status { allowed: Some(3), ..status(&counters) });
        let mut seen = HashSet::new();
        for line in text.lines() {
            match line.strip_prefix("# TYPE ") {
                Some(typed) => assert!(seen.insert(typed.split(' ').next().unwrap()), "duplicate: {line}"),
                None if line.starts_with("# HELP ") => assert!(line.ends_with('.'), "{line}"),
                None => {
                    let (name, value) = line.rsplit_once(' ').unwrap();
                    assert!(seen.contains(name.split('{').next().unwrap()), "{line}");
                    value.parse::<u64>().unwrap();
                }
            }
        }
        assert!(text.contains("torrentfs_tracker_announces_total{protocol=\"http\"} 1\n"));
        assert!(text.contains("torrentfs_tracker_peers{role=\"seeder\"} 5000000\n"));
    }

    #[test]
    fn thousands_are_separated() {
        for (n, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(with_separators(n), text);
        }
    }
}
