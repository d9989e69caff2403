//! Transmission: its daemon, told what to do by its remote control.

use std::process::Command;

use super::{Client, Job, NO_LOOPBACK, NO_SUPER_SEED, UTP_NOT_ALONE, has, wait_until_listening};
use crate::matrix::{Role, Way};
use crate::support::{Process, free_port};

pub struct Transmission;

impl Client for Transmission {
    fn name(&self) -> &'static str {
        "Transmission 3.00"
    }

    fn is_installed(&self) -> bool {
        has("transmission-daemon") && has("transmission-remote")
    }

    fn cannot(&self, way: Way, role: Role) -> Option<&'static str> {
        match (way, role) {
            (Way::Utp, _) => Some(UTP_NOT_ALONE),
            (Way::SuperSeed, Role::Seed) => Some(NO_SUPER_SEED),
            // It takes no loopback address from the DHT, nor names one there.
            (Way::Dht, _) => Some(NO_LOOPBACK),
            _ => None,
        }
    }

    fn start(&self, job: &Job) -> Process {
        let control = free_port();
        let settings = format!(
            r#"{{
                "bind-address-ipv4": "127.0.0.1", "dht-enabled": false, "lpd-enabled": false, "utp-enabled": false,
                "pex-enabled": true, "rename-partial-files": false, "port-forwarding-enabled": false,
                "encryption": {encryption}, "peer-port": {port}, "rpc-port": {control}, "rpc-bind-address": "127.0.0.1",
                "cache-size-mb": 0, "download-dir": "{dir}"
            }}"#,
            // 2: required, 1: preferred.
            encryption = job.if_way(Way::Mse, 2, 1),
            port = job.port,
            dir = job.dir.display(),
        );
        let config = job.write("config/settings.json", settings);
        let daemon = job.spawn(Command::new("transmission-daemon").args(["-f", "-g"]).arg(config.parent().unwrap()));
        wait_until_listening(control);
        let at = format!("127.0.0.1:{control}");
        let added = Command::new("transmission-remote").args([&at, "-a", &job.source]).output().unwrap();
        job.write("added.txt", added.stdout);
        daemon
    }
}
