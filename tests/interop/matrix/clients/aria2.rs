//! aria2.

use std::process::Command;

use super::{Client, Job, NO_SUPER_SEED, NO_UTP, has};
use crate::matrix::{Role, Way};
use crate::support::Process;

pub struct Aria2;

impl Client for Aria2 {
    fn name(&self) -> &'static str {
        "aria2 1.36"
    }

    fn is_installed(&self) -> bool {
        has("aria2c")
    }

    fn cannot(&self, way: Way, role: Role) -> Option<&'static str> {
        match (way, role) {
            (Way::Utp, _) => Some(NO_UTP),
            (Way::SuperSeed, Role::Seed) => Some(NO_SUPER_SEED),
            _ => None,
        }
    }

    fn start(&self, job: &Job) -> Process {
        let mut command = Command::new("aria2c");
        command
            .args(["--enable-dht6=false", "--bt-enable-lpd=false", "--no-conf=true", "--console-log-level=info"])
            .args(["--check-integrity=true", "--seed-ratio=0", "--file-allocation=none", "--bt-save-metadata=true"])
            .arg(format!("--listen-port={}", job.port))
            .arg(format!("--dir={}", job.dir.display()));
        if job.way == Way::Mse {
            command.args(["--bt-require-crypto=true", "--bt-min-crypto-level=arc4"]);
        }
        match job.dht {
            Some(node) => command
                .arg("--enable-dht=true")
                .arg(format!("--dht-listen-port={}", job.port))
                .arg(format!("--dht-entry-point={node}"))
                .arg(format!("--dht-file-path={}", job.work.join("dht.dat").display())),
            None => command.arg("--enable-dht=false"),
        };
        job.spawn(command.arg(&job.source))
    }
}
