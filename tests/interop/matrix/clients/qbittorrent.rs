//! qBittorrent without its window.

use std::process::Command;

use super::{Client, Job, NO_BOOTSTRAP, SUPER_SEED_BY_HAND, has};
use crate::matrix::{Role, Way};
use crate::support::{Process, free_port};

pub struct Qbittorrent;

impl Client for Qbittorrent {
    fn name(&self) -> &'static str {
        "qBittorrent 4.5"
    }

    fn is_installed(&self) -> bool {
        has("qbittorrent-nox")
    }

    fn cannot(&self, way: Way, role: Role) -> Option<&'static str> {
        match (way, role) {
            (Way::Dht, _) => Some(NO_BOOTSTRAP),
            (Way::SuperSeed, Role::Seed) => Some(SUPER_SEED_BY_HAND),
            _ => None,
        }
    }

    fn start(&self, job: &Job) -> Process {
        let (encryption, protocol) = (job.if_way(Way::Mse, 1, 0), job.if_way(Way::Utp, "UTP", "TCP"));
        let config = format!(
            "[LegalNotice]\nAccepted=true\n\
             [BitTorrent]\n\
             Session\\Port={port}\nSession\\Encryption={encryption}\nSession\\BTProtocol={protocol}\n\
             Session\\DHTEnabled=false\nSession\\LSDEnabled=false\nSession\\PeXEnabled=true\n\
             Session\\MultiConnectionsPerIp=true\nSession\\QueueingSystemEnabled=false\n\
             Session\\DefaultSavePath={dir}\nSession\\Preallocation=false\n\
             [Preferences]\nWebUI\\LocalHostAuth=false\n\
             [Network]\nPortForwardingEnabled=false\n",
            port = job.port,
            dir = job.dir.display(),
        );
        job.write("qBittorrent/config/qBittorrent.conf", config);
        job.spawn(
            Command::new("qbittorrent-nox")
                .arg(format!("--profile={}", job.work.display()))
                .arg(format!("--webui-port={}", free_port()))
                .arg(format!("--save-path={}", job.dir.display()))
                .arg("--add-paused=false")
                .arg(&job.source),
        )
    }
}
