//! Random steps on the store and on a naive model of it, with the same results.

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Put(u32),
    Read(u32),
    Peek(u32),
    Pin(u32, u32),
    Round,
    Close,
    Crash,
    Hint,
}

fn open_or_create_dir() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0u32..24).prop_map(Step::Put),
        6 => (0u32..24).prop_map(Step::Read),
        2 => (0u32..24).prop_map(Step::Peek),
        2 => (0u32..24, 0u32..5).prop_map(|(from, len)| Step::Pin(from, from + len)),
        1 => Just(Step::Round),
        1 => Just(Step::Close),
        1 => Just(Step::Crash),
        1 => Just(Step::Hint),
    ]
}

/// A naive store: the last use of each present piece.
#[derive(Default)]
struct Model {
    clock: u64,
    have: BTreeMap<u32, u64>,
    pinned: BTreeSet<u32>,
}

impl Model {
    fn use_piece(&mut self, n: u32) {
        self.clock += 1;
        self.have.insert(n, self.clock);
    }

    fn make_room(&mut self, len_of: &dyn Fn(u32) -> u64, len: u64, limit: u64) -> Vec<u32> {
        let mut evicted = Vec::new();
        while self.have.keys().map(|n| len_of(*n)).sum::<u64>() + len > limit {
            let oldest = self.have.iter().filter(|(n, _)| !self.pinned.contains(n)).min_by_key(|(_, used)| **used);
            let Some(n) = oldest.map(|(n, _)| *n) else { break };
            self.have.remove(&n);
            evicted.push(n);
        }
        evicted
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Without a memory tier, the store has exactly the pieces of the naive model, through restarts and crashes.
    #[test]
    fn the_disk_tier_is_an_lru_of_pieces(steps in prop::collection::vec(open_or_create_dir(), 1..80), limit in 4u64..30) {
        let dir = tempfile::tempdir().unwrap();
        let sample = Sample::new(1, 700, &[3000, 1234, 166, 5000, 1, 2, 6000]);
        let pieces = sample.lengths.pieces();
        let limit = limit * 700;
        let len_of = |n: u32| sample.content(n).len() as u64;
        let mut cache = open(dir.path(), Some(limit), 0);
        let (mut store, mut evicted) = add(&cache, &sample);
        let mut model = Model::default();
        for step in steps {
            lock(&evicted).clear();
            let mut expected = Vec::new();
            match step {
                Step::Put(n) if n < pieces && !model.have.contains_key(&n) => {
                    let pinned = model.pinned.contains(&n);
                    expected = model.make_room(&len_of, len_of(n), limit);
                    let fits = model.have.keys().map(|n| len_of(*n)).sum::<u64>() + len_of(n) <= limit;
                    sample.put(&store, n);
                    if fits || pinned {
                        model.use_piece(n);
                    } else {
                        // It stays in memory until the next piece arrives, which is not the disk tier's concern.
                        cache.memory.remove((cache_torrent(&cache).pieces.id, sample.piece(n)));
                        cache_torrent(&cache).pieces.advance(sample.piece(n), pieces::State::Memory, pieces::State::Missing);
                    }
                }
                Step::Put(n) if n < pieces => sample.put(&store, n),
                Step::Read(n) if n < pieces => {
                    prop_assert_eq!(sample.reads(&store, n), model.have.contains_key(&n));
                    if model.have.contains_key(&n) {
                        model.use_piece(n);
                    }
                }
                Step::Peek(n) if n < pieces => {
                    let mut out = vec![0; len_of(n) as usize];
                    let lookup = store.peek(sample.piece(n), 0, &mut out).unwrap();
                    prop_assert_eq!(lookup == Lookup::Hit, model.have.contains_key(&n));
                    prop_assert!(lookup == Lookup::Missing || out == sample.content(n));
                }
                Step::Pin(from, to) => {
                    store.pin(vec![from..to]);
                    let now: BTreeSet<u32> = (from..to.min(pieces)).collect();
                    let before = std::mem::replace(&mut model.pinned, now.clone());
                    for n in before.difference(&now) {
                        if model.have.contains_key(n) {
                            model.use_piece(*n);
                        }
                    }
                }
                Step::Round => {
                    expected = model.make_room(&len_of, 0, limit);
                    cache.maintain(Instant::now());
                }
                Step::Hint => {
                    store.flush();
                }
                Step::Close => {
                    cache.close();
                    cache = open(dir.path(), Some(limit), 0);
                    (store, evicted) = add(&cache, &sample);
                    model.pinned.clear();
                }
                Step::Crash => {
                    drop(store);
                    drop(cache);
                    cache = open(dir.path(), Some(limit), 0);
                    (store, evicted) = add(&cache, &sample);
                    // The pieces that the state claims, which may have been evicted since.
                    let claimed: BTreeSet<u32> = have(&store).into_iter().map(|n| n as u32).collect();
                    model.pinned.clear();
                    let before = std::mem::take(&mut model.have);
                    for n in 0..pieces {
                        let there = sample.reads(&store, n);
                        prop_assert!(!there || claimed.contains(&n));
                        prop_assert!(there || !before.contains_key(&n), "piece {} was on the disk", n);
                        if there {
                            model.use_piece(n);
                        }
                    }
                    lock(&evicted).clear();
                }
                _ => {}
            }
            let mut had: Vec<u32> = model.have.keys().copied().collect();
            had.sort_unstable();
            prop_assert_eq!(store.have().ones().map(|n| n as u32).collect::<Vec<_>>(), had);
            prop_assert_eq!(&*lock(&evicted), &expected);
            prop_assert_eq!(cache.usage().disk, model.have.keys().map(|n| len_of(*n)).sum::<u64>());
            let memory = cache.usage().memory;
            prop_assert!(memory <= 700 + 256, "{} bytes in a tier that holds only the newest piece", memory);
        }
        for n in 0..pieces {
            prop_assert_eq!(sample.reads(&store, n), model.have.contains_key(&n));
        }
    }
}
