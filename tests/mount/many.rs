//! Many torrents in one mount: watched directories, torrents that are added and removed while they are read, and a
//! thousand torrents.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::*;
use percent_encoding::percent_decode;
use sha1::{Digest, Sha1};
use torrentfs::internals::net::Limits;
use torrentfs::internals::session::{Session, SessionConfig, Torrent, TorrentOptions};
use torrentfs::internals::store::{Cache, CacheConfig};
use torrentfs::metainfo::{InfoHash, Metainfo};

/// Time limit of waits. Only a hang reaches it.
const LONG: Duration = Duration::from_secs(180);

const PIECE_LEN: usize = 32 << 10;

/// Makes the `.torrent` file of a single file with these piece hashes.
pub(crate) fn torrent_of(name: &str, len: usize, piece_len: usize, pieces: &[u8], announce: Option<&str>) -> Vec<u8> {
    let announce = announce.map_or(String::new(), |url| format!("8:announce{}:{url}", url.len()));
    let info =
        format!("6:lengthi{len}e4:name{}:{name}12:piece lengthi{piece_len}e6:pieces{}:", name.len(), pieces.len());
    [b"d", announce.as_bytes(), b"4:infod", info.as_bytes(), pieces, b"ee"].concat()
}

pub(crate) fn torrent(name: &str, data: &[u8], announce: Option<&str>) -> Vec<u8> {
    let pieces: Vec<u8> = data.chunks(PIECE_LEN).flat_map(Sha1::digest).collect();
    torrent_of(name, data.len(), PIECE_LEN, &pieces, announce)
}

fn hash(torrent: &[u8]) -> InfoHash {
    Metainfo::parse(torrent).unwrap().info_hash
}

/// A session in this process that seeds complete torrents.
pub(crate) struct Seeder {
    runtime: tokio::runtime::Runtime,
    session: Session,
    torrents: Vec<Arc<Torrent>>,
    _dir: TestDir,
}

impl Seeder {
    /// Starts a seeder that uploads at most `rate` bytes a second; 0 means unlimited.
    pub(crate) fn start(files: &[(&str, &[u8])], rate: u64) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let dir = TestDir::new();
        let _in = runtime.enter();
        let cache = Cache::open(CacheConfig { dir: dir.path().into(), disk_limit: None, memory: 16 << 20 }).unwrap();
        let limits = Arc::new(Limits::new(0, rate));
        let session = Session::start(SessionConfig { net: local(), limits, ..SessionConfig::new(cache) }).unwrap();
        let mut torrents = Vec::new();
        for (name, data) in files {
            let metainfo = Metainfo::parse(&torrent(name, data, None)).unwrap();
            let home = dir.path().join(metainfo.info_hash.to_string()).join("data");
            fs::create_dir_all(&home).unwrap();
            fs::write(home.join(name), data).unwrap();
            let options = TorrentOptions { verify: true, ..TorrentOptions::default() };
            torrents.push(runtime.block_on(session.add(metainfo, options)).unwrap());
        }
        drop(_in);
        Self { runtime, session, torrents, _dir: dir }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.session.port()))
    }
}

impl Drop for Seeder {
    fn drop(&mut self) {
        self.runtime.block_on(self.session.remove_all(&self.torrents));
    }
}

/// Returns the names in the root, sorted.
fn listing(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

fn wait_for_listing(mounted: &Mounted, expected: &[&str]) {
    let mut last = Vec::new();
    let end = Instant::now() + LONG;
    while Instant::now() < end {
        last = listing(&mounted.dir);
        if last == expected {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("{last:?} is not {expected:?}; log: {}", mounted.log());
}

/// A directory of torrents that a mount watches.
pub(crate) struct WatchedDirectory {
    base: TestDir,
    pub(crate) dir: PathBuf,
}

impl WatchedDirectory {
    pub(crate) fn new() -> Self {
        let base = TestDir::new();
        let dir = base.path().join("torrents");
        fs::create_dir(&dir).unwrap();
        Self { base, dir }
    }

    /// Adds a file atomically, as a browser does.
    pub(crate) fn put(&self, name: &str, content: &[u8]) {
        let new = self.base.path().join("new");
        fs::write(&new, content).unwrap();
        fs::rename(new, self.dir.join(name)).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.dir.join(name)).unwrap();
    }

    pub(crate) fn mount(&self, extra: &[&str]) -> Mounted {
        Mounted::start(self.base.path(), &self.dir, &[&["--bind", "127.0.0.1", "--no-lsd"][..], extra].concat())
    }
}

#[test]
fn a_watched_directory_is_followed() {
    if !can_run(&[]) {
        return;
    }
    let _turn = turn();
    let watched = WatchedDirectory::new();
    let files: Vec<Vec<u8>> = (1..=4).map(|seed| noise(70_000, seed)).collect();
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| format!("{name}.bin"));
    let torrents: Vec<Vec<u8>> = [&a, &b, &c, &d].iter().zip(&files).map(|(n, data)| torrent(n, data, None)).collect();
    watched.put("a.torrent", &torrents[0]);
    watched.put("junk.torrent", b"d4:infoi1ee");
    watched.put("readme.txt", b"not of interest");
    let mounted = watched.mount(&[]);
    // Fills the kernel's cache of names and listings.
    assert_eq!(listing(&mounted.dir), ["a.bin"]);
    assert!(!mounted.path("b.bin").exists());
    let inode = fs::metadata(mounted.path("a.bin")).unwrap().ino();
    let changed = || fs::metadata(&mounted.dir).unwrap().modified().unwrap();
    let before = changed();

    watched.put("b.torrent", &torrents[1]);
    wait_for_listing(&mounted, &["a.bin", "b.bin"]);
    // For programs that poll, because inotify reports nothing.
    assert!(changed() > before);
    assert_eq!(fs::metadata(mounted.path("b.bin")).unwrap().len(), 70_000);
    watched.remove("a.torrent");
    wait_for_listing(&mounted, &["b.bin"]);
    wait_until("the name is gone", LONG, || !mounted.path("a.bin").exists());

    // A torrent that is half written for longer than one scan of the directory.
    let (half, rest) = torrents[2].split_at(torrents[2].len() / 2);
    let mut file = File::create(watched.dir.join("c.torrent")).unwrap();
    file.write_all(half).unwrap();
    watched.put("d.torrent", &torrents[3]);
    wait_for_listing(&mounted, &["b.bin", "d.bin"]);
    file.write_all(rest).unwrap();
    drop(file);
    wait_for_listing(&mounted, &["b.bin", "c.bin", "d.bin"]);

    // A copy, a renamed file, and a file that is replaced by another torrent.
    watched.put("copy of d.torrent", &torrents[3]);
    wait_until("the copy is reported once", LONG, || mounted.log().matches("the same torrent as d.bin").count() == 1);
    watched.remove("d.torrent");
    fs::rename(watched.dir.join("c.torrent"), watched.dir.join("e.torrent")).unwrap();
    watched.put("b.torrent", &torrents[0]);
    wait_for_listing(&mounted, &["a.bin", "c.bin", "d.bin"]);
    assert_eq!(fs::metadata(mounted.path("a.bin")).unwrap().ino(), inode, "the inode changed");
    wait_until("the invalid file is reported", LONG, || mounted.log().contains("junk.torrent"));
    assert_eq!(mounted.log().matches("left out").count(), 1, "{}", mounted.log());
    mounted.stop();
}

#[test]
fn a_torrent_that_the_cache_cannot_store_appears_once_it_can() {
    if !can_run(&[]) {
        return;
    }
    let _turn = turn();
    let watched = WatchedDirectory::new();
    let [good, late] = ["good.bin", "late.bin"].map(|name| torrent(name, &noise(50_000, 9), None));
    watched.put("good.torrent", &good);
    watched.put("late.torrent", &late);
    let in_the_way = watched.base.path().join("cache").join(hash(&late).to_string());
    fs::create_dir_all(in_the_way.parent().unwrap()).unwrap();
    fs::write(&in_the_way, b"a file").unwrap();
    let mounted = watched.mount(&[]);
    assert_eq!(listing(&mounted.dir), ["good.bin"]);
    wait_until("the failure is reported", LONG, || mounted.log().contains("it is tried again"));
    fs::remove_file(&in_the_way).unwrap();
    wait_for_listing(&mounted, &["good.bin", "late.bin"]);
    assert_eq!(mounted.log().matches("it is tried again").count(), 1, "{}", mounted.log());
    mounted.stop();
}

#[test]
fn names_of_equally_named_torrents_do_not_depend_on_their_order() {
    if !can_run(&[]) {
        return;
    }
    let _turn = turn();
    let torrents = [5, 6].map(|seed| torrent("film.mkv", &noise(50_000, seed), None));
    let mut names = torrents.each_ref().map(|torrent| format!("film [{}].mkv", &hash(torrent).to_string()[..8]));
    names.sort();
    let marked = names.each_ref().map(String::as_str);
    for order in [[0, 1], [1, 0]] {
        let watched = WatchedDirectory::new();
        watched.put("first.torrent", &torrents[order[0]]);
        let mounted = watched.mount(&[]);
        let open = File::open(mounted.path("film.mkv")).unwrap();
        let inode = open.metadata().unwrap().ino();
        watched.put("second.torrent", &torrents[order[1]]);
        wait_for_listing(&mounted, &marked);
        let first = format!("film [{}].mkv", &hash(&torrents[order[0]]).to_string()[..8]);
        assert_eq!(fs::metadata(mounted.path(&first)).unwrap().ino(), inode);
        watched.remove("first.torrent");
        wait_for_listing(&mounted, &["film.mkv"]);
        assert_ne!(fs::metadata(mounted.path("film.mkv")).unwrap().ino(), inode, "the removed torrent is still shown");
        drop(open);
        mounted.stop();
    }
}

#[test]
fn a_removed_torrent_can_be_read_to_its_end() {
    if !can_run(&[]) {
        return;
    }
    let _turn = turn();
    let data = noise(3 << 20, 7);
    let seeder = Seeder::start(&[("film.bin", &data)], 0);
    let watched = WatchedDirectory::new();
    let film = torrent("film.bin", &data, None);
    watched.put("film.torrent", &film);
    let peer = seeder.addr().to_string();
    let mounted = watched.mount(&["--on-demand", "--peer", &peer, "--delete-removed"]);
    let home = mounted.cache.join(hash(&film).to_string());
    let mut open = File::open(mounted.path("film.bin")).unwrap();
    let mut got = vec![0; 100_000];
    open.read_exact(&mut got).unwrap();
    watched.remove("film.torrent");
    wait_for_listing(&mounted, &[]);
    assert!(home.join("data/film.bin").exists());
    open.read_to_end(&mut got).unwrap();
    assert!(got == data, "wrong bytes after the removal");

    // The torrent is added again before the file is closed, and removed once more.
    watched.put("film.torrent", &film);
    wait_for_listing(&mounted, &["film.bin"]);
    assert!(mounted.read("film.bin") == data);
    watched.remove("film.torrent");
    wait_for_listing(&mounted, &[]);
    assert!(home.exists(), "deleted while a file is open");
    drop(open);
    wait_until("the cached data is deleted with the last reader", LONG, || !home.exists());

    // The torrent can be added and fetched again.
    watched.put("film.torrent", &film);
    wait_for_listing(&mounted, &["film.bin"]);
    assert!(mounted.read("film.bin") == data);
    mounted.stop();
}

#[test]
fn adding_and_removing_torrents_disturbs_no_other_reader() {
    if !can_run(&[]) {
        return;
    }
    let _turn = turn();
    let data = noise(6 << 20, 8);
    // Slow enough that the reader is busy during the whole test.
    let seeder = Seeder::start(&[("film.bin", &data)], 512 << 10);
    let watched = WatchedDirectory::new();
    watched.put("film.torrent", &torrent("film.bin", &data, None));
    let mounted = watched.mount(&["--peer", &seeder.addr().to_string()]);
    let film = mounted.path("film.bin");
    let reader = thread::spawn(move || {
        let output = Command::new("cat").arg(film).stderr(Stdio::piped()).output().unwrap();
        (output.status.success(), output.stdout, output.stderr)
    });
    let other = torrent("other.bin", &noise(40_000, 9), None);
    for _ in 0..50 {
        watched.put("other.torrent", &other);
        wait_until("the torrent appears", LONG, || mounted.path("other.bin").exists());
        watched.remove("other.torrent");
        wait_until("the torrent disappears", LONG, || !mounted.path("other.bin").exists());
    }
    let (success, got, stderr) = reader.join().unwrap();
    assert!(success && got == data, "{}", String::from_utf8_lossy(&stderr));
    mounted.stop();
}

#[test]
fn a_magnet_link_in_a_directory_appears_with_its_metadata() {
    if !can_run(&[]) {
        return;
    }
    let _turn = turn();
    let data = noise(300_000, 10);
    let seeder = Seeder::start(&[("film.bin", &data)], 0);
    let info_hash = hash(&torrent("film.bin", &data, None));
    let watched = WatchedDirectory::new();
    watched.put("a.torrent", &torrent("a.bin", b"here at once", None));
    // Nobody has this torrent, and the mount does not wait for it.
    watched.put("never.magnet", b"0123456789012345678901234567890123456789\n");
    watched.put("film.magnet", format!("magnet:?xt=urn:btih:{info_hash}&x.pe={}\n", seeder.addr()).as_bytes());
    let mounted = watched.mount(&["--metadata-timeout", "0"]);
    wait_for_listing(&mounted, &["a.bin", "film.bin"]);
    assert!(mounted.read("film.bin") == data);
    watched.remove("film.magnet");
    wait_for_listing(&mounted, &["a.bin"]);
    watched.remove("never.magnet");
    mounted.stop();
}

#[test]
fn several_sources_are_mounted() {
    if !can_run(&[]) {
        return;
    }
    let _turn = turn();
    let watched = WatchedDirectory::new();
    watched.put("in.torrent", &torrent("in.bin", b"in the directory", None));
    let path = |name: &str| watched.base.path().join(name).to_str().unwrap().to_owned();
    for (name, data) in [("one", "1"), ("two", "2")] {
        fs::write(path(&format!("{name}.torrent")), torrent(&format!("{name}.bin"), data.as_bytes(), None)).unwrap();
    }
    fs::write(path("bad.torrent"), "no").unwrap();
    fs::create_dir(path("mnt2")).unwrap();
    let mount = |sources: &[&str], at: &str| {
        let mut command = mount_command();
        command.args(["--bind", "127.0.0.1", "--port", "0", "--cache-dir", &path("cache2")]);
        command.args(sources.iter().map(|source| path(source))).arg(path(at)).output().unwrap()
    };
    // One invalid source is an error, and so is a directory that would be mounted over.
    for (sources, at, why) in [
        (&["one.torrent", "bad.torrent"][..], "mnt2", "bad.torrent"),
        (&["one.torrent", "torrents"], "torrents", "use another mountpoint"),
    ] {
        let refused = mount(sources, at);
        let stderr = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(3) && stderr.contains(why) && stderr.lines().count() == 1, "{stderr}");
    }
    let mounted = mount(&["one.torrent", "two.torrent", "torrents", "one.torrent"], "mnt2");
    assert!(mounted.status.success(), "{mounted:?}");
    assert_eq!(listing(Path::new(&path("mnt2"))), ["in.bin", "one.bin", "two.bin"]);
    assert_eq!(fs::read_to_string(path("cache2/torrentfs.log")).unwrap().matches("mounted once").count(), 1);
    assert!(run(TORRENTFS, &["unmount", &path("mnt2")]).status.success());
}

// ---- a thousand

/// An HTTP tracker that counts announces and knows one peer of some torrents.
struct CountingTracker {
    url: String,
    announces: Arc<Mutex<Vec<(Instant, InfoHash)>>>,
    stopped_events: Arc<AtomicUsize>,
}

impl CountingTracker {
    fn start(peers: HashMap<InfoHash, SocketAddr>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/announce", listener.local_addr().unwrap());
        let (announces, stopped_events) = (Arc::default(), Arc::default());
        let tracker = Self { url, announces: Arc::clone(&announces), stopped_events: Arc::clone(&stopped_events) };
        let peers = Arc::new(peers);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (announces, stopped_events, peers) = (announces.clone(), stopped_events.clone(), peers.clone());
                thread::spawn(move || Self::serve(stream, &peers, &announces, &stopped_events));
            }
        });
        tracker
    }

    fn serve(
        mut stream: TcpStream,
        peers: &HashMap<InfoHash, SocketAddr>,
        announces: &Mutex<Vec<(Instant, InfoHash)>>,
        stopped_events: &AtomicUsize,
    ) {
        let (mut held, mut buffer) = (Vec::new(), [0; 4096]);
        while let Ok(len @ 1..) = stream.read(&mut buffer) {
            held.extend_from_slice(&buffer[..len]);
            while let Some(end) = held.windows(4).position(|four| four == b"\r\n\r\n") {
                let request: Vec<u8> = held.drain(..end + 4).collect();
                let query = request.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
                let value = query.split(|byte| b"?&".contains(byte)).find_map(|pair| pair.strip_prefix(b"info_hash="));
                let bytes: Vec<u8> = percent_decode(value.unwrap_or_default()).collect();
                let info_hash = InfoHash(bytes.try_into().unwrap());
                if request.windows(13).any(|part| part == b"event=stopped") {
                    stopped_events.fetch_add(1, Ordering::SeqCst);
                } else {
                    announces.lock().unwrap().push((Instant::now(), info_hash));
                }
                let peer = peers.get(&info_hash).map(|peer| match peer {
                    SocketAddr::V4(v4) => [&v4.ip().octets()[..], &v4.port().to_be_bytes()].concat(),
                    SocketAddr::V6(_) => unreachable!(),
                });
                let peer = peer.unwrap_or_default();
                let body = [format!("d8:intervali1800e5:peers{}:", peer.len()).as_bytes(), &peer, b"e"].concat();
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                if stream.write_all(&[head.as_bytes(), &body].concat()).is_err() {
                    return;
                }
            }
        }
    }
}

/// Returns the resident memory in KiB and the processor time of a process.
pub(crate) fn usage(pid: u32) -> (u64, Duration) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let resident = resident.trim().trim_end_matches(" kB").parse().unwrap();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    // Hundredths of a second, in user and in kernel mode.
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    (resident, Duration::from_millis(ticks * 10))
}

#[test]
fn ten_of_a_thousand_torrents_are_read() {
    if !can_run(&[]) {
        return;
    }
    let _turn = turn();
    let active: Vec<(String, Vec<u8>)> = (0..10).map(|n| (format!("active{n}.bin"), noise(2 << 20, 100 + n))).collect();
    let seeded: Vec<(&str, &[u8])> = active.iter().map(|(name, data)| (name.as_str(), data.as_slice())).collect();
    let seeder = Seeder::start(&seeded, 0);
    let peers = seeded.iter().map(|(name, data)| (hash(&torrent(name, data, None)), seeder.addr())).collect();
    let tracker = CountingTracker::start(peers);
    let watched = WatchedDirectory::new();
    for (name, data) in &seeded {
        // Last in directory order.
        watched.put(&format!("z{name}.torrent"), &torrent(name, data, Some(&tracker.url)));
    }
    for n in 0..990usize {
        // 1 to 64 MiB that nobody has.
        let (len, piece_len) = ((1 << 20) + n * 65_000, 64 << 10);
        let hashes = noise(len.div_ceil(piece_len) * 20, 1000 + n as u64);
        watched.put(
            &format!("t{n}.torrent"),
            &torrent_of(&format!("idle{n}.bin"), len, piece_len, &hashes, Some(&tracker.url)),
        );
    }
    let begun = Instant::now();
    let mut mounted = watched.mount(&[]);
    let ready = begun.elapsed();
    assert_eq!(listing(&mounted.dir).len(), 1000);

    // The torrents that are read announce before the others.
    let readers: Vec<_> = active
        .into_iter()
        .map(|(name, data)| {
            let path = mounted.path(&name);
            thread::spawn(move || assert!(fs::read(&path).unwrap() == data, "{}", path.display()))
        })
        .collect();
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    let read = begun.elapsed();
    let announced = tracker.announces.lock().unwrap().clone();
    // Ten a second, a first burst, and those of the torrents that are read.
    let most = 100.0 + 10.0 * read.as_secs_f64();
    assert!((announced.len() as f64) < most, "{} announces within {read:?} are not spread out", announced.len());

    let pid = mounted.process.0.id();
    let (_, before) = usage(pid);
    let at_rest = Instant::now();
    wait_until("more announces arrive", LONG, || tracker.announces.lock().unwrap().len() >= announced.len() + 50);
    thread::sleep(Duration::from_secs(5).saturating_sub(at_rest.elapsed()));
    let (resident, after) = usage(pid);
    let share = (after - before).as_secs_f64() / at_rest.elapsed().as_secs_f64();
    let most = tracker
        .announces
        .lock()
        .unwrap()
        .chunk_by(|a, b| b.0.duration_since(a.0) < Duration::from_millis(5))
        .map(<[_]>::len)
        .max();
    eprintln!(
        "ready after {ready:?}, ten files read after {read:?}, {} MiB resident, {:.1} % of a processor, {most:?} announces in a row",
        resident >> 10,
        share * 100.0
    );
    assert!(resident < 150 << 10, "{resident} KiB");
    assert!(share < 0.25, "{share} of a processor at rest");

    // Trackers are told that we leave, within two seconds in total.
    mounted.process.signal("TERM");
    let ending = Instant::now();
    let status = mounted.process.wait(LONG).expect("the mount ends");
    assert!(status.success() && !mounted.is_mounted(), "{}", mounted.log());
    eprintln!("ended after {:?}, {} stopped events", ending.elapsed(), tracker.stopped_events.load(Ordering::SeqCst));
    assert!(tracker.stopped_events.load(Ordering::SeqCst) > 0);
}
