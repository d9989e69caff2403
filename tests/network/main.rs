//! Tests on loopback: trackers, the DHT, local discovery, web seeds, port mapping, and peers reached in one way only.

#[path = "../support/mod.rs"]
mod support;

mod blocklist;
mod dht;
mod dialing;
mod discovery;
mod extension_peer;
mod holepunch;
mod interrupted;
mod lsd;
mod neighbours;
mod pex;
mod portmap;
mod proxy;
mod session;
mod stalls;
mod tls;
mod trackers;
mod web_server;
mod webseed_answers;
mod webseeds;
