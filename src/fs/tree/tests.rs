//! Directories, inode numbers and names of torrents that are added, hidden and forgotten.

use super::super::testing::{file, metainfo};
use super::*;

fn listing(tree: &Tree, directory: u64) -> Vec<String> {
    tree.entries(directory, 0).map(|entry| entry.name.to_owned()).collect()
}

fn find(tree: &Tree, path: &str) -> u64 {
    path.split('/').fold(ROOT, |at, name| tree.lookup(at, name).unwrap_or_else(|| panic!("no {name} of {path}")))
}

fn album(seed: u8) -> Metainfo {
    metainfo(
        seed,
        "album",
        vec![
            file("album/cd1/b.flac", 5),
            file("album/.pad/3", 3).pad(),
            file("album/cd1/a.flac", 4),
            file("album/cd2/a.flac", 0),
            file("album/play", 6).executable(),
            file("album/latest", 0).symlink("cd1/b.flac"),
        ],
    )
}

#[test]
fn a_directory_is_shown_in_the_torrents_order_without_pads() {
    let tree = Tree::new([&album(1)]).unwrap();
    assert_eq!(listing(&tree, ROOT), [".", "..", "album"]);
    let album = find(&tree, "album");
    assert_eq!(listing(&tree, album), [".", "..", "cd1", "cd2", "play", "latest"]);
    assert_eq!(listing(&tree, find(&tree, "album/cd1")), [".", "..", "b.flac", "a.flac"]);
    assert_eq!(tree.kind(album), Some(&Kind::Directory { subdirectories: 2 }));
    assert_eq!(tree.kind(ROOT), Some(&Kind::Directory { subdirectories: 1 }));
    let play = Kind::File { index: FileIndex(4), len: 6, executable: true };
    assert_eq!(tree.kind(find(&tree, "album/play")), Some(&play));
    assert_eq!(tree.kind(find(&tree, "album/latest")), Some(&Kind::Symlink { target: "cd1/b.flac".into() }));
    assert_eq!(tree.lookup(album, "cd3"), None);
    assert_eq!(tree.lookup(find(&tree, "album/play"), "x"), None);
    assert_eq!((tree.inodes(), tree.bytes()), (9, 15));
    assert_eq!(listing(&tree, find(&tree, "album/play")), [""; 0]);
}

#[test]
fn parents_lead_back_to_the_root() {
    let tree = Tree::new([&album(1)]).unwrap();
    let deep = find(&tree, "album/cd1/a.flac");
    assert_eq!(tree.parent(deep), Some(find(&tree, "album/cd1")));
    assert_eq!(tree.parent(find(&tree, "album")), Some(ROOT));
    assert_eq!(tree.parent(ROOT), Some(ROOT));
    assert_eq!(tree.path(deep), Some(vec!["album", "cd1", "a.flac"]));
    assert_eq!((tree.path(ROOT), tree.path(12345)), (Some(Vec::new()), None));
    let dots: Vec<_> = tree.entries(find(&tree, "album/cd1"), 0).take(2).map(|entry| entry.ino).collect();
    assert_eq!(dots, [find(&tree, "album/cd1"), find(&tree, "album")]);
}

#[test]
fn inode_numbers_depend_on_the_torrent_alone() {
    let (one, other) = (album(1), metainfo(2, "film.mkv", vec![file("film.mkv", 9)]));
    let alone = Tree::new([&one]).unwrap();
    let second = Tree::new([&other, &one]).unwrap();
    for path in ["album", "album/cd1", "album/cd2/a.flac", "album/play"] {
        assert_eq!(find(&alone, path), find(&second, path), "{path}");
    }
    assert_eq!(second.torrent(find(&second, "film.mkv")), Some(InfoHash::of(&[2])));
    assert_eq!(second.torrent(find(&second, "album/play")), Some(InfoHash::of(&[1])));
    assert_eq!(second.torrent(ROOT), None);
}

#[test]
fn torrents_of_one_name_get_different_names() {
    let films: Vec<_> = (1..=2).map(|seed| metainfo(seed, "film.mkv", vec![file("film.mkv", 9)])).collect();
    let albums = [album(3), album(4)];
    let tree = Tree::new(films.iter().chain(&albums)).unwrap();
    let short = |metainfo: &Metainfo| metainfo.info_hash.to_string()[..8].to_owned();
    let expected = films.iter().map(|film| format!("film [{}].mkv", short(film)));
    let expected = expected.chain(albums.iter().map(|album| format!("album [{}]", short(album))));
    assert_eq!(listing(&tree, ROOT)[2..], expected.collect::<Vec<_>>());
    assert_eq!(Tree::new([&albums[0], &albums[0]]).unwrap_err(), TreeError::Duplicate(albums[0].info_hash));
}

#[test]
fn torrents_are_added_and_removed_while_the_root_is_listed() {
    let film = |seed: u8| metainfo(seed, &format!("film{seed}"), vec![file(&format!("film{seed}"), 9)]);
    let mut tree = Tree::new(&[film(1), film(2), film(3)]).unwrap();
    let (visible, gone) = (find(&tree, "film3"), find(&tree, "film2"));
    let first: Vec<(String, u64)> =
        tree.entries(ROOT, 0).take(3).map(|entry| (entry.name.to_owned(), entry.next)).collect();
    assert_eq!(tree.hide(InfoHash::of(&[1])).unwrap(), [Arc::from("film1")]);
    assert_eq!(tree.hide(InfoHash::of(&[2])).unwrap().len(), 1);
    assert_eq!(tree.hide(InfoHash::of(&[2])), None);
    tree.add(Subtree::new(&film(4))).unwrap();
    let rest: Vec<&str> = tree.entries(ROOT, first[2].1).map(|entry| entry.name).collect();
    assert_eq!((first[2].0.as_str(), rest), ("film1", vec!["film3", "film4"]));
    assert_eq!((tree.inodes(), tree.bytes()), (3, 18));
    // Open files keep their inodes, but a look-up finds nothing.
    assert!(tree.kind(gone).is_some() && tree.torrent(gone) == Some(InfoHash::of(&[2])));
    assert_eq!(tree.lookup(ROOT, "film2"), None);
    tree.forget(InfoHash::of(&[3]));
    assert!(tree.kind(visible).is_some(), "it is not hidden");
    tree.forget(InfoHash::of(&[2]));
    assert_eq!(tree.kind(gone), None);
    // Added again, it is the last entry and has its old number.
    tree.add(Subtree::new(&film(2))).unwrap();
    assert_eq!(tree.add(Subtree::new(&film(2))).unwrap_err(), TreeError::Duplicate(InfoHash::of(&[2])));
    assert_eq!(find(&tree, "film2"), gone);
    assert_eq!(listing(&tree, ROOT)[2..], ["film3", "film4", "film2"]);
}

#[test]
fn lookups_in_a_hidden_torrent_find_nothing() {
    let mut tree = Tree::new([&album(1)]).unwrap();
    let cd1 = find(&tree, "album/cd1");
    tree.hide(InfoHash::of(&[1])).unwrap();
    assert_eq!(tree.lookup(cd1, "a.flac"), None);
    assert_eq!(tree.kind(ROOT), Some(&Kind::Directory { subdirectories: 0 }));
    assert_eq!((tree.inodes(), tree.bytes()), (1, 0));
}

#[test]
fn info_hashes_with_a_common_prefix_do_not_collide() {
    let torrents: Vec<_> = (0..3u8)
        .map(|last| {
            let mut metainfo = metainfo(9, &format!("film{last}"), vec![file(&format!("film{last}"), 1)]);
            metainfo.info_hash = InfoHash([0xff; 20]);
            metainfo.info_hash.0[19] = last;
            metainfo
        })
        .collect();
    let tree = Tree::new(&torrents).unwrap();
    for (torrent, name) in torrents.iter().zip(["film0", "film1", "film2"]) {
        assert_eq!(tree.torrent(find(&tree, name)), Some(torrent.info_hash));
    }
}

#[test]
fn invalid_inode_numbers_are_rejected() {
    let tree = Tree::new([&album(1)]).unwrap();
    let past = find(&tree, "album") + 1_000_000;
    for ino in [0, 2, past, u64::MAX] {
        assert_eq!(tree.kind(ino), None);
        assert_eq!(tree.lookup(ino, "album"), None);
        assert_eq!(tree.parent(ino), None);
        assert_eq!(tree.entries(ino, 0).count(), 0);
        assert!(tree.files_below(ino).is_empty());
    }
    assert_eq!(tree.entries(ROOT, u64::MAX).count(), 0);
}

#[test]
fn a_directory_read_continues_at_its_offset() {
    let files = (0..20_000).map(|n| file(&format!("many/{n}"), 1)).collect();
    let tree = Tree::new([&metainfo(1, "many", files)]).unwrap();
    let many = find(&tree, "many");
    let (mut offset, mut names) = (0, Vec::new());
    loop {
        let before = names.len();
        for entry in tree.entries(many, offset).take(77) {
            names.push(entry.name.to_owned());
            offset = entry.next;
        }
        if names.len() == before {
            break;
        }
    }
    assert_eq!(names.len(), 20_002);
    assert_eq!((names[2].as_str(), names[20_001].as_str()), ("0", "19999"));
    assert_eq!(tree.files_below(ROOT), [(InfoHash::of(&[1]), (0..20_000).map(FileIndex).collect())]);
}

#[test]
fn a_torrent_of_pad_files_is_an_empty_directory() {
    let tree = Tree::new([&metainfo(1, "void", vec![file("void/.pad/4", 4).pad()])]).unwrap();
    assert_eq!(listing(&tree, find(&tree, "void")), [".", ".."]);
}
