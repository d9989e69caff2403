//! GET requests over HTTP with every bound that a stranger's server calls for.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{self, HeaderMap};
use reqwest::{Client, ClientBuilder, Response, StatusCode, Url, redirect};
use tokio::sync::OnceCell;

use super::RequestError;
use super::reach::{self, Purpose};
use super::resolve::{self, GlobalOnly, LocalName};
use crate::metainfo::bencode::Limits;
use crate::route::{Bind, Route};
use crate::util::{is_local, printable};

/// Connections to one server that are kept while nothing is asked: as many as a web seed uses.
const MAX_IDLE: usize = 8;

/// What one request may cost.
#[derive(Clone, Copy, Debug)]
pub struct HttpLimits {
    /// To a connection.
    pub connect: Duration,
    /// To the last byte of the answer, redirects included.
    pub total: Duration,
    /// Bytes of an answer.
    pub body: usize,
    /// Redirects followed.
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

/// Makes bounded GET requests over HTTP and HTTPS. Cheap to clone; one serves all torrents.
///
/// What a URL may reach depends on its [`Purpose`], and the rule holds for each redirect; from a global address none
/// leads into the local network. The TLS side is built when the first `https` URL is asked: reading the system's roots
/// takes tens of milliseconds, and nobody should wait for them who does not need them. System proxies are honoured,
/// except to this machine itself; a proxy of our own [`Route`] takes their place and carries everything.
#[derive(Clone, Debug)]
pub struct HttpClient {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    limits: HttpLimits,
    route: Route,
    /// What may go anywhere.
    any: Clients,
    /// What may go to global addresses alone: of its own, so that it finds no connection to others in a pool.
    global: Clients,
    /// Without the system's proxy, for loopback.
    loopback: Option<Client>,
    /// The address at the far end may be a proxy's.
    proxied: bool,
}

#[derive(Debug)]
struct Clients {
    plain: Client,
    tls: OnceCell<Client>,
}

impl HttpClient {
    /// A client with the usual limits. Fails only if the system's proxy settings make no sense.
    pub fn new() -> Result<Self, RequestError> {
        Self::with_limits(HttpLimits::default())
    }

    /// A client with limits of your own.
    pub fn with_limits(limits: HttpLimits) -> Result<Self, RequestError> {
        Self::with_route(Route::default(), limits)
    }

    /// A client by a way of your own. Fails also if the proxy cannot be used.
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

    /// The same way and rules with other limits; connections are not shared.
    pub fn limited(&self, limits: HttpLimits) -> Result<Self, RequestError> {
        Self::with_route(self.inner.route.clone(), limits)
    }

    /// By which way its requests leave.
    pub fn route(&self) -> &Route {
        &self.inner.route
    }

    /// Fetches `url`: the final status and the body. A body is given with any status: trackers put reasons there.
    pub async fn get(&self, url: Url, purpose: Purpose) -> Result<(StatusCode, Vec<u8>), RequestError> {
        let total = self.inner.limits.total;
        let fetch = async {
            let response = self.follow(url, purpose, &HeaderMap::new()).await?;
            self.body(response).await
        };
        tokio::time::timeout(total, fetch).await.map_err(|_| RequestError::Timeout(total))?
    }

    /// Asks for `url` with further headers (such as `Range`) and follows redirects: the response with its status and
    /// headers, its body still to be read. The time limit is on what comes before the body; how long and how large
    /// that may be is the caller's to watch.
    pub async fn open(&self, url: Url, purpose: Purpose, headers: &HeaderMap) -> Result<Response, RequestError> {
        let total = self.inner.limits.total;
        let follow = self.follow(url, purpose, headers);
        tokio::time::timeout(total, follow).await.map_err(|_| RequestError::Timeout(total))?
    }

    async fn follow(&self, mut url: Url, purpose: Purpose, headers: &HeaderMap) -> Result<Response, RequestError> {
        let mut from_global = false;
        for _ in 0..=self.inner.limits.redirects {
            let into_local = |fault| match fault {
                RequestError::Local if from_global => RequestError::Redirect("into the local network"),
                fault => fault,
            };
            let client = self.client_for(&url, purpose, from_global).await.map_err(into_local)?;
            let sent = client.get(url.clone()).headers(headers.clone()).send().await;
            let response = sent.map_err(|error| into_local(self.fault(error)))?;
            let location = response.headers().get(header::LOCATION);
            match location.filter(|_| response.status().is_redirection()) {
                None => return Ok(response),
                Some(location) => {
                    from_global |= !self.was_local(&url, &response);
                    let next = location.to_str().ok().and_then(|text| url.join(text).ok());
                    url = next.ok_or(RequestError::Redirect("to nowhere"))?;
                }
            }
        }
        Err(RequestError::Redirect("too many times"))
    }

    /// The client that reaches what `url` may reach.
    async fn client_for(&self, url: &Url, purpose: Purpose, from_global: bool) -> Result<&Client, RequestError> {
        let tls = match url.scheme() {
            "http" => false,
            "https" => true,
            _ => return Err(RequestError::Redirect("to what is not HTTP")),
        };
        let may_be_local = !from_global && reach::may_be_local(url, purpose);
        let says_local = reach::says_local(url);
        if says_local && !may_be_local {
            return Err(RequestError::Local);
        }
        let inner = &self.inner;
        let clients = if may_be_local { &inner.any } else { &inner.global };
        if tls {
            let build = || async {
                let (limits, route) = (inner.limits, inner.route.clone());
                // Reads files. A panic of the verifier's would surface here as an error.
                let built = tokio::task::spawn_blocking(move || build(builder(limits, &route, !may_be_local)?)).await;
                built.map_err(|_| RequestError::Connect("TLS cannot be set up".into()))?
            };
            return clients.tls.get_or_try_init(build).await;
        }
        let loopback = reach::ip_literal(url).map_or(says_local, |ip| ip.to_canonical().is_loopback());
        Ok(inner.loopback.as_ref().filter(|_| loopback).unwrap_or(&clients.plain))
    }

    /// Whether a response came from the local network. Behind a proxy only words can tell.
    fn was_local(&self, url: &Url, response: &Response) -> bool {
        let peer = response.remote_addr().filter(|_| !self.inner.proxied);
        reach::says_local(url) || peer.is_some_and(|addr| is_local(addr.ip()))
    }

    async fn body(&self, mut response: Response) -> Result<(StatusCode, Vec<u8>), RequestError> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.fault(error))? {
            if body.len() + chunk.len() > self.inner.limits.body {
                return Err(RequestError::TooLong(self.inner.limits.body));
            }
            body.extend_from_slice(&chunk);
        }
        Ok((response.status(), body))
    }

    /// In one line and without the URL, which may hold a passkey.
    fn fault(&self, error: reqwest::Error) -> RequestError {
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

/// Describes a fault in one line without the URL, which may hold a secret. The innermost cause says what happened; the
/// errors around it only repeat where.
pub(crate) fn describe(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return if error.is_connect() { "no connection in time".into() } else { "no answer in time".into() };
    }
    let text = causes(error).last().map_or_else(|| "the request cannot be made".into(), ToString::to_string);
    printable(text.as_bytes(), 200)
}

fn builder(limits: HttpLimits, route: &Route, global_only: bool) -> Result<ClientBuilder, RequestError> {
    // An error says that there is a default already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = Client::builder()
        .user_agent(concat!("torrentfs/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .connect_timeout(limits.connect)
        .pool_max_idle_per_host(MAX_IDLE)
        // A player that pauses finds its web seed's connections again.
        .pool_idle_timeout(Duration::from_secs(60));
    builder = match &route.bind {
        Bind::Address(ip) => builder.local_address(*ip),
        Bind::Interface(name) => builder.interface(name),
        Bind::Anywhere => builder,
    };
    Ok(match &route.proxy {
        // Resolves names itself, and is none of ours to be kept from.
        Some(proxy) => builder.proxy(reqwest::Proxy::all(proxy.url()).map_err(|error| cannot_build(&error))?),
        None if global_only => builder.dns_resolver(GlobalOnly::new()),
        None => builder,
    })
}

/// A client that trusts nobody, for plain HTTP: quick to build.
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
