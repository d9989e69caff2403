//! rtorrent, without its user interface.

use std::fs;
use std::process::Command;

use super::{Client, Job, NO_UTP, has};
use crate::matrix::{Role, Way};
use crate::support::Process;

pub struct Rtorrent;

impl Client for Rtorrent {
    fn name(&self) -> &'static str {
        "rtorrent 0.9"
    }

    fn is_installed(&self) -> bool {
        has("rtorrent")
    }

    fn cannot(&self, way: Way, role: Role) -> Option<&'static str> {
        match (way, role) {
            (Way::Utp, _) => Some(NO_UTP),
            _ => None,
        }
    }

    fn start(&self, job: &Job) -> Process {
        fs::create_dir_all(job.work.join("session")).unwrap();
        let encryption = job.if_way(Way::Mse, "require,require_RC4", "allow_incoming,try_outgoing,enable_retry");
        let seeding = job.if_way(Way::SuperSeed, "initial_seed", "seed");
        let (mode, port) = (if job.dht.is_some() { "on" } else { "disable" }, job.port);
        let mut config = format!(
            "system.daemon.set = true\n\
             session.path.set = {work}/session\n\
             directory.default.set = {dir}\n\
             network.port_range.set = {port}-{port}\n\
             network.port_random.set = no\n\
             network.bind_address.set = 127.0.0.1\n\
             trackers.use_udp.set = no\n\
             protocol.pex.set = yes\n\
             protocol.encryption.set = {encryption}\n\
             protocol.connection.seed.set = {seeding}\n\
             dht.mode.set = {mode}\n\
             dht.port.set = {port}\n\
             log.open_file = \"log\", {work}/log.txt\n\
             log.add_output = \"info\", \"log\"\n\
             log.add_output = \"connection_debug\", \"log\"\n",
            work = job.work.display(),
            dir = job.dir.display(),
        );
        if let Some(node) = job.dht {
            config.push_str(&format!("schedule2 = node, 1, 5, \"dht.add_node={node}\"\n"));
        }
        let config = job.write("rtorrent.rc", config);
        job.spawn(
            Command::new("rtorrent").args(["-n", "-o"]).arg(format!("import={}", config.display())).arg(&job.source),
        )
    }
}
