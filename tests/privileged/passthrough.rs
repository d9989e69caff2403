//! Complete files that the kernel reads itself, from a mount whose server has no privileges: its keeper registers them.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::mount_helper::{ALONE, LIMIT, Stage, Swarm, assert_powerless, can_stage, status, swarm};
use crate::support::*;

/// Runs a shell command with `$BASE/mnt/film.bin` as descriptor 5, and then `torrentfs status`. Returns the output of the command
/// and the files that the kernel reads.
fn with_open_film(stage: &Stage, command: &str) -> (String, Value) {
    let output = stage
        .sh(&format!("exec 5< $BASE/mnt/film.bin; {command}; echo; {TORRENTFS} status --json $BASE/mnt | tr -d '\\n'"));
    let (output, status) = output.trim_end().rsplit_once('\n').unwrap();
    let mut status: Value = serde_json::from_str(status).unwrap();
    (output.to_owned(), status["torrents"][0]["passthrough"].take())
}

/// Returns what a process has open, except for its standard streams, pipes and sockets.
fn open_files(pid: u32) -> Vec<String> {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let paths = files.filter_map(|file| fs::read_link(file.path()).ok()).map(|path| path.display().to_string());
    paths.filter(|path| path.starts_with('/') && !path.starts_with("/dev/null")).collect()
}

/// Waits until the torrent is complete in the cache.
fn wait_until_complete(stage: &Stage) {
    stage.sh("cmp $BASE/mnt/film.bin $BASE/payload/film.bin");
    wait_until("the kernel reads the file", LIMIT, || {
        with_open_film(stage, "true").1 == Value::from(["film.bin"].to_vec())
    });
}

#[test]
fn the_keeper_registers_complete_files_for_the_server() {
    if !can_stage(&["dd"]) || !can_pass_through() {
        return;
    }
    let _turn = turn();
    let Swarm { lab, seeder, .. } = swarm(11);
    let stage = Stage::new(lab.dir.path());
    fs::create_dir(lab.path("mnt")).unwrap();
    let mount = format!("mount -t torrentfs -o {ALONE},peer={} $BASE/film.bin.torrent $BASE/mnt", seeder.addr);
    stage.sh(&mount);
    wait_until_complete(&stage);
    let (server, keeper) = stage.processes("$BASE/mnt");
    let before = open_files(keeper);
    // Many programs at once, of other users, too.
    let (output, passed) = with_open_film(
        &stage,
        "for n in 1 2 3 4 5 6 7 8; do
             setpriv --reuid 65534 --regid 65534 --clear-groups cmp $BASE/mnt/film.bin $BASE/payload/film.bin & pids=\"$pids $!\"
         done
         for pid in $pids; do wait $pid || echo failed; done
         cmp /dev/fd/5 $BASE/payload/film.bin && echo same",
    );
    assert_eq!((output.trim(), passed), ("same", Value::from(["film.bin"].to_vec())));
    // Neither process has gained anything.
    assert_powerless(server);
    assert_eq!(status(keeper)["CapEff"].trim_start_matches('0'), "200024");
    assert_eq!(open_files(keeper), before);
    assert!(!before.iter().any(|file| file == "/dev/fuse"), "{before:?}");

    // The cache of the mount is one directory below this one.
    let cached = "$(ls /var/cache/torrentfs/*/*/data/film.bin)";
    let (output, _) = with_open_film(
        &stage,
        &format!(
            "dd if=/dev/zero of={cached} bs=1 count=9 seek=500000 conv=notrunc 2> /dev/null
             cmp $BASE/mnt/film.bin $BASE/payload/film.bin && echo new is right
             n=0; while dd bs=1 count=1 <&5 > /dev/null 2>&1 && [ $n -lt 600 ]; do n=$((n+1)); sleep 0.1; done
             [ $n -lt 600 ] && echo old fails"
        ),
    );
    assert_eq!(output.trim(), "new is right\nold fails");
    wait_until_complete(&stage);
    stage.sh("umount $BASE/mnt");
    stage.wait_until_clear();

    stage.sh(&format!("{mount} -o no_passthrough"));
    assert_eq!(with_open_film(&stage, "cmp /dev/fd/5 $BASE/payload/film.bin").1, Value::Array(Vec::new()));
    stage.sh("umount $BASE/mnt");
    stage.wait_until_clear();
}

#[test]
fn without_its_keeper_a_server_reads_as_usual() {
    if !can_stage(&[]) || !can_pass_through() {
        return;
    }
    let _turn = turn();
    let Swarm { lab, seeder, .. } = swarm(12);
    let stage = Stage::new(lab.dir.path());
    fs::create_dir(lab.path("mnt")).unwrap();
    stage.sh(&format!("mount -t torrentfs -o {ALONE},peer={} $BASE/film.bin.torrent $BASE/mnt", seeder.addr));
    wait_until_complete(&stage);
    let (server, keeper) = stage.processes("$BASE/mnt");
    // A handle of the kernel's outlives the keeper.
    let (output, _) = with_open_film(
        &stage,
        &format!(
            "kill -KILL {keeper}; cmp /dev/fd/5 $BASE/payload/film.bin && cmp $BASE/mnt/film.bin $BASE/payload/film.bin && echo same"
        ),
    );
    assert_eq!(output.trim(), "same");
    let usual = || with_open_film(&stage, "cmp /dev/fd/5 $BASE/payload/film.bin").1 == Value::Array(Vec::new());
    wait_until("files are read as usual", LIMIT, usual);
    stage.sh(&format!("{TORRENTFS} unmount $BASE/mnt"));
    wait_until("the server has ended", LIMIT, || !Path::new(&format!("/proc/{server}/exe")).exists());
}
