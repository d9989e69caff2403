//! Name resolution to global addresses only.

use std::collections::HashSet;
use std::env;
use std::net::SocketAddr;

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

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
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let global: Vec<SocketAddr> = found.filter(|addr| any || !is_local(addr.ip())).collect();
            if global.is_empty() {
                return Err(LocalName.into());
            }
            Ok(Box::new(global.into_iter()) as Addrs)
        })
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
