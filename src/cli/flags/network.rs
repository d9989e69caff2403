//! How peers are found and reached: the flags that all commands with a network have in common.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{ArgAction, Args};

use super::values::{Bound, duration, patience, rate, truth};
use crate::discovery::DHT_BOOTSTRAP;
use crate::net::{self, Blocklist, Encryption, Limits, PortChoice};
use crate::route::{Bind, Proxy, Route};
use crate::session::{PortMapping, SeedLimits, SessionConfig};
use crate::store::Cache;

/// How long the metadata of a magnet link is waited for.
const METADATA_TIMEOUT: Duration = Duration::from_secs(120);

/// As given; `None`: not said. [`NetworkArgs`] is what is meant.
#[derive(Args, Clone, Debug, Default, PartialEq)]
pub(in crate::cli) struct NetworkFlags {
    /// The port for peers to call; 0: any free one [default: 6881, or the next free one]
    #[arg(long, value_name = "PORT", help_heading = "Network")]
    port: Option<u16>,

    /// The address to listen on and call from, or the network interface, such as a VPN's [default: all]
    #[arg(long, value_name = "ADDR|INTERFACE", help_heading = "Network")]
    bind: Option<Bind>,

    /// Do not ask the home router to pass calls on to us (UPnP, NAT-PMP, PCP)
    #[arg(long, value_name = "BOOL", value_parser = truth, help_heading = "Network")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    no_port_mapping: Option<bool>,

    /// The router to ask, in place of that of the default route: for tests
    #[arg(long, value_name = "ADDR", hide = true, help_heading = "Network")]
    gateway: Option<Ipv4Addr>,

    /// A peer to connect to, as ADDR:PORT; may be given more than once
    #[arg(long = "peer", value_name = "ADDR", action = ArgAction::Append, help_heading = "Network")]
    peers: Vec<SocketAddr>,

    /// What to fetch in a second at most; 0: no limit [default: no limit]
    #[arg(long, value_name = "RATE", value_parser = rate, help_heading = "Network")]
    download_limit: Option<Bound<u64>>,

    /// What to give others in a second at most; 0: no limit [default: no limit]
    #[arg(long, value_name = "RATE", value_parser = rate, help_heading = "Network")]
    upload_limit: Option<Bound<u64>>,

    /// Once all is here, give others no more than this many times what was fetched, such as 1.5 [default: no end]
    #[arg(long, value_name = "NUMBER", value_parser = ratio, help_heading = "Network")]
    seed_ratio: Option<f64>,

    /// Once all is here, give others something for so long [default: no end]
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = "Network")]
    seed_time: Option<Duration>,

    /// Give others nothing; they may then be slow to give us anything
    #[arg(long, value_name = "BOOL", value_parser = truth, help_heading = "Network")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    no_upload: Option<bool>,

    /// Do not look for peers in the DHT
    #[arg(long, value_name = "BOOL", value_parser = truth, help_heading = "Network")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    no_dht: Option<bool>,

    /// A node to enter the DHT by, as HOST:PORT, in place of the usual ones; may be given more than once
    #[arg(long, value_name = "NODE", action = ArgAction::Append, value_parser = node, help_heading = "Network")]
    dht_bootstrap: Vec<String>,

    /// Do not look for peers in the local network
    #[arg(long, value_name = "BOOL", value_parser = truth, help_heading = "Network")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    no_lsd: Option<bool>,

    /// Do not exchange addresses of peers with peers
    #[arg(long, value_name = "BOOL", value_parser = truth, help_heading = "Network")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    no_pex: Option<bool>,

    /// Do not use uTP, TCP alone
    #[arg(long, value_name = "BOOL", value_parser = truth, help_heading = "Network")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    no_utp: Option<bool>,

    /// Whether connections to peers are encrypted: "prefer" does whatever the peer takes [default: prefer]
    #[arg(long, value_name = "prefer|require|off", value_parser = encryption, help_heading = "Network")]
    encryption: Option<Encryption>,

    /// Reach everybody through this SOCKS5 proxy, as socks5://USER:PASSWORD@HOST:PORT; nothing goes around it, so there
    /// is no UDP (no DHT, uTP, UDP trackers) and nobody can call. An http:// one carries trackers and web seeds, no peers
    #[arg(long, value_name = "URL", help_heading = "Network")]
    proxy: Option<Proxy>,

    /// Addresses to leave alone: a PeerGuardian, eMule or CIDR list; read again at SIGHUP
    #[arg(long, value_name = "FILE", help_heading = "Network")]
    blocklist: Option<PathBuf>,

    /// How long to wait for what a magnet link or info hash names; 0: for ever [default: 2min]
    #[arg(long, value_name = "TIME", value_parser = patience, help_heading = "Network")]
    metadata_timeout: Option<Bound<Duration>>,
}

impl NetworkFlags {
    /// These, and what they leave open from `under`.
    pub(in crate::cli) fn over(self, under: Self) -> Self {
        Self {
            port: self.port.or(under.port),
            bind: self.bind.or(under.bind),
            peers: [under.peers, self.peers].concat(),
            download_limit: self.download_limit.or(under.download_limit),
            upload_limit: self.upload_limit.or(under.upload_limit),
            no_upload: self.no_upload.or(under.no_upload),
            no_dht: self.no_dht.or(under.no_dht),
            no_lsd: self.no_lsd.or(under.no_lsd),
            seed_ratio: self.seed_ratio.or(under.seed_ratio),
            seed_time: self.seed_time.or(under.seed_time),
            dht_bootstrap: [under.dht_bootstrap, self.dht_bootstrap].concat(),
            no_port_mapping: self.no_port_mapping.or(under.no_port_mapping),
            gateway: self.gateway.or(under.gateway),
            no_utp: self.no_utp.or(under.no_utp),
            encryption: self.encryption.or(under.encryption),
            proxy: self.proxy.or(under.proxy),
            blocklist: self.blocklist.or(under.blocklist),
            no_pex: self.no_pex.or(under.no_pex),
            metadata_timeout: self.metadata_timeout.or(under.metadata_timeout),
        }
    }
}

/// With the defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkArgs {
    /// Where to listen for peers.
    pub port: PortChoice,
    /// By which way everything leaves, and comes in.
    pub route: Route,
    /// Peers named by the user.
    pub peers: Vec<SocketAddr>,
    /// Bytes a second; `None`: unlimited.
    pub download_limit: Option<u64>,
    /// Bytes a second; `None`: unlimited.
    pub upload_limit: Option<u64>,
    /// Serve others.
    pub upload: bool,
    /// Until when others are served.
    pub seed: SeedLimits,
    /// Nodes to enter the DHT by; `None`: no DHT.
    pub dht: Option<Vec<String>>,
    /// Look for peers in the local network.
    pub lsd: bool,
    /// Have the home router pass calls on to us.
    pub port_mapping: Option<PortMapping>,
    /// uTP beside TCP.
    pub utp: bool,
    /// Whether connections are encrypted.
    pub encryption: Encryption,
    /// A file of addresses to leave alone.
    pub blocklist: Option<PathBuf>,
    /// Exchange addresses with peers.
    pub pex: bool,
    /// How long to wait for metadata; `None`: for ever.
    pub metadata_timeout: Option<Duration>,
}

impl NetworkArgs {
    /// A session that goes by these.
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
                // Where there is but one router, it is all of the network.
                search: flags.gateway.map(|gateway| (gateway, 1900).into()),
            }),
            route: Route { proxy: flags.proxy, bind: flags.bind.unwrap_or_default() },
            peers: flags.peers,
            download_limit: flags.download_limit.and_then(|bound| bound.0),
            upload_limit: flags.upload_limit.and_then(|bound| bound.0),
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
            metadata_timeout: flags.metadata_timeout.map_or(Some(METADATA_TIMEOUT), |bound| bound.0),
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
