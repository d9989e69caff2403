//! File names from torrents, made safe to show in a directory and unique.

use std::collections::{HashMap, HashSet};

/// Length limit of a file name in bytes (`NAME_MAX` on Linux).
pub(super) const MAX_NAME: usize = 255;

/// Length limit of an extension that a shortened name keeps, in bytes with the dot; longer ones are hardly extensions.
const MAX_EXTENSION: usize = 32;

/// Replaces characters that may not be in a name.
const SUBSTITUTE: char = '_';

/// Makes a path component safe: never empty, `.` or `..`, at most [`MAX_NAME`] bytes, without `/`, NUL and other control
/// characters (a newline or an escape sequence can deceive on a terminal), and without the characters that change the
/// direction of text (they make `gpj.exe` read as `exe.jpg`).
pub(super) fn safe(raw: &str) -> String {
    let mut name: String = raw.chars().map(|c| if is_unsafe(c) { SUBSTITUTE } else { c }).collect();
    if name.is_empty() || name == "." || name == ".." {
        name = SUBSTITUTE.to_string().repeat(name.len().max(1));
    }
    if name.len() > MAX_NAME {
        let (stem, extension) = split(&name, 0);
        name = format!("{stem}{extension}");
    }
    name
}

fn is_unsafe(c: char) -> bool {
    c == '/' || c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Splits a name into a stem and an extension, and shortens the stem so that `spare` bytes more still fit [`MAX_NAME`].
fn split(name: &str, spare: usize) -> (&str, &str) {
    let dot = name.rfind('.').filter(|dot| *dot > 0 && name.len() - dot <= MAX_EXTENSION).unwrap_or(name.len());
    let (stem, extension) = name.split_at(dot);
    (cut(stem, MAX_NAME - spare - extension.len()), extension)
}

/// Returns the longest prefix of at most `len` bytes that ends between characters.
pub(super) fn cut(text: &str, len: usize) -> &str {
    // Byte 0 is always a character boundary.
    let end = (0..=len.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    &text[..end]
}

/// Makes text printable: replaces control characters other than newline and tab, and cuts it to `len` bytes.
pub(super) fn clean_text(raw: &[u8], len: usize) -> String {
    // Cut before the conversion too, because the text may be most of a large file. A split character is cut off below.
    let head = &raw[..raw.len().min(len)];
    let text: String = String::from_utf8_lossy(head)
        .chars()
        .map(|c| if is_unsafe(c) && !matches!(c, '/' | '\n' | '\t') { SUBSTITUTE } else { c })
        .collect();
    cut(&text, len).to_owned()
}

/// Renames files to `name (2).ext` so that no two paths are the same and no file's path is a directory of another's.
/// Directories keep their names, and so does the first file of each name. All components must be safe.
pub(super) fn make_unique(paths: &mut [Vec<String>]) {
    let mut directories = HashSet::new();
    for path in paths.iter() {
        // The parents of a known directory are known too, so the walk up ends at the first known one.
        (1..path.len()).rev().map(|depth| path[..depth].join("/")).all(|dir| directories.insert(dir));
    }
    let mut taken = HashSet::with_capacity(paths.len());
    let mut clashes = Vec::new();
    for (index, path) in paths.iter().enumerate() {
        let joined = path.join("/");
        if directories.contains(&joined) || !taken.insert(joined) {
            clashes.push(index);
        }
    }
    // The number to try next, by everything else in the new name. No number is tried twice, so even a torrent in which
    // all names clash takes linear time.
    let mut next: HashMap<String, u32> = HashMap::new();
    for index in clashes {
        let Some((name, parents)) = paths[index].split_last_mut() else { continue };
        let (stem, extension) = split(name, " (4294967295)".len());
        let parent = parents.iter().map(|dir| format!("{dir}/")).collect::<String>();
        let number = next.entry(format!("{parent}{stem}/{extension}")).or_insert(2);
        let new_name = loop {
            let candidate = format!("{stem} ({number}){extension}");
            *number += 1;
            let joined = format!("{parent}{candidate}");
            if !directories.contains(&joined) && taken.insert(joined) {
                break candidate;
            }
        };
        *name = new_name;
    }
}

/// Returns the relative path from the link at `link` to `target`. Both are paths of safe components from the same root.
///
/// The kernel resolves `..` from the link's real directory. No link is a directory of another file ([`make_unique`]), so the
/// directories above the link are real ones and the result never climbs above the root.
pub(super) fn relative(link: &[String], target: &[String]) -> String {
    let parent = &link[..link.len().saturating_sub(1)];
    let common = parent.iter().zip(target).take_while(|(a, b)| a == b).count();
    let up = parent[common..].iter().map(|_| "..");
    let down = target[common..].iter().map(String::as_str);
    let steps: Vec<&str> = up.chain(down).collect();
    if steps.is_empty() { ".".to_owned() } else { steps.join("/") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_made_safe() {
        let cases = [
            ("film.mkv", "film.mkv"),
            ("\u{e9}t\u{e9} \u{1f3ac}.mkv", "\u{e9}t\u{e9} \u{1f3ac}.mkv"),
            ("", "_"),
            (".", "_"),
            ("..", "__"),
            ("...", "..."),
            ("/", "_"),
            ("abc/../../def", "abc_.._.._def"),
            ("nul\0.txt", "nul_.txt"),
            ("line\nbreak\x1b[31m", "line_break_[31m"),
            ("x\u{202e}gpj.exe", "x_gpj.exe"),
        ];
        for (raw, name) in cases {
            assert_eq!(safe(raw), name);
        }
    }

    #[test]
    fn long_names_keep_their_extension() {
        let name = safe(&format!("{}.mkv", "x".repeat(300)));
        assert_eq!(name, format!("{}.mkv", "x".repeat(251)));
        assert_eq!(safe(&"é".repeat(200)), "é".repeat(127));
        let dots = safe(&format!(".{}", "x".repeat(300)));
        assert_eq!(dots, format!(".{}", "x".repeat(254)));
        // After the dot there are too many bytes for an extension.
        assert_eq!(safe(&format!("a.{}", "x".repeat(300))), format!("a.{}", "x".repeat(253)));
    }

    #[test]
    fn text_is_cut_and_made_printable() {
        assert_eq!(clean_text(b"two\nlines \x07 http://x/", 100), "two\nlines _ http://x/");
        assert!(clean_text("é".repeat(10).as_bytes(), 5).len() <= 5);
    }

    fn paths(text: &str) -> Vec<Vec<String>> {
        text.split_whitespace().map(|path| path.split('/').map(str::to_owned).collect()).collect()
    }

    fn unique(text: &str) -> Vec<String> {
        let mut paths = paths(text);
        make_unique(&mut paths);
        paths.iter().map(|path| path.join("/")).collect()
    }

    #[test]
    fn duplicates_are_numbered() {
        assert_eq!(unique("t/a.txt t/A.txt t/a.txt t/a.txt"), ["t/a.txt", "t/A.txt", "t/a (2).txt", "t/a (3).txt"]);
        assert_eq!(unique("t/x/a u/x/a"), ["t/x/a", "u/x/a"]);
    }

    #[test]
    fn a_directory_keeps_its_name() {
        assert_eq!(unique("t/a t/a/b t/a/b/c"), ["t/a (2)", "t/a/b (2)", "t/a/b/c"]);
    }

    #[test]
    fn a_name_that_is_a_files_own_is_not_given_to_another() {
        let mut paths = vec![vec!["x".to_owned()], vec!["x".to_owned()], vec!["x (2)".to_owned()]];
        make_unique(&mut paths);
        assert_eq!(paths, [["x"], ["x (3)"], ["x (2)"]]);
    }

    #[test]
    fn long_duplicates_stay_within_the_limit() {
        let mut paths = vec![vec![safe(&"x".repeat(255))]; 3];
        make_unique(&mut paths);
        assert_ne!(paths[1], paths[2]);
        assert!(paths.iter().all(|path| path[0].len() <= MAX_NAME));
    }

    #[test]
    fn links_are_relative_to_their_directory() {
        let from_to = |link: &str, target: &str| relative(&paths(link)[0], &paths(target)[0]);
        assert_eq!(from_to("t/a", "t/b/c"), "b/c");
        assert_eq!(from_to("t/x/y/a", "t/b/c"), "../../b/c");
        assert_eq!(from_to("t/x/a", "t/x/b"), "b");
        assert_eq!(from_to("t/x/a", "t/x"), ".");
        assert_eq!(from_to("t/x/a", "t"), "..");
        assert_eq!(from_to("t/a", "t/a"), "a");
    }

    proptest! {
        #[test]
        fn every_name_is_safe(raw in proptest::collection::vec(any::<u8>(), 0..600)) {
            let name = safe(&String::from_utf8_lossy(&raw));
            prop_assert!(!name.is_empty() && name != "." && name != "..");
            prop_assert!(name.len() <= MAX_NAME);
            prop_assert!(!name.chars().any(|c| c == '/' || c.is_control()));
            prop_assert_eq!(safe(&name), name);
        }

        #[test]
        fn paths_become_unique(
            mut paths in proptest::collection::vec(
                proptest::collection::vec(proptest::sample::select(vec!["a", "b", "a (2)", "a.b"]), 1..4), 0..30,
            ).prop_map(|paths| paths.into_iter().map(|p| p.into_iter().map(str::to_owned).collect()).collect::<Vec<Vec<String>>>())
        ) {
            let before = paths.clone();
            make_unique(&mut paths);
            let files: HashSet<_> = paths.iter().cloned().collect();
            prop_assert_eq!(files.len(), paths.len());
            for (path, old) in paths.iter().zip(&before) {
                prop_assert_eq!(&path[..path.len() - 1], &old[..old.len() - 1]);
                for depth in 1..path.len() {
                    prop_assert!(!files.contains(&path[..depth]), "{:?} is a file and a directory", &path[..depth]);
                }
            }
        }

        #[test]
        fn a_link_leads_to_its_target_and_never_above_the_root(
            link in proptest::collection::vec("[ab]", 1..5),
            target in proptest::collection::vec("[ab]", 1..5),
        ) {
            let mut at = link[..link.len() - 1].to_vec();
            for step in relative(&link, &target).split('/') {
                match step {
                    "." => {}
                    ".." => prop_assert!(at.pop().is_some()),
                    name => at.push(name.to_owned()),
                }
            }
            prop_assert_eq!(at, target);
        }
    }
}
