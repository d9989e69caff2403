//! One server: where its files are, what an answer must look like, and what was learnt of it.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use fixedbitset::FixedBitSet;
use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE, RETRY_AFTER,
};
use reqwest::{Response, StatusCode, Url};
use tokio::time::timeout;

use super::url::{SeedKind, SeedUrl};
use crate::http::{HttpClient, Purpose, RequestError};
use crate::metainfo::{File, FileIndex, FileKind, Metainfo, PieceIndex};
use crate::util::{lock, printable};
use crate::wire::bitfield_to_wire;

/// The head of an answer must be here in this time.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Files of which it is remembered where they were redirected to.
const MAX_MOVED: usize = 1024;
/// Bytes that a server without ranges may have to send before those that are wanted.
const MAX_SKIP: u64 = 32 << 20;
/// One request asks for so many bytes, at most.
const MAX_RUN: u64 = 4 << 20;
/// And for parts of so many files, which are asked for one after the other.
const MAX_PARTS: usize = 8;
/// The most of a script's answer that is read for when to come back.
const MAX_WORD: usize = 64;
/// How long a server may send us away for.
const MAX_WAIT: Duration = Duration::from_secs(3600);

/// What went wrong, in words, and what follows.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) why: String,
    pub(super) remedy: Remedy,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Remedy {
    /// The server is busy or cannot be reached: again later, and not before the time that it gave.
    Retry(Option<Duration>),
    /// It will not give these bytes of the torrent.
    Lacks(Range<u64>),
}

impl Fault {
    pub(super) fn retry(why: impl Into<String>) -> Self {
        Self { why: why.into(), remedy: Remedy::Retry(None) }
    }

    fn lacks(why: impl Into<String>, bytes: Range<u64>) -> Self {
        Self { why: why.into(), remedy: Remedy::Lacks(bytes) }
    }
}

/// What is fetched in one request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// So many bytes of a pad file: zeros, which no server need have (BEP 47).
    Zeros(u64),
    /// A range of a file's bytes.
    File(FileIndex, Range<u64>),
    /// A range of a piece's bytes, from a script.
    Piece(PieceIndex, Range<u32>),
}

/// The head of a good answer; the bytes are still to come.
pub(super) struct Answer {
    pub(super) response: Response,
    /// The whole file comes, not only the range.
    pub(super) whole: bool,
}

/// What a server offers.
pub(super) enum Holding {
    All,
    /// A bitfield as on the wire.
    Some(Bytes),
}

pub(super) struct Server {
    metainfo: Arc<Metainfo>,
    url: SeedUrl,
    http: HttpClient,
    learnt: Mutex<Learnt>,
}

/// Kept from one connection to the next.
#[derive(Default)]
struct Learnt {
    /// Bytes of the torrent that it will not give: from where to where. Several of one file end at that file's end.
    lacks: BTreeMap<u64, u64>,
    /// Where requests for a file were redirected to.
    moved: HashMap<FileIndex, Url>,
    /// It gave a whole file when asked for a range.
    no_ranges: bool,
    /// Why it cannot be used now.
    failing: Option<String>,
    /// Why it lacks what it lacks, the first of the reasons.
    lacking: Option<String>,
}

impl Server {
    pub(super) fn new(metainfo: Arc<Metainfo>, url: SeedUrl, http: HttpClient) -> Self {
        Self { metainfo, url, http, learnt: Mutex::default() }
    }

    pub(super) fn metainfo(&self) -> &Metainfo {
        &self.metainfo
    }

    pub(super) fn url(&self) -> &SeedUrl {
        &self.url
    }

    fn learnt(&self) -> MutexGuard<'_, Learnt> {
        lock(&self.learnt)
    }

    pub(super) fn fault(&self) -> Option<String> {
        let learnt = self.learnt();
        learnt.failing.clone().or_else(|| learnt.lacking.clone())
    }

    /// What it offers; `None`: nothing.
    pub(super) fn holding(&self) -> Option<Holding> {
        let lengths = self.metainfo.layout.lengths();
        let learnt = self.learnt();
        if learnt.lacks.is_empty() {
            return Some(Holding::All);
        }
        let mut has = FixedBitSet::with_capacity(lengths.pieces() as usize);
        has.insert_range(..);
        for (from, to) in &learnt.lacks {
            lengths.pieces_in(&(*from..*to)).for_each(|piece| has.remove(piece.index()));
        }
        (!has.is_clear()).then(|| Holding::Some(bitfield_to_wire(&has)))
    }

    /// Whether it lacks any of these bytes of the torrent.
    pub(super) fn lacks(&self, bytes: &Range<u64>) -> bool {
        self.learnt().lacks.range(..bytes.end).next_back().is_some_and(|(_, to)| *to > bytes.start)
    }

    pub(super) fn has_ranges(&self) -> bool {
        !self.learnt().no_ranges
    }

    /// It will not give these bytes. Said in the log the first time.
    pub(super) fn now_lacks(&self, bytes: Range<u64>, why: &str) {
        let mut learnt = self.learnt();
        let to = learnt.lacks.entry(bytes.start).or_default();
        *to = bytes.end.max(*to);
        if learnt.lacking.is_none() {
            tracing::warn!(seed = %self.url, "web seed lacks part of the torrent: {why}");
            learnt.lacking = Some(why.to_owned());
        } else {
            tracing::debug!(seed = %self.url, ?bytes, "web seed lacks more: {why}");
        }
    }

    /// It is not used for a while. Said in the log when it begins.
    pub(super) fn now_fails(&self, why: &str, wait: Duration) {
        let before = self.learnt().failing.replace(why.to_owned());
        if before.is_none() {
            tracing::warn!(seed = %self.url, "web seed fails: {why}; it is tried again in {:.0} s", wait.as_secs_f64());
        } else {
            tracing::debug!(seed = %self.url, ?wait, "web seed still fails: {why}");
        }
    }

    /// It served.
    pub(super) fn now_serves(&self) {
        if self.learnt().failing.take().is_some() {
            tracing::info!(seed = %self.url, "web seed serves again");
        }
    }

    /// Where a run that begins at `start` of the torrent must end.
    pub(super) fn run_limit(&self, start: u64) -> u64 {
        let layout = &self.metainfo.layout;
        let longest = start.saturating_add(MAX_RUN);
        match self.url.kind() {
            SeedKind::Script => {
                let piece = layout.lengths().piece_at(start);
                piece.map_or(start, |piece| layout.lengths().range_of(piece).end.min(longest))
            }
            SeedKind::Files => {
                let parts = layout.extents(start..longest).take(MAX_PARTS);
                start + parts.map(|(_, bytes)| bytes.end - bytes.start).sum::<u64>()
            }
        }
    }

    /// What is asked for one after the other to fetch a run of the torrent's bytes.
    pub(super) fn parts(&self, run: &Range<u64>) -> Vec<Part> {
        let layout = &self.metainfo.layout;
        match self.url.kind() {
            SeedKind::Files => {
                let part = |(index, bytes): (FileIndex, Range<u64>)| match layout.file(index) {
                    Some(file) if file.kind != FileKind::Pad => Part::File(index, bytes),
                    _ => Part::Zeros(bytes.end - bytes.start),
                };
                layout.extents(run.clone()).map(part).collect()
            }
            SeedKind::Script => {
                // A run ends with its piece.
                layout.lengths().parts(run).take(1).map(|(piece, bytes)| Part::Piece(piece, bytes)).collect()
            }
        }
    }

    /// Asks for a range of a file's bytes.
    pub(super) async fn ask_file(&self, index: FileIndex, bytes: &Range<u64>) -> Result<Answer, Fault> {
        let file = self.metainfo.layout.file(index).ok_or_else(|| Fault::retry("no such file"))?;
        let moved = self.learnt().moved.get(&index).cloned();
        if let Some(url) = moved {
            match self.ask_file_at(url, index, file, bytes).await {
                Ok(answer) => return Ok(answer),
                // The place may have been good for a while only: the way there is gone again.
                Err(fault) => {
                    tracing::debug!(seed = %self.url, "redirect forgotten: {}", fault.why);
                    self.learnt().moved.remove(&index);
                }
            }
        }
        let url = self.url.of_file(&self.metainfo.layout, file);
        let url = url.ok_or_else(|| Fault::lacks("no URL can be made of the file's path", file.range()))?;
        self.ask_file_at(url, index, file, bytes).await
    }

    async fn ask_file_at(&self, url: Url, index: FileIndex, file: &File, bytes: &Range<u64>) -> Result<Answer, Fault> {
        let lacks = |why: String| Fault::lacks(why, file.range());
        let (response, redirected) = self.get(url, Some(bytes)).await.map_err(|refusal| match refusal {
            Refusal::Retry(why) => Fault::retry(why),
            Refusal::Never(why) => lacks(why),
        })?;
        let status = response.status();
        if response.headers().contains_key(CONTENT_ENCODING) {
            return Err(lacks("it sends the file compressed, though asked not to".into()));
        }
        let whole = match status {
            StatusCode::PARTIAL_CONTENT => {
                let range = response.headers().get(CONTENT_RANGE).and_then(|value| content_range(value.to_str().ok()?));
                match range {
                    Some((from, _)) if from != bytes.start => {
                        return Err(lacks(format!("it answers with another range than the one asked for ({from})")));
                    }
                    Some((_, Some(len))) if len != file.len => return Err(lacks(wrong_size(len, file))),
                    Some(_) => false,
                    None => return Err(lacks("it answers with a range and does not say which".into())),
                }
            }
            StatusCode::OK => {
                match response.content_length() {
                    Some(len) if len != file.len => return Err(lacks(wrong_size(len, file))),
                    None if is_page(&response, file) => return Err(lacks("it answers with a web page".into())),
                    _ => {}
                }
                self.take_whole(file, bytes)?
            }
            status if is_passing(status) => {
                let after = response.headers().get(RETRY_AFTER).and_then(|value| seconds(value.to_str().ok()?));
                return Err(Fault { why: format!("it answers {status}"), remedy: Remedy::Retry(after) });
            }
            status => return Err(lacks(format!("it answers {status}"))),
        };
        if let Some(url) = redirected {
            let mut learnt = self.learnt();
            if learnt.moved.len() >= MAX_MOVED {
                learnt.moved.clear();
            }
            learnt.moved.insert(index, url);
        }
        Ok(Answer { response, whole })
    }

    /// The whole file comes, from its start. Whether that is more than was asked for.
    fn take_whole(&self, file: &File, bytes: &Range<u64>) -> Result<bool, Fault> {
        if *bytes == (0..file.len) {
            return Ok(false);
        }
        self.learnt().no_ranges = true;
        if bytes.start <= MAX_SKIP {
            return Ok(true);
        }
        let why = format!("it has no ranges, so nothing beyond the first {} MiB of a file can be had", MAX_SKIP >> 20);
        Err(Fault::lacks(why, file.offset + MAX_SKIP..file.range().end))
    }

    /// Asks a script for a part of a piece (BEP 17).
    pub(super) async fn ask_piece(&self, piece: PieceIndex, bytes: &Range<u32>) -> Result<Answer, Fault> {
        let whole = *bytes == (0..self.metainfo.layout.lengths().len_of(piece));
        let url = self.url.of_piece(&self.metainfo.info_hash, piece, (!whole).then_some(bytes));
        let (mut response, _) = self.get(url, None).await.map_err(|refusal| match refusal {
            Refusal::Retry(why) => Fault::retry(why),
            Refusal::Never(why) => Fault::lacks(why, 0..self.metainfo.layout.lengths().total()),
        })?;
        match response.status() {
            StatusCode::OK if response.content_length().is_none_or(|len| len == u64::from(bytes.end - bytes.start)) => {
                Ok(Answer { response, whole: false })
            }
            StatusCode::OK => Err(Fault::retry("its answer is not as long as what was asked for")),
            StatusCode::SERVICE_UNAVAILABLE => {
                let header = response.headers().get(RETRY_AFTER).and_then(|value| seconds(value.to_str().ok()?));
                let body = timeout(ANSWER_LIMIT, response.chunk()).await.ok().and_then(Result::ok).flatten();
                let body = body.filter(|body| body.len() <= MAX_WORD);
                let after = body.and_then(|body| seconds(std::str::from_utf8(&body).ok()?)).or(header);
                Err(Fault { why: "it is busy".into(), remedy: Remedy::Retry(after) })
            }
            // Any other is an error, after which to try again ever less often.
            status => Err(Fault::retry(format!("it answers {status}"))),
        }
    }

    /// A request, redirects followed: the answer's head, and where it came from if that is not the URL itself.
    async fn get(&self, url: Url, bytes: Option<&Range<u64>>) -> Result<(Response, Option<Url>), Refusal> {
        let mut headers = HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static("identity"))]);
        let range = bytes.map(|bytes| format!("bytes={}-{}", bytes.start, bytes.end.saturating_sub(1)));
        headers.extend(range.and_then(|range| Some((RANGE, HeaderValue::try_from(range).ok()?))));
        let purpose = match self.url.kind() {
            SeedKind::Files => Purpose::WebSeed,
            SeedKind::Script => Purpose::HttpSeed,
        };
        match timeout(ANSWER_LIMIT, self.http.open(url.clone(), purpose, &headers)).await {
            Ok(Ok(response)) => {
                let moved = (*response.url() != url).then(|| response.url().clone());
                Ok((response, moved))
            }
            Ok(Err(error @ (RequestError::Local | RequestError::Redirect(_)))) => {
                Err(Refusal::Never(error.to_string()))
            }
            Ok(Err(error)) => Err(Refusal::Retry(error.to_string())),
            Err(_) => Err(Refusal::Retry("no answer in time".into())),
        }
    }
}

/// Why there is no answer.
enum Refusal {
    Retry(String),
    Never(String),
}

fn wrong_size(len: u64, file: &File) -> String {
    let name = file.path.last().map_or("", String::as_str);
    format!("{} has {len} bytes there and {} in the torrent", printable(name.as_bytes(), 200), file.len)
}

/// The server is at fault, and may not be for ever.
fn is_passing(status: StatusCode) -> bool {
    use StatusCode as S;
    status.is_server_error() || matches!(status, S::REQUEST_TIMEOUT | S::TOO_EARLY | S::TOO_MANY_REQUESTS)
}

/// A web page in place of a file that is none.
fn is_page(response: &Response, file: &File) -> bool {
    let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let name = file.path.last().map_or("", String::as_str).to_ascii_lowercase();
    kind.starts_with("text/html") && !name.ends_with(".html") && !name.ends_with(".htm")
}

/// `bytes 0-499/1234`: the first byte, and the length of the whole if it is told.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, len) = text.trim().strip_prefix("bytes")?.trim_start().split_once('/')?;
    let (from, to) = range.split_once('-')?;
    let (from, to): (u64, u64) = (from.trim().parse().ok()?, to.trim().parse().ok()?);
    let len = match len.trim() {
        "*" => None,
        len => Some(len.parse().ok()?),
    };
    (from <= to).then_some((from, len))
}

/// How long to stay away.
fn seconds(text: &str) -> Option<Duration> {
    text.trim().parse().ok().map(|seconds| Duration::from_secs(seconds).clamp(Duration::from_secs(1), MAX_WAIT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metainfo::{InfoHash, Layout, Lengths, PieceHashes};
    use proptest::prelude::*;

    #[test]
    fn ranges_and_waits_are_read_as_servers_write_them() {
        assert_eq!(content_range("bytes 0-499/1234"), Some((0, Some(1234))));
        assert_eq!(content_range("bytes 500-999/*"), Some((500, None)));
        for wrong in ["bytes */1234", "bytes 9-1/20", "0-1/2", "bytes 0-x/2", "bytes 0-1", "bytes 0-1/-2", ""] {
            assert_eq!(content_range(wrong), None, "{wrong}");
        }
        assert_eq!(seconds(" 30\n"), Some(Duration::from_secs(30)));
        assert_eq!(seconds("0"), Some(Duration::from_secs(1)));
        assert_eq!(seconds("99999999"), Some(MAX_WAIT));
        assert_eq!(seconds("Fri, 31 Dec 1999 23:59:59 GMT"), None);
        assert_eq!(seconds("-5"), None);
    }

    /// A server of a torrent with files of these sizes; negative: a pad.
    fn server(kind: SeedKind, sizes: &[i64], piece_len: u64) -> Option<Server> {
        let mut offset = 0;
        let files = sizes.iter().enumerate().map(|(n, len)| {
            let kind = if *len < 0 { FileKind::Pad } else { FileKind::Regular { executable: false } };
            let file = File { path: vec!["t".into(), n.to_string()], offset, len: len.unsigned_abs(), kind };
            offset += file.len;
            file
        });
        let files: Vec<File> = files.collect();
        let lengths = Lengths::new(offset, piece_len).ok()?;
        let metainfo = Metainfo {
            info_hash: InfoHash([0; 20]),
            name: "t".into(),
            private: false,
            trackers: Vec::new(),
            web_seeds: Vec::new(),
            http_seeds: Vec::new(),
            nodes: Vec::new(),
            creation_date: None,
            comment: None,
            created_by: None,
            source: None,
            hashes: PieceHashes::v1(vec![0; 20 * lengths.pieces() as usize]),
            layout: Layout::new(lengths, files).into(),
            info: Bytes::new(),
        };
        let url = SeedUrl::parse(kind, "http://127.0.0.1/").unwrap();
        Some(Server::new(Arc::new(metainfo), url, HttpClient::new().unwrap()))
    }

    #[test]
    fn parts_end_with_files_and_pads_are_not_asked_for() {
        let server = server(SeedKind::Files, &[10, -6, 0, 20], 16).unwrap();
        let parts = server.parts(&(4..30));
        assert_eq!(parts, [Part::File(FileIndex(0), 4..10), Part::Zeros(6), Part::File(FileIndex(3), 0..14)]);
    }

    #[test]
    fn what_is_lacked_is_not_offered_again() {
        let server = server(SeedKind::Files, &[100, 100, 100], 50).unwrap();
        assert!(matches!(server.holding(), Some(Holding::All)) && server.fault().is_none());
        server.now_lacks(100..200, "it answers 404");
        let Some(Holding::Some(bits)) = server.holding() else { panic!("no bitfield") };
        assert_eq!(bits[..], [0b1100_1100]);
        assert!(server.lacks(&(199..250)) && server.lacks(&(0..101)));
        assert!(!server.lacks(&(0..100)) && !server.lacks(&(200..201)));
        server.now_lacks(150..200, "once more");
        assert!(server.lacks(&(120..130)) && server.lacks(&(160..170)));
        server.now_lacks(0..100, "it answers 404");
        server.now_lacks(200..300, "it answers 404");
        assert!(server.holding().is_none());
        assert_eq!(server.fault().as_deref(), Some("it answers 404"));
    }

    #[test]
    fn failing_is_forgotten_when_it_serves() {
        let server = server(SeedKind::Files, &[100], 50).unwrap();
        server.now_fails("it answers 503", Duration::from_secs(1));
        assert_eq!(server.fault().as_deref(), Some("it answers 503"));
        server.now_serves();
        assert_eq!(server.fault(), None);
    }

    proptest! {
        #[test]
        fn parts_are_the_run_byte_by_byte(
            sizes in proptest::collection::vec(-30i64..60, 1..12),
            piece_len in 1u64..64,
            start in 0u64..300,
            len in 1u64..200,
        ) {
            let Some(files) = server(SeedKind::Files, &sizes, piece_len) else { return Ok(()) };
            let layout = &files.metainfo.layout;
            let run = start..(start + len).min(layout.lengths().total());
            prop_assume!(!run.is_empty());
            let mut at = run.start;
            for part in files.parts(&run) {
                at += match part {
                    Part::Zeros(len) => {
                        let is_pad = |index| layout.file(index).unwrap().kind == FileKind::Pad;
                        prop_assert!(layout.extents(at..at + len).all(|(index, _)| is_pad(index)));
                        len
                    }
                    Part::File(index, bytes) => {
                        let file = layout.file(index).unwrap();
                        prop_assert_eq!(file.offset + bytes.start, at);
                        prop_assert!(bytes.end <= file.len && file.kind != FileKind::Pad);
                        bytes.end - bytes.start
                    }
                    Part::Piece(..) => unreachable!(),
                };
            }
            prop_assert_eq!(at, run.end);
            prop_assert!(files.run_limit(run.start) > run.start);

            let script = server(SeedKind::Script, &sizes, piece_len).unwrap();
            let lengths = script.metainfo.layout.lengths();
            let limit = script.run_limit(run.start);
            let piece = lengths.piece_at(run.start).unwrap();
            prop_assert_eq!(limit, lengths.range_of(piece).end);
            let offset = lengths.offset_of(piece);
            let bytes = (run.start - offset) as u32..(limit - offset) as u32;
            prop_assert_eq!(script.parts(&(run.start..limit)), [Part::Piece(piece, bytes)]);
        }
    }
}
