//! `torrentfs tracker`: a tracker to run.

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
use crate::sys::process::raise_descriptor_limit;
use crate::tracker::{Config, Counts, DEFAULT_PORT, Limits, Tracker};

/// How long requests under way may still take at the end.
const FAREWELL: Duration = Duration::from_secs(2);
/// Slow connections at a time, as far as there are descriptors: enough for some ten thousand announces a second from afar.
const CONNECTIONS: u64 = 4000;
/// Descriptors for all else.
const OTHER_DESCRIPTORS: u64 = 200;
/// Addresses that nobody has (RFC 5737, 3849), but to which a route leads as to any other.
const FAR_V4: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 9));
const FAR_V6: SocketAddr = SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 9, 0, 0));
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
const LONGEST_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

const AFTER_HELP: &str = "\
It answers at /announce and /scrape over HTTP, and over UDP on the same port: a
torrent names it as http://HOST:6969/announce, or udp://HOST:6969. / is a page
for people, /metrics is for Prometheus.

Examples:
  torrentfs tracker
  torrentfs tracker --torrents ~/shared --state ~/.local/state/tracker
  torrentfs tracker --listen 192.0.2.1 --listen '[2001:db8::1]:6969'
  torrentfs tracker --allow allowed.txt
  torrentfs tracker --listen 127.0.0.1:8080 --trust-forwarded 127.0.0.1
                                              (behind a proxy that adds HTTPS)";

/// Run a BitTorrent tracker, over HTTP and UDP
///
/// Tells the peers of a torrent of each other. Stays in the terminal; Ctrl-C or SIGTERM ends it, SIGHUP reads its
/// lists again.
#[derive(Args, Clone, Debug, PartialEq)]
#[command(after_help = AFTER_HELP)]
pub(super) struct TrackerArgs {
    /// Address, port or both to listen at, by TCP and UDP; may be repeated [default: all addresses, port 6969]
    #[arg(short, long, value_name = "ADDR", value_parser = listen)]
    listen: Vec<Listen>,

    /// Serve only the torrents of this file: an info hash (40 hexadecimal digits) a line
    #[arg(long, value_name = "FILE", help_heading = "Torrents")]
    allow: Option<PathBuf>,

    /// Serve only those of the .torrent files in this directory, as they come and go
    #[arg(long, value_name = "DIR", help_heading = "Torrents")]
    torrents: Option<PathBuf>,

    /// Name the largest swarms' info hashes on the page
    #[arg(long, help_heading = "Torrents")]
    show_torrents: bool,

    /// Keep who is in which swarm in this file, over a restart
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,

    /// How often peers are asked to announce; who is silent twice as long is forgotten
    #[arg(long, value_name = "TIME", default_value = "30min", value_parser = interval)]
    interval: Duration,

    /// The most peers in an answer
    #[arg(long, value_name = "N", default_value_t = Limits::default().response_peers)]
    numwant: usize,

    /// Believe what this reverse proxy says of whose request it passes on (X-Forwarded-For); may be repeated
    #[arg(long, value_name = "IP")]
    trust_forwarded: Vec<IpAddr>,

    /// The most torrents known at a time
    #[arg(long, value_name = "N", default_value_t = Limits::default().torrents, help_heading = "Limits")]
    max_torrents: usize,

    /// The most peers known at a time; a million take 55 to 170 MiB
    #[arg(long, value_name = "N", default_value_t = Limits::default().peers, help_heading = "Limits")]
    max_peers: usize,

    /// The most peers at one IPv4 address or in one IPv6 /64
    #[arg(long, value_name = "N", default_value_t = Limits::default().host_peers, help_heading = "Limits")]
    max_host_peers: u32,

    /// The same in one torrent's swarm
    #[arg(long, value_name = "N", default_value_t = Limits::default().host_peers_of_torrent, help_heading = "Limits")]
    max_host_peers_of_torrent: u32,
}

/// What one `--listen` says.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Listen {
    At(SocketAddr),
    /// On all addresses.
    Port(u16),
}

fn listen(text: &str) -> Result<Listen, String> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(Listen::At((ip, DEFAULT_PORT).into()));
    }
    if let Ok(port) = text.strip_prefix(':').unwrap_or(text).parse() {
        return Ok(Listen::Port(port));
    }
    let expected = "expected an address, a port or both, such as 192.0.2.1, 6969, 127.0.0.1:6969 or [::1]:6969";
    text.parse().map(Listen::At).map_err(|_| expected.to_owned())
}

fn interval(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        time if time < SHORTEST_INTERVAL || time > LONGEST_INTERVAL => Err("expected 1s to 24h".into()),
        time => Ok(time),
    }
}

impl From<TrackerArgs> for Config {
    fn from(args: TrackerArgs) -> Self {
        let everywhere = |port| {
            let families: [IpAddr; 2] = [[0; 4].into(), [0u8; 16].into()];
            families.map(|ip| SocketAddr::new(ip, port))
        };
        let listen = args.listen.iter().flat_map(|listen| match *listen {
            Listen::At(addr) => vec![addr],
            Listen::Port(port) => everywhere(port).into(),
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

/// Runs it until a signal ends it.
pub(super) fn run(args: TrackerArgs, verbosity: Verbosity) -> Result<(), Failure> {
    log::to_stderr(verbosity);
    let runtime = runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Exit::Resource, format!("cannot start threads: {error}")))?;
    let mut config = Config::from(args);
    match raise_descriptor_limit(CONNECTIONS + OTHER_DESCRIPTORS) {
        Ok(most) => {
            let connections = most.saturating_sub(OTHER_DESCRIPTORS).clamp(1, CONNECTIONS);
            config.limits.connections = usize::try_from(connections).unwrap_or(1);
        }
        Err(error) => tracing::warn!("cannot allow for more connections: {error}"),
    }
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> Result<(), Failure> {
    let mut signals = Signals::listen()?;
    let in_terminal = io::stdin().is_terminal();
    let tracker = Tracker::start(config).await.map_err(|error| Failure::new(Exit::Resource, error))?;
    introduce(&tracker);
    while signals.any().await {
        // A terminal that went away is none any more: with it ends what ran in it.
        if in_terminal && !io::stdin().is_terminal() {
            break;
        }
        match tracker.reload().await {
            Ok(Some(served)) => say(format_args!("lists read again; torrents served: {served}")),
            Ok(None) => tracing::info!("there are no lists to read again"),
            Err(error) => tracing::error!("{error}; the torrents served stay the same"),
        }
    }
    tracker.stop(FAREWELL).await.map_err(|error| Failure::new(Exit::Resource, error))
}

fn introduce(tracker: &Tracker) {
    for addr in tracker.addresses() {
        say(format_args!("listening at {addr}, by TCP and UDP"));
    }
    for addr in tracker.addresses() {
        let Some(addr) = reachable(*addr) else { continue };
        say(format_args!("announce URLs: http://{addr}/announce  udp://{addr}/announce    status: http://{addr}/"));
    }
    match tracker.served_torrents() {
        Some(served) => say(format_args!("torrents served: {served}, those of the lists")),
        None => say(format_args!("torrents served: all")),
    }
    let Counts { torrents, seeders, leechers, .. } = tracker.counts();
    if torrents > 0 {
        say(format_args!("remembered: torrents {torrents}, peers {}", seeders + leechers));
    }
}

/// Whoever read it may be gone.
fn say(line: fmt::Arguments) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// Where others reach what listens at `addr`: for all addresses, that by which this machine would call out. Nothing is
/// sent to find it.
fn reachable(addr: SocketAddr) -> Option<SocketAddr> {
    if !addr.ip().is_unspecified() {
        return Some(addr);
    }
    let far: SocketAddr = if addr.is_ipv4() { FAR_V4 } else { FAR_V6 };
    let out = UdpSocket::bind((addr.ip(), 0)).and_then(|socket| socket.connect(far).and_then(|()| socket.local_addr()));
    match out {
        Ok(own) => Some(SocketAddr::new(own.ip(), addr.port())),
        // Of no use to others, but for trying it.
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
    fn by_default_everything_is_served_everywhere() {
        let config = config("").unwrap();
        assert!(config.listen.is_empty() && config.allow.is_none() && config.torrents.is_none());
        assert!(config.trusted_proxies.is_empty() && config.state.is_none() && !config.show_torrents);
        assert_eq!(config.limits.interval, Duration::from_secs(1800));
    }

    #[test]
    fn listens_where_it_is_told() {
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
    fn every_flag_has_its_meaning() {
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
    fn the_urls_shown_can_be_used() {
        let exact = "192.0.2.1:80".parse().unwrap();
        assert_eq!(reachable(exact), Some(exact));
        let found = reachable(([0, 0, 0, 0], 80).into()).unwrap();
        assert!(!found.ip().is_unspecified() && found.port() == 80);
    }
}
