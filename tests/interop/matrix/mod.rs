//! The interoperability matrix: every client, in every way that it supports, downloads from us and uploads to us.
//!
//! A client is a type with the trait [`Client`], in a file of its own. A *cell* is one transfer with one client in one way.
//! Each has its own directory and ports, so cells run side by side. In all of them our program connects to the client,
//! which was started before, unless the way is about how peers find each other.
//!
//! `cargo test --test interop matrix -- --ignored` runs every cell and compares the result with the table in the README;
//! with `TORRENTFS_INTEROP=write` it writes the table instead. Without `--ignored` only a few cells run.

mod cell;
mod clients;
mod segments;
mod table;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::support::*;
use cell::run_cell;
use clients::{Client, all};
use table::{Row, Verdict};

/// Number of cells that run at the same time: most of a cell is spent waiting for a client's timers.
const PARALLEL: usize = 8;
/// How often a cell that failed is repeated, when the machine has nothing else to do.
const REPEATS: usize = 1;

/// The subject of a cell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// Over TCP, in plaintext.
    Tcp,
    /// Over TCP; both sides refuse plaintext (message stream encryption with RC4).
    Mse,
    /// Over uTP; the client refuses TCP.
    Utp,
    /// The side that downloads has a magnet link, and gets the metadata from the other.
    Magnet,
    /// Both sides know one DHT node, and nothing else.
    Dht,
    /// A third peer, without data, is connected to both and exchanges their addresses.
    Pex,
    /// Pieces of 16 KiB.
    SmallPieces,
    /// Pieces of 16 MiB.
    LargePieces,
    /// Pieces of 64 MiB.
    HugePieces,
    /// 5,000 pieces.
    ManyPieces,
    /// The seeder super-seeds.
    SuperSeed,
    /// The seeder has half of the data, and never gets more.
    PartialSeed,
}

impl Way {
    const ALL: [Self; 12] = [
        Self::Tcp,
        Self::Mse,
        Self::Utp,
        Self::Magnet,
        Self::Dht,
        Self::Pex,
        Self::SmallPieces,
        Self::LargePieces,
        Self::HugePieces,
        Self::ManyPieces,
        Self::SuperSeed,
        Self::PartialSeed,
    ];

    fn title(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Mse => "MSE",
            Self::Utp => "uTP",
            Self::Magnet => "magnet",
            Self::Dht => "DHT",
            Self::Pex => "PEX",
            Self::SmallPieces => "16 KiB",
            Self::LargePieces => "16 MiB",
            Self::HugePieces => "64 MiB",
            Self::ManyPieces => "5,000 pieces",
            Self::SuperSeed => "super-seed",
            Self::PartialSeed => "partial seed",
        }
    }

    /// Returns the length of the pieces, as a power of two, and of the data, in bytes.
    fn sizes(self) -> (u32, usize) {
        match self {
            Self::SmallPieces => (14, (1 << 20) + 5),
            Self::LargePieces => (24, (33 << 20) + 5),
            Self::HugePieces => (26, (65 << 20) + 5),
            Self::ManyPieces => (14, 5_000 << 14),
            // Few, because rqbit looks for new pieces every five seconds.
            Self::SuperSeed => (18, (2 << 20) + 5),
            _ => (16, (2 << 20) + 5),
        }
    }
}

/// The part that the client has in a cell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
    /// It has the data, and we download.
    Seed,
    /// It downloads from us.
    Leech,
}

/// Returns whether these clients are installed. In CI a missing one is a failure.
fn are_installed(clients: &[Box<dyn Client>]) -> bool {
    let missing: Vec<&str> = clients.iter().filter(|client| !client.is_installed()).map(|c| c.name()).collect();
    assert!(missing.is_empty() || std::env::var_os("CI").is_none(), "missing on this machine: {missing:?}");
    if !missing.is_empty() {
        eprintln!("skipped: missing on this machine: {missing:?}");
    }
    missing.is_empty()
}

/// Runs every cell of these clients and ways, several at a time.
fn run_matrix(clients: &[Box<dyn Client>], ways: &[Way], wanted: impl Fn(&str) -> bool + Sync) -> Vec<Row> {
    let cells: Vec<(usize, usize, Role)> = (0..clients.len())
        .flat_map(|client| (0..ways.len()).map(move |way| (client, way)))
        .flat_map(|(client, way)| [(client, way, Role::Seed), (client, way, Role::Leech)])
        .collect();
    let verdicts: Mutex<Vec<Option<Verdict>>> = Mutex::new(vec![None; cells.len()]);
    let run = |index: usize| {
        let (client, way, role) = cells[index];
        let (client, way) = (&*clients[client], ways[way]);
        let begin = Instant::now();
        let verdict = match client.cannot(way, role) {
            _ if !wanted(&format!("{} {} {role:?}", client.name(), way.title())) => Verdict::Unsupported("left out"),
            Some(why) => Verdict::Unsupported(why),
            None => match run_cell(client, way, role) {
                Ok(()) => Verdict::Passed,
                Err(why) => Verdict::Failed(why),
            },
        };
        let outcome = match &verdict {
            Verdict::Unsupported(_) => None,
            Verdict::Passed => Some("passed"),
            Verdict::Failed(why) => Some(why.as_str()),
        };
        if let Some(outcome) = outcome {
            println!("{} {} {role:?}, {:.1?}: {outcome}", client.name(), way.title(), begin.elapsed());
        }
        verdicts.lock().unwrap()[index] = Some(verdict);
    };
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..PARALLEL {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= cells.len() {
                        return;
                    }
                    run(index);
                }
            });
        }
    });
    for _ in 0..REPEATS {
        let failed: Vec<usize> = {
            let verdicts = verdicts.lock().unwrap();
            (0..cells.len()).filter(|n| matches!(verdicts[*n], Some(Verdict::Failed(_)))).collect()
        };
        failed.into_iter().for_each(run);
    }
    let mut verdicts = verdicts.into_inner().unwrap().into_iter().flatten();
    let mut rows = Vec::new();
    for client in clients {
        let cells = ways.iter().map(|way| (*way, [verdicts.next().unwrap(), verdicts.next().unwrap()])).collect();
        rows.push(Row { client: client.name(), cells });
    }
    rows
}

/// Panics with every cell that failed.
fn assert_passed(rows: &[Row]) {
    let failures: Vec<String> = rows.iter().flat_map(Row::failures).collect();
    assert!(failures.is_empty(), "{} cells failed:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn every_client_uploads_to_us_and_downloads_from_us() {
    let clients = all();
    if !can_run(&[]) || !are_installed(&clients) {
        return;
    }
    let _turn = turn();
    assert_passed(&run_matrix(&clients, &[Way::Tcp, Way::SuperSeed], |_| true));
}

/// The whole matrix. With `TORRENTFS_INTEROP_ONLY` only cells whose client, way and role contain that text run, as in
/// `aria2 1.36 magnet Leech`.
#[test]
#[ignore = "every client in every way: some minutes"]
fn every_cell_of_the_table_in_the_readme() {
    let only = std::env::var("TORRENTFS_INTEROP_ONLY").ok();
    let mut clients = all();
    clients
        .retain(|client| only.as_ref().is_none_or(|only| only.contains(client.name()) || client.name().contains(only)));
    if !can_run(&[]) || !are_installed(&clients) {
        return;
    }
    let _turn = turn();
    let rows = run_matrix(&clients, &Way::ALL, |cell| only.as_ref().is_none_or(|only| cell.contains(only)));
    assert_passed(&rows);
    if only.is_none() {
        table::compare(&rows);
    }
}
