//! Mounts of made-up files, of which some block until a test opens a gate.

#![allow(dead_code, missing_docs, reason = "each test file uses a part of this")]

use std::collections::HashMap;
use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use torrentfs::internals::fs::{Content, MountOptions, Mounted, ReadError, Reader, UnmountError, mountinfo};

use crate::support::{TestDir, signals};
use torrentfs::metainfo::{self, FileIndex, FileKind, InfoHash, Layout, Lengths, Metainfo, PieceHashes};

/// Time limit of waits. Only a hang reaches it.
pub const LONG: Duration = Duration::from_secs(180);

// ---- contents

/// A torrent in memory. Reads of some of its bytes block until the gate is opened.
pub struct FakeContent {
    pub metainfo: Metainfo,
    pub data: Vec<Bytes>,
    /// First byte behind the gate, by file.
    pub gated: HashMap<u32, u64>,
    pub gate: watch::Sender<bool>,
    pub waiting: Arc<AtomicUsize>,
    /// Largest read so far, in bytes.
    pub largest: Arc<AtomicUsize>,
}

pub struct FakeContentReader {
    pub data: Bytes,
    /// First byte behind the gate, and the gate.
    pub gate: Option<(u64, watch::Receiver<bool>)>,
    pub waiting: Arc<AtomicUsize>,
    pub largest: Arc<AtomicUsize>,
}

pub struct FakeFile {
    pub path: String,
    pub data: Bytes,
    pub kind: FileKind,
    /// First byte behind the gate.
    pub gated: Option<u64>,
}

pub fn fake_file(path: impl Into<String>, data: impl Into<Bytes>) -> FakeFile {
    FakeFile { path: path.into(), data: data.into(), kind: FileKind::Regular { executable: false }, gated: None }
}

/// Returns pseudo-random bytes that depend on the seed alone.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

pub fn torrent(name: &str, parts: Vec<FakeFile>) -> Arc<FakeContent> {
    let (mut files, mut data, mut gated, mut offset) = (Vec::new(), Vec::new(), HashMap::new(), 0);
    for (index, part) in (0..).zip(parts) {
        let len = part.data.len() as u64;
        let path = part.path.split('/').map(str::to_owned).collect();
        files.push(metainfo::File { path, offset, len, kind: part.kind });
        offset += len;
        data.push(part.data);
        gated.extend(part.gated.map(|from| (index, from)));
    }
    let metainfo = Metainfo {
        info_hash: InfoHash::of(name.as_bytes()),
        name: name.to_owned(),
        private: false,
        trackers: Vec::new(),
        web_seeds: Vec::new(),
        http_seeds: Vec::new(),
        nodes: Vec::new(),
        creation_date: Some(1_500_000_000),
        comment: None,
        created_by: None,
        source: None,
        layout: Layout::new(Lengths::new(offset, 16 * 1024).unwrap(), files).into(),
        hashes: PieceHashes::v1(Vec::new()),
        info: Bytes::new().into(),
    };
    Arc::new(FakeContent {
        metainfo,
        data,
        gated,
        gate: watch::channel(false).0,
        waiting: Arc::default(),
        largest: Arc::default(),
    })
}

impl Content for FakeContent {
    type Reader = FakeContentReader;

    fn metainfo(&self) -> &Metainfo {
        &self.metainfo
    }

    fn open(self: &Arc<Self>, file: FileIndex) -> Option<FakeContentReader> {
        let gate = self.gated.get(&file.0).map(|from| (*from, self.gate.subscribe()));
        Some(FakeContentReader {
            data: self.data[file.0 as usize].clone(),
            gate,
            waiting: self.waiting.clone(),
            largest: self.largest.clone(),
        })
    }

    /// As if the first half had come.
    fn have_count(&self, pieces: Range<u32>) -> u32 {
        let half = self.metainfo.layout.lengths().pieces() / 2;
        pieces.end.min(half).saturating_sub(pieces.start)
    }
}

impl FakeContentReader {
    fn gate(&self, span: &Range<usize>) -> Option<watch::Receiver<bool>> {
        let (from, gate) = self.gate.as_ref()?;
        (span.end as u64 > *from).then(|| gate.clone())
    }
}

impl Reader for FakeContentReader {
    type Span = Range<usize>;

    fn span(&self, offset: u64, len: u32) -> Range<usize> {
        let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(self.data.len());
        at(offset)..at(offset.saturating_add(len.into()))
    }

    fn read_now(&self, span: &Range<usize>) -> Option<Bytes> {
        self.largest.fetch_max(span.len(), Ordering::SeqCst);
        self.gate(span).is_none_or(|gate| *gate.borrow()).then(|| self.data.slice(span.clone()))
    }

    async fn wait(&self, span: &Range<usize>) -> Result<Bytes, ReadError> {
        if let Some(mut gate) = self.gate(span) {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            gate.wait_for(|open| *open).await.map_err(|_| ReadError::Closed)?;
        }
        Ok(self.data.slice(span.clone()))
    }
}

/// Available bytes of `t/wait/half`, which has twice as many. The length of a typical piece.
pub const HALF: u64 = 256 * 1024;

/// Makes the torrent that most tests mount: `t/…` with every kind of file, 100 files in `t/wait` whose reads block, and
/// one of which the first `HALF` bytes are available.
pub fn sample() -> Arc<FakeContent> {
    let mut parts = vec![
        fake_file("t/small.txt", &b"hello\n"[..]),
        fake_file("t/.pad/10", vec![0; 10]),
        fake_file("t/big.bin", noise(1, 3 * 1024 * 1024 + 17)),
        fake_file("t/empty", Vec::new()),
        fake_file("t/dir/deep/zeros", vec![0; 300_000]),
        fake_file("t/cat", fs::read("/bin/cat").unwrap()),
        fake_file("t/link", Vec::new()),
    ];
    parts[1].kind = FileKind::Pad;
    parts[5].kind = FileKind::Regular { executable: true };
    parts[6].kind = FileKind::Symlink { target: "dir/deep/zeros".to_owned() };
    parts.extend((0..100).map(|n| FakeFile { gated: Some(0), ..fake_file(format!("t/wait/{n}"), noise(n, 200_000)) }));
    parts.push(FakeFile { gated: Some(HALF), ..fake_file("t/wait/half", noise(200, 2 * HALF as usize)) });
    torrent("t", parts)
}

// ---- the mount

/// A mount in a temporary directory.
pub struct Fixture {
    pub mounted: Option<Mounted>,
    pub runtime: Runtime,
    pub fake: Arc<FakeContent>,
    pub directory: TestDir,
}

/// Makes a torrent of this many files of one byte.
pub fn many(files: u32) -> Arc<FakeContent> {
    torrent("many", (0..files).map(|n| fake_file(format!("many/{n:05}"), vec![n as u8])).collect())
}

pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

pub fn can_mount() -> bool {
    let can = Path::new("/dev/fuse").exists();
    if !can {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "/dev/fuse is missing");
        eprintln!("skipped: /dev/fuse is missing");
    }
    can
}

pub fn is_root() -> bool {
    let root = fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
    if !root {
        eprintln!("skipped: this needs root");
    }
    root
}

impl Fixture {
    pub fn new() -> Option<Self> {
        can_mount().then(|| {
            let (runtime, fake, directory) = (runtime(), sample(), TestDir::new());
            let options = MountOptions::default();
            let contents = vec![fake.clone()];
            let mounted = Mounted::start(contents, directory.path(), &options, runtime.handle().clone()).unwrap();
            Self { mounted: Some(mounted), runtime, fake, directory }
        })
    }

    pub fn root(&self) -> &Path {
        self.directory.path()
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join("t").join(path)
    }

    /// Blocks until this many reads wait at the gate.
    pub fn wait_for_blocked_reads(&self, count: usize) {
        until("reads wait", || self.fake.waiting.load(Ordering::SeqCst) >= count);
    }

    pub fn unmount(&mut self) -> Result<(), UnmountError> {
        let mounted = self.mounted.take().unwrap();
        self.runtime.block_on(async { tokio::time::timeout(LONG, mounted.unmount()).await.expect("unmount hangs") })
    }

    pub fn is_mounted(&self) -> bool {
        is_mounted(self.root())
    }
}

pub fn is_mounted(path: &Path) -> bool {
    mountinfo::mount_at(&path.canonicalize().unwrap_or(path.to_owned())).unwrap().is_some()
}

pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let limit = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < limit, "not within {LONG:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

pub fn run(program: &str, args: &[&dyn AsRef<std::ffi::OsStr>]) -> Output {
    Command::new(program).args(args.iter().map(|arg| arg.as_ref())).output().unwrap()
}

pub fn succeed(program: &str, args: &[&dyn AsRef<std::ffi::OsStr>]) -> String {
    let output = run(program, args);
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A process that may block in the mount. Dropping the handle kills it.
pub struct Running(pub Child);

impl Running {
    pub fn new(program: &str, path: &Path) -> Self {
        Self::start(Command::new(program).arg(path))
    }

    pub fn start(command: &mut Command) -> Self {
        signals::use_defaults();
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    pub fn signal(&self, signal: &str) {
        succeed("kill", &[&signal, &self.0.id().to_string()]);
    }

    pub fn wait(&mut self) -> std::process::ExitStatus {
        let mut status = None;
        until("the process ends", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reads a whole file in a thread.
pub fn read_in_background(path: PathBuf) -> mpsc::Receiver<io::Result<Vec<u8>>> {
    let (give, take) = mpsc::channel();
    thread::spawn(move || give.send(fs::read(path)));
    take
}
