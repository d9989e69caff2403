//! The table of results in the README.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::{Role, Way};

const BEGIN: &str = "<!-- Written by the test `matrix`. -->\n";
const END: &str = "<!-- End of the table. -->\n";

/// The result of a cell.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    Passed,
    /// The client does not support it, for this reason.
    Unsupported(&'static str),
    Failed(String),
}

/// The results of one client.
pub struct Row {
    pub client: &'static str,
    /// For each way, the client as a seeder and as a leecher.
    pub cells: Vec<(Way, [Verdict; 2])>,
}

impl Row {
    /// Describes the cells that failed.
    pub fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        for (way, verdicts) in &self.cells {
            for (verdict, role) in verdicts.iter().zip([Role::Seed, Role::Leech]) {
                if let Verdict::Failed(why) = verdict {
                    failures.push(format!("{} as {role:?}, {}: {why}", self.client, way.title()));
                }
            }
        }
        failures
    }

    fn markdown(&self) -> String {
        let symbol = |[seed, leech]: &[Verdict; 2]| match (seed == &Verdict::Passed, leech == &Verdict::Passed) {
            (true, true) => "⇄",
            (true, false) => "↓",
            (false, true) => "↑",
            (false, false) => "–",
        };
        let cells: Vec<&str> = self.cells.iter().map(|(_, verdicts)| symbol(verdicts)).collect();
        format!("| {} | {} |\n", self.client, cells.join(" | "))
    }

    /// Describes what the client does not support: for each reason, the ways.
    fn reasons(&self) -> Option<String> {
        let mut ways: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (way, verdicts) in &self.cells {
            for verdict in verdicts {
                let Verdict::Unsupported(why) = verdict else { continue };
                let titles = ways.entry(why).or_default();
                if !titles.contains(&way.title()) {
                    titles.push(way.title());
                }
            }
        }
        let reasons: Vec<String> = ways.iter().map(|(why, ways)| format!("{}: {why}", ways.join(", "))).collect();
        (!reasons.is_empty()).then(|| format!("- {}: {}.\n", self.client, reasons.join("; ")))
    }
}

fn markdown(rows: &[Row]) -> String {
    let titles: Vec<&str> = Way::ALL.iter().map(|way| way.title()).collect();
    let mut text = format!("| | {} |\n|---|{}\n", titles.join(" | "), "---|".repeat(titles.len()));
    rows.iter().for_each(|row| text.push_str(&row.markdown()));
    text.push_str("\nWhere an arrow is missing:\n\n");
    rows.iter().filter_map(Row::reasons).for_each(|line| text.push_str(&line));
    text
}

/// Compares the table in the README with the results, or writes it.
pub fn compare(rows: &[Row]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = fs::read_to_string(&path).unwrap();
    let (before, rest) = readme.split_once(BEGIN).expect("the README has a place for the table");
    let (table, after) = rest.split_once(END).expect("the table has an end");
    let now = markdown(rows);
    if std::env::var_os("TORRENTFS_INTEROP").is_some_and(|value| value == "write") {
        return fs::write(&path, [before, BEGIN, &now, END, after].concat()).unwrap();
    }
    assert_eq!(table, now, "the table in the README is stale; write it anew with TORRENTFS_INTEROP=write");
}
