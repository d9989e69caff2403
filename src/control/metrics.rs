//! `/metrics`: the same figures for Prometheus, in the form of OpenMetrics.

use std::sync::atomic::AtomicU64;

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::api::Shared;
use super::observe;
use super::status::{Status, TorrentStatus};

type Labels = Vec<(&'static str, String)>;

/// Figures for Prometheus
#[utoipa::path(get, path = "/metrics", responses((status = 200, content_type = "application/openmetrics-text")))]
pub(super) async fn metrics(State(Shared { mount, since, http, .. }): State<Shared>) -> Response {
    let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], text(&observe::mount(&mount, since, http).await)).into_response()
}

/// Made anew for each answer, so that nothing is kept of a torrent that has gone.
fn text(status: &Status) -> String {
    let mut figures = Figures { registry: Registry::with_prefix("torrentfs"), status };
    figures.gauge("torrent_size_bytes", "Bytes in a torrent", |t| t.size);
    figures.gauge("torrent_have_bytes", "Bytes of a torrent that are here", |t| t.have);
    figures.gauge("torrent_peers", "Connections of a torrent", |t| t.peers.len() as u64);
    figures.gauge("torrent_seeds", "Connections to peers that have everything", |t| t.seeds as u64);
    figures.gauge("torrent_blocked_reads", "Reads that wait for the swarm", |t| t.blocked_reads.len() as u64);
    figures.gauge("torrent_download_bytes_per_second", "Wanted bytes a second from peers", |t| t.download_rate);
    figures.gauge("torrent_upload_bytes_per_second", "Bytes a second to peers", |t| t.upload_rate);
    figures.counter("torrent_downloaded_bytes", "Wanted bytes from peers", |t| t.downloaded);
    figures.counter("torrent_uploaded_bytes", "Bytes to peers", |t| t.uploaded);
    figures.counter("torrent_wasted_bytes", "Bytes that failed their hash or came twice", |t| t.wasted);
    figures.reads();
    let cache = &status.cache;
    figures.one("cache_disk_bytes", "Bytes of pieces on the disk", Some(cache.disk));
    figures.one("cache_disk_limit_bytes", "What they may be", cache.disk_limit);
    figures.one("cache_memory_bytes", "Bytes of pieces in memory", Some(cache.memory));
    figures.one("cache_memory_limit_bytes", "What they may be", Some(cache.memory_limit));
    figures.one("cache_fault", "Whether something is wrong with the disk", Some(cache.fault.is_some().into()));
    figures.one("download_limit_bytes_per_second", "What may come from peers in a second", status.limits.download);
    figures.one("upload_limit_bytes_per_second", "What may go to peers in a second", status.limits.upload);
    figures.one("dht_nodes", "Good nodes of the DHT", status.dht_nodes.map(|nodes| nodes as u64));
    figures.one("uptime_seconds", "For how long it has been mounted", Some(status.uptime));
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = encode(&mut text, &figures.registry);
    text
}

struct Figures<'a> {
    registry: Registry,
    status: &'a Status,
}

fn labels(torrent: &TorrentStatus) -> Labels {
    vec![("torrent", torrent.name.clone()), ("info_hash", torrent.info_hash.clone())]
}

impl Figures<'_> {
    fn gauge(&mut self, name: &str, help: &str, of: fn(&TorrentStatus) -> u64) {
        let family = Family::<Labels, Gauge<f64, AtomicU64>>::default();
        for torrent in &self.status.torrents {
            family.get_or_create(&labels(torrent)).set(of(torrent) as f64);
        }
        self.registry.register(name, help, family);
    }

    fn counter(&mut self, name: &str, help: &str, of: fn(&TorrentStatus) -> u64) {
        let family = Family::<Labels, Counter>::default();
        for torrent in &self.status.torrents {
            family.get_or_create(&labels(torrent)).inc_by(of(torrent));
        }
        self.registry.register(name, help, family);
    }

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
        self.registry.register("torrent_reads", "Reads, by where they were answered from", family);
    }

    /// `None`: there is no such figure.
    fn one(&mut self, name: &str, help: &str, value: Option<u64>) {
        if let Some(value) = value {
            let gauge = Gauge::<f64, AtomicU64>::default();
            gauge.set(value as f64);
            self.registry.register(name, help, gauge);
        }
    }
}
