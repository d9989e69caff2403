//! The `.deb` and the `.rpm` as `mount-helper/package.sh` made them. The `.deb` is installed, used, upgraded and purged in
//! a root of its own, an overlay over this machine's that is gone afterwards: nothing of the machine changes.

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use support::*;

const ALONE: &str = "no_dht,no_lsd,no_port_mapping,port=0";

/// `$BASE` is the one directory that is the same inside and outside.
const SETUP: &str = r"
set -e
mount -t tmpfs stage $STAGE; mkdir $STAGE/up $STAGE/work $STAGE/root
mount -t overlay -o lowerdir=/,upperdir=$STAGE/up,workdir=$STAGE/work overlay $STAGE/root
cd $STAGE/root
mount --rbind /proc proc; mount --rbind /sys sys; mount --rbind /dev dev
mount -t tmpfs run run; mount -t tmpfs tmp tmp
mknod -m 666 run/fuse c 10 229; mount --bind run/fuse dev/fuse
mkdir -p .$BASE; mount --bind $BASE .$BASE
mkdir -p run/old; pivot_root . run/old; umount -l /run/old
echo ready; exec cat > /dev/null";

/// A root filesystem to install into.
struct Machine {
    holder: Process,
    base: PathBuf,
}

impl Machine {
    fn new(base: &Path) -> Self {
        let stage = base.join("stage");
        fs::create_dir(&stage).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", SETUP]).env("STAGE", &stage).env("BASE", base);
        let mut holder = Process(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
        let mut line = String::new();
        BufReader::new(holder.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "ready");
        Self { holder, base: base.to_owned() }
    }

    fn run(&self, line: &str) -> Output {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.holder.0.id().to_string(), "--mount", "--root", "--wd=/", "sh", "-c", line]);
        command.env("BASE", &self.base).env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null()).output().unwrap()
    }

    fn sh(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // What is still mounted is served by a process that would outlive us.
        let _ = self.run("umount --all --types fuse.torrentfs");
    }
}

/// The packages, if they have been built. In CI they must have been.
fn packages() -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/package");
    let built = dir.join("torrentfs.deb").exists() && dir.join("torrentfs.rpm").exists();
    if !built {
        assert!(std::env::var_os("CI").is_none(), "no packages: mount-helper/package.sh --debug builds them");
        eprintln!("left out: no packages; `mount-helper/package.sh --debug` builds them");
    }
    built.then_some(dir)
}

#[test]
fn the_deb_is_installed_used_upgraded_and_purged() {
    let Some(packages) = packages() else { return };
    if !can_run(&["unshare", "nsenter", "setpriv", "getfattr", "mktorrent", "opentracker", "dpkg", "systemd-sysusers"])
    {
        return;
    }
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        eprintln!("left out: only root can make a machine of its own");
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let data = noise(2 << 20, 1);
    let torrent = lab.publish("film.bin", &data, 16);
    let seeder = lab.libtorrent("seed", 2, 0, &lab.path("payload"), &torrent);
    fs::copy(packages.join("torrentfs.deb"), lab.path("torrentfs.deb")).unwrap();
    let machine = Machine::new(lab.dir.path());
    let unaffected = |what: &str| assert!(!Path::new("/usr/sbin/mount.torrentfs").exists(), "{what}: not this machine");
    unaffected("before");

    machine.sh("dpkg --install $BASE/torrentfs.deb");
    unaffected("installed");
    machine.sh("id torrentfs && test -x /sbin/mount.torrentfs && test -x /sbin/mount.fuse.torrentfs");
    assert_eq!(machine.sh("stat -c '%a %U' /var/cache/torrentfs").trim(), "755 root");
    assert!(machine.sh("torrentfs --version").contains(env!("CARGO_PKG_VERSION")));
    machine.sh("torrentfs config > /dev/null");
    machine.sh("bash -n /usr/share/bash-completion/completions/torrentfs");
    machine.sh("zcat /usr/share/man/man8/mount.torrentfs.8.gz | grep -q setuid");
    // Manual pages that its `Documentation` names may be left out of an installation, so their absence is no fault.
    let verified = machine.run("systemd-analyze verify --man=no /usr/lib/systemd/system/torrentfs@.service");
    assert!(verified.status.success(), "{verified:?}");

    let (base, peer, hash) = (lab.dir.path().display(), &seeder.addr, lab.info_hash());
    let fstab = format!(
        "{base}/film.bin.torrent {base}/file torrentfs {ALONE},peer={peer} 0 0\n\
         magnet:?xt=urn:btih:{hash}&x.pe={peer} {base}/magnet torrentfs {ALONE},_netdev 0 0\n"
    );
    fs::write(lab.path("fstab"), fstab).unwrap();
    machine.sh("mkdir $BASE/file $BASE/magnet && mount --all --fstab $BASE/fstab");
    for mountpoint in ["file", "magnet"] {
        let user = "setpriv --reuid 65534 --regid 65534 --clear-groups";
        machine.sh(&format!("{user} cmp $BASE/{mountpoint}/film.bin $BASE/payload/film.bin"));
        let pid =
            machine.sh(&format!("getfattr --absolute-names --only-values -n user.torrentfs.pid $BASE/{mountpoint}"));
        let status = machine.sh(&format!("cat /proc/{}/status; id -u torrentfs", pid.trim()));
        let user = status.lines().last().unwrap();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        assert!(field("Uid:").split('\t').all(|id| id == user && id != "0"), "{status}");
        for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
            assert_eq!(field(set).trim_start_matches('0'), "", "{set}");
        }
        assert_eq!(field("NoNewPrivs:"), "1");
    }

    // An upgrade leaves alone what is mounted, and what was configured.
    machine.sh("echo 'memory = \"64MiB\"' >> /etc/torrentfs/torrentfs.toml; dpkg --install $BASE/torrentfs.deb");
    machine.sh("cmp $BASE/file/film.bin $BASE/payload/film.bin; torrentfs config | grep -q '64MiB.*/etc/torrentfs/'");
    machine.sh("umount --all --types fuse.torrentfs; ls /var/cache/torrentfs | grep -q .");

    machine.sh("mount --all --fstab $BASE/fstab && dpkg --remove torrentfs");
    assert_eq!(machine.sh("findmnt --types fuse.torrentfs || true"), "");
    machine.sh("test -e /etc/torrentfs/torrentfs.toml && test -e /var/cache/torrentfs");
    machine.sh("dpkg --purge torrentfs");
    let left = machine.sh("find / -xdev -path /tmp -prune -o -path '*torrentfs*' -print | grep -v /package/ || true");
    let ours: Vec<&str> =
        left.lines().filter(|path| ["/etc", "/usr", "/var"].iter().any(|dir| path.starts_with(dir))).collect();
    assert!(ours.is_empty(), "{ours:?}");
    unaffected("purged");
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
    assert!(query("--scripts").contains("mount.fuse.torrentfs"));
    assert_eq!(query("--queryformat '%{VERSION} %{LICENSE}'").trim(), concat!(env!("CARGO_PKG_VERSION"), " MIT"));
}
