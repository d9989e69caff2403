//! The tasks that keep our port mapped, one for each protocol.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::natpmp::NatPmp;
use super::upnp::Upnp;
use super::{MapError, Mapping, PortMapConfig, PortMapStatus, Router};
use crate::util::lock;

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
