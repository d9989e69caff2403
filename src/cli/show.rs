//! `torrentfs show`: prints the contents of a torrent file or a magnet link.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write;
use std::io;

use bytesize::ByteSize;
use clap::Args;
use serde::Serialize;

use super::failure::{Exit, Failure};
use super::output::{self, BOLD, PLAIN, STANDARD, YELLOW};
use super::runtime::runtime;
use super::sources;
use super::text::{self, count};
use crate::discovery::{TrackerClient, fetch_torrent};
use crate::library::{Source, read_torrent};
use crate::metainfo::{Document, File, FileKind, MAX_TORRENT_LEN, Magnet, Metainfo};
use crate::route::Route;

const DESCRIPTION: &str = "\
A .torrent file is read, or fetched if its URL is given. For a magnet link or
an info hash, only its own contents are shown; the metadata is not fetched from
peers.

Directories in the list of files end with '/', executable files with '*'.";

const SECTIONS: &str = "\
JSON of a torrent:
  name, info_hash, magnet, format (\"v1\" or \"hybrid\"), size, piece_length,
  pieces (number), private, trackers (list of tiers), web_seeds, http_seeds,
  nodes, creation_date (seconds since 1970), created_by, comment, source, files
  (list of: path, size, kind (\"file\", \"link\" or \"pad\"), executable, target)

JSON of a magnet link:
  name, info_hash, magnet, trackers, web_seeds, peers

A missing value is null or an empty list.

Examples:
  torrentfs show film.torrent
  torrentfs show --json film.torrent | jq -r .magnet";

/// Show the contents of a torrent file or a magnet link
#[derive(Args, Clone, Debug)]
#[command(before_help = DESCRIPTION, after_help = SECTIONS)]
pub(super) struct ShowArgs {
    /// .torrent or .magnet file, "-" for standard input, http(s) URL of such a file, magnet link (in quotes), or info hash
    source: OsString,

    /// Print JSON, on one line
    #[arg(long)]
    json: bool,
}

/// Shows a source.
pub(super) fn run(args: &ShowArgs) -> Result<(), Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::of_torrent("show", &sources::shown(&args.source), error);
    let document = if args.source == STANDARD {
        let failed = |error: &dyn std::fmt::Display| Failure::of_torrent("show", "standard input", error);
        let bytes = read_torrent(io::stdin().lock()).map_err(|error| failed(&error))?;
        Document::parse(bytes).map_err(|error| failed(&error))?
    } else {
        match sources::single("show", &args.source)? {
            Source::Torrent(metainfo) => Document::Torrent(metainfo),
            Source::Magnet(magnet) => Document::Magnet(magnet),
            // `sources::single` refuses directories.
            Source::Directory(_) => return Ok(()),
            Source::Url(url) => {
                let client =
                    TrackerClient::new(Route::default()).map_err(|error| Failure::new(Exit::Failure, error))?;
                runtime()?
                    .block_on(fetch_torrent(client.http(), &url, MAX_TORRENT_LEN))
                    .map_err(|error| failed(&error))?
            }
        }
    };
    let text = match document {
        Document::Torrent(metainfo) => show_torrent(&metainfo, args.json)?,
        Document::Magnet(magnet) => show_magnet(&magnet, args.json)?,
    };
    output::print(&text)
}

/// Output of `--json` for a torrent.
#[derive(Serialize)]
struct TorrentJson<'a> {
    name: &'a str,
    info_hash: String,
    magnet: String,
    format: &'static str,
    size: u64,
    piece_length: u32,
    pieces: u32,
    private: bool,
    trackers: &'a [Vec<String>],
    web_seeds: &'a [String],
    http_seeds: &'a [String],
    nodes: Vec<String>,
    creation_date: Option<i64>,
    created_by: Option<&'a str>,
    comment: Option<&'a str>,
    source: Option<&'a str>,
    files: Vec<FileJson<'a>>,
}

/// A file in [`TorrentJson`].
#[derive(Serialize)]
struct FileJson<'a> {
    path: String,
    size: u64,
    kind: &'static str,
    executable: bool,
    target: Option<&'a str>,
}

/// Output of `--json` for a magnet link.
#[derive(Serialize)]
struct MagnetJson<'a> {
    name: Option<&'a str>,
    info_hash: String,
    magnet: String,
    trackers: &'a [String],
    web_seeds: &'a [String],
    peers: &'a [String],
}

/// Returns the output for a torrent.
fn show_torrent(metainfo: &Metainfo, json: bool) -> Result<String, Failure> {
    if !json {
        return Ok(page(metainfo));
    }
    let lengths = metainfo.layout.lengths();
    let files = metainfo.layout.files().iter().map(|file| {
        let (kind, executable, target) = match &file.kind {
            FileKind::Regular { executable } => ("file", *executable, None),
            FileKind::Symlink { target } => ("link", false, Some(target.as_str())),
            FileKind::Pad => ("pad", false, None),
        };
        FileJson { path: file.path.join("/"), size: file.len, kind, executable, target }
    });
    output::json(&TorrentJson {
        name: &metainfo.name,
        info_hash: metainfo.info_hash.to_string(),
        magnet: metainfo.magnet().to_string(),
        format: format(metainfo),
        size: lengths.total(),
        piece_length: lengths.piece_len(),
        pieces: lengths.pieces(),
        private: metainfo.private,
        trackers: &metainfo.trackers,
        web_seeds: &metainfo.web_seeds,
        http_seeds: &metainfo.http_seeds,
        nodes: nodes(metainfo),
        creation_date: metainfo.creation_date,
        created_by: metainfo.created_by.as_deref(),
        comment: metainfo.comment.as_deref(),
        source: metainfo.source.as_deref(),
        files: files.collect(),
    })
}

/// Returns the output for a magnet link.
fn show_magnet(magnet: &Magnet, json: bool) -> Result<String, Failure> {
    if json {
        return output::json(&MagnetJson {
            name: magnet.name.as_deref(),
            info_hash: magnet.info_hash.to_string(),
            magnet: magnet.to_string(),
            trackers: &magnet.trackers,
            web_seeds: &magnet.web_seeds,
            peers: &magnet.peers,
        });
    }
    let mut page = Page::default();
    page.row("Name", magnet.name.as_deref().unwrap_or("(none)"));
    page.row("Info hash", &magnet.info_hash.to_string());
    page.row("Magnet link", &magnet.to_string());
    page.rows("Trackers", &magnet.trackers);
    page.rows("Web seeds", &magnet.web_seeds);
    page.rows("Peers", &magnet.peers);
    Ok(page.0)
}

/// Rows with a name and a value.
#[derive(Default)]
struct Page(String);

impl Page {
    fn row(&mut self, name: &str, value: &str) {
        // Further lines of a text are indented like the first.
        let mut lines = value.trim_end().split('\n');
        let first = lines.next().unwrap_or_default();
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{BOLD}{name:<12}{PLAIN} {first}");
        for line in lines {
            let _ = writeln!(self.0, "{:<12} {line}", "");
        }
    }

    fn rows(&mut self, name: &str, values: &[String]) {
        if !values.is_empty() {
            self.row(name, &values.join("\n"));
        }
    }
}

/// Returns the description of a torrent and the tree of its files.
fn page(metainfo: &Metainfo) -> String {
    let lengths = metainfo.layout.lengths();
    let files = metainfo.layout.files();
    let shown = || files.iter().filter(|file| file.kind != FileKind::Pad);
    let mut page = Page::default();
    page.row("Name", &metainfo.name);
    page.row("Info hash", &metainfo.info_hash.to_string());
    page.row("Magnet link", &metainfo.magnet().to_string());
    let size =
        format!("{} ({} bytes) in {}", ByteSize(lengths.total()), lengths.total(), count(shown().count(), "file"));
    page.row("Size", &size);
    let length = ByteSize(lengths.piece_len().into());
    page.row("Pieces", &format!("{} of {length}", lengths.pieces()));
    if format(metainfo) == "hybrid" {
        page.row("Format", "hybrid, for BitTorrent v1 and v2");
    }
    if metainfo.private {
        page.row("Private", "yes: peers come from the trackers only");
    }
    for (number, tier) in metainfo.trackers.iter().enumerate() {
        page.rows(if number == 0 { "Trackers" } else { "  then" }, tier);
    }
    page.rows("Web seeds", &metainfo.web_seeds);
    page.rows("HTTP seeds", &metainfo.http_seeds);
    page.rows("DHT nodes", &nodes(metainfo));
    if let Some(date) = metainfo.creation_date {
        page.row("Created", &text::date(date));
    }
    for (name, text) in
        [("Created by", &metainfo.created_by), ("Source", &metainfo.source), ("Comment", &metainfo.comment)]
    {
        if let Some(text) = text {
            page.row(name, text);
        }
    }
    let mut root = Node::default();
    shown().for_each(|file| root.add(&file.path, file));
    page.0.push('\n');
    root.write(0, &mut page.0);
    page.0
}

/// A file, or a directory with its entries sorted by name.
#[derive(Default)]
struct Node<'a> {
    children: BTreeMap<&'a str, Node<'a>>,
    file: Option<&'a File>,
    size: u64,
}

impl<'a> Node<'a> {
    /// Adds a file at a path below this node.
    fn add(&mut self, path: &'a [String], file: &'a File) {
        self.size = self.size.saturating_add(file.len);
        match path {
            [] => self.file = Some(file),
            // The parser limits the depth of paths, and with it this recursion.
            [first, rest @ ..] => self.children.entry(first).or_default().add(rest, file),
        }
    }

    /// Writes the entries of this directory.
    fn write(&self, depth: usize, out: &mut String) {
        for (name, node) in &self.children {
            let (style, mark) = match node.file.map(|file| &file.kind) {
                None => (BOLD, "/".to_owned()),
                Some(FileKind::Symlink { target }) => (YELLOW, format!(" -> {target}")),
                Some(FileKind::Regular { executable: true }) => ("", "*".to_owned()),
                Some(_) => ("", String::new()),
            };
            let size = ByteSize(node.size).to_string();
            let end = if style.is_empty() { "" } else { PLAIN };
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{size:>10}  {:indent$}{style}{name}{end}{mark}", "", indent = 2 * depth);
            node.write(depth + 1, out);
        }
    }
}

/// Returns the format version.
fn format(metainfo: &Metainfo) -> &'static str {
    if metainfo.is_hybrid() { "hybrid" } else { "v1" }
}

/// Returns the DHT nodes as `HOST:PORT`.
fn nodes(metainfo: &Metainfo) -> Vec<String> {
    metainfo.nodes.iter().map(|(host, port)| format!("{host}:{port}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metainfo::{NewFile, NewTorrent};

    #[test]
    fn the_page_shows_all_fields() {
        let regular = |executable| FileKind::Regular { executable };
        let file = |path: &str, len, kind| NewFile { path: path.split('/').map(str::to_owned).collect(), len, kind };
        let torrent = NewTorrent {
            name: "t".into(),
            piece_len: 1 << 20,
            files: vec![
                file("z", 3 << 20, regular(false)),
                file("d/run", 5, regular(true)),
                file("d/l", 0, FileKind::Symlink { target: "../z".into() }),
            ],
            trackers: vec![vec!["http://a/".into(), "http://b/".into()], vec!["udp://c:1".into()]],
            web_seeds: vec!["http://w/".into()],
            private: true,
            creation_date: Some(1_600_000_000),
            comment: Some("two\nlines".into()),
            created_by: Some("us".into()),
            source: Some("s".into()),
        };
        let metainfo = Metainfo::parse(&torrent.build(&[[7; 20]; 4]).unwrap()).unwrap();
        let text = anstream::adapter::strip_str(&page(&metainfo)).to_string();
        let hash = metainfo.info_hash;
        let expected = format!(
            "Name         t
Info hash    {hash}
Magnet link  magnet:?xt=urn:btih:{hash}&dn=t&tr=http%3A%2F%2Fa%2F&tr=http%3A%2F%2Fb%2F&tr=udp%3A%2F%2Fc%3A1&ws=http%3A%2F%2Fw%2F
Size         3.0 MiB (3145733 bytes) in 3 files
Pieces       4 of 1.0 MiB
Private      yes: peers come from the trackers only
Trackers     http://a/
             http://b/
  then       udp://c:1
Web seeds    http://w/
Created      2020-09-13 12:26:40 UTC
Created by   us
Source       s
Comment      two
             lines

   3.0 MiB  t/
       5 B    d/
       0 B      l -> ../z
       5 B      run*
   3.0 MiB    z
"
        );
        assert_eq!(text, expected);
    }
}
