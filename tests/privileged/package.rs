//! The `.deb` and the `.rpm` as `mount-helper/package.sh` builds them. The `.deb` is installed, used, upgraded and purged in
//! an overlay of this machine's root filesystem, so that the machine does not change.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::support::*;

const LIMIT: Duration = Duration::from_secs(180);
const ALONE: &str = "no_dht,no_lsd,no_port_mapping,port=0";

/// Sets up the root filesystem. `$BASE` is the only directory that is the same inside and outside.
const SETUP: &str = r"
set -e
mount -t tmpfs stage $STAGE; mkdir $STAGE/up $STAGE/work $STAGE/root
mount -t overlay -o lowerdir=/,upperdir=$STAGE/up,workdir=$STAGE/work overlay $STAGE/root
cd $STAGE/root
mount -t proc proc proc; mount -t sysfs sysfs sys
mount -t tmpfs run run; mount -t tmpfs tmp tmp; mount -t tmpfs -o mode=755 dev dev
for node in null zero full random urandom tty; do touch dev/$node; mount --bind /dev/$node dev/$node; done
ln -s /proc/self/fd dev/fd; mkdir dev/shm; mknod -m 666 dev/fuse c 10 229; mknod dev/autofs c 10 235
mkdir -p .$BASE; mount --bind $BASE .$BASE
mkdir -p run/old; pivot_root . run/old; umount -l /run/old
rm -rf /etc/systemd/system/*.wants /etc/systemd/system/*.requires; : > /etc/fstab
echo ready; exec $INIT > /dev/null";

/// First processes of the namespaces: one that waits, and systemd.
const NO_INIT: &str = "cat";
const SYSTEMD: &str = "/usr/bin/env container=test /lib/systemd/systemd --unit=basic.target";

/// A root filesystem to install into.
struct Machine {
    /// The first process. All others end with it.
    init: u32,
    base: PathBuf,
    _holder: Process,
}

impl Machine {
    fn new(base: &Path, init: &str) -> Self {
        let stage = base.join("stage");
        fs::create_dir(&stage).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation=private", "--pid", "--fork", "--kill-child=KILL"]);
        if init == SYSTEMD {
            command.args(["--uts", "--ipc", "--net", "--cgroup"]);
        }
        command.args(["sh", "-c", SETUP]).env("STAGE", &stage).env("BASE", base).env("INIT", init);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut holder = Process(command.spawn().unwrap());
        let mut line = String::new();
        BufReader::new(holder.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "ready");
        let pid = holder.0.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        Self { init: children.trim().parse().unwrap(), base: base.to_owned(), _holder: holder }
    }

    fn run(&self, line: &str) -> Output {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string(), "--all", "sh", "-c", line]);
        command.env("BASE", &self.base).env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null()).output().unwrap()
    }

    /// Returns the files of the system that have our name in their path.
    fn files_named_after_us(&self) -> Vec<String> {
        self.sh("find /etc /usr /var -xdev -path '*torrentfs*'").lines().map(str::to_owned).collect()
    }

    fn sh(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// Returns the directory of the packages. They may be missing, except in CI.
fn packages() -> Option<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(target).join("package");
    let built = dir.join("torrentfs.deb").exists() && dir.join("torrentfs.rpm").exists();
    if !built {
        assert!(std::env::var_os("CI").is_none(), "no packages: mount-helper/package.sh --debug builds them");
        eprintln!("skipped: no packages; `mount-helper/package.sh --debug` builds them");
    }
    built.then_some(dir)
}

fn can_make_machine() -> bool {
    let root = fs::metadata("/proc/self").unwrap().uid() == 0;
    if !root {
        eprintln!("skipped: only root can make namespaces");
    }
    root && can_run(&[
        "unshare",
        "nsenter",
        "setpriv",
        "getfattr",
        "mktorrent",
        "opentracker",
        "libtorrent",
        "dpkg",
        "systemctl",
    ])
}

#[test]
fn the_deb_is_installed_used_upgraded_and_purged() {
    let Some(packages) = packages() else { return };
    if !can_run(&[
        "unshare",
        "nsenter",
        "setpriv",
        "getfattr",
        "mktorrent",
        "opentracker",
        "libtorrent",
        "dpkg",
        "systemd-sysusers",
    ]) {
        return;
    }
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        eprintln!("skipped: only root can make namespaces");
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let data = noise(2 << 20, 1);
    let torrent = lab.publish("film.bin", &data, 16);
    let seeder = lab.libtorrent("seed", 2, 0, &lab.path("payload"), &torrent);
    fs::copy(packages.join("torrentfs.deb"), lab.path("torrentfs.deb")).unwrap();
    let machine = Machine::new(lab.dir.path(), NO_INIT);
    let of_this_machine = || fs::metadata("/usr/sbin/mount.torrentfs").ok().map(|about| (about.ino(), about.mtime()));
    let before = of_this_machine();
    // This machine may have the package, and people may have read its manual.
    machine.run("dpkg --purge torrentfs");
    let others = machine.files_named_after_us();

    let told = machine.sh("dpkg --install $BASE/torrentfs.deb");
    assert!(told.contains("torrentfs mount FILE.torrent ~/film"), "{told}");
    assert_eq!(of_this_machine(), before, "not this machine");
    machine.sh("id torrentfs && test -x /sbin/mount.torrentfs && test -x /sbin/mount.fuse.torrentfs");
    assert_eq!(machine.sh("stat -c '%a %U' /var/cache/torrentfs").trim(), "755 root");
    assert!(machine.sh("torrentfs --version").contains(env!("CARGO_PKG_VERSION")));
    machine.sh("torrentfs config > /dev/null");
    machine.sh("bash -n /usr/share/bash-completion/completions/torrentfs");
    machine.sh("zcat /usr/share/man/man8/mount.torrentfs.8.gz | grep -q setuid");
    // An installation may omit the manual pages that `Documentation` names.
    let verified = machine.run("systemd-analyze verify --man=no /usr/lib/systemd/system/torrentfs@.service");
    assert!(verified.status.success(), "{verified:?}");

    let (base, peer, hash) = (lab.dir.path().display(), &seeder.addr, lab.info_hash());
    let fstab = format!(
        "{base}/film.bin.torrent {base}/file torrentfs {ALONE},peer={peer} 0 0\n\
         {base}/torrents {base}/directory torrentfs {ALONE},peer={peer} 0 0\n\
         magnet:?xt=urn:btih:{hash}&x.pe={peer} {base}/magnet torrentfs {ALONE},_netdev 0 0\n"
    );
    fs::create_dir(lab.path("torrents")).unwrap();
    fs::copy(&torrent, lab.path("torrents/film.torrent")).unwrap();
    fs::write(lab.path("fstab"), fstab).unwrap();
    machine.sh("mkdir $BASE/file $BASE/directory $BASE/magnet && mount --all --fstab $BASE/fstab");
    for mountpoint in ["file", "directory", "magnet"] {
        let user = "setpriv --reuid 65534 --regid 65534 --clear-groups";
        machine.sh(&format!("{user} cmp $BASE/{mountpoint}/film.bin $BASE/payload/film.bin"));
        let pid =
            machine.sh(&format!("getfattr --absolute-names --only-values -n user.torrentfs.pid $BASE/{mountpoint}"));
        // Root can query it, whoever serves.
        assert!(machine.sh(&format!("torrentfs status $BASE/{mountpoint}")).contains("film.bin"));
        let status = machine.sh(&format!("cat /proc/{}/status; id -u torrentfs", pid.trim()));
        let user = status.lines().last().unwrap();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        assert!(field("Uid:").split('\t').all(|id| id == user && id != "0"), "{status}");
        for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
            assert_eq!(field(set).trim_start_matches('0'), "", "{set}");
        }
        assert_eq!(field("NoNewPrivs:"), "1");
    }

    // An upgrade keeps mounts and configuration.
    machine.sh("echo 'memory = \"64MiB\"' >> /etc/torrentfs/torrentfs.toml; dpkg --install $BASE/torrentfs.deb");
    machine.sh("cmp $BASE/file/film.bin $BASE/payload/film.bin; torrentfs config | grep -q '64MiB.*/etc/torrentfs/'");
    machine.sh("umount --all --types fuse.torrentfs; ls /var/cache/torrentfs | grep -q .");

    // A removal ends what the package's helper has mounted, also before an upgrade, and no mount of a user.
    let alone = "--no-dht --no-lsd --no-port-mapping --port 0 --cache-dir $BASE/own-cache";
    machine.sh(&format!("mkdir $BASE/own && torrentfs mount {alone} --peer {peer} $BASE/film.bin.torrent $BASE/own"));
    machine.sh("mount --all --fstab $BASE/fstab");
    let told = machine.sh("dpkg --install $BASE/torrentfs.deb");
    assert!(!told.contains("torrentfs mount"), "an upgrade repeats the introduction: {told}");
    machine.sh("dpkg --remove torrentfs");
    let left = machine.sh("findmnt --types fuse.torrentfs --noheadings --output TARGET");
    assert_eq!(left.trim(), lab.path("own").to_str().unwrap());
    machine.sh("cmp $BASE/own/film.bin $BASE/payload/film.bin && umount $BASE/own");
    machine.sh("test -e /etc/torrentfs/torrentfs.toml && test -e /var/cache/torrentfs");
    machine.sh("dpkg --purge torrentfs");
    let ours: Vec<String> = machine.files_named_after_us().into_iter().filter(|path| !others.contains(path)).collect();
    assert!(ours.is_empty(), "{ours:?}");
    assert_eq!(of_this_machine(), before, "not this machine");
}

/// The units under systemd, which is booted in namespaces without a network.
#[test]
fn the_units_work_under_systemd() {
    let Some(packages) = packages() else { return };
    if !can_make_machine() {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    lab.publish("film.bin", &noise(2 << 20, 2), 16);
    fs::copy(packages.join("torrentfs.deb"), lab.path("torrentfs.deb")).unwrap();
    let machine = Machine::new(lab.dir.path(), SYSTEMD);
    wait_until("systemd is up", LIMIT, || {
        let state = machine.run("systemctl is-system-running").stdout;
        state.starts_with(b"running") || state.starts_with(b"degraded")
    });
    // Not in /tmp, because the service has a private one.
    machine.sh("dpkg --install $BASE/torrentfs.deb && mkdir /mnt/film && cp $BASE/film.bin.torrent /srv/film.torrent");
    let env = format!("SOURCE=/srv/film.torrent\nMOUNTPOINT=/mnt/film\nOPTIONS={ALONE},read_timeout=1s\n");
    machine.sh(&format!(
        "printf \"{env}\" > /etc/torrentfs/film.env
         systemctl start torrentfs@film || {{ journalctl --unit torrentfs@film --no-pager >&2; false; }}"
    ));
    let pid = || machine.sh("systemctl show --property=MainPID --value torrentfs@film").trim().to_owned();
    let is_mounted = || machine.run("findmnt --types fuse.torrentfs /mnt/film").status.success();
    // The mount is visible outside of the sandbox, for every user.
    machine.sh("setpriv --reuid 65534 --regid 65534 --clear-groups test -f /mnt/film/film.bin");
    let status = machine.sh(&format!("cat /proc/{}/status", pid()));
    assert!(status.contains("NoNewPrivs:\t1\n") && status.contains("CapEff:\t0000000000000000\n"), "{status}");
    assert!(!machine.run(&format!("touch /proc/{}/root/usr/here", pid())).status.success(), "the system is writable");
    // Messages in the journal have their level.
    assert!(!machine.run("cat /mnt/film/film.bin").status.success());
    wait_until("the journal has the warning", LIMIT, || {
        let warnings = machine.sh("journalctl --unit torrentfs@film --priority warning --output cat");
        warnings.contains("read failed")
    });

    let first = pid();
    machine.sh(&format!("kill -KILL {first}"));
    wait_until("the service restarts", LIMIT, || is_mounted() && pid() != first && pid() != "0");
    wait_until("the mount answers", LIMIT, || machine.run("test -f /mnt/film/film.bin").status.success());
    machine.sh("systemctl stop torrentfs@film");
    assert!(!is_mounted());
    // The sandbox of the unit lets the server restrict itself.
    let log = machine.sh("journalctl --unit torrentfs@film --output cat");
    assert!(!log.contains("unrestricted"), "{log}");
    // A lazy unmount ends the service, although a file is open. The service sees the mounts of the system if these are
    // shared, as they are on a booted machine.
    machine.sh("mount --make-rshared /; systemctl start torrentfs@film
         exec 3< /mnt/film/film.bin; sleep 1000 > /dev/null 2>&1 & umount -l /mnt/film");
    wait_until("the service ends", LIMIT, || !machine.run("systemctl is-active torrentfs@film").status.success());
    machine.sh("pkill --exact sleep; systemctl reset-failed");
    assert!(!is_mounted());

    let units = "/usr/share/doc/torrentfs/examples/mnt-film.mount";
    machine.sh(&format!(
        "sed \"s,^What=.*,What=/srv/film.torrent,; s/^Options=.*/Options={ALONE}/\" {units} \
         > /etc/systemd/system/mnt-film.mount; systemctl daemon-reload; systemctl start mnt-film.mount"
    ));
    assert!(is_mounted());
    machine.sh("test -f /mnt/film/film.bin && systemctl stop mnt-film.mount");
    assert!(!is_mounted());

    // Without autofs in the kernel, systemd has no automounts.
    if fs::read_to_string("/proc/filesystems").unwrap().contains("\tautofs\n") {
        let unit = "/usr/share/doc/torrentfs/examples/mnt-film.automount";
        machine
            .sh(&format!("cp {unit} /etc/systemd/system; systemctl daemon-reload; systemctl start mnt-film.automount"));
        assert!(!is_mounted());
        machine.sh("timeout 60 ls -l /mnt/film/film.bin");
        assert!(is_mounted());
        machine.sh("systemctl stop mnt-film.automount mnt-film.mount");
        assert!(!is_mounted());
    } else {
        eprintln!("skipped: this kernel has no autofs");
    }
    wait_until("no process is left", LIMIT, || {
        !machine.run("pgrep --exact 'mount.torrentfs|torrentfs-keep'").status.success()
    });
}

#[test]
fn the_rpm_has_the_same_files() {
    let Some(packages) = packages() else { return };
    if !can_run(&["rpm", "dpkg"]) {
        return;
    }
    let rpm = packages.join("torrentfs.rpm");
    let rpm = rpm.to_str().unwrap();
    let query = |what: &str| sh(&format!("rpm --query --package {what} {rpm} 2>/dev/null"));
    let files = query("--list");
    for file in [
        "/usr/bin/torrentfs",
        "/usr/sbin/mount.torrentfs",
        "/usr/lib/systemd/system/torrentfs@.service",
        "/usr/lib/sysusers.d/torrentfs.conf",
        "/usr/share/man/man1/torrentfs-mount.1.gz",
        "/usr/share/man/man8/mount.torrentfs.8.gz",
        "/usr/share/zsh/site-functions/_torrentfs",
    ] {
        assert!(files.lines().any(|line| line == file), "{file} in {files}");
    }
    assert_eq!(query("--configfiles").trim(), "/etc/torrentfs/torrentfs.toml");
    assert!(query("--recommends").contains("fuse3"));
    let scripts = query("--scripts");
    for part in ["mount.fuse.torrentfs", "mount.torrentfs --end-all", "torrentfs mount FILE.torrent"] {
        assert!(scripts.contains(part), "{part}: {scripts}");
    }
    assert_eq!(query("--queryformat '%{VERSION} %{LICENSE}'").trim(), concat!(env!("CARGO_PKG_VERSION"), " MIT"));
}

#[test]
fn the_units_are_valid_and_the_service_is_sandboxed() {
    if !can_run(&["systemd-analyze"]) {
        return;
    }
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("mount-helper");
    let unit = units.join("torrentfs@.service");
    let output = run("systemd-analyze", &["security", "--offline=true", "--threshold=30", unit.to_str().unwrap()]);
    let message = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "an exposure level above 3.0: {}", message.lines().last().unwrap_or_default());
    // The unit's program and user exist only where the package is installed: see `package.rs`.
    for example in ["mnt-film.mount", "mnt-film.automount"] {
        let file = units.join("examples").join(example);
        let output = run("systemd-analyze", &["verify", file.to_str().unwrap()]);
        assert!(output.status.success(), "{output:?}");
    }
}
