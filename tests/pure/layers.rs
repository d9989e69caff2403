//! The structure of the source: each module imports what the map in `lib.rs` says, and no files import each other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::source_graph::{Crate, Import, Sources, cycles, read_sources};

/// Paths that do I/O, read the clock, or draw random numbers that no seed repeats.
const BANNED: [&[&str]; 9] = [
    &["tokio"],
    &["reqwest"],
    &["std", "fs"],
    &["TcpStream"],
    &["TcpListener"],
    &["UdpSocket"],
    &["Instant", "now"],
    &["SystemTime", "now"],
    &["rand", "rng"],
];

fn sources() -> Sources {
    read_sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
}

// ---- the checks

/// Reads the table of `lib.rs`: the modules from top to bottom, and what the column `imports` allows each.
fn map(lib: &str) -> Vec<(String, BTreeSet<String>)> {
    let cells = |line: &str| -> Vec<String> {
        let row = line.trim_start_matches("//!").trim().trim_matches('|');
        row.split('|').map(|cell| cell.trim().replace(['[', ']', '`'], "")).collect()
    };
    let mut rows = lib.lines().filter(|line| line.starts_with("//! |")).map(cells);
    let head = rows.next().expect("lib.rs has a map");
    let column = head.iter().position(|name| name == "imports").expect("the map has a column of imports");
    rows.filter(|row| !row[0].starts_with("--"))
        .map(|row| {
            let allowed = row[column].split(", ").filter(|name| *name != "nothing").map(str::to_owned).collect();
            (row[0].clone(), allowed)
        })
        .collect()
}

/// Compares the map with the imports. Returns one line per difference.
fn check_map(map: &[(String, BTreeSet<String>)], imports: &BTreeSet<Import>) -> Vec<String> {
    let mut faults = Vec::new();
    let mut found: BTreeMap<&str, BTreeMap<&str, &str>> = BTreeMap::new();
    for Import { from_file, from_module, to_module, .. } in imports {
        if !from_module.is_empty() && from_module != to_module {
            found.entry(from_module).or_default().insert(to_module, from_file);
        }
    }
    let level = |name: &str| map.iter().position(|(module, _)| module == name);
    for module in found.keys().filter(|module| level(module).is_none()) {
        faults.push(format!("{module} is not in the map"));
    }
    for (at, (module, allowed)) in map.iter().enumerate() {
        let found = found.remove(module.as_str()).unwrap_or_default();
        for (import, file) in found.iter().filter(|(import, _)| !allowed.contains(**import)) {
            faults.push(format!("{file} imports {import}, which the map does not allow {module}"));
        }
        for import in allowed {
            if !found.contains_key(import.as_str()) {
                faults.push(format!("the map allows {module} to import {import}, but it does not"));
            }
            if level(import).is_none_or(|below| below <= at) {
                faults.push(format!("the map allows {module} to import {import}, which is not below it"));
            }
        }
    }
    faults
}

/// Returns one line per group of files that import each other, with the imports between them.
fn check_cycles(imports: &BTreeSet<Import>) -> Vec<String> {
    let describe = |group: &Vec<String>| {
        let inside = |import: &&Import| group.contains(&import.from_file) && group.contains(&import.to_file);
        let edges: BTreeSet<_> = imports
            .iter()
            .filter(inside)
            .map(|import| format!("{} imports {}", import.from_file, import.to_file))
            .collect();
        edges.into_iter().collect::<Vec<_>>().join(", ")
    };
    cycles(imports).iter().map(describe).collect()
}

// ---- the crate

#[test]
fn imports_point_down() {
    let sources = sources();
    let (map, imports) = (map(&sources["lib.rs"]), Crate::parse(&sources).imports());
    assert!(imports.len() > 500, "only {} imports were found", imports.len());
    let faults = check_map(&map, &imports);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_module_is_in_the_map() {
    let sources = sources();
    let listed: BTreeSet<_> = map(&sources["lib.rs"]).into_iter().map(|(module, _)| module).collect();
    let present: BTreeSet<_> = sources.keys().filter_map(|file| Some(file.split_once('/')?.0.to_owned())).collect();
    assert_eq!(listed, present);
}

#[test]
fn no_files_import_each_other() {
    let faults = check_cycles(&Crate::parse(&sources()).imports());
    assert!(faults.is_empty(), "files import each other: {faults:#?}");
}

#[test]
fn pure_layers_do_no_io() {
    let krate = Crate::parse(&sources());
    for layer in ["metainfo", "wire", "swarm"] {
        let paths = krate.foreign_paths(layer);
        assert!(paths.len() > 10, "{layer}: only {} paths were found", paths.len());
        for (file, path) in paths {
            let words: Vec<&str> = path.split("::").collect();
            for banned in BANNED {
                assert!(!words.windows(banned.len()).any(|part| part == banned), "{file} uses {path}");
            }
        }
    }
}

// ---- the checks themselves

fn made_up(files: &[(&str, &str)]) -> BTreeSet<Import> {
    let sources = files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    Crate::parse(&sources).imports()
}

fn edges(imports: &BTreeSet<Import>) -> Vec<(&str, &str)> {
    imports.iter().map(|import| (import.from_file.as_str(), import.to_file.as_str())).collect()
}

#[test]
fn a_cycle_is_found_through_re_exports_and_inline_paths() {
    let imports = made_up(&[
        ("lib.rs", "mod a;"),
        ("a/mod.rs", "mod b; mod c; mod d; pub use b::{B, Other as Alias}; pub use c::*;"),
        ("a/b.rs", "use super::C; pub struct B; pub enum Other { X }"),
        ("a/c.rs", "pub struct C; fn f() { super::d::g::<u8>(); }"),
        ("a/d.rs", "use std::fmt; pub fn g<T>() -> fmt::Result { let x = super::Alias::X; Ok(()) }"),
    ]);
    assert_eq!(edges(&imports), [("a/b.rs", "a/c.rs"), ("a/c.rs", "a/d.rs"), ("a/d.rs", "a/b.rs")]);
    let faults = check_cycles(&imports);
    assert_eq!(faults, ["a/b.rs imports a/c.rs, a/c.rs imports a/d.rs, a/d.rs imports a/b.rs"]);
}

#[test]
fn a_parent_that_uses_a_child_that_uses_it_is_a_cycle() {
    let imports = made_up(&[
        ("lib.rs", "mod a;"),
        ("a/mod.rs", "mod b; pub struct Shared; fn run() { b::run() }"),
        ("a/b.rs", "use super::Shared; pub fn run() {}"),
    ]);
    assert_eq!(check_cycles(&imports), ["a/b.rs imports a/mod.rs, a/mod.rs imports a/b.rs"]);
}

#[test]
fn names_that_a_glob_brings_in_are_imports() {
    let imports = made_up(&[
        ("lib.rs", "mod a;"),
        ("a.rs", "mod b; mod c; use std::fmt; pub struct A;"),
        ("a/b.rs", "use super::*; fn f(of: &A) -> fmt::Result { c::f() }"),
        ("a/c.rs", "pub fn f() {}"),
    ]);
    assert_eq!(edges(&imports), [("a/b.rs", "a.rs"), ("a/b.rs", "a/c.rs")]);
}

#[test]
fn tests_comments_and_strings_are_no_imports() {
    let imports = made_up(&[
        ("lib.rs", "mod a; mod b;"),
        (
            "a.rs",
            r####"
            //! crate::b::B
            /* crate::b /* nested */ crate::b::B */
            const TEXT: &str = "crate::b::B \" crate::b";
            const RAW: &str = r#"crate::b" crate::b::B"#;
            const QUOTE: char = '"';
            pub(in crate::b) struct Hidden(pub(in crate::b) u8);
            fn f<'a>(x: &'a str) -> char { '\'' }
            #[cfg(test)]
            #[allow(unused)]
            use crate::b::{B, C};
            #[cfg(test)]
            mod tests { use crate::b::B; }
            #[cfg(test)]
            mod more;
            "####,
        ),
        ("b.rs", "pub struct B;"),
    ]);
    assert_eq!(edges(&imports), []);
}

#[test]
fn a_forbidden_import_and_an_allowance_without_use_are_found() {
    let lib = "
//! | module | owns | imports |
//! |---|---|---|
//! | [`high`] | everything | low |
//! | [`middle`] | something | high, low |
//! | `low` | a bit | nothing |
mod high; mod middle; mod low;";
    let imports = made_up(&[
        ("lib.rs", lib),
        ("high.rs", "use crate::{middle::{self, M}, low::L};"),
        ("middle.rs", "pub struct M;"),
        ("low.rs", "mod deep; pub struct L;"),
        ("low/deep.rs", "use super::super::middle::M;"),
    ]);
    let faults = check_map(&map(lib), &imports);
    assert_eq!(
        faults,
        [
            "high.rs imports middle, which the map does not allow high",
            "the map allows middle to import high, but it does not",
            "the map allows middle to import high, which is not below it",
            "the map allows middle to import low, but it does not",
            "low/deep.rs imports middle, which the map does not allow low",
        ]
    );
}
