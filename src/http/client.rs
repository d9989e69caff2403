//! GET requests over HTTP with bounds on time, size and redirects.

use std::collections::HashSet;
use std::error::Error;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use percent_encoding::percent_encode;
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{Client, ClientBuilder, Response, StatusCode, Url, redirect};
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout_at};

use super::body::Collector;
use super::reach::{self, Purpose};
use super::resolve::{self, GlobalOnly, LocalName};
use super::tolerant::{self, Reach, Tolerant};
use super::{Elsewhere, RequestError};
use crate::metainfo::bencode::Limits;
use crate::route::{Bind, Route};
use crate::util::{is_local, lock, printable};

/// Idle connections kept open per server: as many as a web seed uses.
const MAX_IDLE: usize = 8;
/// Our name to servers.
const USER_AGENT: &str = concat!("torrentfs/", env!("CARGO_PKG_VERSION"));
/// Servers that are remembered for answers that break the protocol. Bounds the memory; a forgotten one costs another
/// request.
const MAX_MALFORMED: usize = 64;
/// Time without data after which a body is examined for whether it is complete although its head promises more.
const IDLE_CHECK: Duration = Duration::from_secs(1);

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
    /// For servers whose answers break the protocol, and their origins.
    tolerant: Tolerant,
    malformed: Mutex<HashSet<String>>,
}

/// An answer with its body, or what came of it.
#[derive(Debug)]
pub struct Fetched {
    /// The final status.
    pub status: StatusCode,
    /// The body, decompressed.
    pub body: Vec<u8>,
    /// Why the body is not complete.
    pub cut: Option<RequestError>,
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
        let (tolerant, malformed) = (Tolerant::new(route.clone(), limits.connect, USER_AGENT), Mutex::default());
        let inner = Inner { limits, route, any, global, loopback, proxied, tolerant, malformed };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Returns a client with the same route and other limits. It has a connection pool of its own.
    pub fn limited(&self, limits: HttpLimits) -> Result<Self, RequestError> {
        Self::with_route(self.inner.route.clone(), limits)
    }

    /// Returns the route of the requests.
    pub fn route(&self) -> &Route {
        &self.inner.route
    }

    /// Fetches `url` and returns the final status and the body, decompressed. The body is returned for every status,
    /// because trackers put their reasons there.
    pub async fn get(&self, url: Url, purpose: Purpose) -> Result<(StatusCode, Vec<u8>), RequestError> {
        let Fetched { status, body, cut } = self.fetch(url, purpose, |_| false).await?;
        cut.map_or(Ok((status, body)), Err)
    }

    /// Fetches `url` in the same way, but also returns a body that is not complete. If the server pauses and what is
    /// there `is_whole`, the rest is not waited for: some servers promise more than they send.
    pub async fn fetch(
        &self,
        url: Url,
        purpose: Purpose,
        is_whole: impl Fn(&[u8]) -> bool,
    ) -> Result<Fetched, RequestError> {
        let HttpLimits { total, body: limit, .. } = self.inner.limits;
        let end = Instant::now() + total;
        let headers = HeaderMap::from_iter([(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip"))]);
        let follow = timeout_at(end, self.follow(url, purpose, &headers));
        let mut response = follow.await.map_err(|_| RequestError::Timeout(total))??;
        let status = response.status();
        let mut body = Collector::new(limit);
        // After the first look at an idle server there is nothing new to see.
        let mut looked = false;
        let cut = loop {
            let wait = if looked { end } else { end.min(Instant::now() + IDLE_CHECK) };
            match timeout_at(wait, response.chunk()).await {
                Ok(Ok(Some(chunk))) => match body.push(&chunk) {
                    Ok(()) => looked = false,
                    Err(error) => break Some(error),
                },
                Ok(Ok(None)) => break None,
                Ok(Err(error)) => break Some(self.to_error(error)),
                Err(_) if is_whole(body.so_far()) => break None,
                Err(_) if Instant::now() >= end => break Some(RequestError::Timeout(total)),
                Err(_) => looked = true,
            }
        };
        let (body, fault) = body.finish();
        Ok(Fetched { status, body, cut: cut.or(fault) })
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
            let sent = self.send(&url, purpose, from_global, headers).await;
            let (response, server) = sent.map_err(into_local)?;
            let location = response.headers().get(header::LOCATION);
            match location.filter(|_| response.status().is_redirection()) {
                None => return Ok(response),
                Some(location) => {
                    from_global |= !self.was_local(&url, server);
                    let next = url.join(&escape(location.as_bytes())).ok();
                    url = next.ok_or(RequestError::Redirect("to an invalid URL"))?;
                }
            }
        }
        Err(RequestError::Redirect("too many times"))
    }

    /// Sends one request. Returns the answer, and the address of the server if it is known.
    async fn send(
        &self,
        url: &Url,
        purpose: Purpose,
        from_global: bool,
        headers: &HeaderMap,
    ) -> Result<(Response, Option<SocketAddr>), RequestError> {
        let client = self.client_for(url, purpose, from_global).await?;
        let (inner, origin) = (&self.inner, url.origin().ascii_serialization());
        if !lock(&inner.malformed).contains(&origin) {
            match client.get(url.clone()).headers(headers.clone()).send().await {
                Ok(response) => {
                    let server = response.remote_addr().filter(|_| !inner.proxied);
                    return Ok((response, server));
                }
                Err(error) if !tolerant::is_malformed(&error) => return Err(self.to_error(error)),
                Err(error) => tracing::debug!(%origin, "the answer breaks the protocol: {}", describe(&error)),
            }
            let mut malformed = lock(&inner.malformed);
            if malformed.len() >= MAX_MALFORMED {
                malformed.clear();
            }
            malformed.insert(origin);
        }
        let global_only = from_global || !reach::may_reach_local(url, purpose);
        let reach = Reach { global_only, loopback: is_loopback(url) };
        inner.tolerant.get(url, headers, reach).await
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
        Ok(inner.loopback.as_ref().filter(|_| is_loopback(url)).unwrap_or(&clients.plain))
    }

    /// Returns whether a response came from the local network. Behind a proxy, only the URL can show it.
    fn was_local(&self, url: &Url, server: Option<SocketAddr>) -> bool {
        reach::names_local_host(url) || server.is_some_and(|addr| is_local(addr.ip()))
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

/// Returns whether the text of a URL shows that its host is this machine.
fn is_loopback(url: &Url) -> bool {
    reach::ip_literal(url).map_or_else(|| reach::names_local_host(url), |ip| ip.to_canonical().is_loopback())
}

/// Returns a `Location` as the text of a URL. Many servers send paths in UTF-8 or in another encoding as they are.
fn escape(location: &[u8]) -> String {
    percent_encode(location, percent_encoding::CONTROLS).to_string()
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
        .user_agent(USER_AGENT)
        .redirect(redirect::Policy::none())
        .connect_timeout(limits.connect)
        // Old servers write heads in ways that the protocol has abandoned.
        .http1_allow_obsolete_multiline_headers_in_responses(true)
        .http1_allow_spaces_after_header_name_in_responses(true)
        .http1_ignore_invalid_headers_in_responses(true)
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
