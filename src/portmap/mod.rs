//! Port mapping: asks the home router to pass on what comes for our port (UPnP, NAT-PMP, PCP).
//!
//! Owns the talk with the router: a mapping is made, renewed before its lease ends, and withdrawn at the end. Both
//! families of protocols are tried side by side, for few routers speak all, and many speak one badly. Without a router
//! it is quiet, and looks again now and then: a laptop moves. It holds up nobody: everything happens in its own tasks,
//! every wait ends, and what a router says of addresses and times is bounded before it is believed.
//!
//! Knows nothing of peers: whoever announces our port looks at [`PortMapper::status`]. Deliberately only IPv4, where
//! the addresses are translated; with IPv6 a router at most has a firewall.

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

/// Where routers that speak UPnP are searched for.
pub const SSDP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(239, 255, 255, 250)), 1900);

/// What is asked for. Routers forget what is renewed no more, should we end without a farewell.
const LEASE: Duration = Duration::from_secs(3600);
/// Renewed after half of the lease, within these.
const RENEWAL: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(1800));
/// One attempt, all of it.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(20);
/// The wait after a failure, doubled after each further one.
const RETRY: (Duration, Duration) = (Duration::from_secs(120), Duration::from_secs(3600));
/// To withdraw.
const FAREWELL_LIMIT: Duration = Duration::from_secs(1);

/// What is to be mapped, and by whom.
#[derive(Clone, Debug)]
pub struct PortMapConfig {
    /// Our port, TCP and UDP.
    pub port: NonZeroU16,
    /// Our address, if it must be a certain one.
    pub bind: Option<Ipv4Addr>,
    /// The router that speaks NAT-PMP or PCP; `None`: that of the default route.
    pub gateway: Option<Ipv4Addr>,
    /// Where routers that speak UPnP are searched for; usually [`SSDP`].
    pub search: SocketAddr,
}

impl PortMapConfig {
    /// For the router of this network.
    pub fn new(port: NonZeroU16) -> Self {
        Self { port, bind: None, gateway: None, search: SSDP }
    }
}

/// What a router does for us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// For people: how it was asked.
    pub protocol: &'static str,
    /// Its address to the outside, if it told one that can be one. It need not be the Internet's: a router may stand
    /// behind another.
    pub external_ip: Option<Ipv4Addr>,
    /// The port that peers call for ours, over TCP.
    pub tcp_port: u16,
    /// The same over UDP, if that is mapped, too.
    pub udp_port: Option<u16>,
}

/// How things stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortMapStatus {
    /// NAT-PMP or PCP: what is mapped, or why nothing is. `None`: not known yet.
    pub natpmp: Option<Result<Mapping, String>>,
    /// The same of UPnP.
    pub upnp: Option<Result<Mapping, String>>,
}

impl PortMapStatus {
    /// What is mapped, if anything is.
    pub fn mapping(&self) -> Option<&Mapping> {
        [&self.natpmp, &self.upnp].into_iter().flatten().find_map(|outcome| outcome.as_ref().ok())
    }
}

/// Keeps our port mapped, in tasks of its own. Dropping it ends them without a farewell; [`PortMapper::stop`] says it.
#[derive(Debug)]
pub struct PortMapper {
    status: watch::Receiver<PortMapStatus>,
    stop: watch::Sender<bool>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl PortMapper {
    /// Starts on the current tokio runtime.
    pub fn spawn(config: PortMapConfig) -> Self {
        let (tell, status) = watch::channel(PortMapStatus::default());
        let (stop, stopped) = watch::channel(false);
        let natpmp = NatPmp::new(config.clone());
        let upnp = Upnp::new(config);
        let (tell, tell_too) = (tell.clone(), tell);
        let tasks = vec![
            tokio::spawn(keep(natpmp, stopped.clone(), move |outcome| {
                tell.send_modify(|status| status.natpmp = Some(outcome));
            })),
            tokio::spawn(keep(upnp, stopped, move |outcome| {
                tell_too.send_modify(|status| status.upnp = Some(outcome));
            })),
        ];
        Self { status, stop, tasks: Mutex::new(tasks) }
    }

    /// How things stand, and word when that changes.
    pub fn status(&self) -> watch::Receiver<PortMapStatus> {
        self.status.clone()
    }

    /// Withdraws what is mapped, within about a second, and ends. A second call returns at once.
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

/// Why nothing is mapped.
#[derive(Debug)]
enum Fault {
    /// Nobody there to ask.
    NoRouter(String),
    /// It does not do it.
    Refused(String),
}

/// One way to ask a router.
trait Router: Send + 'static {
    /// Makes or renews the mapping of both protocols; and for how long it holds.
    fn map(&mut self) -> impl Future<Output = Result<(Mapping, Duration), Fault>> + Send;

    /// Withdraws whatever was mapped.
    fn unmap(&mut self) -> impl Future<Output = ()> + Send;

    /// For people.
    const NAME: &'static str;
}

async fn keep<R: Router>(
    mut router: R,
    mut stopped: watch::Receiver<bool>,
    tell: impl Fn(Result<Mapping, String>) + Send + 'static,
) {
    let mut failures = 0u32;
    let mut known = None;
    loop {
        let attempt = tokio::select! {
            attempt = timeout(ATTEMPT_LIMIT, router.map()) => attempt,
            _ = stopped.wait_for(|stop| *stop) => break,
        };
        let outcome = attempt.unwrap_or_else(|_| Err(Fault::NoRouter("no answer in time".into())));
        let wait = match outcome {
            Ok((mapping, lease)) => {
                failures = 0;
                let outcome = Ok(mapping);
                if known.as_ref() != Some(&outcome)
                    && let Ok(Mapping { protocol, external_ip, tcp_port, .. }) = &outcome
                {
                    let ip = external_ip.map_or_else(|| "an unknown address".into(), |ip| ip.to_string());
                    tracing::info!("the router passes peers on to us ({protocol}): port {tcp_port} of {ip}");
                }
                known = Some(outcome);
                (lease / 2).clamp(RENEWAL.0, RENEWAL.1)
            }
            Err(fault) => {
                failures = failures.saturating_add(1);
                let (why, there) = match fault {
                    Fault::NoRouter(why) => (why, false),
                    Fault::Refused(why) => (why, true),
                };
                let outcome = Err(why.clone());
                if known.as_ref() != Some(&outcome) {
                    match known.is_some_and(|known| known.is_ok()) || there {
                        true => tracing::info!("the router does not map our port by {}: {why}", R::NAME),
                        false => tracing::debug!("no port mapping by {}: {why}", R::NAME),
                    }
                }
                known = Some(outcome);
                (RETRY.0 * (1 << (failures - 1).min(10))).min(RETRY.1)
            }
        };
        if let Some(known) = &known {
            tell(known.clone());
        }
        tokio::select! {
            () = sleep(wait) => {}
            _ = stopped.wait_for(|stop| *stop) => break,
        }
    }
    let _ = timeout(FAREWELL_LIMIT, router.unmap()).await;
}

/// An address that a router may have to the outside; some say 0.0.0.0 while they have none.
fn plausible(ip: IpAddr) -> Option<Ipv4Addr> {
    match ip.to_canonical() {
        IpAddr::V4(ip) if !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast() && !ip.is_broadcast() => {
            Some(ip)
        }
        _ => None,
    }
}
