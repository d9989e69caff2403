//! What has happened since the start, counted without locks.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($($(#[doc = $help:literal])* $name:ident = $metric:literal),* $(,)?) => {
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $($(#[doc = $help])* pub $name: Counter,)*
        }

        impl Counters {
            /// Name and labels as Prometheus has them, help, value; those of one name stand together.
            pub fn all(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
                [$(($metric, concat!($($help),*).trim_ascii(), self.$name.get()),)*].into_iter()
            }
        }
    };
}

counters! {
    /// Announces answered.
    http_announces = "announces_total{protocol=\"http\"}",
    /// Announces answered.
    udp_announces = "announces_total{protocol=\"udp\"}",
    /// Scrapes answered.
    http_scrapes = "scrapes_total{protocol=\"http\"}",
    /// Scrapes answered.
    udp_scrapes = "scrapes_total{protocol=\"udp\"}",
    /// Connection ids given.
    connects = "connects_total",
    /// Announces of torrents that are not served.
    not_allowed = "refused_total{reason=\"torrent\"}",
    /// Announces of new torrents when there were enough.
    full = "refused_total{reason=\"full\"}",
    /// Requests that made no sense.
    http_malformed = "malformed_total{protocol=\"http\"}",
    /// Requests that made no sense.
    udp_malformed = "malformed_total{protocol=\"udp\"}",
    /// Datagrams with a connection id that is too old, or forged.
    bad_ids = "bad_connection_ids_total",
    /// Announces of peers for whom there was no room; they were served, but are given to nobody.
    left_out = "left_out_total",
    /// Connections that ended, at their limit or for want of room, before they had asked.
    hung_up = "hung_up_total",
}

#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}
