//! `/files/…`: what the mount shows, over HTTP, for a television or a browser. Read as the mount reads, through a window
//! of its own.
//!
//! A file comes from a stranger. Whatever it is, a browser must not let it act in this server's name: what is not known
//! to be harmless is shown in a sandbox.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::api::Shared;
use super::page::{escape, page};
use super::{Mount, Refusal, Shown};
use crate::metainfo::{FileIndex, FileKind};
use crate::session::Reader;

/// Bytes read at a time: what the kernel reads through the mount.
const CHUNK: u32 = 128 * 1024;
/// Entries of a directory that are shown.
const MAX_ENTRIES: usize = 10_000;

/// Unreserved characters of RFC 3986 stay as they are.
const PART: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

const SANDBOX: HeaderValue =
    HeaderValue::from_static("sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'");

/// What a path leads to.
enum Place {
    /// The root, or a directory of a torrent: names, with the sizes of files.
    Directory(BTreeMap<String, Option<u64>>),
    File(Shown, FileIndex),
    /// From its own directory.
    Link(String),
}

/// A file or directory of the mount; a file also in part
#[utoipa::path(
    get, path = "/files/{path}", params(("path" = String, Path), ("Range" = Option<String>, Header)),
    responses(
        (status = 200, content_type = "application/octet-stream"),
        (status = 206, content_type = "application/octet-stream"),
        (status = 304), (status = 404), (status = 416)
    )
)]
pub(super) async fn get(
    State(Shared { mount, .. }): State<Shared>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let asked = uri.path().strip_prefix("/files").unwrap_or_default();
    let path = parts(asked)?;
    match find(&mount, &path).ok_or_else(|| Refusal::not_found("there is no such file or directory"))? {
        Place::Directory(entries) if asked.ends_with('/') => Ok(directory(&path, &entries)),
        // So that what is in it is named from there.
        Place::Directory(_) => {
            let name = path.last().map_or("files".into(), |name| encode(name));
            Ok(redirect(&format!("{name}/")))
        }
        Place::Link(target) => Ok(redirect(&target.split('/').map(encode).collect::<Vec<_>>().join("/"))),
        Place::File(shown, index) => file(&shown, index, &method, &headers),
    }
}

fn encode(part: &str) -> String {
    utf8_percent_encode(part, PART).to_string()
}

fn redirect(to: &str) -> Response {
    let location = HeaderValue::from_str(to).unwrap_or(HeaderValue::from_static("/files/"));
    (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, location)]).into_response()
}

/// The components of a path, decoded. Nothing in it leads up, or is taken apart twice.
fn parts(path: &str) -> Result<Vec<String>, Refusal> {
    let decode = |part: &str| {
        let part = percent_decode_str(part).decode_utf8().map_err(|_| Refusal::bad("the path is not UTF-8"))?;
        if part == "." || part == ".." || part.contains(['/', '\0']) {
            return Err(Refusal::bad("the path leads nowhere"));
        }
        Ok(part.into_owned())
    };
    path.split('/').filter(|part| !part.is_empty()).map(decode).collect()
}

fn find(mount: &Mount, path: &[String]) -> Option<Place> {
    let torrents = mount.torrents();
    let Some((name, below)) = path.split_first() else {
        let size = |shown: &Shown| shown.single().map(|(_, len)| len);
        return Some(Place::Directory(torrents.iter().map(|shown| (shown.name.clone(), size(shown))).collect()));
    };
    let shown = torrents.into_iter().find(|shown| shown.name == *name)?;
    if let Some((index, _)) = shown.single() {
        return below.is_empty().then_some(Place::File(shown, index));
    }
    let (mut entries, mut found) = (BTreeMap::new(), None);
    let files = (0..).map(FileIndex).zip(shown.torrent.metainfo().layout.files());
    for (index, file) in files.filter(|(_, file)| file.kind != FileKind::Pad) {
        let Some(rest) = file.path.get(1..).and_then(|own| own.strip_prefix(below)) else { continue };
        match (rest, &file.kind) {
            ([], FileKind::Symlink { target }) => found = Some(Err(target.clone())),
            ([], _) => found = Some(Ok(index)),
            ([name], FileKind::Regular { .. }) => drop(entries.insert(name.clone(), Some(file.len))),
            ([name, ..], _) => drop(entries.entry(name.clone()).or_insert(None)),
        }
    }
    match found {
        Some(Ok(index)) => Some(Place::File(shown, index)),
        Some(Err(target)) => Some(Place::Link(target)),
        // A torrent may have no file at all that is shown; its directory is there all the same.
        None => (!entries.is_empty() || below.is_empty()).then_some(Place::Directory(entries)),
    }
}

impl Shown {
    /// Of a torrent that is one file: which, and its size.
    fn single(&self) -> Option<(FileIndex, u64)> {
        let files = (0..).map(FileIndex).zip(self.torrent.metainfo().layout.files());
        let mut files = files.filter(|(_, file)| file.kind != FileKind::Pad);
        let (index, file) = files.next()?;
        (file.path.len() == 1 && files.next().is_none()).then_some((index, file.len))
    }
}

fn directory(path: &[String], entries: &BTreeMap<String, Option<u64>>) -> Response {
    let mut rows = String::new();
    if !path.is_empty() {
        rows += "<tr><td><a href=\"../\">..</a><td>\n";
    }
    for (name, size) in entries.iter().take(MAX_ENTRIES) {
        let (slash, size) = match size {
            Some(size) => ("", super::page::size(*size)),
            None => ("/", String::new()),
        };
        // `./`: a name with a colon is no scheme.
        rows += &format!("<tr><td><a href=\"./{}{slash}\">{}{slash}</a><td>{size}\n", encode(name), escape(name));
    }
    if entries.len() > MAX_ENTRIES {
        rows += &format!("<tr><td>and {} more<td>\n", entries.len() - MAX_ENTRIES);
    }
    page(&format!("/{}", path.join("/")), &format!("<table>\n{rows}</table>\n"))
}

fn file(shown: &Shown, index: FileIndex, method: &Method, headers: &HeaderMap) -> Result<Response, Refusal> {
    let gone = || Refusal::not_found("there is no such file or directory");
    let metainfo = shown.torrent.metainfo();
    let file = metainfo.layout.file(index).ok_or_else(gone)?;
    let kind = mime_guess::from_path(file.path.last().map_or("", String::as_str)).first_or_octet_stream();
    let etag = format!("\"{}-{}\"", metainfo.info_hash, index.0);
    let value = |text: &str| HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""));
    let mut answer = Response::new(Body::empty());
    let head = answer.headers_mut();
    head.insert(header::CONTENT_TYPE, value(kind.as_ref()));
    head.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    head.insert(header::ETAG, value(&etag));
    head.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    if !is_harmless(&kind) {
        head.insert(header::CONTENT_SECURITY_POLICY, SANDBOX);
    }
    head.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let names =
        |list: &str| list.split(',').any(|tag| tag.trim() == "*" || tag.trim().trim_start_matches("W/") == etag);
    if text(header::IF_NONE_MATCH).is_some_and(names) {
        *answer.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(answer);
    }
    // What was begun with other bytes is begun anew.
    let same = text(header::IF_RANGE).is_none_or(|tag| tag.trim() == etag);
    let range = text(header::RANGE).filter(|_| same).map_or(Wanted::All, |range| wanted(range, file.len));
    let bytes = match range {
        Wanted::All => 0..file.len,
        Wanted::Part(bytes) => {
            *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
            let range = format!("bytes {}-{}/{}", bytes.start, bytes.end - 1, file.len);
            answer.headers_mut().insert(header::CONTENT_RANGE, value(&range));
            bytes
        }
        Wanted::Nothing => {
            *answer.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            answer.headers_mut().insert(header::CONTENT_RANGE, value(&format!("bytes */{}", file.len)));
            return Ok(answer);
        }
    };
    answer.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.end - bytes.start));
    if method != Method::HEAD && !bytes.is_empty() {
        let reader = shown.torrent.open(index).ok_or_else(gone)?;
        *answer.body_mut() = Body::from_stream(stream::try_unfold((reader, bytes), next));
    }
    Ok(answer)
}

/// What runs nothing, and would not play in a sandbox.
fn is_harmless(kind: &mime_guess::Mime) -> bool {
    match (kind.type_().as_str(), kind.essence_str()) {
        ("video" | "audio", _) => true,
        ("image", kind) => kind != "image/svg+xml",
        (_, kind) => kind == "text/plain" || kind == "application/pdf",
    }
}

/// The next bytes of a file. An error ends the connection: the head with the length has long been sent.
async fn next((reader, bytes): (Reader, Range<u64>)) -> io::Result<Option<(Bytes, (Reader, Range<u64>))>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    // Whole chunks of the file, so that a range that begins anywhere reads as the kernel would.
    let end = (bytes.start / u64::from(CHUNK) + 1).saturating_mul(u64::from(CHUNK)).min(bytes.end);
    let len = (end - bytes.start) as u32;
    let data = match reader.read_now(bytes.start, len) {
        Some(data) => data,
        None => reader.read(bytes.start, len).await.map_err(io::Error::other)?,
    };
    if data.len() != len as usize {
        return Err(io::Error::other("the file ended early"));
    }
    Ok(Some((data, (reader, end..bytes.end))))
}

/// What a `Range` header asks of a file.
#[derive(PartialEq, Eq, Debug)]
enum Wanted {
    All,
    Part(Range<u64>),
    /// It lies beyond the end.
    Nothing,
}

/// RFC 9110, 14.2: what makes no sense is passed over, and so are several ranges at once.
fn wanted(text: &str, len: u64) -> Wanted {
    let number = |digits: &str| {
        let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        // More than fits is beyond every end.
        plain.then(|| digits.parse().unwrap_or(u64::MAX))
    };
    let Some((unit, range)) = text.split_once('=') else { return Wanted::All };
    let Some((first, last)) = range.trim().split_once('-') else { return Wanted::All };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Wanted::All;
    }
    match (first.trim(), last.trim()) {
        ("", suffix) => match number(suffix) {
            None => Wanted::All,
            Some(0) => Wanted::Nothing,
            Some(_) if len == 0 => Wanted::Nothing,
            Some(suffix) => Wanted::Part(len.saturating_sub(suffix)..len),
        },
        (first, last) => match (number(first), number(last), last) {
            (Some(first), _, "") if first < len => Wanted::Part(first..len),
            (Some(first), Some(last), _) if last < first => Wanted::All,
            (Some(first), Some(last), _) if first < len => Wanted::Part(first..last.saturating_add(1).min(len)),
            (Some(_), Some(_), _) | (Some(_), None, "") => Wanted::Nothing,
            _ => Wanted::All,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (text, expected) in [
            ("bytes=0-0", Wanted::Part(0..1)),
            ("bytes=5-", Wanted::Part(5..10)),
            ("bytes=5-99", Wanted::Part(5..10)),
            ("bytes=-3", Wanted::Part(7..10)),
            ("bytes=-99", Wanted::Part(0..10)),
            ("Bytes = 2-3", Wanted::Part(2..4)),
            ("bytes=9-18446744073709551616", Wanted::Part(9..10)),
            ("bytes=10-", Wanted::Nothing),
            ("bytes=10-12", Wanted::Nothing),
            ("bytes=-0", Wanted::Nothing),
            ("bytes=99999999999999999999-", Wanted::Nothing),
            ("bytes=3-2", Wanted::All),
            ("bytes=1-2,4-5", Wanted::All),
            ("bytes=-", Wanted::All),
            ("bytes=a-b", Wanted::All),
            ("bytes=+1-2", Wanted::All),
            ("lines=1-2", Wanted::All),
            ("bytes", Wanted::All),
        ] {
            assert_eq!(wanted(text, 10), expected, "{text}");
        }
        assert_eq!(wanted("bytes=0-", 0), Wanted::Nothing);
        assert_eq!(wanted("bytes=-5", 0), Wanted::Nothing);
    }

    #[test]
    fn what_may_run_is_shown_in_a_sandbox() {
        let harmless = |name: &str| is_harmless(&mime_guess::from_path(name).first_or_octet_stream());
        for name in ["a.mkv", "a.mp4", "a.flac", "a.jpg", "a.txt", "a.pdf"] {
            assert!(harmless(name), "{name}");
        }
        for name in ["a.html", "a.svg", "a.xml", "a.xhtml", "a.js", "a", "a.swf"] {
            assert!(!harmless(name), "{name}");
        }
    }

    #[test]
    fn paths_are_decoded_once_and_never_lead_up() {
        assert_eq!(parts("/a%20b//c%2525/").unwrap(), ["a b", "c%25"]);
        assert!(parts("/").unwrap().is_empty());
        for bad in ["/..", "/a/%2e%2e/b", "/%2E", "/a%2fb", "/a%00", "/%ff"] {
            assert_eq!(parts(bad).unwrap_err().status, StatusCode::BAD_REQUEST, "{bad}");
        }
    }
}
