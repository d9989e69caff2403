//! `/metrics`: the status as metrics for Prometheus, in the OpenMetrics format.

use std::sync::atomic::AtomicU64;

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::shared::Shared;
use crate::control::status::{Status, TorrentStatus};

type Labels = Vec<(&'static str, String)>;

/// Get metrics for Prometheus
#[utoipa::path(get, path = "/metrics", responses((status = 200, content_type = "application/openmetrics-text")))]
pub(super) async fn metrics(State(shared): State<Shared>) -> Response {
    let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], encode_status(&shared.status().await)).into_response()
}

/// Encodes a status. The registry is built for each response, so that removed torrents leave no series behind.
fn encode_status(status: &Status) -> String {
    let mut metrics = Metrics { registry: Registry::with_prefix("torrentfs"), status };
    metrics.gauge("torrent_size_bytes", "Size of the torrent", |t| t.size);
    metrics.gauge("torrent_have_bytes", "Bytes of the torrent that are available locally", |t| t.have);
    metrics.gauge("torrent_peers", "Connected peers", |t| t.peers.len() as u64);
    metrics.gauge("torrent_seeds", "Connected peers that have the whole torrent", |t| t.seeds as u64);
    metrics.gauge("torrent_blocked_reads", "Reads that wait for data from peers", |t| t.blocked_reads.len() as u64);
    metrics.gauge("torrent_download_bytes_per_second", "Download rate of payload", |t| t.download_rate);
    metrics.gauge("torrent_upload_bytes_per_second", "Upload rate", |t| t.upload_rate);
    metrics.counter("torrent_downloaded_bytes", "Payload bytes downloaded", |t| t.downloaded);
    metrics.counter("torrent_uploaded_bytes", "Bytes uploaded", |t| t.uploaded);
    metrics.counter("torrent_wasted_bytes", "Bytes that failed the hash check or were received twice", |t| t.wasted);
    metrics.reads();
    let cache = &status.cache;
    metrics.single("cache_disk_bytes", "Size of the pieces on disk", Some(cache.disk));
    metrics.single("cache_disk_limit_bytes", "Maximum size of the pieces on disk", cache.disk_limit);
    metrics.single("cache_memory_bytes", "Size of the pieces in memory", Some(cache.memory));
    metrics.single("cache_memory_limit_bytes", "Maximum size of the pieces in memory", Some(cache.memory_limit));
    metrics.single(
        "cache_fault",
        "Whether the cache directory cannot be used (1) or can (0)",
        Some(cache.fault.is_some().into()),
    );
    metrics.single("download_limit_bytes_per_second", "Maximum download rate", status.limits.download);
    metrics.single("upload_limit_bytes_per_second", "Maximum upload rate", status.limits.upload);
    metrics.single(
        "active_downloads_limit",
        "Maximum number of torrents that are fetched in the background at a time",
        status.limits.active_downloads.map(|limit| limit as u64),
    );
    metrics.single("torrents_fetching", "Torrents that are being fetched", Some(status.total.fetching as u64));
    metrics.single(
        "torrents_queued",
        "Torrents that wait for their turn to be fetched",
        Some(status.total.queued as u64),
    );
    metrics.single("dht_nodes", "Good nodes in the DHT routing table", status.dht_nodes.map(|nodes| nodes as u64));
    metrics.single("uptime_seconds", "Time since the mount started", Some(status.uptime));
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = encode(&mut text, &metrics.registry);
    text
}

struct Metrics<'a> {
    registry: Registry,
    status: &'a Status,
}

fn labels(torrent: &TorrentStatus) -> Labels {
    vec![("torrent", torrent.name.clone()), ("info_hash", torrent.info_hash.clone())]
}

impl Metrics<'_> {
    /// Registers a gauge with a value per torrent.
    fn gauge(&mut self, name: &str, help: &str, of: fn(&TorrentStatus) -> u64) {
        let family = Family::<Labels, Gauge<f64, AtomicU64>>::default();
        for torrent in &self.status.torrents {
            family.get_or_create(&labels(torrent)).set(of(torrent) as f64);
        }
        self.registry.register(name, help, family);
    }

    /// Registers a counter with a value per torrent.
    fn counter(&mut self, name: &str, help: &str, of: fn(&TorrentStatus) -> u64) {
        let family = Family::<Labels, Counter>::default();
        for torrent in &self.status.torrents {
            family.get_or_create(&labels(torrent)).inc_by(of(torrent));
        }
        self.registry.register(name, help, family);
    }

    /// Registers the counter of reads, by torrent and source.
    fn reads(&mut self) {
        let family = Family::<Labels, Counter>::default();
        for torrent in &self.status.torrents {
            let reads = torrent.reads;
            for (from, count) in [("memory", reads.memory), ("disk", reads.disk), ("swarm", reads.missed)] {
                let mut labels = labels(torrent);
                labels.push(("from", from.into()));
                family.get_or_create(&labels).inc_by(count);
            }
        }
        self.registry.register("torrent_reads", "Reads, by the source that answered them", family);
    }

    /// Registers a gauge without labels, unless it has no value.
    fn single(&mut self, name: &str, help: &str, value: Option<u64>) {
        if let Some(value) = value {
            let gauge = Gauge::<f64, AtomicU64>::default();
            gauge.set(value as f64);
            self.registry.register(name, help, gauge);
        }
    }
}
