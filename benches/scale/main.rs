//! Measures the program at sizes that few people need and nobody should notice.
//!
//! ```text
//! cargo bench --bench scale                  all of them
//! cargo bench --bench scale -- torrents      5,000 torrents in one mount: memory, processor at rest
//! cargo bench --bench scale -- pieces        a torrent of 2 TiB: mounting, memory, reads and seeks
//! cargo bench --bench scale -- leechers      one file seeded to 50 leechers, beside libtorrent
//! ```
//!
//! `TORRENTFS_PROGRAM` names another build of the program, to compare two of them. Everything is on loopback.

mod leechers;
#[path = "../../tests/support/noise.rs"]
mod noise;
mod pieces;
mod program;
mod torrents;

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let benchmarks: [(&str, fn()); 3] =
        [("torrents", torrents::measure), ("pieces", pieces::measure), ("leechers", leechers::measure)];
    for (name, measure) in benchmarks {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            measure();
        }
    }
}
