//! GET requests over HTTP with bounds on time, size and redirects.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{self, HeaderMap};
use reqwest::{Client, ClientBuilder, Response, StatusCode, Url, redirect};
use tokio::sync::OnceCell;

use super::reach::{self, Purpose};
use super::resolve::{self, GlobalOnly, LocalName};
use super::{Elsewhere, RequestError};
use crate::metainfo::bencode::Limits;
use crate::route::{Bind, Route};
use crate::util::{is_local, printable};

/// Idle connections kept open per server: as many as a web seed uses.
const MAX_IDLE: usize = 8;

/// Bounds of one request.
#[derive(Clone, Copy, Debug)]
pub struct HttpLimits {
    /// Time to establish a connection.
    pub connect: Duration,
    /// Time to the last byte of the body, redirects included.
    pub total: Duration,
    /// Bytes of the body.
    pub body: usize,
    /// Number of redirects followed.
    pub redirects: usize,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            total: Duration::from_secs(20),
            body: Limits::TRACKER.bytes,
            redirects: 5,
        }
    }
}

/// Sends bounded GET requests over HTTP and HTTPS. Cheap to clone; one serves all torrents.
///
/// The [`Purpose`] of a request decides whether its URL may reach the local network. The rule also holds for each
/// redirect, and a redirect never leads from a global address into the local network. The TLS client is built for the
/// first `https` URL, because loading the system's root certificates takes tens of milliseconds that most runs can
/// save. System proxies are honoured, except for loopback; a proxy of our own [`Route`] replaces them and carries
/// everything.
#[derive(Clone, Debug)]
pub struct HttpClient {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    limits: HttpLimits,
    route: Route,
    /// For requests that may go to any address.
    any: Clients,
    /// For requests that may go to global addresses only. Separate, so that it cannot reuse a pooled connection to a
    /// local address.
    global: Clients,
    /// For loopback, without the system's proxy.
    loopback: Option<Client>,
    /// Whether the remote address of a response may be that of a proxy.
    proxied: bool,
}

#[derive(Debug)]
struct Clients {
    plain: Client,
    tls: OnceCell<Client>,
}

impl HttpClient {
    /// Creates a client with the default limits. Fails only if the system's proxy settings are invalid.
    #[cfg(any(test, feature = "internals"))]
    pub fn new() -> Result<Self, RequestError> {
        Self::with_limits(HttpLimits::default())
    }

    /// Creates a client with the given limits.
    #[cfg(any(test, feature = "internals"))]
    pub fn with_limits(limits: HttpLimits) -> Result<Self, RequestError> {
        Self::with_route(Route::default(), limits)
    }

    /// Creates a client with the given route and limits. Fails if the system's proxy settings or the route's proxy
    /// cannot be used.
    pub fn with_route(route: Route, limits: HttpLimits) -> Result<Self, RequestError> {
        let clients = |global| {
            let plain = build(without_roots(builder(limits, &route, global)?)?)?;
            Ok(Clients { plain, tls: OnceCell::new() })
        };
        let (any, global) = (clients(false)?, clients(true)?);
        let loopback = match route.proxy {
            Some(_) => None,
            None => Some(build(without_roots(builder(limits, &route, false)?)?.no_proxy())?),
        };
        let proxied = route.proxy.is_some() || resolve::system_proxies().next().is_some();
        Ok(Self { inner: Arc::new(Inner { limits, route, any, global, loopback, proxied }) })
    }

    /// Returns a client with the same route and other limits. It has a connection pool of its own.
    pub fn limited(&self, limits: HttpLimits) -> Result<Self, RequestError> {
        Self::with_route(self.inner.route.clone(), limits)
    }

    /// Returns the route of the requests.
    pub fn route(&self) -> &Route {
        &self.inner.route
    }

    /// Fetches `url` and returns the final status and the body. The body is returned for every status, because trackers
    /// put their reasons there.
    pub async fn get(&self, url: Url, purpose: Purpose) -> Result<(StatusCode, Vec<u8>), RequestError> {
        self.get_with(url, purpose, &HeaderMap::new()).await
    }

    /// Fetches `url` as [`get`](Self::get) does, with additional headers.
    pub async fn get_with(
        &self,
        url: Url,
        purpose: Purpose,
        headers: &HeaderMap,
    ) -> Result<(StatusCode, Vec<u8>), RequestError> {
        let total = self.inner.limits.total;
        let fetch = async {
            let response = self.follow(url, purpose, headers).await?;
            self.body(response).await
        };
        tokio::time::timeout(total, fetch).await.map_err(|_| RequestError::Timeout(total))?
    }

    /// Requests `url` with additional headers (such as `Range`), follows redirects and returns the response before its
    /// body is read. The time limit covers everything before the body; the caller bounds the time and length of the
    /// body.
    pub async fn open(&self, url: Url, purpose: Purpose, headers: &HeaderMap) -> Result<Response, RequestError> {
        let total = self.inner.limits.total;
        let follow = self.follow(url, purpose, headers);
        tokio::time::timeout(total, follow).await.map_err(|_| RequestError::Timeout(total))?
    }

    async fn follow(&self, mut url: Url, purpose: Purpose, headers: &HeaderMap) -> Result<Response, RequestError> {
        let mut from_global = false;
        for _ in 0..=self.inner.limits.redirects {
            let into_local = |error| match error {
                RequestError::Local if from_global => RequestError::Redirect("into the local network"),
                error => error,
            };
            let client = self.client_for(&url, purpose, from_global).await.map_err(into_local)?;
            let sent = client.get(url.clone()).headers(headers.clone()).send().await;
            let response = sent.map_err(|error| into_local(self.to_error(error)))?;
            let location = response.headers().get(header::LOCATION);
            match location.filter(|_| response.status().is_redirection()) {
                None => return Ok(response),
                Some(location) => {
                    from_global |= !self.was_local(&url, &response);
                    let next = location.to_str().ok().and_then(|text| url.join(text).ok());
                    url = next.ok_or(RequestError::Redirect("to an invalid URL"))?;
                }
            }
        }
        Err(RequestError::Redirect("too many times"))
    }

    /// Returns the client for `url`: one that can reach local addresses only if `url` may.
    async fn client_for(&self, url: &Url, purpose: Purpose, from_global: bool) -> Result<&Client, RequestError> {
        let tls = match url.scheme() {
            "http" => false,
            "https" => true,
            _ => return Err(RequestError::NotHttp(Elsewhere(url.to_string()))),
        };
        let may_reach_local = !from_global && reach::may_reach_local(url, purpose);
        let names_local_host = reach::names_local_host(url);
        if names_local_host && !may_reach_local {
            return Err(RequestError::Local);
        }
        let inner = &self.inner;
        let clients = if may_reach_local { &inner.any } else { &inner.global };
        if tls {
            let build = || async {
                let (limits, route) = (inner.limits, inner.route.clone());
                // Building the client reads files, so it must not block the runtime. A panic in it becomes an error.
                let built =
                    tokio::task::spawn_blocking(move || build(builder(limits, &route, !may_reach_local)?)).await;
                built.map_err(|_| RequestError::Connect("TLS cannot be set up".into()))?
            };
            return clients.tls.get_or_try_init(build).await;
        }
        let loopback = reach::ip_literal(url).map_or(names_local_host, |ip| ip.to_canonical().is_loopback());
        Ok(inner.loopback.as_ref().filter(|_| loopback).unwrap_or(&clients.plain))
    }

    /// Returns whether a response came from the local network. Behind a proxy, only the URL can show it.
    fn was_local(&self, url: &Url, response: &Response) -> bool {
        let peer = response.remote_addr().filter(|_| !self.inner.proxied);
        reach::names_local_host(url) || peer.is_some_and(|addr| is_local(addr.ip()))
    }

    async fn body(&self, mut response: Response) -> Result<(StatusCode, Vec<u8>), RequestError> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.to_error(error))? {
            if body.len() + chunk.len() > self.inner.limits.body {
                return Err(RequestError::TooLong(self.inner.limits.body));
            }
            body.extend_from_slice(&chunk);
        }
        Ok((response.status(), body))
    }

    /// Converts an error of the HTTP library.
    fn to_error(&self, error: reqwest::Error) -> RequestError {
        let limits = &self.inner.limits;
        if error.is_timeout() {
            return RequestError::Timeout(if error.is_connect() { limits.connect } else { limits.total });
        }
        if causes(&error).any(|cause| cause.is::<LocalName>()) {
            return RequestError::Local;
        }
        let text = describe(&error);
        if error.is_connect() { RequestError::Connect(text) } else { RequestError::Transport(text) }
    }
}

fn causes(error: &reqwest::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(error.source(), |&cause| cause.source())
}

/// Describes an error in one line without the URL, which may hold a secret. Only the innermost cause says what
/// happened; the errors around it repeat where.
pub(crate) fn describe(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return if error.is_connect() { "no connection in time".into() } else { "no answer in time".into() };
    }
    let text = causes(error).last().map_or_else(|| "the request could not be sent".into(), ToString::to_string);
    printable(text.as_bytes(), 200)
}

fn builder(limits: HttpLimits, route: &Route, global_only: bool) -> Result<ClientBuilder, RequestError> {
    // Fails only if a default provider is installed already, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = Client::builder()
        .user_agent(concat!("torrentfs/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .connect_timeout(limits.connect)
        .pool_max_idle_per_host(MAX_IDLE)
        // A player that resumes after a short pause reuses the connections to its web seed.
        .pool_idle_timeout(Duration::from_secs(60));
    builder = match &route.bind {
        Bind::Address(ip) => builder.local_address(*ip),
        Bind::Interface(name) => builder.interface(name),
        Bind::Anywhere => builder,
    };
    Ok(match &route.proxy {
        // The proxy resolves host names itself, and the user chose it, so it may be local.
        Some(proxy) => builder.proxy(reqwest::Proxy::all(proxy.url()).map_err(|error| cannot_build(&error))?),
        None if global_only => builder.dns_resolver(GlobalOnly::new()),
        None => builder,
    })
}

/// Removes all root certificates, for clients that use only plain HTTP: loading them takes most of the build time.
fn without_roots(builder: ClientBuilder) -> Result<ClientBuilder, RequestError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| RequestError::Connect(error.to_string()))?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    Ok(builder.tls_backend_preconfigured(config))
}

fn build(builder: ClientBuilder) -> Result<Client, RequestError> {
    builder.build().map_err(|error| cannot_build(&error))
}

fn cannot_build(error: &reqwest::Error) -> RequestError {
    RequestError::Connect(describe(error))
}

#[cfg(test)]
mod tests;
