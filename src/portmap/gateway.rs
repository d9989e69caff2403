//! The address of our router, and our own address in its network.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use tokio::net::UdpSocket;

/// Maximum number of routes read. No home machine has as many.
const MAX_ROUTES: usize = 10_000;

/// Returns the gateway of the default route with the lowest metric.
pub(super) async fn default_gateway() -> Option<Ipv4Addr> {
    parse(&tokio::fs::read_to_string("/proc/net/route").await.ok()?)
}

/// Parses `/proc/net/route`. Addresses are hexadecimal, in the machine's byte order.
fn parse(table: &str) -> Option<Ipv4Addr> {
    /// Flags of a route that is up and uses a gateway.
    const UP_AND_GATEWAY: u16 = 0x3;
    let gateways = table.lines().skip(1).take(MAX_ROUTES).filter_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, destination, gateway, flags, _, _, metric, mask, ..] = fields[..] else { return None };
        let address = |text: &str| u32::from_str_radix(text, 16).ok().map(|n| Ipv4Addr::from(n.to_ne_bytes()));
        let through = u16::from_str_radix(flags, 16).ok()? & UP_AND_GATEWAY == UP_AND_GATEWAY;
        let default = address(destination)?.is_unspecified() && address(mask)?.is_unspecified();
        let gateway = address(gateway).filter(|ip| !ip.is_unspecified())?;
        (default && through).then_some((metric.parse::<u32>().ok()?, gateway))
    });
    gateways.min().map(|(_, gateway)| gateway)
}

/// Returns our address in the network of `router`. Connecting a UDP socket sends nothing.
pub(super) async fn our_address(router: IpAddr, bind: Option<Ipv4Addr>) -> io::Result<Ipv4Addr> {
    if let Some(ip) = bind {
        return Ok(ip);
    }
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect(SocketAddr::new(router, 9)).await?;
    match socket.local_addr()?.ip() {
        IpAddr::V4(ip) => Ok(ip),
        IpAddr::V6(_) => Err(io::ErrorKind::AddrNotAvailable.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";

    fn route(destination: [u8; 4], gateway: [u8; 4], flags: &str, metric: u32, mask: [u8; 4]) -> String {
        let hex = |ip: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(ip));
        let (destination, gateway, mask) = (hex(destination), hex(gateway), hex(mask));
        format!("eth0\t{destination}\t{gateway}\t{flags}\t0\t0\t{metric}\t{mask}\t0\t0\t0\n")
    }

    #[test]
    fn the_default_route_with_the_lowest_metric_is_chosen() {
        let any = [0; 4];
        let table = [
            HEADER.to_owned(),
            route([192, 168, 1, 0], any, "0001", 0, [255, 255, 255, 0]),
            route(any, [10, 0, 0, 1], "0003", 600, any),
            route(any, [192, 168, 1, 1], "0003", 100, any),
            // Down; half of a tunnel's catch-all; without a gateway.
            route(any, [1, 1, 1, 1], "0002", 0, any),
            route(any, [2, 2, 2, 2], "0003", 0, [128, 0, 0, 0]),
            route(any, any, "0001", 0, any),
        ];
        assert_eq!(parse(&table.concat()), Some(Ipv4Addr::new(192, 168, 1, 1)));
    }

    #[test]
    fn tables_without_a_default_route_are_handled() {
        for table in ["", HEADER, "\n\n\n", "a\nb c d\n", "x\neth0 zz 0 0003 0 0 0 0\n"] {
            assert_eq!(parse(table), None);
        }
    }
}
