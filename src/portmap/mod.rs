//! Port mapping: asks the home router to forward our port to us (UPnP, NAT-PMP, PCP).
//!
//! Owns the communication with the router: creates a mapping, renews it before its lease ends, and removes it at the
//! end. NAT-PMP or PCP and UPnP are tried in parallel, because few routers support all of them and many support one
//! badly. Without a router nothing is logged above debug level, and the search is repeated from time to time, because a
//! laptop changes networks. Everything happens in tasks of its own, every wait is bounded, and addresses and times from
//! the router are checked.
//!
//! The module does not announce the port: callers read [`PortMapper::status`]. Only IPv4 is supported, because
//! addresses are translated only there.

mod gateway;
mod mapper;
mod natpmp;
mod upnp;

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

pub use mapper::PortMapper;

/// Multicast address at which UPnP routers are discovered.
pub const SSDP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(239, 255, 255, 250)), 1900);

/// Requested lease. If we end without removing the mapping, the router removes it after this time.
const LEASE: Duration = Duration::from_secs(3600);

/// Configuration of a port mapping.
#[derive(Clone, Debug)]
pub struct PortMapConfig {
    /// Port to map, for TCP and UDP.
    pub port: NonZeroU16,
    /// Our own address, if it is fixed.
    pub bind: Option<Ipv4Addr>,
    /// Router for NAT-PMP and PCP; `None` selects the gateway of the default route.
    pub gateway: Option<Ipv4Addr>,
    /// Address at which UPnP routers are discovered, usually [`SSDP`].
    pub search: SocketAddr,
}

impl PortMapConfig {
    /// Creates a configuration for the router of this network.
    pub fn new(port: NonZeroU16) -> Self {
        Self { port, bind: None, gateway: None, search: SSDP }
    }
}

/// A mapping on a router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Protocol by which it was created, for display.
    pub protocol: &'static str,
    /// External address of the router, if it reported a plausible one. It need not be a public address: the router may
    /// itself be behind another.
    pub external_ip: Option<Ipv4Addr>,
    /// External TCP port.
    pub tcp_port: u16,
    /// External UDP port, if it could be mapped too.
    pub udp_port: Option<u16>,
}

/// The current state of both protocols.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortMapStatus {
    /// Mapping by NAT-PMP or PCP, or why there is none; `None` until the first attempt has ended.
    pub natpmp: Option<Result<Mapping, String>>,
    /// The same for UPnP.
    pub upnp: Option<Result<Mapping, String>>,
}

impl PortMapStatus {
    /// Returns the mapping, if there is one.
    pub fn mapping(&self) -> Option<&Mapping> {
        [&self.natpmp, &self.upnp].into_iter().flatten().find_map(|outcome| outcome.as_ref().ok())
    }
}

/// The reason why the port is not mapped.
#[derive(Debug)]
enum MapError {
    /// No router answered.
    NoRouter(String),
    /// The router rejected the request.
    Refused(String),
}

/// A protocol for port mapping.
trait Router: Send + 'static {
    /// Creates or renews the mapping for TCP and UDP. Also returns its lease.
    fn map(&mut self) -> impl Future<Output = Result<(Mapping, Duration), MapError>> + Send;

    /// Removes everything that was mapped.
    fn unmap(&mut self) -> impl Future<Output = ()> + Send;

    /// Name of the protocol, for display.
    const NAME: &'static str;
}

/// Returns an IPv4 address that can be a router's external address. Some routers report 0.0.0.0 while they have none.
fn plausible_external_ip(ip: IpAddr) -> Option<Ipv4Addr> {
    match ip.to_canonical() {
        IpAddr::V4(ip) if !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast() && !ip.is_broadcast() => {
            Some(ip)
        }
        _ => None,
    }
}
