//! PCP (RFC 6887), with NAT-PMP (RFC 6886) as a fallback.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::time::Duration;

use crab_nat::{InternetProtocol, PortMapping, PortMappingOptions, PortMappingType, TimeoutConfig, natpmp, pcp};

use super::gateway::{default_gateway, our_address};
use super::{LEASE, MapError, Mapping, PortMapConfig, Router, plausible_external_ip};

/// Retransmission of requests: 250 ms to the first, doubling, as RFC 6886 specifies.
const RETRANSMISSION: TimeoutConfig =
    TimeoutConfig { initial_timeout: Duration::from_millis(250), max_retries: 3, max_retry_timeout: None };
/// Retransmission when the mapping is removed: shorter, because shutdown must not wait.
const FINAL_RETRANSMISSION: TimeoutConfig =
    TimeoutConfig { initial_timeout: Duration::from_millis(250), max_retries: 1, max_retry_timeout: None };

pub(super) struct NatPmp {
    config: PortMapConfig,
    tcp: Option<PortMapping>,
    udp: Option<PortMapping>,
}

impl NatPmp {
    pub(super) fn new(config: PortMapConfig) -> Self {
        Self { config, tcp: None, udp: None }
    }
}

struct Request {
    gateway: Ipv4Addr,
    client: Ipv4Addr,
    port: NonZeroU16,
}

impl Request {
    /// Renews a mapping, or creates a new one if that fails or the router has changed.
    async fn map(
        &self,
        before: Option<PortMapping>,
        protocol: InternetProtocol,
        preferred: NonZeroU16,
    ) -> Result<PortMapping, MapError> {
        if let Some(mut mapping) = before.filter(|mapping| IpAddr::from(mapping.gateway()) == self.gateway)
            && mapping.renew().await.is_ok()
        {
            return Ok(mapping);
        }
        let options = PortMappingOptions {
            external_port: Some(preferred),
            lifetime_seconds: Some(LEASE.as_secs() as u32),
            timeout_config: Some(RETRANSMISSION),
        };
        let base = pcp::BaseMapRequest::new(self.gateway.into(), self.client.into(), protocol, self.port);
        let refused = match pcp::port_mapping(base, None, None, options).await {
            Ok(mapping) => return Ok(mapping),
            // Nobody listens at the address. A router without PCP would have answered that it does not support it.
            Err(error @ pcp::Failure::Socket(_)) => return Err(MapError::NoRouter(error.to_string())),
            Err(error) => error,
        };
        // Some routers that support only NAT-PMP ignore PCP requests instead of rejecting them.
        match natpmp::port_mapping(self.gateway.into(), protocol, self.port, options).await {
            Ok(mapping) => Ok(mapping),
            Err(error @ (natpmp::Failure::Timeout | natpmp::Failure::Socket(_))) => match refused {
                pcp::Failure::Timeout | pcp::Failure::UnsupportedVersion(_) => {
                    Err(MapError::NoRouter(error.to_string()))
                }
                refused => Err(MapError::Refused(refused.to_string())),
            },
            Err(error) => Err(MapError::Refused(error.to_string())),
        }
    }
}

impl Router for NatPmp {
    const NAME: &'static str = "NAT-PMP or PCP";

    async fn map(&mut self) -> Result<(Mapping, Duration), MapError> {
        let gateway = match self.config.gateway {
            Some(gateway) => Some(gateway),
            None => default_gateway().await,
        };
        let gateway = gateway.ok_or_else(|| MapError::NoRouter("there is no default route".into()))?;
        let client = our_address(gateway.into(), self.config.bind).await;
        let client = client.map_err(|error| MapError::NoRouter(error.to_string()))?;

        let port = self.config.port;
        let request = Request { gateway, client, port };
        let tcp = request.map(self.tcp.clone(), InternetProtocol::Tcp, port).await?;
        // Store it at once, so that it is removed whatever happens next.
        let tcp = &*self.tcp.insert(tcp);
        // Prefer the same number for both. Without UDP, peers can still connect over TCP.
        self.udp = request.map(self.udp.clone(), InternetProtocol::Udp, tcp.external_port()).await.ok();
        let (protocol, external_ip) = match tcp.mapping_type() {
            PortMappingType::Pcp { external_ip, .. } => ("PCP", plausible_external_ip(external_ip)),
            PortMappingType::NatPmp => {
                let reported = natpmp::external_address(gateway.into(), Some(RETRANSMISSION)).await;
                ("NAT-PMP", reported.ok().and_then(|ip| plausible_external_ip(ip.into())))
            }
        };
        let leases = [Some(tcp), self.udp.as_ref()].into_iter().flatten().map(PortMapping::lifetime);
        let lease = Duration::from_secs(leases.min().unwrap_or_default().into());
        let udp_port = self.udp.as_ref().map(|udp| udp.external_port().get());
        Ok((Mapping { protocol, external_ip, tcp_port: tcp.external_port().get(), udp_port }, lease))
    }

    async fn unmap(&mut self) {
        let drop_one = |mapping: Option<PortMapping>| async {
            if let Some(mut mapping) = mapping {
                mapping.timeout_config = FINAL_RETRANSMISSION;
                let _ = mapping.try_drop().await;
            }
        };
        tokio::join!(drop_one(self.tcp.take()), drop_one(self.udp.take()));
    }
}
