//! WebTorrent, on Node.js.

use std::process::Command;

use super::{Client, Job, NO_SUPER_SEED, file, has};
use crate::matrix::{Role, Way};
use crate::support::Process;

pub struct Webtorrent;

impl Client for Webtorrent {
    fn name(&self) -> &'static str {
        "WebTorrent 1.9"
    }

    fn is_installed(&self) -> bool {
        has("node") && file("target/tools/webtorrent/node_modules/webtorrent").exists()
    }

    fn cannot(&self, way: Way, role: Role) -> Option<&'static str> {
        match (way, role) {
            (Way::Utp, _) => Some("its uTP is an optional native module"),
            // Version 1.9.7 closes most of the connections on which the other side starts with encryption.
            (Way::Mse, _) => Some("it mostly fails to answer an encrypted handshake"),
            (Way::SuperSeed, Role::Seed) => Some(NO_SUPER_SEED),
            _ => None,
        }
    }

    fn start(&self, job: &Job) -> Process {
        let node = job.dht.map_or("-".to_owned(), |node| node.to_string());
        job.spawn(
            Command::new("node")
                .arg(file("tests/support/webtorrent.mjs"))
                .arg(file("target/tools/webtorrent/node_modules/webtorrent/index.js"))
                .args([&*job.port.to_string(), &node, job.if_way(Way::Mse, "secure", "plain")])
                .arg(&job.dir)
                .arg(&job.source),
        )
    }
}
