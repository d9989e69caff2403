//! Deluge: its daemon, told what to do by its console.

use std::process::Command;

use super::{Client, Job, NO_BOOTSTRAP, SUPER_SEED_BY_HAND, UTP_NOT_ALONE, has, wait_until_listening};
use crate::matrix::{Role, Way};
use crate::support::{Process, free_port};

pub struct Deluge;

impl Client for Deluge {
    fn name(&self) -> &'static str {
        "Deluge 2.0"
    }

    fn is_installed(&self) -> bool {
        has("deluged") && has("deluge-console")
    }

    fn cannot(&self, way: Way, role: Role) -> Option<&'static str> {
        match (way, role) {
            (Way::Utp, _) => Some(UTP_NOT_ALONE),
            (Way::Dht, _) => Some(NO_BOOTSTRAP),
            (Way::SuperSeed, Role::Seed) => Some(SUPER_SEED_BY_HAND),
            _ => None,
        }
    }

    fn start(&self, job: &Job) -> Process {
        let (port, control) = (job.port, free_port());
        // 0: required, 1: supported. Level 1 is RC4.
        let encryption = job.if_way(Way::Mse, 0, 1);
        job.write(
            "core.conf",
            format!(
                r#"{{"file": 1, "format": 1}}{{
                    "listen_ports": [{port}, {port}], "random_port": false, "listen_interface": "127.0.0.1",
                    "daemon_port": {control}, "dht": false, "lsd": false, "upnp": false, "natpmp": false,
                    "utpex": true, "enc_in_policy": {encryption}, "enc_out_policy": {encryption}, "enc_level": 1,
                    "download_location": "{dir}", "new_release_check": false, "max_active_seeding": -1
                }}"#,
                dir = job.dir.display(),
            ),
        );
        job.write("auth", "lab:lab:10\n");
        let daemon = job.spawn(Command::new("deluged").args(["-d", "-c"]).arg(&job.work));
        // The console repeats nothing: it must find the daemon.
        wait_until_listening(control);
        let add = format!("connect 127.0.0.1:{control} lab lab; add -p {} {}", job.dir.display(), job.source);
        let output = Command::new("deluge-console").arg("-c").arg(job.work.join("console")).arg(&add).output().unwrap();
        job.write("console.txt", [output.stdout, output.stderr].concat());
        daemon
    }
}
