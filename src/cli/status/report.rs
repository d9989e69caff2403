//! The status of a mount as text.

use crate::cli::text::status::{MAX_PEERS, blocked, peers, reads};
use crate::cli::text::{clip, count, duration, rate, share, size};
use crate::control::status::{CacheStatus, State, Status, TorrentStatus, TrackerState, TrackerStatus, WebSeedStatus};

/// Largest number of waiting reads shown per torrent. More would hide the rest.
const MAX_BLOCKED: usize = 5;
/// Largest number of files read by passthrough shown per torrent.
const MAX_PASSTHROUGH: usize = 5;

/// Returns the status of a mount, in lines of at most `columns` columns.
pub(super) fn mount(status: &Status, columns: usize) -> String {
    let mut out = String::new();
    let mut line = |text: &str| out += &(clip(text, columns) + "\n");
    let total = &status.total;
    line(&format!("{}  (process {}, up {})", status.mountpoint, status.pid, duration(status.uptime)));
    let limit = |limit: Option<u64>| limit.map_or(String::new(), |limit| format!(" (limit {})", rate(limit)));
    line(&format!(
        "  down {}{}, up {}{}, {}, ratio {:.2}",
        rate(total.download_rate),
        limit(status.limits.download),
        rate(total.upload_rate),
        limit(status.limits.upload),
        count(total.peers, "peer"),
        total.ratio
    ));
    let dht = status.dht_nodes.map_or("no DHT".into(), |nodes| count(nodes, "DHT node"));
    let port = if status.port == 0 { "no incoming connections".into() } else { format!("port {}", status.port) };
    line(&format!("  {} uploaded, {} downloaded, {port}, {dht}", size(total.uploaded), size(total.downloaded)));
    queue(status).iter().for_each(|text| line(text));
    cache(&status.cache).iter().for_each(|text| line(text));
    for torrent in &status.torrents {
        line("");
        torrent_lines(torrent, columns).iter().for_each(|text| line(text));
    }
    if status.torrents.len() > 1 {
        line("");
        line(&format!("  total: {} of {} ({})", size(total.have), size(total.size), share(total.have, total.size)));
    }
    out
}

/// Returns the line about the queue, if torrents wait in it.
fn queue(status: &Status) -> Option<String> {
    let total = &status.total;
    let limit = status.limits.active_downloads.map_or(String::new(), |limit| format!(" (limit {limit})"));
    (total.queued > 0)
        .then(|| format!("  {} fetching{limit}, {} queued", count(total.fetching, "torrent"), total.queued))
}

/// Returns the lines about the cache.
fn cache(cache: &CacheStatus) -> Vec<String> {
    let limit = cache.disk_limit.map_or(String::new(), |limit| format!(" of {}", size(limit)));
    let mut lines = vec![
        format!(
            "  cache: {}{limit} on disk, {} of {} in memory",
            size(cache.disk),
            size(cache.memory),
            size(cache.memory_limit)
        ),
        format!("  reads: {}", reads(&cache.reads)),
    ];
    lines.extend(cache.fault.as_ref().map(|fault| format!("  disk fault: {fault}")));
    lines
}

/// Returns the lines about a torrent.
fn torrent_lines(torrent: &TorrentStatus, columns: usize) -> Vec<String> {
    let mut lines = vec![format!("  {}", torrent.name)];
    let eta = torrent.eta.map_or(String::new(), |eta| format!(", {} left", duration(eta)));
    let demand = if torrent.on_demand && torrent.state != State::OnDemand { ", on demand" } else { "" };
    lines.push(format!(
        "    {}{demand}, {} of {} ({}), {} of {} pieces{eta}",
        torrent.state.word(),
        size(torrent.have),
        size(torrent.size),
        share(torrent.have, torrent.size),
        torrent.pieces_had,
        torrent.pieces
    ));
    let wasted = if torrent.wasted > 0 { format!(", {} wasted", size(torrent.wasted)) } else { String::new() };
    lines.push(format!("    down {}, {} so far{wasted}", rate(torrent.download_rate), size(torrent.downloaded)));
    lines.push(format!(
        "    up {}, {} so far, ratio {:.2}",
        rate(torrent.upload_rate),
        size(torrent.uploaded),
        torrent.ratio
    ));
    if let Some(check) = torrent.verification {
        let bad = if check.bad > 0 { format!(", {} bad", check.bad) } else { String::new() };
        let verb = if check.running { "checking" } else { "checked" };
        lines.push(format!("    {verb} {} of {} pieces{bad}", check.done, check.pieces));
    }
    lines.extend(torrent.priorities.iter().map(|file| format!("    priority {}: {}", file.priority.word(), file.path)));
    lines.extend(torrent.passthrough.iter().take(MAX_PASSTHROUGH).map(|file| format!("    passthrough: {file}")));
    if torrent.passthrough.len() > MAX_PASSTHROUGH {
        lines.push(format!("    ... and passthrough of {} more files", torrent.passthrough.len() - MAX_PASSTHROUGH));
    }
    let blocked = blocked(&torrent.blocked_reads);
    for [read, awaited] in blocked.iter().take(MAX_BLOCKED) {
        lines.extend([format!("    {read}"), format!("      {awaited}")]);
    }
    if blocked.len() > MAX_BLOCKED {
        lines.push(format!("    ... and waiting reads in {} more places", blocked.len() - MAX_BLOCKED));
    }
    lines.extend(torrent.trackers.iter().map(|tracker| format!("    {}", tracker_line(tracker))));
    if torrent.excess_trackers > 0 {
        lines.push(format!("    ... and {} more trackers, which are too many to use", torrent.excess_trackers));
    }
    // Those that work are among the peers.
    let fault = |seed: &WebSeedStatus| Some(format!("    web seed {}: {}", seed.url, seed.error.as_ref()?));
    lines.extend(torrent.web_seeds.iter().filter_map(fault));
    if !torrent.peers.is_empty() {
        lines.extend(peers(&torrent.peers, torrent.pieces).lines(columns, "    "));
    }
    if torrent.peers.len() > MAX_PEERS {
        lines.push(format!("    ... and {} more peers", torrent.peers.len() - MAX_PEERS));
    }
    lines
}

/// Returns the line about a tracker.
fn tracker_line(tracker: &TrackerStatus) -> String {
    let state = match tracker.state {
        TrackerState::Waiting => "not contacted yet".into(),
        TrackerState::Announcing => "announcing".into(),
        TrackerState::Failed => tracker.error.clone().unwrap_or_default(),
        TrackerState::Working => {
            let number = |number: Option<u64>| number.map_or("?".into(), |number| number.to_string());
            format!("{} seeders, {} leechers", number(tracker.seeders), number(tracker.leechers))
        }
    };
    let warning = tracker.warning.as_ref().map_or(String::new(), |warning| format!(", warning: {warning}"));
    let next = tracker.next_announce.map_or(String::new(), |next| format!(", next in {}", duration(next)));
    format!("tracker {}: {state}{warning}{next}", tracker.url)
}
