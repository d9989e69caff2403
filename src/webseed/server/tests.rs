use super::*;
use crate::metainfo::{InfoHash, Layout, Lengths, PieceHashes};
use proptest::prelude::*;

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
        info: Bytes::new().into(),
    };
    let url = SeedUrl::parse(kind, "http://127.0.0.1/").unwrap();
    Some(Server::new(Arc::new(metainfo), Arc::default(), url, HttpClient::new().unwrap()))
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
fn bad_pieces_cost_a_file_only_when_they_repeat() {
    // Pieces of 50 bytes: the third and the fifth belong to two files.
    let server = server(SeedKind::Files, &[120, 120, 1000], 50).unwrap();
    let mark = |piece| server.mark_bad(server.metainfo.layout.lengths().piece(piece).unwrap());
    let has = || match server.availability() {
        Some(Availability::Some(bits)) => format!("{:08b}", bits[0]),
        _ => panic!("no bitfield"),
    };
    mark(3);
    assert_eq!(has(), "11101111");
    // Of two files, nobody knows which is wrong.
    mark(4);
    mark(2);
    assert_eq!(has(), "11000111");
    mark(0);
    assert_eq!(has(), "01000111");
    mark(1);
    assert_eq!(has(), "00000111");
    assert_eq!(server.fault().as_deref(), Some("its 1 does not have the torrent's hash"));
}

#[test]
fn a_server_with_too_many_bad_pieces_is_given_up() {
    let server = server(SeedKind::Files, &[1; 1000], 1).unwrap();
    for piece in 0..MAX_BAD {
        assert!(server.availability().is_some());
        server.mark_bad(server.metainfo.layout.lengths().piece(piece).unwrap());
    }
    assert!(server.availability().is_none());
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
