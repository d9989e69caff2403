use super::super::shards::SHARDS;
use super::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::collections::HashSet;
use std::time::Duration;

const NOW: u32 = 10_000;

fn limits() -> Limits {
    Limits {
        torrents: 2,
        peers: 8,
        response_peers: 3,
        interval: Duration::from_secs(60),
        host_peers: 12,
        host_peers_of_torrent: 10,
        ..Limits::default()
    }
}

fn peer(torrent: u8, port: u16, seed: bool) -> Announce {
    Announce {
        info_hash: InfoHash([torrent; 20]),
        addr: ([127, 0, 0, 1], port).into(),
        seed,
        event: Event::Present,
        want: 50,
        both_families: true,
    }
}

/// A table with the time and the random numbers that it gets.
struct Harness(Table, u32, StdRng);

impl Harness {
    fn new(limits: Limits) -> Self {
        let mut rng = StdRng::seed_from_u64(1);
        Self(Table::new(limits, &mut rng), NOW, rng)
    }

    fn announce(&mut self, announce: &Announce) -> Result<AnnounceResponse, Full> {
        let mut response = AnnounceResponse { v4: b"left over".to_vec(), ..AnnounceResponse::default() };
        self.0.announce(self.1, announce, &mut self.2, &mut response).map(|()| response)
    }

    fn ports(&mut self, announce: &Announce) -> HashSet<u16> {
        let response = self.announce(announce).unwrap();
        let port = |peer: &[u8]| u16::from_be_bytes(*peer.last_chunk().unwrap());
        response.v4.chunks(6).map(port).chain(response.v6.chunks(18).map(port)).collect()
    }

    fn sweep(&mut self) {
        (0..SHARDS).for_each(|nth| self.0.sweep(nth, self.1));
        // The totals agree with the contents.
        let (mut torrents, mut peers, mut seeders) = (0, 0, 0);
        for nth in 0..SHARDS {
            self.0.visit(nth, |_, torrent| {
                torrents += 1;
                peers += torrent.counts().1;
                seeders += torrent.counts().0;
            });
        }
        let counts = self.0.counts();
        assert_eq!((counts.torrents, counts.seeders + counts.leechers, counts.seeders), (torrents, peers, seeders));
        assert_eq!(self.0.hosts.total() as usize, peers);
    }
}

#[test]
fn a_peer_without_a_port_gets_peers_and_is_given_to_none() {
    let mut table = Harness::new(limits());
    table.announce(&peer(1, 5, true)).unwrap();
    let response = table.announce(&peer(1, 0, false)).unwrap();
    assert!(!response.unlisted && response.v4 == [127, 0, 0, 1, 0, 5]);
    assert!(table.ports(&peer(1, 6, false)) == HashSet::from([5]));
    table.announce(&Announce { event: Event::Stopped, ..peer(1, 0, false) }).unwrap();
    // It takes up no memory.
    table.announce(&peer(2, 0, false)).unwrap();
    assert_eq!((table.0.counts().torrents, table.0.counts().leechers), (1, 1));
    table.sweep();
}

/// Guards the memory of a million torrents with one IPv6 peer each, documented as less than 200 MiB: these sizes and the
/// overhead of the allocator, times a million.
#[test]
fn a_torrent_of_one_peer_is_small() {
    assert_eq!(size_of::<(InfoHash, Torrent)>(), 48);
    assert!(size_of::<Peers<6>>() <= 40 && size_of::<Peers<18>>() <= 40);
}

#[test]
fn peers_meet_and_seeds_are_returned_to_everyone() {
    let mut harness = Harness::new(limits());
    assert!(harness.ports(&peer(1, 1, true)).is_empty());
    // It may be a client that fetches the metadata of a magnet link, and says that nothing is left.
    assert_eq!(harness.ports(&peer(1, 2, true)), HashSet::from([1]));
    assert_eq!(harness.ports(&peer(1, 3, false)), HashSet::from([1, 2]));
    assert_eq!(harness.ports(&peer(1, 1, true)), HashSet::from([2, 3]));
    assert_eq!(harness.ports(&Announce { want: 1, ..peer(1, 1, true) }), HashSet::from([3]), "leechers come first");
    assert!(harness.ports(&peer(2, 4, false)).is_empty());
    let response = harness.announce(&peer(1, 3, false)).unwrap();
    assert_eq!((response.seeders, response.leechers), (2, 1));
    harness.sweep();
}

#[test]
fn address_families_mix_on_request() {
    let mut harness = Harness::new(limits());
    let v6 = |port: u16| Announce { addr: ([0x2001, 0, 0, 0, 0, 0, 0, 1], port).into(), ..peer(1, 0, false) };
    harness.announce(&v6(1)).unwrap();
    assert_eq!(harness.ports(&peer(1, 2, false)), HashSet::from([1]));
    assert_eq!(harness.ports(&v6(3)), HashSet::from([1, 2]));
    assert_eq!(harness.ports(&Announce { both_families: false, ..v6(3) }), HashSet::from([1]));
    // Peers of the client's own family come first.
    harness.announce(&v6(4)).unwrap();
    harness.announce(&v6(5)).unwrap();
    assert_eq!(harness.ports(&v6(3)), HashSet::from([1, 4, 5]));
    assert_eq!(harness.announce(&v6(3)).unwrap().leechers, 5);
    harness.1 += 121;
    harness.sweep();
    assert_eq!(harness.0.counts(), Counts::default());
}

#[test]
fn a_leecher_becomes_a_seed_and_leaves() {
    let mut harness = Harness::new(limits());
    harness.announce(&peer(1, 1, false)).unwrap();
    assert_eq!(harness.announce(&peer(1, 1, true)).unwrap().seeders, 1);
    let stopped = Announce { event: Event::Stopped, ..peer(1, 1, true) };
    assert_eq!(harness.announce(&stopped), Ok(AnnounceResponse::default()));
    assert_eq!(harness.0.counts(), Counts::default());
    assert!(harness.ports(&peer(1, 2, false)).is_empty());
    // `stopped` for an unknown torrent does not add it.
    assert_eq!(
        harness.announce(&Announce { event: Event::Stopped, ..peer(9, 1, true) }),
        Ok(AnnounceResponse::default())
    );
    assert_eq!(harness.0.counts().torrents, 1);
}

#[test]
fn a_completed_download_is_counted_once_and_remembered() {
    let mut harness = Harness::new(limits());
    let done = Announce { event: Event::Completed, ..peer(1, 1, true) };
    harness.announce(&peer(1, 1, false)).unwrap();
    harness.announce(&done).unwrap();
    harness.announce(&done).unwrap();
    // A leecher that sends `completed` is not counted.
    harness.announce(&Announce { event: Event::Completed, ..peer(1, 2, false) }).unwrap();
    assert_eq!(harness.0.scrape(&InfoHash([1; 20])), ScrapeCounts { seeders: 1, leechers: 1, completed: 1 });
    assert_eq!(harness.0.scrape(&InfoHash([2; 20])), ScrapeCounts::default());
    harness.1 += 1000;
    harness.sweep();
    assert_eq!(harness.0.scrape(&InfoHash([1; 20])), ScrapeCounts { completed: 1, ..ScrapeCounts::default() });
    // The count is dropped when the table is full: some shard holds nothing else.
    harness.announce(&peer(2, 1, false)).unwrap();
    for n in 3..=255u16 {
        if harness.announce(&peer(n as u8, 1, false)).is_ok() && harness.0.scrape(&InfoHash([1; 20])).completed == 0 {
            return;
        }
        harness.1 += 10;
    }
    panic!("the count is never dropped");
}

#[test]
fn responses_are_bounded() {
    let mut harness = Harness::new(limits());
    for port in 1..=8 {
        harness.announce(&peer(1, port, false)).unwrap();
    }
    assert_eq!(harness.ports(&peer(1, 1, false)).len(), 3);
    assert!(harness.ports(&Announce { want: 0, ..peer(1, 1, false) }).is_empty());
}

#[test]
fn peers_are_bounded_but_all_get_a_response() {
    let by_host = Limits { peers: 100, host_peers_of_torrent: 8, ..limits() };
    let by_host_in_all = Limits { peers: 100, host_peers: 8, ..limits() };
    for limits in [limits(), by_host, by_host_in_all] {
        let mut harness = Harness::new(limits);
        for port in 1..=20 {
            let response = harness.announce(&peer(1, port, false)).unwrap();
            assert_eq!((response.leechers, response.unlisted), (usize::from(port).min(8), port > 8));
            assert_eq!(response.v4.len() / 6, 3.min(usize::from(port) - 1));
        }
        // A known peer can still change its role, and one that leaves makes room.
        assert_eq!(harness.announce(&peer(1, 1, true)).unwrap().seeders, 1);
        harness.announce(&Announce { event: Event::Stopped, ..peer(1, 1, true) }).unwrap();
        assert!(!harness.announce(&peer(1, 9, false)).unwrap().unlisted);
        harness.sweep();
    }
}

#[test]
fn one_host_cannot_keep_others_out() {
    let mut harness = Harness::new(Limits { peers: 100, host_peers_of_torrent: 2, host_peers: 3, ..limits() });
    for port in 1..100 {
        harness.announce(&peer(1, port, false)).unwrap();
    }
    let other = Announce { addr: ([10, 0, 0, 1], 1).into(), ..peer(1, 0, false) };
    assert_eq!(harness.announce(&other).unwrap().leechers, 3);
    assert!(!harness.announce(&peer(2, 1, false)).unwrap().unlisted);
    // The host's fourth peer is not recorded, and no torrent is added for it.
    let mut more = harness;
    more.announce(&Announce { event: Event::Stopped, ..peer(1, 1, false) }).unwrap();
    more.announce(&peer(2, 2, false)).unwrap();
    assert!(more.announce(&peer(2, 3, false)).unwrap().unlisted);
    more.sweep();
}

#[test]
fn torrents_are_bounded_and_silent_peers_forgotten() {
    let mut harness = Harness::new(limits());
    harness.announce(&peer(1, 1, false)).unwrap();
    harness.announce(&peer(2, 1, false)).unwrap();
    assert_eq!(harness.announce(&peer(3, 1, false)), Err(Full));
    harness.1 += 120;
    harness.announce(&peer(2, 2, false)).unwrap();
    harness.1 += 1;
    harness.sweep();
    assert!(harness.announce(&peer(3, 1, false)).is_ok());
    assert_eq!(harness.ports(&peer(2, 3, false)), HashSet::from([2]));
}

#[test]
fn torrents_that_are_no_longer_served_are_dropped() {
    let mut harness = Harness::new(limits());
    harness.announce(&peer(1, 1, false)).unwrap();
    harness.announce(&peer(2, 1, true)).unwrap();
    (0..SHARDS).for_each(|nth| harness.0.retain(nth, |info_hash| info_hash.0[0] == 1));
    harness.sweep();
    assert_eq!(harness.0.counts(), Counts { torrents: 1, leechers: 1, ..Counts::default() });
}
