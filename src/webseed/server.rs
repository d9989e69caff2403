//! One server: the URLs of its files, checks of its answers, and its state.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fixedbitset::FixedBitSet;
use reqwest::header::{ACCEPT_ENCODING, HeaderMap, HeaderValue, RANGE, RETRY_AFTER};
use reqwest::{Response, StatusCode, Url};
use tokio::time::timeout;

use super::head::{Head, Placed, seconds, text};
use super::missing::Missing;
use super::pauses::{Consequence, Pauses};
use super::url::{SeedKind, SeedUrl};
use crate::http::{HttpClient, Purpose, RequestError};
use crate::metainfo::{File, FileIndex, FileKind, Metainfo, OriginalPaths, PieceIndex};
use crate::util::{lock, printable};
use crate::wire::bitfield_to_wire;

/// Time limit for the head of a response. Servers that fetch the file from elsewhere first can take long.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Files whose last URL is remembered. Bounds the memory for torrents with many files.
const MAX_URLS: usize = 1024;
/// Bytes that a server without range support may send before the requested ones. What is further into a file counts as
/// missing, because reaching it would cost more than it brings.
const MAX_SKIP: u64 = 32 << 20;
/// Maximum length of one run, in bytes: long enough to make the round trip cheap, short enough to cancel.
const MAX_RUN: u64 = 4 << 20;
/// Maximum number of files in one run. They are requested one after the other, so many small files would delay a run.
const MAX_PARTS: usize = 8;
/// Longest body that is read as the wait time of a busy script, in bytes (BEP 17).
const MAX_WAIT_TEXT: usize = 64;
/// Bad pieces after which a server is given up: it has another version of the torrent.
const MAX_BAD: u32 = 64;

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
    /// The server fails to deliver this file. Others may be well.
    RetryFile(FileIndex),
    /// The server does not have these bytes of the torrent.
    Missing(Range<u64>),
}

impl Fault {
    pub(super) fn retry(why: impl Into<String>) -> Self {
        Self { why: why.into(), remedy: Remedy::Retry(None) }
    }

    pub(super) fn retry_file(file: FileIndex, why: impl Into<String>) -> Self {
        Self { why: why.into(), remedy: Remedy::RetryFile(file) }
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
    /// The bytes of the file in the body. They include the first byte that was requested.
    pub(super) bytes: Range<u64>,
}

/// The pieces that a server offers.
pub(super) enum Availability {
    All,
    /// Some pieces, as a bitfield in wire format.
    Some(Bytes),
}

pub(super) struct Server {
    metainfo: Arc<Metainfo>,
    /// Made when the first file is requested; shared by the web seeds of a torrent.
    paths: Arc<OnceLock<Option<OriginalPaths>>>,
    url: SeedUrl,
    http: HttpClient,
    /// Number of files that are requested: neither empty nor padding.
    wanted_files: usize,
    state: Mutex<State>,
}

/// State that outlives a connection.
#[derive(Default)]
struct State {
    /// The parts that the server does not have, as bytes of the torrent.
    missing: Missing,
    /// The URL from which a file came last, if it is not the first to try: a redirect target, or another spelling.
    urls: HashMap<FileIndex, Url>,
    /// Number of pieces that failed their hash, and the files in which one did.
    bad_pieces: u32,
    bad_files: HashSet<FileIndex>,
    /// A file that is longer than in the torrent was logged.
    logged_longer: bool,
    /// The server has sent a whole file in answer to a range request.
    no_ranges: bool,
    /// Why the server cannot be used now.
    failing: Option<String>,
    /// Files that it cannot deliver now.
    pauses: Pauses,
    /// Why the server does not have some bytes; only the first reason.
    missing_reason: Option<String>,
}

impl Server {
    pub(super) fn new(
        metainfo: Arc<Metainfo>,
        paths: Arc<OnceLock<Option<OriginalPaths>>>,
        url: SeedUrl,
        http: HttpClient,
    ) -> Self {
        let wanted_files = metainfo.layout.files().iter().filter(|file| file.len > 0 && !file.is_pad()).count();
        Self { metainfo, paths, url, http, wanted_files, state: Mutex::default() }
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
        let paused = || state.pauses.fault().map(|(file, why)| format!("{} fails: {why}", self.shown_name(file)));
        state.failing.clone().or_else(paused).or_else(|| state.missing_reason.clone())
    }

    fn shown_name(&self, file: FileIndex) -> String {
        printable(self.metainfo.layout.file(file).map_or("", name).as_bytes(), 200)
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
        for bytes in state.missing.ranges() {
            lengths.pieces_in(&bytes).for_each(|piece| has.remove(piece.index()));
        }
        (!has.is_clear()).then(|| Availability::Some(bitfield_to_wire(&has)))
    }

    /// Returns whether the server lacks any of these bytes of the torrent.
    pub(super) fn is_missing(&self, bytes: &Range<u64>) -> bool {
        self.state().missing.touches(bytes)
    }

    /// Returns whether any of these bytes of the torrent belong to a file that is not to be requested now.
    pub(super) fn is_paused(&self, bytes: &Range<u64>) -> bool {
        let state = self.state();
        let now = Instant::now();
        !state.pauses.is_empty()
            && self.metainfo.layout.extents(bytes.clone()).any(|(file, _)| state.pauses.is_paused(now, file))
    }

    pub(super) fn has_ranges(&self) -> bool {
        !self.state().no_ranges
    }

    /// Records that the server does not have these bytes. Logged as a warning the first time.
    pub(super) fn mark_missing(&self, bytes: Range<u64>, why: &str) {
        let mut state = self.state();
        state.missing.add(bytes.clone());
        if state.missing_reason.is_none() {
            tracing::warn!(seed = %self.url, "web seed does not have all of the torrent: {why}");
            state.missing_reason = Some(why.to_owned());
        } else {
            tracing::debug!(seed = %self.url, ?bytes, "web seed does not have more of the torrent: {why}");
        }
    }

    /// Records that a piece failed its hash: the piece is missing, and after the second one of a file the whole file.
    pub(super) fn mark_bad(&self, piece: PieceIndex) {
        let layout = &self.metainfo.layout;
        let files: Vec<(FileIndex, &File)> = layout
            .extents_of(piece)
            .filter_map(|(index, _)| Some((index, layout.file(index)?)))
            .filter(|(_, file)| !file.is_pad())
            .collect();
        let mut state = self.state();
        state.bad_pieces = state.bad_pieces.saturating_add(1);
        let name = files.first().map_or("", |(_, file)| name(file));
        let why = format!("its {} does not have the torrent's hash", printable(name.as_bytes(), 200));
        let bytes = match files[..] {
            _ if state.bad_pieces >= MAX_BAD => 0..layout.lengths().total(),
            // Nobody knows which of several files is wrong.
            [(index, file)] if !state.bad_files.insert(index) => file.range(),
            _ => layout.lengths().range_of(piece),
        };
        drop(state);
        self.mark_missing(bytes, &why);
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

    /// Records that a file failed. Logged as a warning the first time.
    pub(super) fn mark_file_failing(&self, file: FileIndex, why: &str) -> Consequence {
        let mut state = self.state();
        let known = state.pauses.fault().is_some();
        let consequence = state.pauses.failed(Instant::now(), file, self.wanted_files, why);
        drop(state);
        if let Consequence::Pause(wait) = consequence {
            let (name, wait) = (self.shown_name(file), wait.as_secs_f64());
            if known {
                tracing::debug!(seed = %self.url, "web seed fails for {name}: {why}; retrying in {wait:.0} s");
            } else {
                tracing::warn!(seed = %self.url, "web seed fails for {name}: {why}; retrying in {wait:.0} s");
            }
        }
        consequence
    }

    /// Records that bytes of a file came.
    pub(super) fn mark_file_working(&self, file: FileIndex) {
        if self.state().pauses.delivered(file) {
            tracing::info!(seed = %self.url, "web seed delivers {} again", self.shown_name(file));
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
        let known = self.state().urls.get(&index).cloned();
        if let Some(url) = known {
            match self.request_file_at(url, index, file, bytes).await {
                Ok(answer) => return Ok(answer),
                // A redirect target may have been temporary: use the original URL again.
                Err(fault) => {
                    tracing::debug!(seed = %self.url, "redirect forgotten: {}", fault.why);
                    self.state().urls.remove(&index);
                }
            }
        }
        let (original, displayed) = self.urls_of(index, file);
        let first = original.or_else(|| displayed.clone());
        let first = first.ok_or_else(|| Fault::missing("the file's path does not form a URL", file.range()))?;
        let (answer, second) = (self.request_file_at(first.clone(), index, file, bytes).await, displayed);
        match (answer, second.filter(|url| *url != first)) {
            // Another program may have saved the file under the name that it displays.
            (Err(fault), Some(second)) if fault.remedy == Remedy::Missing(file.range()) => {
                let answer = self.request_file_at(second.clone(), index, file, bytes).await.map_err(|_| fault)?;
                self.state().urls.entry(index).or_insert(second);
                Ok(answer)
            }
            (answer, _) => answer,
        }
    }

    /// Returns the URLs of a file: with the path as it is in the torrent, byte for byte, and with the displayed one.
    fn urls_of(&self, index: FileIndex, file: &File) -> (Option<Url>, Option<Url>) {
        let layout = &self.metainfo.layout;
        let paths = self.paths.get_or_init(|| self.metainfo.original_paths().ok());
        let original = paths.as_ref().and_then(|paths| paths.of(index));
        let original = original.filter(|path| path.len() == file.path.len()).map(|mut path| {
            for (part, displayed) in path.iter_mut().zip(&file.path) {
                // In a URL such a component would lead elsewhere, however it is encoded.
                if matches!(part.as_slice(), b"" | b"." | b"..") {
                    *part = displayed.clone().into_bytes();
                }
            }
            path
        });
        let original = original.and_then(|path| self.url.of_file(layout, &path));
        (original, self.url.of_file(layout, &file.path))
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
            RequestFailure::Silent => Fault::retry_file(index, RequestFailure::SILENT),
            RequestFailure::Permanent(why) => missing(why),
        })?;
        let head = Head::of(&response);
        let placed = match response.status() {
            StatusCode::PARTIAL_CONTENT | StatusCode::OK => head.place(bytes, file.len, name(file)).map_err(missing)?,
            status if is_temporary(status) => {
                let after = text(response.headers(), RETRY_AFTER).and_then(seconds);
                let why = format!("it answers {status}");
                // A client error, such as too many requests, is about us. A server error may be about the file.
                return Err(match after {
                    None if status.is_server_error() => Fault::retry_file(index, why),
                    after => Fault { why, remedy: Remedy::Retry(after) },
                });
            }
            status => match head.unsatisfied() {
                Some(len) if len < file.len => return Err(shorter(len, file)),
                _ => return Err(missing(format!("it answers {status}"))),
            },
        };
        self.check(file, bytes, &placed)?;
        if let Some(url) = redirected {
            let mut state = self.state();
            if state.urls.len() >= MAX_URLS {
                state.urls.clear();
            }
            state.urls.insert(index, url);
        }
        Ok(Answer { response, bytes: placed.bytes })
    }

    /// Checks the place of an answer's body. A file of another length may still have the right bytes: it was cut off, or
    /// something was appended. So only what is beyond its end is missing.
    fn check(&self, file: &File, requested: &Range<u64>, placed: &Placed) -> Result<(), Fault> {
        match placed.total {
            Some(len) if len < requested.end => return Err(shorter(len, file)),
            Some(len) if len > file.len && !std::mem::replace(&mut self.state().logged_longer, true) => {
                tracing::info!(seed = %self.url, "web seed has another version of a file: {}", other_size(len, file));
            }
            _ => {}
        }
        let Placed { bytes, .. } = placed;
        if bytes.start == requested.start && bytes.end <= requested.end {
            return Ok(());
        }
        self.state().no_ranges = true;
        if requested.start - bytes.start <= MAX_SKIP {
            return Ok(());
        }
        let why = format!("it supports no ranges, so only the first {} MiB of each file can be read", MAX_SKIP >> 20);
        Err(Fault::missing(why, file.offset + bytes.start + MAX_SKIP..file.range().end))
    }

    /// Requests a part of a piece from a script (BEP 17).
    pub(super) async fn request_piece(&self, piece: PieceIndex, bytes: &Range<u32>) -> Result<Answer, Fault> {
        let whole = *bytes == (0..self.metainfo.layout.lengths().len_of(piece));
        let url = self.url.of_piece(&self.metainfo.info_hash, piece, (!whole).then_some(bytes));
        let (mut response, _) = self.get(url, None).await.map_err(|failure| match failure {
            RequestFailure::Retry(why) => Fault::retry(why),
            RequestFailure::Silent => Fault::retry(RequestFailure::SILENT),
            RequestFailure::Permanent(why) => Fault::missing(why, 0..self.metainfo.layout.lengths().total()),
        })?;
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT
                if response.content_length().is_none_or(|len| len == u64::from(bytes.end - bytes.start)) =>
            {
                Ok(Answer { response, bytes: bytes.start.into()..bytes.end.into() })
            }
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => {
                Err(Fault::retry("its answer has another length than requested"))
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                let header = text(response.headers(), RETRY_AFTER).and_then(seconds);
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
            Err(_) => Err(RequestFailure::Silent),
        }
    }
}

/// The reason why there is no response.
enum RequestFailure {
    Retry(String),
    /// The server accepted the request and does not answer.
    Silent,
    Permanent(String),
}

impl RequestFailure {
    const SILENT: &str = "no answer in time";
}

/// Returns the fault of a file that is shorter on the server.
fn shorter(len: u64, file: &File) -> Fault {
    Fault::missing(other_size(len, file), file.offset + len..file.range().end)
}

fn other_size(len: u64, file: &File) -> String {
    let name = printable(name(file).as_bytes(), 200);
    format!("{name} has {len} bytes there and {} in the torrent", file.len)
}

fn name(file: &File) -> &str {
    file.path.last().map_or("", String::as_str)
}

/// Returns whether a status means a temporary failure.
fn is_temporary(status: StatusCode) -> bool {
    use StatusCode as S;
    status.is_server_error() || matches!(status, S::REQUEST_TIMEOUT | S::TOO_EARLY | S::TOO_MANY_REQUESTS)
}

#[cfg(test)]
mod tests;
