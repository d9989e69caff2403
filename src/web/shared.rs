//! State that all request handlers share.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Semaphore;

use crate::control::status::Status;
use crate::control::{Mount, observe};

/// Number of `.torrent` uploads that are read at the same time. Each may take some megabytes of memory.
const MAX_UPLOADS: usize = 2;

/// State that all request handlers share.
#[derive(Clone)]
pub(super) struct Shared {
    pub mount: Arc<Mount>,
    /// When the mount started.
    since: Instant,
    /// Address of the TCP listener, if there is one.
    http: Option<SocketAddr>,
    /// Permits for `.torrent` uploads.
    pub uploads: Arc<Semaphore>,
}

impl Shared {
    pub fn new(mount: Mount, http: Option<SocketAddr>) -> Self {
        let uploads = Arc::new(Semaphore::new(MAX_UPLOADS));
        Self { mount: Arc::new(mount), since: Instant::now(), http, uploads }
    }

    /// Returns the current status of the whole mount.
    pub async fn status(&self) -> Status {
        observe::mount(&self.mount, self.since, self.http).await
    }
}
