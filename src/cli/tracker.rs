//! `torrentfs tracker`: runs a BitTorrent tracker.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tokio::runtime;

use super::failure::{Exit, Failure};
use super::flags::values::duration;
use super::log::{self, Verbosity};
use super::runtime::Signals;
use super::text::count;
use crate::sys::process::raise_descriptor_limit;
use crate::tracker::{Config, Counts, DEFAULT_PORT, Limits, Tracker};

/// Time that requests in progress get to finish at the end.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum number of slow connections, if the limit on file descriptors allows it. Enough for some ten thousand announces
/// per second from distant clients.
const MAX_CONNECTIONS: u64 = 4000;
/// File descriptors for everything but slow connections.
const OTHER_DESCRIPTORS: u64 = 200;
/// Addresses reserved for documentation (RFC 5737, 3849). They are routed like any address in the Internet.
const FAR_V4: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 9));
const FAR_V6: SocketAddr = SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 9, 0, 0));
/// Shortest announce interval: responses carry whole seconds.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// Longest announce interval. With a longer one, peers that left would be returned for days.
const MAX_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

const DESCRIPTION: &str = "\
The tracker keeps the addresses of each torrent's peers and returns them to
other peers. It answers HTTP and UDP requests on the same port. Put one of its
announce URLs into a torrent: http://HOST:6969/announce or udp://HOST:6969. To
be reached through a router, forward the port there, for TCP and UDP.

The command stays in the foreground until Ctrl-C or SIGTERM. SIGHUP makes it
read the lists of --allow and --torrents again. If a list cannot be read then,
the previous one stays in force.";

const SECTIONS: &str = "\
Paths over HTTP:
  /announce, /scrape  for BitTorrent clients
  /                   status page
  /metrics            metrics for Prometheus
Neither the page nor the metrics name torrents, unless --show-torrents is given.

Addresses:
  The address of a peer is the one its request comes from. Behind a reverse
  proxy that adds HTTPS, name the proxy with --trust-forwarded: the address is
  then taken from its X-Forwarded-For header.

Values:
  ADDR  an IP address, a port, or both: 192.0.2.1, 8080, 127.0.0.1:8080
  TIME  a number with a unit: 90s, 30min, 1h

Examples:
  torrentfs tracker
  torrentfs tracker --torrents ~/shared --state ~/.local/state/tracker
  torrentfs tracker --listen 192.0.2.1 --listen '[2001:db8::1]:6969'
  torrentfs tracker --allow allowed.txt
  torrentfs tracker --listen 127.0.0.1:8080 --trust-forwarded 127.0.0.1";

/// Run a BitTorrent tracker, over HTTP and UDP
#[derive(Args, Clone, Debug, PartialEq)]
#[command(before_help = DESCRIPTION, after_help = SECTIONS)]
pub(super) struct TrackerArgs {
    /// Address to listen on, for TCP and UDP; may be repeated [default: all addresses, port 6969]
    #[arg(short, long, value_name = "ADDR", value_parser = listen)]
    listen: Vec<Listen>,

    /// Serve only the torrents listed in this file, one info hash of 40 hexadecimal digits per line
    #[arg(long, value_name = "FILE", help_heading = "Torrents")]
    allow: Option<PathBuf>,

    /// Serve only the .torrent files in this directory; changes are picked up within 5 seconds
    #[arg(long, value_name = "DIR", help_heading = "Torrents")]
    torrents: Option<PathBuf>,

    /// List the info hashes of the largest swarms on the status page
    #[arg(long, help_heading = "Torrents")]
    show_torrents: bool,

    /// File that keeps the swarms across restarts; saved every 5 minutes and at exit
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,

    /// Announce interval, 1s to 24h; a peer that is silent for two intervals is forgotten
    #[arg(long, value_name = "TIME", default_value = "30min", value_parser = interval)]
    interval: Duration,

    /// Maximum number of peers in a response
    #[arg(long, value_name = "N", default_value_t = Limits::default().response_peers)]
    numwant: usize,

    /// Address of a reverse proxy whose X-Forwarded-For header is trusted; may be repeated
    #[arg(long, value_name = "IP")]
    trust_forwarded: Vec<IpAddr>,

    /// Maximum number of torrents
    #[arg(long, value_name = "N", default_value_t = Limits::default().torrents, help_heading = "Limits")]
    max_torrents: usize,

    /// Maximum number of peers; a million take 55 to 170 MiB of memory
    #[arg(long, value_name = "N", default_value_t = Limits::default().peers, help_heading = "Limits")]
    max_peers: usize,

    /// Maximum number of peers per IPv4 address or IPv6 /64 network
    #[arg(long, value_name = "N", default_value_t = Limits::default().host_peers, help_heading = "Limits")]
    max_host_peers: u32,

    /// Maximum number of peers per IPv4 address or IPv6 /64 network in one torrent
    #[arg(long, value_name = "N", default_value_t = Limits::default().host_peers_of_torrent, help_heading = "Limits")]
    max_host_peers_of_torrent: u32,
}

/// Value of a `--listen`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Listen {
    Address(SocketAddr),
    /// A port on all addresses.
    Port(u16),
}

fn listen(text: &str) -> Result<Listen, String> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(Listen::Address((ip, DEFAULT_PORT).into()));
    }
    if let Ok(port) = text.strip_prefix(':').unwrap_or(text).parse() {
        return Ok(Listen::Port(port));
    }
    let expected = "expected an address, a port or both, such as 192.0.2.1, 6969, 127.0.0.1:6969 or [::1]:6969";
    text.parse().map(Listen::Address).map_err(|_| expected.to_owned())
}

fn interval(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        time if time < MIN_INTERVAL || time > MAX_INTERVAL => Err("expected 1s to 24h".into()),
        time => Ok(time),
    }
}

impl From<TrackerArgs> for Config {
    fn from(args: TrackerArgs) -> Self {
        let all_addresses = |port| {
            let families: [IpAddr; 2] = [[0; 4].into(), [0u8; 16].into()];
            families.map(|ip| SocketAddr::new(ip, port))
        };
        let listen = args.listen.iter().flat_map(|listen| match *listen {
            Listen::Address(addr) => vec![addr],
            Listen::Port(port) => all_addresses(port).into(),
        });
        Self {
            listen: listen.collect(),
            limits: Limits {
                torrents: args.max_torrents,
                peers: args.max_peers,
                host_peers: args.max_host_peers,
                host_peers_of_torrent: args.max_host_peers_of_torrent,
                response_peers: args.numwant,
                interval: args.interval,
                ..Limits::default()
            },
            allow: args.allow,
            torrents: args.torrents,
            state: args.state,
            trusted_proxies: args.trust_forwarded.iter().map(IpAddr::to_canonical).collect(),
            show_torrents: args.show_torrents,
        }
    }
}

/// Runs the tracker until a signal stops it.
pub(super) fn run(args: TrackerArgs, verbosity: Verbosity) -> Result<(), Failure> {
    log::to_stderr(verbosity);
    let runtime = runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Exit::Resource, format!("cannot start threads: {error}")))?;
    let mut config = Config::from(args);
    match raise_descriptor_limit(MAX_CONNECTIONS + OTHER_DESCRIPTORS) {
        Ok(limit) => {
            let connections = limit.saturating_sub(OTHER_DESCRIPTORS).clamp(1, MAX_CONNECTIONS);
            config.limits.connections = usize::try_from(connections).unwrap_or(1);
        }
        Err(error) => {
            tracing::warn!("cannot raise the limit on file descriptors, so fewer slow connections are served: {error}")
        }
    }
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> Result<(), Failure> {
    let mut signals = Signals::listen()?;
    signals.obey_hangup();
    let in_terminal = io::stdin().is_terminal();
    let tracker = Tracker::start(config).await.map_err(|error| Failure::new(Exit::Resource, error))?;
    print_start(&tracker);
    while signals.any().await {
        // The terminal was closed, which also sends SIGHUP.
        if in_terminal && !io::stdin().is_terminal() {
            break;
        }
        match tracker.reload().await {
            Ok(Some(served)) => say(format_args!("reloaded the lists; serving {}", count(served, "torrent"))),
            Ok(None) => tracing::info!("nothing to reload: every torrent is served"),
            Err(error) => tracing::error!("{error}; the served torrents stay the same"),
        }
    }
    tracker.stop(STOP_TIMEOUT).await.map_err(|error| Failure::new(Exit::Resource, error))
}

/// Prints the addresses, the announce URLs and the restored state.
fn print_start(tracker: &Tracker) {
    for addr in tracker.addresses() {
        say(format_args!("listening on {addr}, TCP and UDP"));
    }
    for addr in tracker.addresses() {
        let Some(addr) = reachable(*addr) else { continue };
        say(format_args!("announce URLs: http://{addr}/announce, udp://{addr}/announce; status page: http://{addr}/"));
    }
    match tracker.served_torrents() {
        Some(served) => say(format_args!("serving {}", count(served, "listed torrent"))),
        None => say(format_args!("serving every torrent")),
    }
    let Counts { torrents, seeders, leechers, .. } = tracker.counts();
    if torrents > 0 {
        say(format_args!("restored {}, {}", count(torrents, "torrent"), count(seeders + leechers, "peer")));
    }
}

/// Prints a line. A closed standard output is not an error, since the tracker must go on.
fn say(line: fmt::Arguments) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// Returns the address to show for a listener at `addr`. For all addresses, this is the source address of outgoing
/// connections; no packet is sent to find it.
fn reachable(addr: SocketAddr) -> Option<SocketAddr> {
    if !addr.ip().is_unspecified() {
        return Some(addr);
    }
    let far: SocketAddr = if addr.is_ipv4() { FAR_V4 } else { FAR_V6 };
    let source =
        UdpSocket::bind((addr.ip(), 0)).and_then(|socket| socket.connect(far).and_then(|()| socket.local_addr()));
    match source {
        Ok(own) => Some(SocketAddr::new(own.ip(), addr.port())),
        // Without a network, the tracker can still be used on this machine.
        Err(_) if addr.is_ipv4() => Some((Ipv4Addr::LOCALHOST, addr.port()).into()),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct CommandLine {
        #[command(flatten)]
        args: TrackerArgs,
    }

    fn config(flags: &str) -> Result<Config, String> {
        let line = format!("tracker {flags}");
        let parsed = CommandLine::try_parse_from(line.split_whitespace()).map_err(|error| error.to_string())?;
        Ok(parsed.args.into())
    }

    #[test]
    fn by_default_every_torrent_is_served_on_all_addresses() {
        let config = config("").unwrap();
        assert!(config.listen.is_empty() && config.allow.is_none() && config.torrents.is_none());
        assert!(config.trusted_proxies.is_empty() && config.state.is_none() && !config.show_torrents);
        assert_eq!(config.limits.interval, Duration::from_secs(1800));
    }

    #[test]
    fn listen_takes_addresses_and_ports() {
        let at = |text: &str| {
            config(&format!("--listen {text}"))
                .map(|config| config.listen.iter().map(SocketAddr::to_string).collect::<Vec<_>>())
        };
        assert_eq!(at("192.0.2.1").unwrap(), ["192.0.2.1:6969"]);
        assert_eq!(at("192.0.2.1:80 -l [::1]:81").unwrap(), ["192.0.2.1:80", "[::1]:81"]);
        assert_eq!(at("::1 -l [2001:db8::1]").unwrap(), ["[::1]:6969", "[2001:db8::1]:6969"]);
        for port in ["8080", ":8080"] {
            assert_eq!(at(port).unwrap(), ["0.0.0.0:8080", "[::]:8080"]);
        }
        for nonsense in ["example.org", "1.2.3.4:x", "70000", "[::1"] {
            assert!(at(nonsense).unwrap_err().contains("expected an address"), "{nonsense}");
        }
    }

    #[test]
    fn every_flag_sets_its_field() {
        let config = config(
            "--allow a --torrents b --show-torrents --state c --interval 5min --numwant 7 --trust-forwarded 127.0.0.1 \
             --trust-forwarded ::ffff:10.0.0.1 --max-torrents 1 --max-peers 2 --max-host-peers 3 \
             --max-host-peers-of-torrent 4",
        )
        .unwrap();
        let path = |path: &str| Some(PathBuf::from(path));
        assert_eq!((config.allow, config.torrents, config.state), (path("a"), path("b"), path("c")));
        assert_eq!(config.trusted_proxies, [IpAddr::from([127, 0, 0, 1]), IpAddr::from([10, 0, 0, 1])]);
        let limits = config.limits;
        assert_eq!((limits.torrents, limits.peers, limits.host_peers, limits.host_peers_of_torrent), (1, 2, 3, 4));
        assert_eq!((limits.interval, limits.response_peers, config.show_torrents), (Duration::from_secs(300), 7, true));
        for nonsense in ["--interval 0", "--interval 25h", "--numwant -1", "--trust-forwarded proxy"] {
            assert!(self::config(nonsense).is_err(), "{nonsense}");
        }
    }

    #[test]
    fn shown_addresses_can_be_reached() {
        let exact = "192.0.2.1:80".parse().unwrap();
        assert_eq!(reachable(exact), Some(exact));
        let found = reachable(([0, 0, 0, 0], 80).into()).unwrap();
        assert!(!found.ip().is_unspecified() && found.port() == 80);
    }
}
