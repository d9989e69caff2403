//! Counters of events since the start, without locks.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($($(#[doc = $help:literal])* $name:ident = $metric:literal),* $(,)?) => {
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $($(#[doc = $help])* pub $name: Counter,)*
        }

        impl Counters {
            /// Returns the name and labels in Prometheus' format, the help text and the value of each counter. Counters of
            /// the same name are adjacent.
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
    /// UDP connection ids issued.
    connects = "connects_total",
    /// Announces refused, by reason.
    not_allowed = "refused_total{reason=\"torrent\"}",
    /// Announces refused, by reason.
    full = "refused_total{reason=\"full\"}",
    /// Malformed requests.
    http_malformed = "malformed_total{protocol=\"http\"}",
    /// Malformed requests.
    udp_malformed = "malformed_total{protocol=\"udp\"}",
    /// Datagrams with an expired or forged connection id.
    bad_ids = "bad_connection_ids_total",
    /// Announces answered without recording the peer, because a limit on peers was reached.
    unlisted = "left_out_total",
    /// Connections closed before a request was complete, at their time limit or to make room.
    aborted = "hung_up_total",
}

/// A counter that threads share.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn add(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// Returns the current value.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}
