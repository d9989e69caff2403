//! `mount -t torrentfs`: the helper as mount(8) runs it, with real peers. Each test has a mount namespace in which
//! `/sbin/mount.torrentfs` is our helper and the user `torrentfs` exists, so that the machine does not change.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::support::*;

pub const HELPER: &str = env!("CARGO_BIN_EXE_mount-torrentfs");
/// Time limit of waits. Only a hang reaches it.
pub const LIMIT: Duration = Duration::from_secs(180);
/// Options that keep traffic on this machine.
pub const ALONE: &str = "no_dht,no_lsd,no_port_mapping,port=0";
/// User id of `torrentfs` in the namespace.
const SERVER: u32 = 987;

const SETUP: &str = include_str!("../support/stage.sh");

/// A mount namespace with our helper. Its mounts end with it.
pub struct Stage {
    holder: Process,
    base: PathBuf,
}

/// Returns whether the test can run: the requirements of `can_run`, and root.
pub fn can_stage(programs: &[&str]) -> bool {
    let able = can_run(
        &[&["unshare", "nsenter", "setpriv", "getfattr", "mktorrent", "opentracker", "libtorrent"], programs].concat(),
    );
    let root = fs::metadata("/proc/self").unwrap().uid() == 0;
    if !root {
        eprintln!("skipped: only root can make a mount namespace");
    }
    able && root
}

impl Stage {
    pub fn new(base: &Path) -> Self {
        let stage = base.join("stage");
        fs::create_dir(&stage).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", SETUP]).env("STAGE", &stage);
        let child = command.env("HELPER", HELPER).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut holder = Process(child);
        let mut line = String::new();
        BufReader::new(holder.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "ready");
        Self { holder, base: base.to_owned() }
    }

    /// Runs a shell command in the namespace. `$BASE` is the directory of the test.
    pub fn run(&self, line: &str) -> Output {
        let mut command = Command::new("nsenter");
        command.args([&format!("--mount=/proc/{}/ns/mnt", self.holder.0.id()), "sh", "-c", line]);
        command.env("BASE", &self.base).env_remove("TORRENTFS_LOG").stdin(Stdio::null()).output().unwrap()
    }

    /// Runs a shell command that must succeed. Returns its standard output.
    pub fn sh(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Returns source and mountpoint of the test's mounts.
    fn mounts(&self) -> Vec<(String, String)> {
        let mounts = fs::read_to_string(format!("/proc/{}/mounts", self.holder.0.id())).unwrap();
        let ours = mounts.lines().filter(|line| line.contains(" fuse.torrentfs "));
        let pair = |line: &str| {
            let mut fields = line.split(' ').map(|field| field.replace("\\040", " "));
            (fields.next().unwrap(), fields.next().unwrap())
        };
        ours.map(pair).filter(|(_, at)| Path::new(at).starts_with(&self.base)).collect()
    }

    /// Returns the serving process and its keeper.
    pub fn processes(&self, mountpoint: &str) -> (u32, u32) {
        let server = self.sh(&format!("getfattr --absolute-names --only-values -n user.torrentfs.pid {mountpoint}"));
        let server = server.trim().parse().unwrap();
        (server, status(server)["PPid"].parse().unwrap())
    }

    /// Returns whether no mount and no process of one is left.
    fn is_clear(&self) -> bool {
        self.mounts().is_empty() && self.left().is_empty()
    }

    /// Returns the running helper processes of the namespace.
    fn left(&self) -> Vec<u32> {
        let namespace = fs::read_link(format!("/proc/{}/ns/mnt", self.holder.0.id())).unwrap();
        let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
        pids.filter(|pid: &u32| {
            let of = |name: &str| fs::read_link(format!("/proc/{pid}/{name}"));
            of("exe").is_ok_and(|exe| exe == Path::new(HELPER)) && of("ns/mnt").is_ok_and(|at| at == namespace)
        })
        .collect()
    }

    pub fn wait_until_clear(&self) {
        wait_until("no mount and no process is left", LIMIT, || self.is_clear());
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for pid in self.left() {
            run("kill", &["-9", &pid.to_string()]);
        }
    }
}

pub fn status(pid: u32) -> HashMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect()
}

/// Checks that a process has no capability, can gain none, and is restricted in its system calls.
pub fn assert_powerless(pid: u32) {
    let of = status(pid);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(of[set].trim_start_matches('0'), "", "{set}");
    }
    // 2: by a filter.
    assert_eq!((of["NoNewPrivs"].as_str(), of["Seccomp"].as_str()), ("1", "2"));
}

/// Returns whether a process runs. A zombie has no executable.
fn is_alive(pid: u32) -> bool {
    fs::read_link(format!("/proc/{pid}/exe")).is_ok()
}

/// Waits until a process has opened `mnt/film.bin`.
fn wait_for_open_film(process: &Process) {
    wait_until("the file is open", LIMIT, || {
        let files = fs::read_dir(format!("/proc/{}/fd", process.0.id())).into_iter().flatten().flatten();
        files.filter_map(|file| fs::read_link(file.path()).ok()).any(|file| file.ends_with("mnt/film.bin"))
    });
}

/// A torrent and its seeder.
pub struct Swarm {
    pub lab: Lab,
    pub data: Vec<u8>,
    pub torrent: PathBuf,
    pub seeder: Libtorrent,
}

pub fn swarm(seed: u64) -> Swarm {
    let mut lab = Lab::new();
    let data = noise(2 << 20, seed);
    let torrent = lab.publish("film.bin", &data, 16);
    let seeder = lab.libtorrent("seed", 2, 0, &lab.path("payload"), &torrent);
    Swarm { lab, data, torrent, seeder }
}

#[test]
fn root_mounts_and_an_unprivileged_user_serves() {
    if !can_stage(&[]) {
        return;
    }
    let _turn = turn();
    let Swarm { lab, data, torrent, seeder } = swarm(1);
    // Readable by root alone, as a torrent with a passkey should be.
    fs::set_permissions(&torrent, fs::Permissions::from_mode(0o600)).unwrap();
    let stage = Stage::new(lab.dir.path());
    fs::create_dir(lab.path("mnt")).unwrap();
    let peer = &seeder.addr;
    let message = stage.sh(&format!("mount -t torrentfs -o {ALONE},peer={peer} $BASE/film.bin.torrent $BASE/mnt 2>&1"));
    assert_eq!(message, "");
    let mountpoint = lab.path("mnt").to_str().unwrap().to_owned();
    assert_eq!(stage.mounts(), [(torrent.to_str().unwrap().to_owned(), mountpoint)]);
    let listed = stage.sh("stat -c '%A %U %G %s' $BASE/mnt/film.bin");
    assert_eq!(listed.trim(), format!("-r--r--r-- root root {}", data.len()));
    stage.sh("setpriv --reuid 65534 --regid 65534 --clear-groups cmp $BASE/mnt/film.bin $BASE/payload/film.bin");

    let (server, keeper) = stage.processes("$BASE/mnt");
    // Neither gets a terminal's Ctrl-C.
    assert_eq!([server, keeper].map(group_and_session), [(server, server), (keeper, keeper)]);
    let of = status(server);
    let ids = format!("{SERVER}\t{SERVER}\t{SERVER}\t{SERVER}");
    assert_eq!((&of["Uid"], &of["Gid"]), (&ids, &ids));
    assert_powerless(server);
    let groups: Vec<&str> = of["Groups"].split_whitespace().collect();
    assert!(groups.iter().all(|group| *group == SERVER.to_string()), "{groups:?}");
    // The keeper has the capabilities for mounts, and no descriptor that would keep a dead connection alive.
    let of = status(keeper);
    assert_eq!((of["Uid"].split('\t').next(), of["Threads"].as_str()), (Some("0"), "1"));
    assert_eq!((of["CapEff"].trim_start_matches('0'), of["CapBnd"].trim_start_matches('0')), ("200024", ""));
    let files = fs::read_dir(format!("/proc/{keeper}/fd")).unwrap();
    let files: Vec<_> = files.map(|file| fs::read_link(file.unwrap().path()).unwrap()).collect();
    assert!(files.iter().all(|file| file != Path::new("/dev/fuse")), "{files:?}");
    let caches = stage.sh("stat -c '%a %U %n' /var/cache/torrentfs /var/cache/torrentfs/*");
    let caches: Vec<&str> = caches.lines().collect();
    assert!(caches[0].starts_with("755 root ") && caches[1].starts_with("700 torrentfs "), "{caches:?}");

    stage.sh("umount $BASE/mnt");
    stage.wait_until_clear();
    // By the full type `fuse.torrentfs`, with another serving user and another owner.
    stage.sh(&format!(
        "chmod 644 $BASE/film.bin.torrent; mount -t fuse.torrentfs -o {ALONE},setuid=nobody,uid=5,umask=077,peer={peer} \
         $BASE/film.bin.torrent $BASE/mnt -o cache_dir=$BASE/stage/cache"
    ));
    assert_eq!(stage.sh("stat -c '%A %u' $BASE/mnt/film.bin").trim(), "-r-------- 5");
    assert_eq!(status(stage.processes("$BASE/mnt").0)["Uid"].split('\t').next(), Some("65534"));
    assert!(!stage.run("setpriv --reuid 65534 --clear-groups cat $BASE/mnt/film.bin").status.success());
    stage.sh("umount $BASE/mnt");
    stage.wait_until_clear();
}

#[test]
fn entries_of_fstab_are_mounted_once() {
    if !can_stage(&[]) {
        return;
    }
    let _turn = turn();
    let Swarm { lab, torrent, seeder, .. } = swarm(2);
    let stage = Stage::new(lab.dir.path());
    fs::copy(&torrent, lab.path("my film.torrent")).unwrap();
    stage.sh("cd $BASE && mkdir 'my mnt' magnet url unused");
    let served = fs::read(&torrent).unwrap();
    let url = serve(served, 1);
    let (peer, hash, base) = (&seeder.addr, lab.info_hash(), lab.dir.path().display());
    let secret = "0123456789abcdef0123456789abcdef";
    let link = format!("magnet:?xt=urn:btih:{hash}&x.pe={peer}&tr=http%3A%2F%2F127.0.0.1%3A1%2F{secret}%2Fannounce");
    let fstab = format!(
        "# a comment\n\
         {base}/my\\040film.torrent {base}/my\\040mnt torrentfs defaults,{ALONE},peer={peer},_netdev,x-systemd.automount 0 0\n\
         {link} {base}/magnet torrentfs nofail,user,rw,{ALONE} 0 0\n\
         {url}?passkey={secret} {base}/url fuse.torrentfs users,{ALONE},peer={peer} 0 0\n\
         /nowhere.torrent {base}/unused torrentfs noauto 0 0\n"
    );
    fs::write(lab.path("fstab"), fstab).unwrap();
    assert_eq!(stage.sh("mount -a -T $BASE/fstab 2>&1"), "");
    for mountpoint in ["my mnt", "magnet", "url"] {
        stage.sh(&format!("cmp \"$BASE/{mountpoint}/film.bin\" $BASE/payload/film.bin"));
    }
    let mounts = stage.mounts();
    assert_eq!(mounts.len(), 3);
    assert_eq!(mounts[0].0, lab.path("my film.torrent").to_str().unwrap());
    // Every user can read the list of mounts.
    assert!(mounts.iter().all(|(source, _)| !source.contains(secret)), "{mounts:?}");
    assert!(mounts[1].0.contains(&hash) && mounts[2].0.ends_with("/film.torrent?***"), "{mounts:?}");
    // The web server has answered its only request: nothing is fetched or mounted again.
    assert_eq!(stage.sh("mount -a -T $BASE/fstab 2>&1"), "");
    assert_eq!(stage.mounts(), mounts);
    stage.sh("umount -a -t fuse.torrentfs");
    stage.wait_until_clear();
}

/// Starts a web server that serves a `.torrent` file this many times. Returns its URL.
fn serve(body: Vec<u8>, times: usize) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().take(times).flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = stream.write_all(&[head.as_bytes(), &body].concat());
        }
    });
    format!("http://{addr}/film.torrent")
}

/// However a mount ends, no dead mount and no process is left.
#[test]
fn every_end_is_clean() {
    if !can_stage(&[]) {
        return;
    }
    let _turn = turn();
    let Swarm { lab, .. } = swarm(3);
    let stage = Stage::new(lab.dir.path());
    fs::create_dir(lab.path("mnt")).unwrap();
    for end in ["umount", "umount -l", "unmount", "-KILL server", "-TERM server", "-INT server", "-TERM keeper"] {
        stage.sh(&format!("mount -t torrentfs -o {ALONE} $BASE/film.bin.torrent $BASE/mnt"));
        let (server, keeper) = stage.processes("$BASE/mnt");
        // A reader is blocked on a file.
        let mut reader = Command::new("nsenter");
        reader.args([&format!("--mount=/proc/{}/ns/mnt", stage.holder.0.id()), "cat"]);
        let busy = !end.starts_with("umount") || end == "umount -l";
        let reader = busy
            .then(|| Process::start(reader.arg(lab.path("mnt/film.bin")).stdout(Stdio::null()).stderr(Stdio::null())));
        match end.split_once(' ') {
            Some((signal, process)) if signal.starts_with('-') => {
                run("kill", &[signal, &if process == "server" { server } else { keeper }.to_string()]);
            }
            _ if end == "unmount" => drop(stage.sh(&format!("{TORRENTFS} unmount $BASE/mnt"))),
            _ => drop(stage.sh(&format!("{end} $BASE/mnt"))),
        }
        wait_until(&format!("{end}: nothing is mounted"), LIMIT, || stage.mounts().is_empty());
        // After `umount -l` the kernel would wait for the last file to be closed.
        if let Some(mut reader) = reader {
            assert!(reader.wait(LIMIT).is_some_and(|status| !status.success()), "{end}");
        }
        wait_until(&format!("{end}: no process is left"), LIMIT, || !is_alive(server) && !is_alive(keeper));
        assert_eq!(stage.sh("ls -A $BASE/mnt"), "", "{end}");
    }
    // SIGHUP does not end a mount: it reloads a blocklist.
    stage.sh("echo 10.9.9.9/32 > $BASE/blocked");
    stage.sh(&format!("mount -t torrentfs -o {ALONE},blocklist=$BASE/blocked $BASE/film.bin.torrent $BASE/mnt"));
    let (server, keeper) = stage.processes("$BASE/mnt");
    run("kill", &["-HUP", &keeper.to_string(), &server.to_string()]);
    assert_eq!(stage.sh("ls $BASE/mnt").trim(), "film.bin");
    stage.sh("umount $BASE/mnt");
    stage.wait_until_clear();
    // Without its keeper a mount is still served, and root can unmount it.
    stage.sh(&format!("mount -t torrentfs -o {ALONE} $BASE/film.bin.torrent $BASE/mnt"));
    let (server, keeper) = stage.processes("$BASE/mnt");
    run("kill", &["-KILL", &keeper.to_string()]);
    assert_eq!(stage.sh("ls $BASE/mnt").trim(), "film.bin");
    stage.sh(&format!("{TORRENTFS} unmount $BASE/mnt"));
    wait_until("no process is left", LIMIT, || !is_alive(server) && stage.is_clear());
}

#[test]
fn failures_have_the_exit_codes_of_mount_and_leave_nothing() {
    if !can_stage(&[]) {
        return;
    }
    let _turn = turn();
    let Swarm { lab, .. } = swarm(4);
    let stage = Stage::new(lab.dir.path());
    stage.sh("mkdir $BASE/mnt; echo d4:infoi1ee > $BASE/broken.torrent");
    let nobody = "magnet:?xt=urn:btih:0123456789012345678901234567890123456789";
    let film = "$BASE/film.bin.torrent";
    for (code, expected, line) in [
        (1, "frob", format!("-o frob=1 {film} $BASE/mnt")),
        (1, "cache_size", format!("-o cache_sise=1GiB {film} $BASE/mnt")),
        (1, "does not exist", format!("-o setuid=nonesuch {film} $BASE/mnt")),
        (1, "foreground", format!("-o foreground {film} $BASE/mnt")),
        (1, "remount", format!("-o remount {film} $BASE/mnt")),
        (32, "No such file", format!("{film} $BASE/nowhere")),
        (32, "No such file", "/nowhere.torrent $BASE/mnt".to_owned()),
        (32, "`info`", "$BASE/broken.torrent $BASE/mnt".to_owned()),
        (32, "no metadata within 1s", format!("-o {ALONE},metadata_timeout=1s '{nobody}' $BASE/mnt")),
        (32, "the cache /proc/nowhere", format!("-o {ALONE},cache_dir=/proc/nowhere {film} $BASE/mnt")),
    ] {
        let output = stage.run(&format!("mount -t torrentfs {line}"));
        let message = String::from_utf8_lossy(&output.stderr);
        // mount(8) has a message of its own for a missing mountpoint.
        let is_missing = line.ends_with("/nowhere") && message.contains("mount point does not exist");
        assert!(message.contains(expected) || is_missing, "{line}: {message}");
        assert!(message.lines().count() == 1 && message.starts_with("mount"), "{line}: {message}");
        assert_eq!(output.status.code(), Some(code), "{line}: {message}");
        stage.wait_until_clear();
    }
    // `-s` ignores unknown options, `-f` mounts nothing.
    stage.sh(&format!("mount -s -t torrentfs -o {ALONE},frob {film} $BASE/mnt; umount $BASE/mnt"));
    stage.sh(&format!("mount -f -t torrentfs {film} $BASE/mnt"));
    stage.wait_until_clear();
    // A mountpoint in use.
    stage.sh(&format!("mount -t torrentfs -o {ALONE} {film} $BASE/mnt"));
    let output = stage.run(&format!("mount -t torrentfs -o {ALONE},cache_dir=$BASE/stage/other {film} $BASE/mnt"));
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(32) && message.contains("already"), "{output:?}");
    stage.sh("test ! -e $BASE/stage/other && umount $BASE/mnt");
    stage.wait_until_clear();
}

/// All mounts share the `cache_dir` of the system's configuration: each has a directory in it.
#[test]
fn mounts_share_the_configured_cache_directory() {
    if !can_stage(&[]) {
        return;
    }
    let _turn = turn();
    let Swarm { lab, torrent, seeder, .. } = swarm(8);
    let stage = Stage::new(lab.dir.path());
    let film = torrent.display();
    stage.sh("mkdir $BASE/mnt $BASE/other /etc/torrentfs
         echo \"cache_dir = '/var/cache/all'\" > /etc/torrentfs/torrentfs.toml");
    for mountpoint in ["mnt", "other"] {
        stage.sh(&format!("mount -t torrentfs -o {ALONE},peer={} {film} $BASE/{mountpoint}", seeder.addr));
        stage.sh(&format!("cmp $BASE/{mountpoint}/film.bin $BASE/payload/film.bin"));
    }
    let caches = stage.sh("stat -c '%a %U %n' /var/cache/all/*");
    let mut caches: Vec<&str> = caches.lines().collect();
    caches.sort_unstable();
    assert_eq!(caches.len(), 2, "{caches:?}");
    for (cache, mountpoint) in caches.iter().zip(["mnt", "other"]) {
        assert!(cache.starts_with("700 torrentfs /var/cache/all/") && cache.ends_with(mountpoint), "{caches:?}");
    }
    stage.sh("test ! -e /var/cache/torrentfs && umount $BASE/mnt $BASE/other");
    stage.wait_until_clear();
}

/// While a link's metadata is fetched nothing is mounted: no program blocks, and the mount can be interrupted.
#[test]
fn the_mountpoint_stays_usable_until_the_metadata_arrives() {
    if !can_stage(&[]) {
        return;
    }
    let _turn = turn();
    let lab = Lab::new();
    let stage = Stage::new(lab.dir.path());
    fs::create_dir(lab.path("mnt")).unwrap();
    let link = "magnet:?xt=urn:btih:0123456789012345678901234567890123456789";
    let mut mount = Command::new("nsenter");
    mount.args([&format!("--mount=/proc/{}/ns/mnt", stage.holder.0.id()), HELPER, link]);
    let mut mount = Process::start(mount.arg(lab.path("mnt")).args(["-o", ALONE]).stderr(Stdio::null()));
    // The helper, the keeper and the server.
    wait_until("the metadata is fetched", LIMIT, || stage.left().len() == 3);
    // All are in the caller's process group: an automount blocks every other one until it is mounted.
    assert!(stage.left().iter().all(|pid| group_and_session(*pid) == group_and_session(std::process::id())));
    let begin = Instant::now();
    assert_eq!(stage.sh("stat -c %F $BASE/mnt; ls -A $BASE/mnt").trim(), "directory");
    assert!(begin.elapsed() < LIMIT && stage.mounts().is_empty());
    mount.signal("INT");
    mount.wait(LIMIT).expect("the helper ends");
    stage.wait_until_clear();
}

#[test]
fn other_users_mount_through_fusermount() {
    if !can_stage(&["fusermount3"]) {
        return;
    }
    let _turn = turn();
    let Swarm { lab, data, seeder, .. } = swarm(5);
    let stage = Stage::new(lab.dir.path());
    // A copy, because other users may have no access to the program.
    stage.sh(&format!(
        "cp {HELPER} $BASE/stage/helper; chmod 755 $BASE/stage; mkdir $BASE/mnt $BASE/cache; chown nobody $BASE/mnt $BASE/cache"
    ));
    let user = "setpriv --reuid 65534 --regid 65534 --clear-groups";
    let options = format!("{ALONE},user=nobody,cache_dir=$BASE/cache,peer={}", seeder.addr);
    stage.sh(&format!("{user} $BASE/stage/helper $BASE/film.bin.torrent $BASE/mnt -o rw,{options}"));
    assert_eq!(stage.mounts().len(), 1);
    let read = stage.sh(&format!("{user} cat $BASE/mnt/film.bin | wc -c"));
    assert_eq!(read.trim(), data.len().to_string());
    let output = stage.run(&format!("{user} $BASE/stage/helper $BASE/film.bin.torrent $BASE/mnt -o setuid=root"));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    stage.sh(&format!("{user} fusermount3 -u $BASE/mnt"));
    wait_until("nothing is mounted", LIMIT, || stage.mounts().is_empty());

    // By mount(8) and an entry of fstab with `user`. mount(8) runs the helper without privileges.
    stage.sh(&format!(
        "rm -f /sbin/mount.torrentfs; cp $BASE/stage/helper /sbin/mount.torrentfs
         echo me:x:1077:1077::$BASE/stage/home:/bin/sh >> /etc/passwd; mkdir $BASE/stage/home
         chown 1077 $BASE/mnt $BASE/stage/home
         echo $BASE/film.bin.torrent $BASE/mnt torrentfs noauto,user,{ALONE} 0 0 > /etc/fstab"
    ));
    let me = "env --ignore-environment PATH=$PATH setpriv --reuid 1077 --regid 1077 --clear-groups";
    stage.sh(&format!("{me} mount $BASE/mnt"));
    assert_eq!(stage.sh(&format!("{me} stat -c '%u %s' $BASE/mnt/film.bin")).trim(), format!("1077 {}", data.len()));
    stage.sh(&format!("test -d $BASE/stage/home/.cache/torrentfs && {me} umount $BASE/mnt"));
    wait_until("nothing is mounted", LIMIT, || stage.mounts().is_empty());
}

#[test]
fn without_the_user_root_serves_without_capabilities_and_says_so() {
    if !can_stage(&[]) {
        return;
    }
    let _turn = turn();
    let Swarm { lab, seeder, .. } = swarm(8);
    let stage = Stage::new(lab.dir.path());
    stage.sh("mkdir $BASE/mnt; sed -i /^torrentfs:/d /etc/passwd");
    let mounted = stage.run(&format!("mount -t torrentfs -o {ALONE} $BASE/film.bin.torrent $BASE/mnt"));
    let message = String::from_utf8(mounted.stderr).unwrap();
    assert!(
        mounted.status.success() && message.lines().count() == 1 && message.contains("user torrentfs does not exist"),
        "{message}"
    );
    let (server, _) = stage.processes("$BASE/mnt");
    assert_eq!(status(server)["Uid"].split('\t').next(), Some("0"));
    assert_powerless(server);
    run("kill", &["-KILL", &server.to_string()]);
    stage.wait_until_clear();
    let options = format!("setuid=root,{ALONE},peer={}", seeder.addr);
    let mounted = stage.run(&format!("mount -t torrentfs -o {options} $BASE/film.bin.torrent $BASE/mnt"));
    assert!(mounted.status.success() && mounted.stderr.is_empty(), "a warning for an explicit choice: {mounted:?}");
    assert_powerless(stage.processes("$BASE/mnt").0);
    stage.sh("cmp $BASE/mnt/film.bin $BASE/payload/film.bin");
    stage.sh("umount $BASE/mnt");
    stage.wait_until_clear();
}

/// A file handle, as an NFS server has them, outlives the kernel's caches and the mount.
#[test]
fn file_handles_stay_valid_when_caches_are_dropped() {
    if !can_stage(&[]) {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let dir = lab.path("payload/show");
    fs::create_dir_all(dir.join("extra/deep")).unwrap();
    fs::write(dir.join("film.bin"), noise(100_000, 1)).unwrap();
    fs::write(dir.join("extra/deep/notes.txt"), noise(1000, 2)).unwrap();
    let torrent = lab.publish_path(&dir, 16);
    let seeder = lab.libtorrent("seed", 2, 0, &lab.path("payload"), &torrent);
    let stage = Stage::new(lab.dir.path());
    stage.sh("mkdir $BASE/mnt");
    fs::write(lab.path("handles.py"), include_str!("../support/handles.py")).unwrap();
    let mount = format!("mount -t torrentfs -o {ALONE},peer={} {} $BASE/mnt", seeder.addr, torrent.display());
    stage.sh(&mount);
    let handles = stage.sh("/usr/bin/python3 $BASE/handles.py make $BASE/mnt $BASE/payload");
    stage.sh("umount $BASE/mnt");
    stage.wait_until_clear();
    stage.sh(&mount);
    fs::write(lab.path("handles"), handles).unwrap();
    stage.sh("/usr/bin/python3 $BASE/handles.py open $BASE/mnt $BASE/payload < $BASE/handles");
    stage.sh("umount $BASE/mnt");
    stage.wait_until_clear();
}

#[test]
fn a_mount_is_made_in_another_namespace() {
    if !can_stage(&[]) {
        return;
    }
    let _turn = turn();
    let Swarm { lab, .. } = swarm(6);
    let stage = Stage::new(lab.dir.path());
    fs::create_dir_all(lab.path("elsewhere/mnt")).unwrap();
    let other = Stage::new(&lab.path("elsewhere"));
    let namespace = format!("/proc/{}/ns/mnt", other.holder.0.id());
    stage.sh(&format!("mount -N {namespace} -t torrentfs -o {ALONE} $BASE/film.bin.torrent $BASE/elsewhere/mnt"));
    assert_eq!((stage.mounts().len(), other.mounts().len()), (0, 1));
    assert_eq!(other.sh("ls $BASE/mnt").trim(), "film.bin");
    // A lazy unmount there is noticed, although a file is open.
    let mut reader = Command::new("nsenter");
    reader.args([&format!("--mount={namespace}"), "cat"]).arg(lab.path("elsewhere/mnt/film.bin"));
    let mut reader = Process::start(reader.stdout(Stdio::null()).stderr(Stdio::null()));
    wait_for_open_film(&reader);
    other.sh("umount -l $BASE/mnt");
    assert!(reader.wait(LIMIT).is_some_and(|status| !status.success()));
    other.wait_until_clear();
    stage.wait_until_clear();
}

/// As in torrentfs@.service: the serving process cannot mount and notifies when it is ready. Another step attaches it.
#[test]
fn a_service_is_attached_from_outside() {
    if !can_stage(&[]) {
        return;
    }
    let _turn = turn();
    let Swarm { lab, data, seeder, .. } = swarm(7);
    let stage = Stage::new(lab.dir.path());
    stage.sh(&format!(
        "cp {HELPER} $BASE/stage/helper; chmod 755 $BASE/stage; mkdir $BASE/mnt $BASE/cache; chown nobody $BASE/cache"
    ));
    let notified = UnixDatagram::bind(lab.path("notify")).unwrap();
    fs::set_permissions(lab.path("notify"), fs::Permissions::from_mode(0o666)).unwrap();
    notified.set_read_timeout(Some(LIMIT)).unwrap();
    let mut command = Command::new("nsenter");
    command.args([&format!("--mount=/proc/{}/ns/mnt", stage.holder.0.id()), "setpriv", "--reuid=65534"]);
    command.args(["--regid=65534", "--clear-groups", "--no-new-privs"]).arg(lab.path("stage/helper"));
    command.args(["--serve", "-o", &format!("{ALONE},peer={}", seeder.addr)]);
    command.args([lab.path("film.bin.torrent"), lab.path("mnt")]).stderr(Stdio::null());
    command.env("NOTIFY_SOCKET", lab.path("notify")).env("CACHE_DIRECTORY", lab.path("cache"));
    let mut server = Process::start(&mut command);
    let mut message = [0; 256];
    let len = notified.recv(&mut message).unwrap();
    assert_eq!(&message[..len], b"READY=1\n");
    assert_eq!(stage.mounts(), []);

    let pid = server.0.id();
    let other = stage.run(&format!("{HELPER} --attach {} $BASE/film.bin.torrent $BASE/mnt", std::process::id()));
    assert!(String::from_utf8_lossy(&other.stderr).contains("does not wait for a mount"), "{other:?}");
    stage.sh(&format!("{HELPER} --attach {pid} $BASE/film.bin.torrent $BASE/mnt"));
    assert_eq!(stage.sh("cat $BASE/mnt/film.bin | wc -c").trim(), data.len().to_string());
    assert_eq!(stage.sh("stat -c %U $BASE/mnt/film.bin").trim(), "root");
    assert!(fs::read_dir(lab.path("cache")).unwrap().count() > 1);
    let again = stage.run(&format!("{HELPER} --attach {pid} $BASE/film.bin.torrent $BASE/cache"));
    assert_eq!(again.status.code(), Some(32), "{again:?}");
    server.signal("TERM");
    assert!(server.wait(LIMIT).is_some_and(|status| status.success()));
    // The service's last step removes the dead mount.
    stage.sh(&format!("{TORRENTFS} unmount $BASE/mnt"));
    stage.wait_until_clear();

    // The server sees a lazy unmount, too, although a file is open.
    // Drops what the first one has sent.
    notified.set_nonblocking(true).unwrap();
    while notified.recv(&mut message).is_ok() {}
    notified.set_nonblocking(false).unwrap();
    let mut server = Process::start(&mut command);
    notified.recv(&mut message).unwrap();
    stage.sh(&format!("{HELPER} --attach {} $BASE/film.bin.torrent $BASE/mnt", server.0.id()));
    let mut open = Command::new("nsenter");
    open.args([&format!("--mount=/proc/{}/ns/mnt", stage.holder.0.id()), "tail", "-f"]);
    let mut open = Process::start(open.arg(lab.path("mnt/film.bin")).stdout(Stdio::null()).stderr(Stdio::null()));
    wait_for_open_film(&open);
    stage.sh("umount -l $BASE/mnt");
    assert!(server.wait(LIMIT).is_some_and(|status| status.success()));
    open.signal("KILL");
    open.wait(LIMIT);
    stage.wait_until_clear();
}
