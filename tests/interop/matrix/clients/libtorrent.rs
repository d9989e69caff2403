//! libtorrent through its Python bindings: the versions of Debian and of PyPI.

use std::process::Command;

use super::{Client, Job, file};
use crate::matrix::{Role, Way};
use crate::support::Process;

/// One version of libtorrent.
pub struct Libtorrent {
    name: &'static str,
    /// The Python that has it. A relative path is below the repository.
    python: &'static str,
}

impl Libtorrent {
    pub const DEBIAN: Self = Self { name: "libtorrent 2.0", python: "/usr/bin/python3" };
    pub const PYPI: Self = Self { name: "libtorrent 2.1", python: "target/tools/libtorrent/bin/python" };
}

impl Client for Libtorrent {
    fn name(&self) -> &'static str {
        self.name
    }

    fn is_installed(&self) -> bool {
        let import = Command::new(file(self.python)).args(["-c", "import libtorrent"]).output();
        import.is_ok_and(|output| output.status.success())
    }

    fn cannot(&self, _: Way, _: Role) -> Option<&'static str> {
        None
    }

    fn start(&self, job: &Job) -> Process {
        let mut settings: Vec<String> = Vec::new();
        let mut set = |values: &[&str]| settings.extend(values.iter().map(|value| (*value).to_owned()));
        match job.way {
            Way::Mse => set(&["in_enc_policy=0", "out_enc_policy=0", "allowed_enc_level=2", "prefer_rc4=1"]),
            Way::Utp => set(&[
                "enable_incoming_tcp=0",
                "enable_outgoing_tcp=0",
                "enable_incoming_utp=1",
                "enable_outgoing_utp=1",
            ]),
            Way::SuperSeed => set(&["super_seed=1"]),
            _ => {}
        }
        if let Some(node) = job.dht {
            set(&["enable_dht=1", "dht_restrict_routing_ips=0", "dht_restrict_search_ips=0"]);
            set(&["dht_prefer_verified_node_ids=0", &format!("dht_bootstrap_nodes={node}")]);
        }
        let role = if job.role == Role::Seed && job.way != Way::PartialSeed { "seed" } else { "leech" };
        job.spawn(
            Command::new(file(self.python))
                .arg(file("tests/support/peer.py"))
                .args([role, "127.0.0.1", &job.port.to_string(), "0"])
                .arg(&job.dir)
                .arg(&job.source)
                .args(settings),
        )
    }
}
