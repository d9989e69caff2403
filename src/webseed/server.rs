//! One server: the URLs of its files, checks of its answers, and its state.

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

/// Time limit for the head of a response. Servers that fetch the file from elsewhere first can take long.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Files whose redirect target is remembered. Bounds the memory for torrents with many files.
const MAX_REDIRECTS: usize = 1024;
/// Bytes that a server without range support may send before the requested ones. What is further into a file counts as
/// missing, because reaching it would cost more than it brings.
const MAX_SKIP: u64 = 32 << 20;
/// Maximum length of one run, in bytes: long enough to make the round trip cheap, short enough to cancel.
const MAX_RUN: u64 = 4 << 20;
/// Maximum number of files in one run. They are requested one after the other, so many small files would delay a run.
const MAX_PARTS: usize = 8;
/// Longest body that is read as the wait time of a busy script, in bytes (BEP 17).
const MAX_WAIT_TEXT: usize = 64;
/// Maximum wait that a server may impose, so that a wrong header does not disable it for days.
const MAX_WAIT: Duration = Duration::from_secs(3600);

/// A failure and its consequence.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) why: String,
    pub(super) remedy: Remedy,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Remedy {
    /// The server is busy or unreachable. Retry later, and not before the time that it specified.
    Retry(Option<Duration>),
    /// The server does not have these bytes of the torrent.
    Missing(Range<u64>),
}

impl Fault {
    pub(super) fn retry(why: impl Into<String>) -> Self {
        Self { why: why.into(), remedy: Remedy::Retry(None) }
    }

    fn missing(why: impl Into<String>, bytes: Range<u64>) -> Self {
        Self { why: why.into(), remedy: Remedy::Missing(bytes) }
    }
}

/// One request within a run.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Bytes of a pad file: zeros, which no server needs to have (BEP 47).
    Zeros(u64),
    /// A byte range of a file.
    File(FileIndex, Range<u64>),
    /// A byte range of a piece, from a script.
    Piece(PieceIndex, Range<u32>),
}

/// A checked response head. The body has yet to be read.
pub(super) struct Answer {
    pub(super) response: Response,
    /// The body is the whole file, not only the range.
    pub(super) whole: bool,
}

/// The pieces that a server offers.
pub(super) enum Availability {
    All,
    /// Some pieces, as a bitfield in wire format.
    Some(Bytes),
}

pub(super) struct Server {
    metainfo: Arc<Metainfo>,
    url: SeedUrl,
    http: HttpClient,
    state: Mutex<State>,
}

/// State that outlives a connection.
#[derive(Default)]
struct State {
    /// Ranges of the torrent that the server does not have, by start. Ranges within one file end at the end of that
    /// file.
    missing: BTreeMap<u64, u64>,
    /// Redirect targets by file.
    redirects: HashMap<FileIndex, Url>,
    /// The server has sent a whole file in answer to a range request.
    no_ranges: bool,
    /// Why the server cannot be used now.
    failing: Option<String>,
    /// Why the server does not have some bytes; only the first reason.
    missing_reason: Option<String>,
}

impl Server {
    pub(super) fn new(metainfo: Arc<Metainfo>, url: SeedUrl, http: HttpClient) -> Self {
        Self { metainfo, url, http, state: Mutex::default() }
    }

    pub(super) fn metainfo(&self) -> &Metainfo {
        &self.metainfo
    }

    pub(super) fn url(&self) -> &SeedUrl {
        &self.url
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(super) fn fault(&self) -> Option<String> {
        let state = self.state();
        state.failing.clone().or_else(|| state.missing_reason.clone())
    }

    /// Returns the pieces that the server offers; `None` if there are none.
    pub(super) fn availability(&self) -> Option<Availability> {
        let lengths = self.metainfo.layout.lengths();
        let state = self.state();
        if state.missing.is_empty() {
            return Some(Availability::All);
        }
        let mut has = FixedBitSet::with_capacity(lengths.pieces() as usize);
        has.insert_range(..);
        for (from, to) in &state.missing {
            lengths.pieces_in(&(*from..*to)).for_each(|piece| has.remove(piece.index()));
        }
        (!has.is_clear()).then(|| Availability::Some(bitfield_to_wire(&has)))
    }

    /// Returns whether the server lacks any of these bytes of the torrent.
    pub(super) fn is_missing(&self, bytes: &Range<u64>) -> bool {
        self.state().missing.range(..bytes.end).next_back().is_some_and(|(_, to)| *to > bytes.start)
    }

    pub(super) fn has_ranges(&self) -> bool {
        !self.state().no_ranges
    }

    /// Records that the server does not have these bytes. Logged as a warning the first time.
    pub(super) fn mark_missing(&self, bytes: Range<u64>, why: &str) {
        let mut state = self.state();
        let to = state.missing.entry(bytes.start).or_default();
        *to = bytes.end.max(*to);
        if state.missing_reason.is_none() {
            tracing::warn!(seed = %self.url, "web seed does not have all of the torrent: {why}");
            state.missing_reason = Some(why.to_owned());
        } else {
            tracing::debug!(seed = %self.url, ?bytes, "web seed does not have more of the torrent: {why}");
        }
    }

    /// Records that the server is not used for a while. Logged as a warning the first time.
    pub(super) fn mark_failing(&self, why: &str, wait: Duration) {
        let before = self.state().failing.replace(why.to_owned());
        if before.is_none() {
            tracing::warn!(seed = %self.url, "web seed fails: {why}; retrying in {:.0} s", wait.as_secs_f64());
        } else {
            tracing::debug!(seed = %self.url, ?wait, "web seed still fails: {why}");
        }
    }

    /// Records that the server works.
    pub(super) fn mark_working(&self) {
        if self.state().failing.take().is_some() {
            tracing::info!(seed = %self.url, "web seed works again");
        }
    }

    /// Returns the maximum end of a run that starts at offset `start` of the torrent.
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

    /// Returns the requests that fetch a run of the torrent's bytes, in order.
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

    /// Requests a byte range of a file.
    pub(super) async fn request_file(&self, index: FileIndex, bytes: &Range<u64>) -> Result<Answer, Fault> {
        let file = self.metainfo.layout.file(index).ok_or_else(|| Fault::retry("no such file"))?;
        let redirect = self.state().redirects.get(&index).cloned();
        if let Some(url) = redirect {
            match self.request_file_at(url, index, file, bytes).await {
                Ok(answer) => return Ok(answer),
                // The redirect target may have been temporary: use the original URL again.
                Err(fault) => {
                    tracing::debug!(seed = %self.url, "redirect forgotten: {}", fault.why);
                    self.state().redirects.remove(&index);
                }
            }
        }
        let url = self.url.of_file(&self.metainfo.layout, file);
        let url = url.ok_or_else(|| Fault::missing("the file's path does not form a URL", file.range()))?;
        self.request_file_at(url, index, file, bytes).await
    }

    async fn request_file_at(
        &self,
        url: Url,
        index: FileIndex,
        file: &File,
        bytes: &Range<u64>,
    ) -> Result<Answer, Fault> {
        let missing = |why: String| Fault::missing(why, file.range());
        let (response, redirected) = self.get(url, Some(bytes)).await.map_err(|failure| match failure {
            RequestFailure::Retry(why) => Fault::retry(why),
            RequestFailure::Permanent(why) => missing(why),
        })?;
        let status = response.status();
        if response.headers().contains_key(CONTENT_ENCODING) {
            return Err(missing("it sends the file compressed although that was not allowed".into()));
        }
        let whole = match status {
            StatusCode::PARTIAL_CONTENT => {
                let range = response.headers().get(CONTENT_RANGE).and_then(|value| content_range(value.to_str().ok()?));
                match range {
                    Some((from, _)) if from != bytes.start => {
                        return Err(missing(format!("it answers with another range than requested (from {from})")));
                    }
                    Some((_, Some(len))) if len != file.len => return Err(missing(wrong_size(len, file))),
                    Some(_) => false,
                    None => return Err(missing("it answers with a range but does not say which".into())),
                }
            }
            StatusCode::OK => {
                match response.content_length() {
                    Some(len) if len != file.len => return Err(missing(wrong_size(len, file))),
                    None if is_page(&response, file) => return Err(missing("it answers with a web page".into())),
                    _ => {}
                }
                self.take_whole(file, bytes)?
            }
            status if is_temporary(status) => {
                let after = response.headers().get(RETRY_AFTER).and_then(|value| seconds(value.to_str().ok()?));
                return Err(Fault { why: format!("it answers {status}"), remedy: Remedy::Retry(after) });
            }
            status => return Err(missing(format!("it answers {status}"))),
        };
        if let Some(url) = redirected {
            let mut state = self.state();
            if state.redirects.len() >= MAX_REDIRECTS {
                state.redirects.clear();
            }
            state.redirects.insert(index, url);
        }
        Ok(Answer { response, whole })
    }

    /// Handles a response with the whole file. Returns whether that is more than the requested range.
    fn take_whole(&self, file: &File, bytes: &Range<u64>) -> Result<bool, Fault> {
        if *bytes == (0..file.len) {
            return Ok(false);
        }
        self.state().no_ranges = true;
        if bytes.start <= MAX_SKIP {
            return Ok(true);
        }
        let why = format!("it supports no ranges, so only the first {} MiB of each file can be read", MAX_SKIP >> 20);
        Err(Fault::missing(why, file.offset + MAX_SKIP..file.range().end))
    }

    /// Requests a part of a piece from a script (BEP 17).
    pub(super) async fn request_piece(&self, piece: PieceIndex, bytes: &Range<u32>) -> Result<Answer, Fault> {
        let whole = *bytes == (0..self.metainfo.layout.lengths().len_of(piece));
        let url = self.url.of_piece(&self.metainfo.info_hash, piece, (!whole).then_some(bytes));
        let (mut response, _) = self.get(url, None).await.map_err(|failure| match failure {
            RequestFailure::Retry(why) => Fault::retry(why),
            RequestFailure::Permanent(why) => Fault::missing(why, 0..self.metainfo.layout.lengths().total()),
        })?;
        match response.status() {
            StatusCode::OK if response.content_length().is_none_or(|len| len == u64::from(bytes.end - bytes.start)) => {
                Ok(Answer { response, whole: false })
            }
            StatusCode::OK => Err(Fault::retry("its answer has another length than requested")),
            StatusCode::SERVICE_UNAVAILABLE => {
                let header = response.headers().get(RETRY_AFTER).and_then(|value| seconds(value.to_str().ok()?));
                let body = timeout(ANSWER_LIMIT, response.chunk()).await.ok().and_then(Result::ok).flatten();
                let body = body.filter(|body| body.len() <= MAX_WAIT_TEXT);
                let after = body.and_then(|body| seconds(std::str::from_utf8(&body).ok()?)).or(header);
                Err(Fault { why: "it is busy".into(), remedy: Remedy::Retry(after) })
            }
            // BEP 17: any other status is an error, after which to retry with growing delays.
            status => Err(Fault::retry(format!("it answers {status}"))),
        }
    }

    /// Sends a request and follows redirects. Returns the response, and its final URL if there was a redirect.
    async fn get(&self, url: Url, bytes: Option<&Range<u64>>) -> Result<(Response, Option<Url>), RequestFailure> {
        let mut headers = HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static("identity"))]);
        let range = bytes.map(|bytes| format!("bytes={}-{}", bytes.start, bytes.end.saturating_sub(1)));
        headers.extend(range.and_then(|range| Some((RANGE, HeaderValue::try_from(range).ok()?))));
        let purpose = match self.url.kind() {
            SeedKind::Files => Purpose::WebSeed,
            SeedKind::Script => Purpose::HttpSeed,
        };
        match timeout(ANSWER_LIMIT, self.http.open(url.clone(), purpose, &headers)).await {
            Ok(Ok(response)) => {
                let redirect = (*response.url() != url).then(|| response.url().clone());
                Ok((response, redirect))
            }
            Ok(Err(error @ (RequestError::Local | RequestError::Redirect(_) | RequestError::NotHttp(_)))) => {
                Err(RequestFailure::Permanent(error.to_string()))
            }
            Ok(Err(error)) => Err(RequestFailure::Retry(error.to_string())),
            Err(_) => Err(RequestFailure::Retry("no answer in time".into())),
        }
    }
}

/// The reason why there is no response.
enum RequestFailure {
    Retry(String),
    Permanent(String),
}

fn wrong_size(len: u64, file: &File) -> String {
    let name = file.path.last().map_or("", String::as_str);
    format!("{} has {len} bytes there and {} in the torrent", printable(name.as_bytes(), 200), file.len)
}

/// Returns whether a status means a temporary failure.
fn is_temporary(status: StatusCode) -> bool {
    use StatusCode as S;
    status.is_server_error() || matches!(status, S::REQUEST_TIMEOUT | S::TOO_EARLY | S::TOO_MANY_REQUESTS)
}

/// Returns whether a response is a web page although the file is not.
fn is_page(response: &Response, file: &File) -> bool {
    let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let name = file.path.last().map_or("", String::as_str).to_ascii_lowercase();
    kind.starts_with("text/html") && !name.ends_with(".html") && !name.ends_with(".htm")
}

/// Parses `bytes 0-499/1234`: the first byte, and the total length if it is specified.
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

/// Parses a wait time in seconds.
fn seconds(text: &str) -> Option<Duration> {
    text.trim().parse().ok().map(|seconds| Duration::from_secs(seconds).clamp(Duration::from_secs(1), MAX_WAIT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metainfo::{InfoHash, Layout, Lengths, PieceHashes};
    use proptest::prelude::*;

    #[test]
    fn content_ranges_and_wait_times_are_parsed() {
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

    /// Returns a server of a torrent with files of these sizes. A negative size stands for a pad file.
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
    fn parts_end_with_files_and_pads_are_not_requested() {
        let server = server(SeedKind::Files, &[10, -6, 0, 20], 16).unwrap();
        let parts = server.parts(&(4..30));
        assert_eq!(parts, [Part::File(FileIndex(0), 4..10), Part::Zeros(6), Part::File(FileIndex(3), 0..14)]);
    }

    #[test]
    fn missing_bytes_are_not_offered_again() {
        let server = server(SeedKind::Files, &[100, 100, 100], 50).unwrap();
        assert!(matches!(server.availability(), Some(Availability::All)) && server.fault().is_none());
        server.mark_missing(100..200, "it answers 404");
        let Some(Availability::Some(bits)) = server.availability() else { panic!("no bitfield") };
        assert_eq!(bits[..], [0b1100_1100]);
        assert!(server.is_missing(&(199..250)) && server.is_missing(&(0..101)));
        assert!(!server.is_missing(&(0..100)) && !server.is_missing(&(200..201)));
        server.mark_missing(150..200, "once more");
        assert!(server.is_missing(&(120..130)) && server.is_missing(&(160..170)));
        server.mark_missing(0..100, "it answers 404");
        server.mark_missing(200..300, "it answers 404");
        assert!(server.availability().is_none());
        assert_eq!(server.fault().as_deref(), Some("it answers 404"));
    }

    #[test]
    fn a_failure_is_cleared_when_the_server_works() {
        let server = server(SeedKind::Files, &[100], 50).unwrap();
        server.mark_failing("it answers 503", Duration::from_secs(1));
        assert_eq!(server.fault().as_deref(), Some("it answers 503"));
        server.mark_working();
        assert_eq!(server.fault(), None);
    }

    proptest! {
        #[test]
        fn parts_cover_the_run_exactly(
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
