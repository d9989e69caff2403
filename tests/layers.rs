//! Imports point down the map in `lib.rs`, never up.

use std::fs;
use std::path::{Path, PathBuf};

/// Lowest first. A module may import itself and what stands before it.
const LAYERS: [&str; 18] = [
    "sys",
    "metainfo",
    "payload",
    "wire",
    "swarm",
    "store",
    "route",
    "discovery",
    "portmap",
    "tracker",
    "net",
    "webseed",
    "session",
    "fs",
    "library",
    "control",
    "web",
    "cli",
];

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push(path);
        }
    }
}

/// A source file without its tests, which may use what they like.
fn code(file: &Path) -> String {
    if file.ends_with("tests.rs") {
        return String::new();
    }
    let text = fs::read_to_string(file).unwrap();
    text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned()
}

/// Every `crate::module` that a line of code names (`use crate::{a, b}` is not written in this project).
fn imports(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| line.split("crate::").skip(1))
        .map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or(""))
}

#[test]
fn imports_point_down() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut seen = 0;
    for (level, layer) in LAYERS.iter().enumerate() {
        let mut files = Vec::new();
        sources(&src.join(layer), &mut files);
        assert!(!files.is_empty(), "no source in {layer}");
        for file in files {
            for import in imports(&code(&file)) {
                let target = LAYERS.iter().position(|name| *name == import);
                let target = target.unwrap_or_else(|| panic!("{}: crate::{import} is no layer", file.display()));
                assert!(target <= level, "{}: {layer} imports {import}, which is above it", file.display());
                seen += 1;
            }
        }
    }
    assert!(seen > 20, "the check reads imports");
}

#[test]
fn pure_layers_do_no_io() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for layer in ["metainfo", "wire", "swarm"] {
        let mut files = Vec::new();
        sources(&src.join(layer), &mut files);
        for file in files {
            let code = code(&file);
            for banned in
                ["tokio::", "std::fs", "std::net::Tcp", "Instant::now", "SystemTime::now", "rand::rng()", "reqwest"]
            {
                assert!(!code.contains(banned), "{} uses {banned}", file.display());
            }
        }
    }
}
