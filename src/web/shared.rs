//! State that all request handlers share.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Semaphore;

use crate::control::status::Status;
use crate::control::{Mount, observe};

/// Number of status reports that are made at the same time. Each may take some megabytes of memory.
const MAX_REPORTS: usize = 4;

/// State that all request handlers share.
#[derive(Clone)]
pub(super) struct Shared {
    pub mount: Arc<Mount>,
    /// When the mount started.
    since: Instant,
    /// Address of the TCP listener, if there is one.
    http: Option<SocketAddr>,
    /// Permit for parsing a `.torrent` file, which takes a few times its size.
    pub parsing: Arc<Semaphore>,
    /// Permits for making status reports.
    reports: Arc<Semaphore>,
}

impl Shared {
    pub fn new(mount: Mount, http: Option<SocketAddr>) -> Self {
        let [parsing, reports] = [1, MAX_REPORTS].map(|permits| Arc::new(Semaphore::new(permits)));
        Self { mount: Arc::new(mount), since: Instant::now(), http, parsing, reports }
    }

    /// Returns the current status of the whole mount.
    pub async fn status(&self) -> Status {
        // The semaphore is never closed.
        let _permit = self.reports.acquire().await;
        observe::mount(&self.mount, self.since, self.http).await
    }
}
