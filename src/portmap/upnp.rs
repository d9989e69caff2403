//! UPnP: the router is searched for by multicast, and asked over SOAP.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use igd_next::aio::Gateway;
use igd_next::aio::tokio::{Tokio, search_gateway};
use igd_next::{AddPortError, GatewayIpVersion, PortMappingProtocol, SearchOptions};

use super::gateway::our_address;
use super::{Fault, LEASE, Mapping, PortMapConfig, Router, plausible};

/// A router answers a search within three seconds, which is what it is told; its description takes a moment more.
const SEARCH_LIMIT: Duration = Duration::from_secs(6);
/// Other outside ports tried where ours is another machine's.
const OTHER_PORTS: u16 = 4;
/// What the router shows its owner.
const DESCRIPTION: &str = "torrentfs";

pub(super) struct Upnp {
    config: PortMapConfig,
    /// Found before, and good until it fails.
    gateway: Option<Gateway<Tokio>>,
    /// Outside ports.
    tcp: Option<u16>,
    udp: Option<u16>,
}

impl Upnp {
    pub(super) fn new(config: PortMapConfig) -> Self {
        Self { config, gateway: None, tcp: None, udp: None }
    }

    async fn search(&self) -> Result<Gateway<Tokio>, Fault> {
        let mut options = SearchOptions::default();
        options.bind_addr = SocketAddr::new(self.config.bind.unwrap_or(Ipv4Addr::UNSPECIFIED).into(), 0);
        options.broadcast_address = self.config.search;
        options.timeout = Some(SEARCH_LIMIT);
        options.single_search_timeout = Some(SEARCH_LIMIT);
        options.gateway_ip_version = GatewayIpVersion::V4;
        // A router speaks for itself: where it says that its services are must be its own address. On loopback that is
        // believed only if it was searched for there.
        if self.config.search.ip().is_loopback() {
            options.allowed_gateway_ips.push(self.config.search.ip());
        }
        search_gateway(options).await.map_err(|error| Fault::NoRouter(error.to_string()))
    }
}

impl Router for Upnp {
    const NAME: &'static str = "UPnP";

    async fn map(&mut self) -> Result<(Mapping, Duration), Fault> {
        let gateway = match self.gateway.clone() {
            Some(gateway) => gateway,
            None => self.search().await?,
        };
        // Remembered at once: whatever comes now, what it maps is to be withdrawn.
        self.gateway = Some(gateway.clone());
        let ours = our_address(gateway.addr.ip(), self.config.bind).await;
        let ours = ours.map_err(|error| Fault::NoRouter(error.to_string()))?;
        let local = SocketAddr::new(IpAddr::V4(ours), self.config.port.get());

        let wished = self.tcp.unwrap_or(local.port());
        let mapped = map_one(&gateway, PortMappingProtocol::TCP, wished, local).await;
        let (tcp, lease) = mapped.inspect_err(|_| self.gateway = None)?;
        self.tcp = Some(tcp);
        // The same number for both, if the router can. Peers come over TCP alone, too.
        let udp = map_one(&gateway, PortMappingProtocol::UDP, self.udp.unwrap_or(tcp), local).await;
        self.udp = udp.ok().map(|(port, _)| port);
        let external_ip = gateway.get_external_ip().await.ok().and_then(plausible);
        Ok((Mapping { protocol: "UPnP", external_ip, tcp_port: tcp, udp_port: self.udp }, lease))
    }

    async fn unmap(&mut self) {
        let Some(gateway) = self.gateway.take() else { return };
        let drop_one = |protocol, port: Option<u16>| {
            let gateway = &gateway;
            async move {
                if let Some(port) = port {
                    let _ = gateway.remove_port(protocol, port).await;
                }
            }
        };
        tokio::join!(
            drop_one(PortMappingProtocol::TCP, self.tcp.take()),
            drop_one(PortMappingProtocol::UDP, self.udp.take())
        );
    }
}

/// Maps `wished` or one of the ports after it to ours; which, and for how long.
async fn map_one(
    gateway: &Gateway<Tokio>,
    protocol: PortMappingProtocol,
    wished: u16,
    local: SocketAddr,
) -> Result<(u16, Duration), Fault> {
    let mut lease = LEASE;
    let mut tried = 0;
    loop {
        // Among the ports that anybody may use, whatever was wished for.
        let port = wished.checked_add(tried).unwrap_or(49_152 + tried);
        match gateway.add_port(protocol, port, local, lease.as_secs() as u32, DESCRIPTION).await {
            // For ever, but some forget when they are switched off: renewed all the same.
            Ok(()) => return Ok((port, if lease.is_zero() { LEASE } else { lease })),
            Err(AddPortError::OnlyPermanentLeasesSupported) if !lease.is_zero() => lease = Duration::ZERO,
            Err(AddPortError::PortInUse) if tried < OTHER_PORTS => tried += 1,
            Err(AddPortError::RequestError(error)) => return Err(Fault::Refused(one_line(&error.to_string()))),
            Err(error) => return Err(Fault::Refused(error.to_string())),
        }
    }
}

/// A router's words, short.
fn one_line(text: &str) -> String {
    text.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
