//! Requests to servers whose answers hyper refuses.
//!
//! Some servers answer with a head that does not follow the protocol: `HTTP/1.2`, chunks in HTTP/1.0, a
//! `Content-Length` that is not a number. hyper, on which reqwest is built, refuses such an answer and has no option for
//! it. A request that failed for this reason is sent once more, over a connection of its own, on which [`Mended`] corrects
//! the head of the answer before hyper reads it. Everything else stays with hyper.
//!
//! The connection is made as reqwest makes it: by the same [`Route`], through the same proxies, with the same root
//! certificates, and to global addresses only where the caller says so.

use std::error::Error;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE64;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use hyper::http::{Request, Uri};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{Response, ResponseBuilderExt, Url};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tower_service::Service;

use super::RequestError;
use super::mended::Mended;
use super::resolve::{LocalName, Names};
use crate::route::{Bind, Route};
use crate::util::printable;

type BoxError = Box<dyn Error + Send + Sync>;

/// Returns whether a request failed because hyper could not parse the answer.
pub(super) fn is_malformed(error: &reqwest::Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Sends requests over connections of their own.
#[derive(Debug)]
pub(super) struct Tolerant {
    route: Route,
    connect_limit: Duration,
    user_agent: &'static str,
    tls: OnceCell<Arc<ClientConfig>>,
}

/// Where a request may go, as decided by the caller.
#[derive(Clone, Copy)]
pub(super) struct Reach {
    /// Only to global addresses.
    pub(super) global_only: bool,
    /// The host is this machine, to which no proxy of the system leads.
    pub(super) loopback: bool,
}

impl Tolerant {
    pub(super) fn new(route: Route, connect_limit: Duration, user_agent: &'static str) -> Self {
        Self { route, connect_limit, user_agent, tls: OnceCell::new() }
    }

    /// Sends a GET request and returns the answer before its body is read, and the address of the server unless there is
    /// a proxy in between. Follows no redirects.
    pub(super) async fn get(
        &self,
        url: &Url,
        headers: &HeaderMap,
        reach: Reach,
    ) -> Result<(Response, Option<SocketAddr>), RequestError> {
        let target = Target::of(url)?;
        let proxy = self.proxy(&target, reach)?;
        let connected = timeout(self.connect_limit, self.connect(&target, proxy.as_ref(), reach)).await;
        let stream = connected.map_err(|_| RequestError::Timeout(self.connect_limit))?.map_err(cannot_connect)?;
        let server = stream.peer_addr().ok().filter(|_| proxy.is_none());
        let request = self.request(url, headers, &target, proxy.as_ref())?;
        let response = match target.tls {
            false => exchange(stream, request).await,
            true => {
                let host = target.host.trim_start_matches('[').trim_end_matches(']').to_owned();
                let host = ServerName::try_from(host).map_err(|error| cannot_connect(error.into()))?;
                let connector = tokio_rustls::TlsConnector::from(self.tls().await?);
                let stream = timeout(self.connect_limit, connector.connect(host, stream)).await;
                let stream = stream.map_err(|_| RequestError::Timeout(self.connect_limit))?;
                exchange(stream.map_err(|error| cannot_connect(error.into()))?, request).await
            }
        };
        let (parts, body) = response.map_err(|error| RequestError::Transport(innermost(&error)))?.into_parts();
        let mut builder = hyper::http::Response::builder().status(parts.status).url(url.clone());
        if let Some(headers) = builder.headers_mut() {
            *headers = parts.headers;
        }
        let response = builder.body(reqwest::Body::wrap(body));
        Ok((response.map_err(|error| RequestError::Transport(innermost(&error)))?.into(), server))
    }

    /// Returns the proxy for a target: that of the route, or else one of the system.
    fn proxy(&self, target: &Target, reach: Reach) -> Result<Option<Intercept>, RequestError> {
        let matcher = match &self.route.proxy {
            Some(proxy) => Matcher::builder().all(proxy.url()).build(),
            None if reach.loopback => return Ok(None),
            None => Matcher::from_system(),
        };
        let proxy = matcher.intercept(&target.uri);
        if self.route.proxy.is_some() && proxy.is_none() {
            return Err(RequestError::Connect("the proxy cannot be used".into()));
        }
        Ok(proxy)
    }

    async fn connect(&self, target: &Target, proxy: Option<&Intercept>, reach: Reach) -> Result<TcpStream, BoxError> {
        // A proxy may be local, because the user chose it, and it resolves host names itself.
        let global_only = reach.global_only && proxy.is_none();
        let mut direct = HttpConnector::new_with_resolver(Names::new(global_only));
        direct.enforce_http(false);
        direct.set_nodelay(true);
        match &self.route.bind {
            Bind::Address(ip) => direct.set_local_address(Some(*ip)),
            Bind::Interface(name) => drop(direct.set_interface(name)),
            Bind::Anywhere => {}
        }
        let Some(proxy) = proxy else { return Ok(direct.call(target.uri.clone()).await?.into_inner()) };
        let (uri, to) = (proxy.uri().clone(), target.uri.clone());
        match uri.scheme_str().unwrap_or_default() {
            scheme @ ("socks5" | "socks5h") => {
                let mut socks = SocksV5::new(uri.clone(), direct).local_dns(scheme == "socks5");
                if let Some((user, password)) = proxy.raw_auth() {
                    socks = socks.with_auth(user.to_owned(), password.to_owned());
                }
                Ok(socks.call(to).await?.into_inner())
            }
            "http" if target.tls => {
                let mut tunnel = Tunnel::new(uri, direct);
                if let Some(auth) = proxy.basic_auth() {
                    tunnel = tunnel.with_auth(auth.clone());
                }
                Ok(tunnel.call(to).await?.into_inner())
            }
            "http" => Ok(direct.call(uri).await?.into_inner()),
            other => {
                Err(format!("an answer that breaks the protocol cannot be read through a {other}:// proxy").into())
            }
        }
    }

    fn request(
        &self,
        url: &Url,
        headers: &HeaderMap,
        target: &Target,
        proxy: Option<&Intercept>,
    ) -> Result<Request<reqwest::Body>, RequestError> {
        let bad_url = || RequestError::Transport("its URL cannot be sent".into());
        let http_proxy = proxy.filter(|proxy| !target.tls && proxy.uri().scheme_str() == Some("http"));
        let port = url.port().map_or_else(String::new, |port| format!(":{port}"));
        let host = format!("{}{port}", target.host);
        let query = url.query().map_or_else(String::new, |query| format!("?{query}"));
        let path = format!("{}{query}", url.path());
        // An HTTP proxy is sent the whole URL, a server only the path.
        let uri = if http_proxy.is_some() { format!("http://{host}{path}") } else { path };
        let mut request = Request::get(uri).body(reqwest::Body::default()).map_err(|_| bad_url())?;
        let sent = request.headers_mut();
        *sent = headers.clone();
        sent.insert(header::HOST, HeaderValue::try_from(host).map_err(|_| bad_url())?);
        sent.insert(header::USER_AGENT, HeaderValue::from_static(self.user_agent));
        sent.insert(header::CONNECTION, HeaderValue::from_static("close"));
        if !url.username().is_empty() || url.password().is_some() {
            let decoded = |text: &str| percent_decode_str(text).collect::<Vec<u8>>();
            let login = [decoded(url.username()), b":".to_vec(), decoded(url.password().unwrap_or_default())].concat();
            let login = HeaderValue::try_from(format!("Basic {}", BASE64.encode(&login)));
            sent.extend(login.ok().map(|login| (header::AUTHORIZATION, login)));
        }
        let auth = http_proxy.and_then(Intercept::basic_auth);
        sent.extend(auth.map(|auth| (header::PROXY_AUTHORIZATION, auth.clone())));
        Ok(request)
    }

    async fn tls(&self) -> Result<Arc<ClientConfig>, RequestError> {
        let build = || -> Result<ClientConfig, BoxError> {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
            let mut config = builder.with_platform_verifier()?.with_no_client_auth();
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            Ok(config)
        };
        let config = self.tls.get_or_try_init(|| async {
            // Reads files, so it must not block the runtime.
            let built = tokio::task::spawn_blocking(build).await.map_err(|error| cannot_connect(error.into()))?;
            built.map(Arc::new).map_err(cannot_connect)
        });
        config.await.cloned()
    }
}

/// The server of a URL.
struct Target {
    tls: bool,
    host: String,
    /// Scheme, host and port, which the connectors need.
    uri: Uri,
}

impl Target {
    fn of(url: &Url) -> Result<Self, RequestError> {
        let host = url.host_str().unwrap_or_default().to_owned();
        let port = url.port_or_known_default().unwrap_or(80);
        let uri = format!("{}://{host}:{port}", url.scheme()).parse::<Uri>();
        let uri = uri.map_err(|_| RequestError::Connect("its host is not a valid one".into()))?;
        Ok(Self { tls: url.scheme() == "https", host, uri })
    }
}

/// Sends a request and returns the answer before its body is read.
async fn exchange<S>(stream: S, request: Request<reqwest::Body>) -> Result<hyper::Response<Guarded>, hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http1::Builder::new();
    builder
        .allow_obsolete_multiline_headers_in_responses(true)
        .allow_spaces_after_header_name_in_responses(true)
        .ignore_invalid_headers_in_responses(true);
    let (mut sender, connection) = builder.handshake(TokioIo::new(Mended::new(stream))).await?;
    let guard = Guard(tokio::spawn(connection).abort_handle());
    let response = sender.send_request(request).await?;
    Ok(response.map(|body| Guarded { body, _guard: guard }))
}

/// Ends the task of a connection when dropped.
struct Guard(AbortHandle);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A body whose connection ends with it.
struct Guarded {
    body: Incoming,
    _guard: Guard,
}

impl Body for Guarded {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn cannot_connect(error: BoxError) -> RequestError {
    let mut cause: Option<&(dyn Error + 'static)> = Some(&*error);
    while let Some(error) = cause {
        if error.is::<LocalName>() {
            return RequestError::Local;
        }
        cause = error.source();
    }
    RequestError::Connect(innermost(&*error))
}

/// Describes the innermost cause of an error, which says what happened, in one line.
fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    printable(cause.to_string().as_bytes(), 200)
}
