//! UPnP: discovers the router by multicast and controls it over SOAP.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use igd_next::aio::Gateway;
use igd_next::aio::tokio::{Tokio, search_gateway};
use igd_next::{AddPortError, GatewayIpVersion, PortMappingProtocol, SearchOptions};

use super::gateway::our_address;
use super::{LEASE, MapError, Mapping, PortMapConfig, Router, plausible_external_ip};
use crate::util::printable;

/// Time limit for discovery. Routers answer within three seconds, and their description takes a little longer.
const SEARCH_LIMIT: Duration = Duration::from_secs(6);
/// Further external ports tried if another machine uses ours.
const MAX_OTHER_PORTS: u16 = 4;
/// Name of the mapping in the router's user interface.
const DESCRIPTION: &str = "torrentfs";

pub(super) struct Upnp {
    config: PortMapConfig,
    /// Router from an earlier discovery, used until it fails.
    gateway: Option<Gateway<Tokio>>,
    /// External ports.
    tcp: Option<u16>,
    udp: Option<u16>,
}

impl Upnp {
    pub(super) fn new(config: PortMapConfig) -> Self {
        Self { config, gateway: None, tcp: None, udp: None }
    }

    async fn search(&self) -> Result<Gateway<Tokio>, MapError> {
        let mut options = SearchOptions::default();
        options.bind_addr = SocketAddr::new(self.config.bind.unwrap_or(Ipv4Addr::UNSPECIFIED).into(), 0);
        options.broadcast_address = self.config.search;
        options.timeout = Some(SEARCH_LIMIT);
        options.single_search_timeout = Some(SEARCH_LIMIT);
        options.gateway_ip_version = GatewayIpVersion::V4;
        // The service URL of a router must have the router's own address. A loopback address is accepted only if
        // discovery itself was on loopback.
        if self.config.search.ip().is_loopback() {
            options.allowed_gateway_ips.push(self.config.search.ip());
        }
        search_gateway(options).await.map_err(|error| MapError::NoRouter(error.to_string()))
    }
}

impl Router for Upnp {
    const NAME: &'static str = "UPnP";

    async fn map(&mut self) -> Result<(Mapping, Duration), MapError> {
        let gateway = match self.gateway.clone() {
            Some(gateway) => gateway,
            None => self.search().await?,
        };
        // Store it at once, so that its mappings are removed whatever happens next.
        self.gateway = Some(gateway.clone());
        let ours = our_address(gateway.addr.ip(), self.config.bind).await;
        let ours = ours.map_err(|error| MapError::NoRouter(error.to_string()))?;
        let local = SocketAddr::new(IpAddr::V4(ours), self.config.port.get());

        let preferred = self.tcp.unwrap_or(local.port());
        let mapped = map_one(&gateway, PortMappingProtocol::TCP, preferred, local).await;
        let (tcp, lease) = mapped.inspect_err(|_| self.gateway = None)?;
        self.tcp = Some(tcp);
        // Prefer the same number for both. Without UDP, peers can still connect over TCP.
        let udp = map_one(&gateway, PortMappingProtocol::UDP, self.udp.unwrap_or(tcp), local).await;
        self.udp = udp.ok().map(|(port, _)| port);
        let external_ip = gateway.get_external_ip().await.ok().and_then(plausible_external_ip);
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

/// Maps `preferred` or one of the following external ports to ours. Returns the port and the lease.
async fn map_one(
    gateway: &Gateway<Tokio>,
    protocol: PortMappingProtocol,
    preferred: u16,
    local: SocketAddr,
) -> Result<(u16, Duration), MapError> {
    let mut lease = LEASE;
    let mut tried = 0;
    loop {
        // After the last port, continue in the dynamic range.
        let port = preferred.checked_add(tried).unwrap_or(49_152 + tried);
        match gateway.add_port(protocol, port, local, lease.as_secs() as u32, DESCRIPTION).await {
            // A permanent lease. Some routers forget it when they restart, so renew it all the same.
            Ok(()) => return Ok((port, if lease.is_zero() { LEASE } else { lease })),
            Err(AddPortError::OnlyPermanentLeasesSupported) if !lease.is_zero() => lease = Duration::ZERO,
            Err(AddPortError::PortInUse) if tried < MAX_OTHER_PORTS => tried += 1,
            Err(AddPortError::RequestError(error)) => {
                return Err(MapError::Refused(printable(error.to_string().as_bytes(), 200)));
            }
            Err(error) => return Err(MapError::Refused(error.to_string())),
        }
    }
}
