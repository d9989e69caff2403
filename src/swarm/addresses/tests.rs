use super::*;

fn addr(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

#[test]
fn waits_grow_and_an_address_is_dialed_once_at_a_time() {
    let mut now = Instant::now();
    let mut book = Addresses::new(1);
    book.found(now, addr(1), PeerSource::Dht);
    book.found(now, addr(1), PeerSource::Dht);
    assert_eq!(book.next_to_dial(now, true), Some(addr(1)));
    assert_eq!(book.next_to_dial(now, true), None);
    let mut waits = Vec::new();
    for _ in 0..12 {
        book.failed(now, addr(1));
        let due = book.next_due().unwrap();
        waits.push((due - now).as_secs());
        now = due;
        assert_eq!(book.next_to_dial(now, true), Some(addr(1)));
    }
    assert_eq!(waits[..4], [1, 10, 20, 40]);
    assert_eq!(waits[11], 1_800);
    book.check();
}

#[test]
fn a_blocked_read_cuts_waits_short_and_still_spares_each_address() {
    let start = Instant::now();
    let mut book = Addresses::new(1);
    (1..=39).for_each(|port| book.found(start, addr(port), PeerSource::Dht));
    let dial = |book: &mut Addresses, now| -> Vec<u16> {
        let dialed: Vec<SocketAddr> = std::iter::from_fn(|| book.next_to_dial(now, true)).collect();
        dialed.iter().for_each(|addr| book.failed(now, *addr));
        dialed.iter().map(SocketAddr::port).collect()
    };
    (0..8).for_each(|round| assert_eq!(dial(&mut book, start + MAX_RETRY * round).len(), 39));
    let (now, second) = (start + MAX_RETRY * 7 + Duration::from_secs(10), Duration::from_secs(1));
    book.found(now, addr(40), PeerSource::Dht);
    assert_eq!(dial(&mut book, now), [40]);
    let hurried = |book: &mut Addresses, now| {
        book.hurry(now);
        book.check();
        dial(book, now)
    };
    let first = hurried(&mut book, now + second / 2);
    assert!(first.len() == HURRIED && !first.contains(&40), "{first:?}");
    let times: Vec<u32> = (2..60).filter(|n| hurried(&mut book, now + second * *n / 2).contains(&40)).collect();
    assert_eq!(times, [1, 3, 6, 10, 15, 20, 25].map(|seconds| 2 * seconds), "in half seconds");
}

#[test]
fn a_refused_caller_is_dialed_wherever_it_may_be() {
    let now = Instant::now();
    let mut book = Addresses::new(1);
    // Known, and unreachable so far.
    for (port, other) in [(1, addr(1)), (2, SocketAddr::from(([127, 0, 0, 2], 1)))] {
        book.found(now, other, PeerSource::Tracker);
        (0..5).for_each(|n| {
            assert_eq!(book.next_to_dial(now + MAX_RETRY * n, true), Some(other), "{port}");
            book.failed(now + MAX_RETRY * n, other);
        });
    }
    let now = now + MAX_RETRY * 4 + Duration::from_secs(10);
    book.refused(now, addr(0));
    assert_eq!(book.next_to_dial(now, true), None, "not before the caller knows that it was refused");
    let now = now + AFTER_REFUSAL;
    assert_eq!(book.next_to_dial(now, true), Some(addr(1)));
    assert_eq!(book.next_to_dial(now, true), None);
    book.refused(now, addr(7));
    book.check();
    let now = now + AFTER_REFUSAL;
    assert_eq!(book.next_to_dial(now, true), Some(addr(7)));
    book.connected(addr(7));
    book.refused(now, addr(7));
    assert_eq!(book.next_to_dial(now + AFTER_REFUSAL, true), None, "connected");
    book.check();
}

#[test]
fn a_peer_that_called_us_is_dialed_when_it_is_gone() {
    let now = Instant::now();
    let mut book = Addresses::new(1);
    book.left(now, addr(1), true, false);
    book.check();
    assert_eq!(book.next_to_dial(now, true), None);
    assert_eq!(book.next_to_dial(now + FIRST_RETRY * 2, true), Some(addr(1)));
    book.left(now, addr(1), true, false);
    assert_eq!(book.attempts().len(), 1, "known already");
    book.check();
}

#[test]
fn ports_of_one_address_are_different_peers_until_too_many_lie() {
    let now = Instant::now();
    let mut book = Addresses::new(1);
    (1..=20).for_each(|port| book.found(now, addr(port), PeerSource::Dht));
    let mut dialed: Vec<SocketAddr> = Vec::new();
    for port in 1..=5 {
        assert_eq!(book.ban(addr(port), PeerId([port as u8; 20])), port == 5);
        assert!(book.is_banned(addr(port)) && book.is_banned_id(addr(9).ip(), PeerId([port as u8; 20])));
        assert!(!book.is_banned_id([127, 0, 0, 2].into(), PeerId([port as u8; 20])), "a copied peer id");
        assert_eq!(book.is_banned(addr(19)), port == 5);
        if port == 4 {
            // At the time of the fifth ban two are connected and one is being dialed.
            dialed = std::iter::from_fn(|| book.next_to_dial(now, true)).take(3).collect();
            dialed[..2].iter().for_each(|addr| book.connected(*addr));
        }
    }
    book.check();
    book.disconnected(now, dialed[1], true, true);
    book.failed(now, dialed[2]);
    assert!(book.entries.len() <= 1 && book.next_due().is_none(), "no address there is dialed again");
    assert_eq!(book.attempts().len(), 0);
    book.check();
}

#[test]
fn is_bounded() {
    let now = Instant::now();
    let mut book = Addresses::new(1);
    (1..=3_000).for_each(|port| book.found(now, addr(port), PeerSource::Dht));
    assert_eq!(book.entries.len(), MAX_ADDRESSES);
    book.check();
}

#[test]
fn the_first_source_of_an_address_is_kept_and_local_addresses_are_dialed_first() {
    let now = Instant::now();
    let mut book = Addresses::new(1);
    let (far, web_seed) = (SocketAddr::from(([1, 2, 3, 4], 1)), SocketAddr::from(([240, 0, 0, 1], 80)));
    book.found(now, far, PeerSource::Dht);
    book.found(now, far, PeerSource::Tracker);
    book.found(now, web_seed, PeerSource::WebSeed);
    book.found(now, "[::ffff:127.0.0.1]:9".parse().unwrap(), PeerSource::Lsd);
    assert_eq!(book.source(far), PeerSource::Dht);
    assert_eq!((book.source(addr(9)), book.source(addr(8))), (PeerSource::Lsd, PeerSource::Pex));
    let order = std::iter::from_fn(|| book.next_to_dial(now, true));
    assert_eq!(order.collect::<Vec<_>>(), [addr(9), far, web_seed]);
}

#[test]
fn groups_and_networks_take_turns() {
    let now = Instant::now();
    for seed in 0..20 {
        let mut book = Addresses::new(seed);
        let of_network = |network: u8, host: u8| SocketAddr::from(([network, 1, 1, host], 6881));
        (0..200).for_each(|host| book.found(now, of_network(90, host), PeerSource::Tracker));
        book.found(now, of_network(91, 1), PeerSource::Tracker);
        book.found(now, of_network(92, 1), PeerSource::Dht);
        book.found(now, of_network(93, 1), PeerSource::Remembered);
        book.found(now, of_network(10, 1), PeerSource::Pex);
        let dialed: Vec<u8> = std::iter::from_fn(|| book.next_to_dial(now, true))
            .take(6)
            .map(|addr| if let IpAddr::V4(ip) = addr.ip() { ip.octets()[0] } else { 0 })
            .collect();
        assert_eq!(dialed[..2], [10, 93], "our own network, then what is known to be good");
        let mut others = dialed[2..5].to_vec();
        others.sort_unstable();
        assert_eq!(others, [90, 91, 92], "{dialed:?}");
        book.check();
    }
}

#[test]
fn what_failed_comes_after_what_was_never_tried_except_good_addresses() {
    let now = Instant::now();
    let mut book = Addresses::new(1);
    let far = |host: u8| SocketAddr::from(([90, 1, 1, host], 6881));
    for (host, source) in [(1, PeerSource::Tracker), (2, PeerSource::Remembered)] {
        book.found(now, far(host), source);
        assert_eq!(book.next_to_dial(now, true), Some(far(host)));
        book.failed(now, far(host));
    }
    let now = now + FIRST_RETRY;
    (3..6).for_each(|host| book.found(now, far(host), PeerSource::Tracker));
    let order: Vec<SocketAddr> = std::iter::from_fn(|| book.next_to_dial(now, true)).collect();
    assert!(order.first() != Some(&far(1)) && order.last() == Some(&far(1)), "{order:?}");
    assert!(order[..2].contains(&far(2)), "{order:?}");
}

#[test]
fn no_source_keeps_others_out_of_the_book() {
    let now = Instant::now();
    let mut book = Addresses::new(1);
    let flood = |n: u32| SocketAddr::from(([90, (n >> 16) as u8, (n >> 8) as u8, n as u8], 6881));
    (0..2_500).for_each(|n| book.found(now, flood(n), PeerSource::Dht));
    (0..50).for_each(|n| book.found(now, SocketAddr::from(([91, 1, 1, n], 6881)), PeerSource::Tracker));
    let of_tracker = book.entries.values().filter(|entry| entry.source == PeerSource::Tracker).count();
    assert_eq!((book.entries.len(), of_tracker), (MAX_ADDRESSES, 50));
    book.check();
}

#[test]
fn the_addresses_of_useful_peers_are_proven_the_latest_first() {
    let now = Instant::now();
    let mut book = Addresses::new(1);
    for (n, (source, useful)) in
        [(PeerSource::Dht, true), (PeerSource::WebSeed, true), (PeerSource::Dht, false), (PeerSource::Pex, true)]
            .into_iter()
            .enumerate()
    {
        let peer = addr(n as u16 + 1);
        book.found(now, peer, source);
        book.connected(peer);
        book.disconnected(now + FIRST_RETRY * n as u32, peer, useful, true);
    }
    assert_eq!(book.proven(), [addr(4), addr(1)]);
}
