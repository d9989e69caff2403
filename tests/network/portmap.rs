//! Port mapping against fake routers on loopback.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::num::NonZeroU16;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::support;
use tokio::time::timeout;
use torrentfs::internals::portmap::{Mapping, PortMapConfig, PortMapStatus, PortMapper};

const LONG: Duration = Duration::from_secs(180);
const PORT: NonZeroU16 = NonZeroU16::new(6881).unwrap();

/// Mappings of a router: from protocol and external port to internal port and lease in seconds.
type Mappings = Arc<Mutex<BTreeMap<(&'static str, u16), (u16, u32)>>>;

/// Directs both searches to 127.77.0.`host`. The protocols fix the ports, so each test has an address of its own.
fn config(host: u8) -> PortMapConfig {
    let ip = Ipv4Addr::new(127, 77, 0, host);
    PortMapConfig { port: PORT, bind: Some(ip), gateway: Some(ip), search: (ip, 1900).into() }
}

async fn until(mapper: &PortMapper, done: impl FnMut(&PortMapStatus) -> bool) -> PortMapStatus {
    let mut status = mapper.status();
    timeout(LONG, status.wait_for(done)).await.expect("in time").expect("the mapper runs").clone()
}

/// Starts a router that speaks NAT-PMP and answers PCP as `pcp` says.
fn natpmp(host: u8, lease: u32, pcp: Pcp) -> Mappings {
    let socket = UdpSocket::bind((Ipv4Addr::new(127, 77, 0, host), 5351)).unwrap();
    let mappings = Mappings::default();
    let table = mappings.clone();
    thread::spawn(move || {
        let mut buffer = [0; 1100];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let answer = match (&buffer[..len], pcp) {
                ([0, 0], _) => vec![0, 128, 0, 0, 0, 0, 0, 9, 203, 0, 113, 7],
                ([0, kind @ 1..=2, ..], _) if len == 12 => {
                    let number = |at: usize| u16::from_be_bytes([buffer[at], buffer[at + 1]]);
                    let (inside, wished) = (number(4), number(6));
                    let asked = u32::from_be_bytes(buffer[8..12].try_into().unwrap());
                    let protocol = if *kind == 1 { "UDP" } else { "TCP" };
                    let mut table = table.lock().unwrap();
                    let (outside, granted) = if asked == 0 {
                        table.retain(|(other, _), (port, _)| *other != protocol || *port != inside);
                        (0, 0)
                    } else {
                        // As if another machine had mapped that port already.
                        let outside = if wished == 6881 { 7000 } else { wished };
                        let granted = asked.min(lease);
                        table.insert((protocol, outside), (inside, granted));
                        (outside, granted)
                    };
                    let head = [0, 128 + kind, 0, 0, 0, 0, 0, 9];
                    [&head[..], &inside.to_be_bytes(), &outside.to_be_bytes(), &granted.to_be_bytes()].concat()
                }
                ([2, ..], Pcp::Unknown) => vec![0, 128, 0, 1, 0, 0, 0, 9],
                ([2, ..], Pcp::Garbage) => vec![0xFF; 1000],
                _ => continue,
            };
            let _ = socket.send_to(&answer, from);
        }
    });
    mappings
}

#[derive(Clone, Copy)]
enum Pcp {
    /// Answers that it supports version 0 (NAT-PMP) only.
    Unknown,
    /// Does not answer.
    Silent,
    /// Answers with garbage.
    Garbage,
}

/// Starts a router that speaks UPnP. Another machine has mapped the external port `taken`; with `permanent` the router
/// rejects every lease but an infinite one.
fn upnp(host: u8, taken: u16, permanent: bool) -> Mappings {
    let ip = Ipv4Addr::new(127, 77, 0, host);
    let http = TcpListener::bind((ip, 0)).unwrap();
    let port = http.local_addr().unwrap().port();
    let ssdp = UdpSocket::bind((ip, 1900)).unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 2000];
        while let Ok((len, from)) = ssdp.recv_from(&mut buffer) {
            assert!(buffer[..len].starts_with(b"M-SEARCH * HTTP/1.1\r\n"));
            let answer =
                format!("HTTP/1.1 200 OK\r\nST: upnp:rootdevice\r\nLOCATION: http://{ip}:{port}/root.xml\r\n\r\n");
            let _ = ssdp.send_to(answer.as_bytes(), from);
        }
    });
    let mappings = Mappings::default();
    let table = mappings.clone();
    thread::spawn(move || {
        for mut stream in http.incoming().flatten() {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut head, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap_or(0) <= 2 {
                    break;
                }
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                head += &line;
            }
            let mut body = vec![0; length];
            let _ = reader.read_exact(&mut body);
            let (status, body) = answer(&head, &String::from_utf8(body).unwrap(), &table, taken, permanent);
            let _ = write!(
                stream,
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
        }
    });
    mappings
}

fn answer(head: &str, body: &str, table: &Mappings, taken: u16, permanent: bool) -> (&'static str, String) {
    const SERVICE: &str = "urn:schemas-upnp-org:service:WANIPConnection:1";
    let soap = |inner: String| {
        format!(
            "<?xml version=\"1.0\"?><s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"><s:Body>\
             {inner}</s:Body></s:Envelope>"
        )
    };
    let fault = |code: u16| {
        let detail =
            format!("<UPnPError><errorCode>{code}</errorCode><errorDescription>no</errorDescription></UPnPError>");
        let inner = format!("<s:Fault><faultcode>s:Client</faultcode><detail>{detail}</detail></s:Fault>");
        ("500 Internal Server Error", soap(inner))
    };
    let field = |name: &str| {
        let (_, rest) = body.split_once(&format!("<{name}>")).unwrap_or_default();
        rest.split('<').next().unwrap_or_default().to_owned()
    };
    let done = |action: &str, inner: &str| {
        ("200 OK", soap(format!("<u:{action}Response xmlns:u=\"{SERVICE}\">{inner}</u:{action}Response>")))
    };
    if head.starts_with("GET /root.xml") {
        let service = format!(
            "<service><serviceType>{SERVICE}</serviceType><SCPDURL>/scpd.xml</SCPDURL>\
             <controlURL>/control</controlURL></service>"
        );
        return ("200 OK", format!("<root><device><serviceList>{service}</serviceList></device></root>"));
    }
    if head.starts_with("GET /scpd.xml") {
        let action = |name: &str, arguments: &[&str]| {
            let arguments: String = arguments
                .iter()
                .map(|name| format!("<argument><name>{name}</name><direction>in</direction></argument>"))
                .collect();
            format!("<action><name>{name}</name><argumentList>{arguments}</argumentList></action>")
        };
        let add = [
            "NewRemoteHost",
            "NewExternalPort",
            "NewProtocol",
            "NewInternalPort",
            "NewInternalClient",
            "NewEnabled",
            "NewPortMappingDescription",
            "NewLeaseDuration",
        ];
        let actions = action("AddPortMapping", &add) + &action("DeletePortMapping", &add[..3]);
        return ("200 OK", format!("<scpd><actionList>{actions}</actionList></scpd>"));
    }
    let protocol = if field("NewProtocol") == "TCP" { "TCP" } else { "UDP" };
    let outside = field("NewExternalPort").parse().unwrap_or(0);
    if body.contains("AddPortMapping") {
        let lease: u32 = field("NewLeaseDuration").parse().unwrap();
        match (outside == taken, permanent && lease != 0) {
            (true, _) => return fault(718),
            (_, true) => return fault(725),
            _ => {}
        }
        table.lock().unwrap().insert((protocol, outside), (field("NewInternalPort").parse().unwrap(), lease));
        done("AddPortMapping", "")
    } else if body.contains("DeletePortMapping") {
        table.lock().unwrap().remove(&(protocol, outside));
        done("DeletePortMapping", "")
    } else if body.contains("GetExternalIPAddress") {
        done("GetExternalIPAddress", "<NewExternalIPAddress>203.0.113.9</NewExternalIPAddress>")
    } else {
        fault(401)
    }
}

fn mapping(protocol: &'static str, ip: [u8; 4], port: u16) -> Mapping {
    Mapping { protocol, external_ip: Some(ip.into()), tcp_port: port, udp_port: Some(port) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn natpmp_maps_both_protocols_and_withdraws_them() {
    for (host, pcp) in [(1, Pcp::Unknown), (2, Pcp::Silent), (3, Pcp::Garbage)] {
        let router = natpmp(host, 7200, pcp);
        let mapper = PortMapper::spawn(config(host));
        let status = until(&mapper, |status| status.natpmp.is_some()).await;
        let expected = mapping("NAT-PMP", [203, 0, 113, 7], 7000);
        assert_eq!((&status.natpmp, status.mapping()), (&Some(Ok(expected.clone())), Some(&expected)));
        let wanted = BTreeMap::from([(("TCP", 7000), (6881, 3600)), (("UDP", 7000), (6881, 3600))]);
        assert_eq!(*router.lock().unwrap(), wanted);
        let begun = Instant::now();
        mapper.stop().await;
        assert!(begun.elapsed() < Duration::from_secs(15));
        assert!(router.lock().unwrap().is_empty());
        mapper.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upnp_maps_both_protocols_and_withdraws_them() {
    for (host, taken, permanent, port) in [(11, 0, false, 6881), (12, 6881, false, 6882), (13, 0, true, 6881)] {
        let router = upnp(host, taken, permanent);
        let mapper = PortMapper::spawn(config(host));
        let status = until(&mapper, |status| status.upnp.is_some()).await;
        assert_eq!(status.upnp, Some(Ok(mapping("UPnP", [203, 0, 113, 9], port))));
        let lease = if permanent { 0 } else { 3600 };
        let wanted = BTreeMap::from([(("TCP", port), (6881, lease)), (("UDP", port), (6881, lease))]);
        assert_eq!(*router.lock().unwrap(), wanted);
        mapper.stop().await;
        assert!(router.lock().unwrap().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_router_both_searches_fail() {
    let mapper = PortMapper::spawn(config(21));
    let status = until(&mapper, |status| status.natpmp.is_some() && status.upnp.is_some()).await;
    assert!(status.mapping().is_none());
    assert!(matches!((status.natpmp, status.upnp), (Some(Err(_)), Some(Err(_)))));
    mapper.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_that_sends_garbage_is_ignored() {
    let ip = Ipv4Addr::new(127, 77, 0, 31);
    for port in [1900, 5351] {
        let socket = UdpSocket::bind((ip, port)).unwrap();
        thread::spawn(move || {
            let mut buffer = [0; 2000];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                let stranger: SocketAddr = "192.0.2.1:80".parse().unwrap();
                let reply = format!("HTTP/1.1 200 OK\r\nLOCATION: http://{stranger}/root.xml\r\n\r\n");
                let _ = socket.send_to(reply.as_bytes(), from);
            }
        });
    }
    let mapper = PortMapper::spawn(config(31));
    let status = until(&mapper, |status| status.natpmp.is_some() && status.upnp.is_some()).await;
    assert!(status.mapping().is_none(), "{status:?}");
    mapper.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mappings_are_renewed_before_their_lease_ends() {
    // The shortest time between two renewals is 30 s, so the test advances the clock.
    let router = natpmp(41, 61, Pcp::Unknown);
    let renewed = router.clone();
    let outcome = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let mapper = PortMapper::spawn(config(41));
            until(&mapper, |status| status.natpmp.is_some()).await;
            renewed.lock().unwrap().clear();
            tokio::time::pause();
            tokio::time::advance(Duration::from_secs(31)).await;
            tokio::time::resume();
            let end = Instant::now() + LONG;
            while renewed.lock().unwrap().len() < 2 && Instant::now() < end {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert_eq!(renewed.lock().unwrap().len(), 2);
            mapper.stop().await;
        });
    });
    outcome.join().unwrap();
    assert!(router.lock().unwrap().is_empty());
}

/// The mount maps its port when it starts and removes the mapping when it ends.
#[test]
fn a_mount_maps_its_port_while_it_runs() {
    if !support::can_run(&["opentracker", "mktorrent", "libtorrent"]) {
        return;
    }
    let _turn = support::turn();
    let mut lab = support::Lab::new();
    let torrent = lab.publish("film.bin", &support::noise(100_000, 1), 15);
    let router = natpmp(9, 7200, Pcp::Unknown);
    let mount = lab.mount("m", &torrent, &["--bind", "127.77.0.9", "--gateway", "127.77.0.9", "--no-dht"]);
    support::wait_until("the port is mapped", LONG, || router.lock().unwrap().len() == 2);
    mount.stop();
    assert!(router.lock().unwrap().is_empty(), "a mapping was left at the router");
}
