//! rqbit.

use std::process::Command;

use super::{Client, Job, NO_MSE, NO_SUPER_SEED, has};
use crate::matrix::{Role, Way};
use crate::support::Process;

pub struct Rqbit;

impl Client for Rqbit {
    fn name(&self) -> &'static str {
        "rqbit 9.1"
    }

    fn is_installed(&self) -> bool {
        has("rqbit")
    }

    fn cannot(&self, way: Way, role: Role) -> Option<&'static str> {
        match (way, role) {
            (Way::Mse, _) => Some(NO_MSE),
            // Version 9.1 neither finds nor announces anything at a node that others find each other by.
            (Way::Dht, _) => Some("its DHT finds nobody on loopback"),
            (Way::SuperSeed, Role::Seed) => Some(NO_SUPER_SEED),
            _ => None,
        }
    }

    fn start(&self, job: &Job) -> Process {
        let mut command = Command::new("rqbit");
        command.args(["--disable-upnp-port-forward", "--disable-lsd", "--listen-port", &job.port.to_string()]);
        command.arg("--disable-dht");
        if job.way == Way::Utp {
            command.args(["--disable-tcp-listen", "--disable-tcp-connect", "--experimental-enable-utp-listen"]);
        }
        command.args(["download", "--overwrite", "--disable-http-api", "-o"]).arg(&job.dir);
        job.spawn(command.arg(&job.source))
    }
}
