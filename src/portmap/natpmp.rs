//! PCP (RFC 6887), and NAT-PMP (RFC 6886) where the router does not know it.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::time::Duration;

use crab_nat::{InternetProtocol, PortMapping, PortMappingOptions, PortMappingType, TimeoutConfig, natpmp, pcp};

use super::gateway::{default_gateway, our_address};
use super::{Fault, LEASE, Mapping, PortMapConfig, Router, plausible};

/// A quarter of a second for the first answer, as RFC 6886 has it, and twice as long each time.
const PATIENCE: TimeoutConfig =
    TimeoutConfig { initial_timeout: Duration::from_millis(250), max_retries: 3, max_retry_timeout: None };
/// At the end there is no time for more.
const LAST_PATIENCE: TimeoutConfig =
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

struct Ask {
    gateway: Ipv4Addr,
    client: Ipv4Addr,
    port: NonZeroU16,
}

impl Ask {
    /// Renews a mapping, or makes it anew if that fails or the router is another one.
    async fn map(
        &self,
        before: Option<PortMapping>,
        protocol: InternetProtocol,
        wished: NonZeroU16,
    ) -> Result<PortMapping, Fault> {
        if let Some(mut mapping) = before.filter(|mapping| IpAddr::from(mapping.gateway()) == self.gateway)
            && mapping.renew().await.is_ok()
        {
            return Ok(mapping);
        }
        let options = PortMappingOptions {
            external_port: Some(wished),
            lifetime_seconds: Some(LEASE.as_secs() as u32),
            timeout_config: Some(PATIENCE),
        };
        let base = pcp::BaseMapRequest::new(self.gateway.into(), self.client.into(), protocol, self.port);
        let refused = match pcp::port_mapping(base, None, None, options).await {
            Ok(mapping) => return Ok(mapping),
            // Nobody there; the answer that it has no PCP would have come.
            Err(error @ pcp::Failure::Socket(_)) => return Err(Fault::NoRouter(error.to_string())),
            Err(error) => error,
        };
        // Some that know only NAT-PMP do not say so, and keep silent.
        match natpmp::port_mapping(self.gateway.into(), protocol, self.port, options).await {
            Ok(mapping) => Ok(mapping),
            Err(error @ (natpmp::Failure::Timeout | natpmp::Failure::Socket(_))) => match refused {
                pcp::Failure::Timeout | pcp::Failure::UnsupportedVersion(_) => Err(Fault::NoRouter(error.to_string())),
                refused => Err(Fault::Refused(refused.to_string())),
            },
            Err(error) => Err(Fault::Refused(error.to_string())),
        }
    }
}

impl Router for NatPmp {
    const NAME: &'static str = "NAT-PMP or PCP";

    async fn map(&mut self) -> Result<(Mapping, Duration), Fault> {
        let gateway = match self.config.gateway {
            Some(gateway) => Some(gateway),
            None => default_gateway().await,
        };
        let gateway = gateway.ok_or_else(|| Fault::NoRouter("there is no default route".into()))?;
        let client = our_address(gateway.into(), self.config.bind).await;
        let client = client.map_err(|error| Fault::NoRouter(error.to_string()))?;

        let port = self.config.port;
        let ask = Ask { gateway, client, port };
        let tcp = ask.map(self.tcp.clone(), InternetProtocol::Tcp, port).await?;
        // Remembered at once: whatever comes now, it is to be withdrawn.
        let tcp = &*self.tcp.insert(tcp);
        // The same number for both, if the router can. Peers come over TCP alone, too.
        self.udp = ask.map(self.udp.clone(), InternetProtocol::Udp, tcp.external_port()).await.ok();
        let (protocol, external_ip) = match tcp.mapping_type() {
            PortMappingType::Pcp { external_ip, .. } => ("PCP", plausible(external_ip)),
            PortMappingType::NatPmp => {
                let told = natpmp::external_address(gateway.into(), Some(PATIENCE)).await;
                ("NAT-PMP", told.ok().and_then(|ip| plausible(ip.into())))
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
                mapping.timeout_config = LAST_PATIENCE;
                let _ = mapping.try_drop().await;
            }
        };
        tokio::join!(drop_one(self.tcp.take()), drop_one(self.udp.take()));
    }
}
