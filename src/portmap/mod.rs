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
mod natpmp;
mod upnp;

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use natpmp::NatPmp;
use upnp::Upnp;

use crate::util::lock;

/// Multicast address at which UPnP routers are discovered.
pub const SSDP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(239, 255, 255, 250)), 1900);

/// Requested lease. If we end without removing the mapping, the router removes it after this time.
const LEASE: Duration = Duration::from_secs(3600);
/// Shortest time to the renewal of a mapping, which is due after half of its lease.
const MIN_RENEWAL: Duration = Duration::from_secs(30);
/// Longest time to the renewal of a mapping, in case the router forgets it early.
const MAX_RENEWAL: Duration = Duration::from_secs(1800);
/// Time limit for one attempt to map the port.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(20);
/// Wait after a first failure; it doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_secs(120);
/// Longest wait after failures, so that a laptop in a new network gets its mapping within an hour.
const MAX_RETRY: Duration = Duration::from_secs(3600);
/// Time limit for removing the mapping at the end.
const UNMAP_LIMIT: Duration = Duration::from_secs(1);

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

/// Keeps our port mapped, in tasks of its own. Dropping it ends the tasks without removing the mapping;
/// [`PortMapper::stop`] removes it.
#[derive(Debug)]
pub struct PortMapper {
    status: watch::Receiver<PortMapStatus>,
    stop: watch::Sender<bool>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl PortMapper {
    /// Starts the tasks on the current tokio runtime.
    pub fn spawn(config: PortMapConfig) -> Self {
        let (publish, status) = watch::channel(PortMapStatus::default());
        let (stop, stopped) = watch::channel(false);
        let natpmp = NatPmp::new(config.clone());
        let upnp = Upnp::new(config);
        let (publish_natpmp, publish_upnp) = (publish.clone(), publish);
        let tasks = vec![
            tokio::spawn(maintain(natpmp, stopped.clone(), move |outcome| {
                publish_natpmp.send_modify(|status| status.natpmp = Some(outcome));
            })),
            tokio::spawn(maintain(upnp, stopped, move |outcome| {
                publish_upnp.send_modify(|status| status.upnp = Some(outcome));
            })),
        ];
        Self { status, stop, tasks: Mutex::new(tasks) }
    }

    /// Returns the current state and notifies about changes.
    pub fn status(&self) -> watch::Receiver<PortMapStatus> {
        self.status.clone()
    }

    /// Removes the mapping, within about a second, and ends the tasks. A second call returns at once.
    pub async fn stop(&self) {
        self.stop.send_replace(true);
        let tasks = std::mem::take(&mut *lock(&self.tasks));
        for task in tasks {
            let _ = task.await;
        }
    }
}

impl Drop for PortMapper {
    fn drop(&mut self) {
        let tasks = self.tasks.get_mut().unwrap_or_else(PoisonError::into_inner);
        tasks.iter().for_each(JoinHandle::abort);
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

async fn maintain<R: Router>(
    mut router: R,
    mut stopped: watch::Receiver<bool>,
    publish: impl Fn(Result<Mapping, String>) + Send + 'static,
) {
    let mut failures = 0u32;
    let mut known = None;
    loop {
        let attempt = tokio::select! {
            attempt = timeout(ATTEMPT_LIMIT, router.map()) => attempt,
            _ = stopped.wait_for(|stop| *stop) => break,
        };
        let outcome = attempt.unwrap_or_else(|_| Err(MapError::NoRouter("no answer in time".into())));
        let wait = match outcome {
            Ok((mapping, lease)) => {
                failures = 0;
                let outcome = Ok(mapping);
                if known.as_ref() != Some(&outcome)
                    && let Ok(Mapping { protocol, external_ip, tcp_port, .. }) = &outcome
                {
                    let ip = external_ip.map_or_else(|| "an unknown address".into(), |ip| ip.to_string());
                    tracing::info!("the router forwards port {tcp_port} of {ip} to us ({protocol})");
                }
                known = Some(outcome);
                (lease / 2).clamp(MIN_RENEWAL, MAX_RENEWAL)
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                let (why, found) = match error {
                    MapError::NoRouter(why) => (why, false),
                    MapError::Refused(why) => (why, true),
                };
                let outcome = Err(why.clone());
                if known.as_ref() != Some(&outcome) {
                    match known.is_some_and(|known| known.is_ok()) || found {
                        true => tracing::info!("the router does not map our port by {}: {why}", R::NAME),
                        false => tracing::debug!("no port mapping by {}: {why}", R::NAME),
                    }
                }
                known = Some(outcome);
                (FIRST_RETRY * (1 << (failures - 1).min(10))).min(MAX_RETRY)
            }
        };
        if let Some(known) = &known {
            publish(known.clone());
        }
        tokio::select! {
            () = sleep(wait) => {}
            _ = stopped.wait_for(|stop| *stop) => break,
        }
    }
    let _ = timeout(UNMAP_LIMIT, router.unmap()).await;
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
