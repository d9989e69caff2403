//! Name resolution to global addresses only.

use std::collections::HashSet;
use std::env;
use std::error::Error;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper_util::client::legacy::connect::dns;
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tower_service::Service;

use crate::util::is_local;

/// A `reqwest` resolver that returns only global addresses. A client with it cannot reach a local address, even if a
/// name resolves differently between two requests. URLs with an IP address bypass the resolver; check them with
/// [`names_local_host`](super::names_local_host).
#[derive(Clone, Debug)]
pub struct GlobalOnly {
    /// Hosts of the system's proxies, which may be local because the user configured them.
    proxies: HashSet<String>,
}

/// The error for a name without a global address.
#[derive(Debug, thiserror::Error)]
#[error("its address belongs to this machine or its network")]
pub(super) struct LocalName;

impl GlobalOnly {
    /// Creates a resolver. Reads the hosts of the system's proxies from the environment.
    #[allow(clippy::new_without_default, reason = "it depends on the environment")]
    pub fn new() -> Self {
        let host = |text: String| Some(Url::parse(&text).ok()?.host_str()?.to_ascii_lowercase());
        Self { proxies: system_proxies().filter_map(host).collect() }
    }
}

/// Returns the system's proxy URLs from the environment variables that `reqwest` honours.
pub(super) fn system_proxies() -> impl Iterator<Item = String> {
    ["http_proxy", "https_proxy", "all_proxy"]
        .into_iter()
        .flat_map(|name| [env::var(name), env::var(name.to_ascii_uppercase())])
        .flatten()
        .filter(|value| !value.is_empty())
        .map(|value| if value.contains("://") { value } else { format!("http://{value}") })
}

impl Resolve for GlobalOnly {
    fn resolve(&self, name: Name) -> Resolving {
        let any = self.proxies.contains(name.as_str());
        Box::pin(async move { Ok(Box::new(lookup(name.as_str(), !any).await?.into_iter()) as Addrs) })
    }
}

type BoxError = Box<dyn Error + Send + Sync>;

/// Resolves a name, to global addresses only if `global_only`.
async fn lookup(name: &str, global_only: bool) -> Result<Vec<SocketAddr>, BoxError> {
    let found = tokio::net::lookup_host((name, 0)).await?;
    let allowed: Vec<SocketAddr> = found.filter(|addr| !global_only || !is_local(addr.ip())).collect();
    if allowed.is_empty() && global_only {
        return Err(LocalName.into());
    }
    Ok(allowed)
}

/// The same resolver for `hyper_util`, without exceptions for proxies.
#[derive(Clone, Debug)]
pub(super) struct Names {
    global_only: bool,
}

impl Names {
    pub(super) fn new(global_only: bool) -> Self {
        Self { global_only }
    }
}

impl Service<dns::Name> for Names {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: dns::Name) -> Self::Future {
        let global_only = self.global_only;
        Box::pin(async move { Ok(lookup(name.as_str(), global_only).await?.into_iter()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn local_names_do_not_resolve() {
        let resolve = |proxies: &[&str]| {
            let resolver = GlobalOnly { proxies: proxies.iter().map(|name| (*name).to_owned()).collect() };
            resolver.resolve("localhost".parse().unwrap())
        };
        let error = resolve(&[]).await.err().unwrap();
        assert!(error.is::<LocalName>(), "{error}");
        assert!(resolve(&["localhost"]).await.unwrap().all(|addr| addr.ip().is_loopback()));
    }
}
