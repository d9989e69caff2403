//! Tests with other programs: libtorrent, transmission, aria2 and rqbit as peers, mktorrent and others as creators.

#[path = "../support/mod.rs"]
mod support;

mod both_ways;
mod create_alike;
mod encryption;
mod get;
mod leftovers;
mod magnet;
mod peers;
mod seed;
mod stalls;
mod tracker;
mod utp;
