//! Names of global addresses alone.

use std::collections::HashSet;
use std::env;
use std::net::SocketAddr;

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::util::is_local;

/// Resolves names to global addresses alone, for `reqwest`: what a client with it reaches is not local, whatever the
/// names of a URL and of redirects become between two requests. Addresses in place of names it never sees; ask
/// [`says_local`](super::says_local).
#[derive(Clone, Debug)]
pub struct GlobalOnly {
    /// The system's proxies: the user's own words, and most are local.
    proxies: HashSet<String>,
}

/// A name has no address that is global.
#[derive(Debug, thiserror::Error)]
#[error("its address is of this machine or its network")]
pub(super) struct LocalName;

impl GlobalOnly {
    /// Reads the names of the system's proxies from the environment.
    #[allow(clippy::new_without_default, reason = "it depends on the environment")]
    pub fn new() -> Self {
        let host = |text: String| Some(Url::parse(&text).ok()?.host_str()?.to_ascii_lowercase());
        Self { proxies: system_proxies().filter_map(host).collect() }
    }
}

/// What the environment says of proxies, as far as `reqwest` heeds it.
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
    async fn names_of_this_machine_resolve_to_nothing() {
        let resolve = |proxies: &[&str]| {
            let resolver = GlobalOnly { proxies: proxies.iter().map(|name| (*name).to_owned()).collect() };
            resolver.resolve("localhost".parse().unwrap())
        };
        let fault = resolve(&[]).await.err().unwrap();
        assert!(fault.is::<LocalName>(), "{fault}");
        assert!(resolve(&["localhost"]).await.unwrap().all(|addr| addr.ip().is_loopback()));
    }
}
