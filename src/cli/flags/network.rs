//! The flags of every command that talks to peers: finding them, reaching them, and limits.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{ArgAction, Args};

use super::values::{Limit, boolean, count_limit, duration, rate_limit, timeout};
use crate::discovery::DHT_BOOTSTRAP;
use crate::net::{self, Blocklist, Encryption, Limits, PortChoice};
use crate::route::{Bind, Proxy, Route};
use crate::session::{ACTIVE_DOWNLOADS, PortMapping, SeedLimits, SessionConfig};
use crate::store::Cache;

/// How long to wait for the metadata of a magnet link, if the user does not say: slow swarms answer within a minute.
const METADATA_TIMEOUT: Duration = Duration::from_secs(120);
/// UDP port on which a router answers UPnP searches.
const UPNP_PORT: u16 = 1900;

/// Network settings as given; `None`: not given. [`NetworkArgs`] has the defaults filled in.
#[derive(Args, Clone, Debug, Default, PartialEq)]
pub(in crate::cli) struct NetworkFlags {
    /// Maximum download rate; 0 for unlimited [default: unlimited]
    #[arg(long, value_name = "RATE", value_parser = rate_limit, help_heading = "Bandwidth and seeding")]
    download_limit: Option<Limit<u64>>,

    /// Maximum upload rate; 0 for unlimited [default: unlimited]
    #[arg(long, value_name = "RATE", value_parser = rate_limit, help_heading = "Bandwidth and seeding")]
    upload_limit: Option<Limit<u64>>,

    /// Torrents to download at the same time, the oldest first; 0 for unlimited [default: 5]
    #[arg(long, value_name = "N", value_parser = count_limit, help_heading = "Bandwidth and seeding")]
    active_downloads: Option<Limit<usize>>,

    /// Upload nothing; peers may then send less, or nothing
    #[arg(long, value_name = "BOOL", value_parser = boolean, help_heading = "Bandwidth and seeding")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    no_upload: Option<bool>,

    /// Stop seeding a complete torrent at this ratio of upload to download, such as 1.5 [default: never]
    #[arg(long, value_name = "RATIO", value_parser = ratio, help_heading = "Bandwidth and seeding")]
    seed_ratio: Option<f64>,

    /// Stop seeding a complete torrent after this time [default: never]
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = "Bandwidth and seeding")]
    seed_time: Option<Duration>,

    /// Peer to connect to, as ADDR:PORT; may be repeated
    #[arg(long = "peer", value_name = "ADDR", action = ArgAction::Append, help_heading = "Peer discovery")]
    peers: Vec<SocketAddr>,

    /// Do not use the DHT
    #[arg(long, value_name = "BOOL", value_parser = boolean, help_heading = "Peer discovery")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    no_dht: Option<bool>,

    /// DHT node to start from, as HOST:PORT, instead of the public ones; may be repeated
    #[arg(long, value_name = "NODE", action = ArgAction::Append, value_parser = node, help_heading = "Peer discovery")]
    dht_bootstrap: Vec<String>,

    /// Do not search the local network for peers
    #[arg(long, value_name = "BOOL", value_parser = boolean, help_heading = "Peer discovery")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    no_lsd: Option<bool>,

    /// Do not exchange peer addresses with peers
    #[arg(long, value_name = "BOOL", value_parser = boolean, help_heading = "Peer discovery")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    no_pex: Option<bool>,

    /// Time to wait for the metadata of a magnet link or info hash; 0 for no limit [default: 2min]
    #[arg(long, value_name = "TIME", value_parser = timeout, help_heading = "Peer discovery")]
    metadata_timeout: Option<Limit<Duration>>,

    /// Port to listen on; 0 for any free port [default: 6881, or the next free port]
    #[arg(long, value_name = "PORT", help_heading = "Network")]
    port: Option<u16>,

    /// Address or network interface to use for all traffic, such as a VPN's [default: any]
    #[arg(long, value_name = "ADDR|IFACE", help_heading = "Network")]
    bind: Option<Bind>,

    /// Proxy for all traffic, such as socks5://USER:PASSWORD@HOST:PORT
    #[arg(long, value_name = "URL", help_heading = "Network")]
    proxy: Option<Proxy>,

    /// Encryption of peer connections: prefer, require or off [default: prefer]
    #[arg(long, value_name = "MODE", value_parser = encryption, help_heading = "Network")]
    encryption: Option<Encryption>,

    /// File of addresses never to connect to or accept
    #[arg(long, value_name = "FILE", help_heading = "Network")]
    blocklist: Option<PathBuf>,

    /// Connect over TCP only, not over uTP
    #[arg(long, value_name = "BOOL", value_parser = boolean, help_heading = "Network")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    no_utp: Option<bool>,

    /// Do not ask the router to forward the port
    #[arg(long, value_name = "BOOL", value_parser = boolean, help_heading = "Network")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    no_port_mapping: Option<bool>,

    /// Router to ask for port forwarding, instead of the default route's; for tests
    #[arg(long, value_name = "ADDR", hide = true, help_heading = "Network")]
    gateway: Option<Ipv4Addr>,
}

impl NetworkFlags {
    /// Returns these flags, with those not given taken from `under`. Lists are concatenated.
    pub(in crate::cli) fn over(self, under: Self) -> Self {
        Self {
            download_limit: self.download_limit.or(under.download_limit),
            upload_limit: self.upload_limit.or(under.upload_limit),
            active_downloads: self.active_downloads.or(under.active_downloads),
            no_upload: self.no_upload.or(under.no_upload),
            seed_ratio: self.seed_ratio.or(under.seed_ratio),
            seed_time: self.seed_time.or(under.seed_time),
            peers: [under.peers, self.peers].concat(),
            no_dht: self.no_dht.or(under.no_dht),
            dht_bootstrap: [under.dht_bootstrap, self.dht_bootstrap].concat(),
            no_lsd: self.no_lsd.or(under.no_lsd),
            no_pex: self.no_pex.or(under.no_pex),
            metadata_timeout: self.metadata_timeout.or(under.metadata_timeout),
            port: self.port.or(under.port),
            bind: self.bind.or(under.bind),
            proxy: self.proxy.or(under.proxy),
            encryption: self.encryption.or(under.encryption),
            blocklist: self.blocklist.or(under.blocklist),
            no_utp: self.no_utp.or(under.no_utp),
            no_port_mapping: self.no_port_mapping.or(under.no_port_mapping),
            gateway: self.gateway.or(under.gateway),
        }
    }
}

/// Network settings with the defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::cli) struct NetworkArgs {
    /// Port to listen on for peers.
    pub port: PortChoice,
    /// Proxy, address and interface that all traffic uses.
    pub route: Route,
    /// Peers that the user named.
    pub peers: Vec<SocketAddr>,
    /// Bytes per second; `None`: unlimited.
    pub download_limit: Option<u64>,
    /// Bytes per second; `None`: unlimited.
    pub upload_limit: Option<u64>,
    /// Torrents that download in the background at a time; `None`: unlimited.
    pub active_downloads: Option<usize>,
    /// Whether to upload at all.
    pub upload: bool,
    /// When to stop seeding.
    pub seed: SeedLimits,
    /// DHT nodes to start from; `None`: no DHT.
    pub dht: Option<Vec<String>>,
    /// Whether to search the local network for peers.
    pub lsd: bool,
    /// How to have the router forward the port; `None`: not at all.
    pub port_mapping: Option<PortMapping>,
    /// Whether to use uTP in addition to TCP.
    pub utp: bool,
    /// Whether peer connections are encrypted.
    pub encryption: Encryption,
    /// File of blocked addresses.
    pub blocklist: Option<PathBuf>,
    /// Whether to exchange peer addresses with peers.
    pub pex: bool,
    /// How long to wait for metadata; `None`: without limit.
    pub metadata_timeout: Option<Duration>,
}

impl NetworkArgs {
    /// Returns the configuration of a session that follows these settings.
    pub(in crate::cli) fn session(&self, cache: Arc<Cache>, blocklist: Arc<Blocklist>) -> SessionConfig {
        SessionConfig {
            net: net::Config {
                port: self.port,
                route: self.route.clone(),
                encryption: self.encryption,
                utp: self.utp,
                blocklist,
            },
            limits: Arc::new(Limits::new(self.download_limit.unwrap_or(0), self.upload_limit.unwrap_or(0))),
            active_downloads: self.active_downloads,
            upload: self.upload,
            seed: self.seed,
            pex: self.pex,
            dht: self.dht.clone(),
            lsd: self.lsd,
            port_mapping: self.port_mapping,
            ..SessionConfig::new(cache)
        }
    }
}

impl From<NetworkFlags> for NetworkArgs {
    fn from(flags: NetworkFlags) -> Self {
        Self {
            port: flags.port.map_or(PortChoice::Customary, PortChoice::Exactly),
            port_mapping: (flags.no_port_mapping != Some(true) && flags.proxy.is_none()).then_some(PortMapping {
                gateway: flags.gateway,
                // A router that is named is asked directly; without one, the search is a multicast.
                search: flags.gateway.map(|gateway| (gateway, UPNP_PORT).into()),
            }),
            route: Route { proxy: flags.proxy, bind: flags.bind.unwrap_or_default() },
            peers: flags.peers,
            download_limit: flags.download_limit.and_then(|limit| limit.0),
            upload_limit: flags.upload_limit.and_then(|limit| limit.0),
            active_downloads: flags.active_downloads.map_or(Some(ACTIVE_DOWNLOADS), |limit| limit.0),
            upload: flags.no_upload != Some(true),
            seed: SeedLimits { ratio: flags.seed_ratio, time: flags.seed_time },
            dht: (flags.no_dht != Some(true)).then(|| match flags.dht_bootstrap {
                nodes if nodes.is_empty() => DHT_BOOTSTRAP.map(String::from).into(),
                nodes => nodes,
            }),
            lsd: flags.no_lsd != Some(true),
            utp: flags.no_utp != Some(true),
            encryption: flags.encryption.unwrap_or_default(),
            blocklist: flags.blocklist,
            pex: flags.no_pex != Some(true),
            metadata_timeout: flags.metadata_timeout.map_or(Some(METADATA_TIMEOUT), |limit| limit.0),
        }
    }
}

fn encryption(text: &str) -> Result<Encryption, String> {
    match text {
        "prefer" => Ok(Encryption::Prefer),
        "require" => Ok(Encryption::Require),
        "off" => Ok(Encryption::Off),
        _ => Err("expected prefer, require or off".to_owned()),
    }
}

fn node(text: &str) -> Result<String, String> {
    let sound = text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if sound { Ok(text.to_owned()) } else { Err("expected HOST:PORT".to_owned()) }
}

fn ratio(text: &str) -> Result<f64, String> {
    let sound = text.parse::<f64>().ok().filter(|ratio| ratio.is_finite() && *ratio >= 0.0);
    sound.ok_or_else(|| "expected a number such as 1.5".to_owned())
}

impl Default for NetworkArgs {
    fn default() -> Self {
        NetworkFlags::default().into()
    }
}
