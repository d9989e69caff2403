//! `/files/…`: the files of the mount over HTTP, with range requests, for players and browsers.
//!
//! Each response reads through a reader of its own, as an open file of the mount does.
//!
//! The files come from strangers. A browser must not let their scripts act with this server's origin, so every type that
//! is not known to be harmless is sent with a sandbox policy.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::body::bounded;
use super::connections::{Connection, Work, Working};
use super::html::{escape, page, size};
use super::problem::Problem;
use super::shared::Shared;
use crate::control::{Mount, MountedTorrent};
use crate::metainfo::{FileIndex, FileKind};
use crate::session::Reader;

/// Bytes per read, the same as the kernel's read-ahead uses on the mount.
const CHUNK: u32 = 128 * 1024;
/// Largest number of entries in a listing. More would make a page that browsers render slowly.
const MAX_ENTRIES: usize = 10_000;

/// Characters that are percent-encoded in a path component: all but the unreserved ones of RFC 3986.
const COMPONENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Policy for content that may contain scripts.
const SANDBOX: HeaderValue =
    HeaderValue::from_static("sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'");

/// The file, directory or link at a path.
enum Entry {
    /// Names of the entries; files with their lengths.
    Directory(BTreeMap<String, Option<u64>>),
    File(MountedTorrent, FileIndex),
    /// Target of a symbolic link, relative to the link's directory.
    Symlink(String),
}

/// Get a file of the mount, or a range of it, or a listing of a directory
#[utoipa::path(
    get, path = "/files/{path}", params(("path" = String, Path), ("Range" = Option<String>, Header)),
    responses(
        (status = 200, content_type = "application/octet-stream"),
        (status = 206, content_type = "application/octet-stream"),
        (status = 304), (status = 404), (status = 416), (status = 429)
    )
)]
pub(super) async fn get(
    State(shared): State<Shared>,
    Extension(connection): Extension<Arc<Connection>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let requested = uri.path().strip_prefix("/files").unwrap_or_default();
    let path = components(requested)?;
    match find(&shared.mount, &path).ok_or_else(|| Problem::not_found("there is no such file or directory"))? {
        Entry::Directory(entries) if requested.ends_with('/') => {
            Ok(bounded(&connection, listing(&path, &entries)).await)
        }
        // With the slash, the relative links of the listing resolve inside the directory.
        Entry::Directory(_) => {
            let name = path.last().map_or("files".into(), |name| encode(name));
            Ok(redirect(&format!("{name}/")))
        }
        Entry::Symlink(target) => Ok(redirect(&target.split('/').map(encode).collect::<Vec<_>>().join("/"))),
        Entry::File(mounted, index) => file(&connection, &mounted, index, &method, &headers),
    }
}

fn encode(part: &str) -> String {
    utf8_percent_encode(part, COMPONENT).to_string()
}

fn redirect(to: &str) -> Response {
    let location = HeaderValue::from_str(to).unwrap_or(HeaderValue::from_static("/files/"));
    (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, location)]).into_response()
}

/// Splits a path and decodes its components. Refuses `.` and `..`, and encoded slashes and NULs.
fn components(path: &str) -> Result<Vec<String>, Problem> {
    let decode = |part: &str| {
        let part = percent_decode_str(part).decode_utf8().map_err(|_| Problem::bad_request("the path is not UTF-8"))?;
        if part == "." || part == ".." || part.contains(['/', '\0']) {
            return Err(Problem::bad_request("the path has an invalid component"));
        }
        Ok(part.into_owned())
    };
    path.split('/').filter(|part| !part.is_empty()).map(decode).collect()
}

/// Finds the entry at a path from the root of the mount.
fn find(mount: &Mount, path: &[String]) -> Option<Entry> {
    let torrents = mount.torrents();
    let Some((name, below)) = path.split_first() else {
        let len = |mounted: &MountedTorrent| mounted.single_file().map(|(_, len)| len);
        return Some(Entry::Directory(torrents.iter().map(|mounted| (mounted.name.clone(), len(mounted))).collect()));
    };
    let mounted = torrents.into_iter().find(|mounted| mounted.name == *name)?;
    if let Some((index, _)) = mounted.single_file() {
        return below.is_empty().then_some(Entry::File(mounted, index));
    }
    let (mut entries, mut found) = (BTreeMap::new(), None);
    let files = (0..).map(FileIndex).zip(mounted.torrent.metainfo().layout.files());
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
        Some(Ok(index)) => Some(Entry::File(mounted, index)),
        Some(Err(target)) => Some(Entry::Symlink(target)),
        // A torrent of nothing but pad files has an empty directory.
        None => (!entries.is_empty() || below.is_empty()).then_some(Entry::Directory(entries)),
    }
}

/// Renders the listing of a directory.
fn listing(path: &[String], entries: &BTreeMap<String, Option<u64>>) -> Response {
    let mut rows = String::new();
    if !path.is_empty() {
        rows += "<tr><td><a href=\"../\">..</a><td>\n";
    }
    for (name, len) in entries.iter().take(MAX_ENTRIES) {
        let (slash, len) = match len {
            Some(len) => ("", size(*len)),
            None => ("/", String::new()),
        };
        // `./` keeps a name with a colon from being read as a scheme.
        rows += &format!("<tr><td><a href=\"./{}{slash}\">{}{slash}</a><td>{len}\n", encode(name), escape(name));
    }
    if entries.len() > MAX_ENTRIES {
        rows += &format!("<tr><td>and {} more<td>\n", entries.len() - MAX_ENTRIES);
    }
    page(&format!("/{}", path.join("/")), &format!("<table>\n{rows}</table>\n"))
}

/// Responds with a file or a range of it.
fn file(
    connection: &Arc<Connection>,
    mounted: &MountedTorrent,
    index: FileIndex,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let gone = || Problem::not_found("there is no such file or directory");
    let metainfo = mounted.torrent.metainfo();
    let file = metainfo.layout.file(index).ok_or_else(gone)?;
    let kind = mime_guess::from_path(file.path.last().map_or("", String::as_str)).first_or_octet_stream();
    let etag = format!("\"{}-{}\"", metainfo.info_hash, index.0);
    let value = |text: &str| HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""));
    let mut response = Response::new(Body::empty());
    let to_send = response.headers_mut();
    to_send.insert(header::CONTENT_TYPE, value(kind.as_ref()));
    to_send.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    to_send.insert(header::ETAG, value(&etag));
    to_send.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    if !is_harmless(&kind) {
        to_send.insert(header::CONTENT_SECURITY_POLICY, SANDBOX);
    }
    to_send.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let names =
        |list: &str| list.split(',').any(|tag| tag.trim() == "*" || tag.trim().trim_start_matches("W/") == etag);
    if text(header::IF_NONE_MATCH).is_some_and(names) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(response);
    }
    // A range is only valid for the same file; otherwise the client gets all of it.
    let same = text(header::IF_RANGE).is_none_or(|tag| tag.trim() == etag);
    let range =
        text(header::RANGE).filter(|_| same).map_or(RequestedRange::Whole, |range| parse_range(range, file.len));
    let bytes = match range {
        RequestedRange::Whole => 0..file.len,
        RequestedRange::Part(bytes) => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            let range = format!("bytes {}-{}/{}", bytes.start, bytes.end - 1, file.len);
            response.headers_mut().insert(header::CONTENT_RANGE, value(&range));
            bytes
        }
        RequestedRange::Unsatisfiable => {
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            response.headers_mut().insert(header::CONTENT_RANGE, value(&format!("bytes */{}", file.len)));
            return Ok(response);
        }
    };
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.end - bytes.start));
    if method != Method::HEAD && !bytes.is_empty() {
        let work = connection.begin(Work::File)?;
        let reader = mounted.torrent.open(index).ok_or_else(gone)?;
        let rest = Rest { reader, bytes, _work: work };
        *response.body_mut() = Body::from_stream(stream::try_unfold(rest, next));
    }
    Ok(response)
}

/// Returns whether a type contains no scripts. These types are sent without a sandbox, in which they would not play.
fn is_harmless(kind: &mime_guess::Mime) -> bool {
    match (kind.type_().as_str(), kind.essence_str()) {
        ("video" | "audio", _) => true,
        ("image", kind) => kind != "image/svg+xml",
        (_, kind) => kind == "text/plain" || kind == "application/pdf",
    }
}

/// The part of a file that is not sent yet.
struct Rest {
    reader: Reader,
    bytes: Range<u64>,
    _work: Working,
}

/// Returns the next bytes of a file. An error closes the connection, because the status has already been sent.
async fn next(mut rest: Rest) -> io::Result<Option<(Bytes, Rest)>> {
    let Rest { reader, bytes, .. } = &mut rest;
    if bytes.is_empty() {
        return Ok(None);
    }
    // Chunks are aligned to the file, so that a range at any offset causes the same reads as the kernel does.
    let end = (bytes.start / u64::from(CHUNK) + 1).saturating_mul(u64::from(CHUNK)).min(bytes.end);
    let data = reader.read(bytes.start, (end - bytes.start) as u32).await.map_err(io::Error::other)?;
    bytes.start = end;
    Ok(Some((data, rest)))
}

/// Meaning of a `Range` header.
#[derive(PartialEq, Eq, Debug)]
enum RequestedRange {
    Whole,
    Part(Range<u64>),
    /// It starts at or after the end of the file.
    Unsatisfiable,
}

/// Parses a `Range` header for a file of `len` bytes. As RFC 9110, section 14.2 allows, an invalid header and one with
/// several ranges are ignored.
fn parse_range(text: &str, len: u64) -> RequestedRange {
    let number = |digits: &str| {
        let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        // A number that does not fit is after the end of every file.
        plain.then(|| digits.parse().unwrap_or(u64::MAX))
    };
    let Some((unit, range)) = text.split_once('=') else { return RequestedRange::Whole };
    let Some((first, last)) = range.trim().split_once('-') else { return RequestedRange::Whole };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return RequestedRange::Whole;
    }
    match (first.trim(), last.trim()) {
        ("", suffix) => match number(suffix) {
            None => RequestedRange::Whole,
            Some(0) => RequestedRange::Unsatisfiable,
            Some(_) if len == 0 => RequestedRange::Unsatisfiable,
            Some(suffix) => RequestedRange::Part(len.saturating_sub(suffix)..len),
        },
        (first, last) => match (number(first), number(last), last) {
            (Some(first), _, "") if first < len => RequestedRange::Part(first..len),
            (Some(first), Some(last), _) if last < first => RequestedRange::Whole,
            (Some(first), Some(last), _) if first < len => RequestedRange::Part(first..last.saturating_add(1).min(len)),
            (Some(_), Some(_), _) | (Some(_), None, "") => RequestedRange::Unsatisfiable,
            _ => RequestedRange::Whole,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (text, expected) in [
            ("bytes=0-0", RequestedRange::Part(0..1)),
            ("bytes=5-", RequestedRange::Part(5..10)),
            ("bytes=5-99", RequestedRange::Part(5..10)),
            ("bytes=-3", RequestedRange::Part(7..10)),
            ("bytes=-99", RequestedRange::Part(0..10)),
            ("Bytes = 2-3", RequestedRange::Part(2..4)),
            ("bytes=9-18446744073709551616", RequestedRange::Part(9..10)),
            ("bytes=10-", RequestedRange::Unsatisfiable),
            ("bytes=10-12", RequestedRange::Unsatisfiable),
            ("bytes=-0", RequestedRange::Unsatisfiable),
            ("bytes=99999999999999999999-", RequestedRange::Unsatisfiable),
            ("bytes=3-2", RequestedRange::Whole),
            ("bytes=1-2,4-5", RequestedRange::Whole),
            ("bytes=-", RequestedRange::Whole),
            ("bytes=a-b", RequestedRange::Whole),
            ("bytes=+1-2", RequestedRange::Whole),
            ("lines=1-2", RequestedRange::Whole),
            ("bytes", RequestedRange::Whole),
        ] {
            assert_eq!(parse_range(text, 10), expected, "{text}");
        }
        assert_eq!(parse_range("bytes=0-", 0), RequestedRange::Unsatisfiable);
        assert_eq!(parse_range("bytes=-5", 0), RequestedRange::Unsatisfiable);
    }

    #[test]
    fn types_that_may_contain_scripts_are_sandboxed() {
        let harmless = |name: &str| is_harmless(&mime_guess::from_path(name).first_or_octet_stream());
        for name in ["a.mkv", "a.mp4", "a.flac", "a.jpg", "a.txt", "a.pdf"] {
            assert!(harmless(name), "{name}");
        }
        for name in ["a.html", "a.svg", "a.xml", "a.xhtml", "a.js", "a", "a.swf"] {
            assert!(!harmless(name), "{name}");
        }
    }

    #[test]
    fn paths_are_decoded_once_and_stay_inside() {
        assert_eq!(components("/a%20b//c%2525/").unwrap(), ["a b", "c%25"]);
        assert!(components("/").unwrap().is_empty());
        for bad in ["/..", "/a/%2e%2e/b", "/%2E", "/a%2fb", "/a%00", "/%ff"] {
            assert_eq!(components(bad).unwrap_err().status, StatusCode::BAD_REQUEST, "{bad}");
        }
    }
}
