//! Parsing of HTTP request headers, as far as a tracker needs them. Pure.

use std::net::{IpAddr, SocketAddr};

/// Longest request line and headers, in bytes: a scrape of 74 info hashes takes up to 5,300.
pub(super) const MAX_HEADER: usize = 8 * 1024;
/// Largest number of headers. Browsers behind proxies send about thirty.
const MAX_HEADERS: usize = 64;

/// A parsed request.
#[derive(Debug, PartialEq)]
pub(super) struct Request<'a> {
    pub path: &'a str,
    /// Query string, without the question mark.
    pub query: &'a str,
    /// Whether the method is HEAD.
    pub head_only: bool,
    /// Address of the client.
    pub client: IpAddr,
}

/// Error that is answered with an HTTP status.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum RequestError {
    BadRequest,
    MethodNotAllowed,
}

/// Parses a request; `Ok(None)` if the headers are incomplete. The client is the connection's other end, unless that is a
/// trusted proxy: then the client is taken from its `X-Forwarded-For`.
pub(super) fn parse<'a>(
    bytes: &'a [u8],
    from: SocketAddr,
    trusted: &[IpAddr],
) -> Result<Option<Request<'a>>, RequestError> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Err(_) => return Err(RequestError::BadRequest),
        Ok(httparse::Status::Partial) if bytes.len() >= MAX_HEADER => return Err(RequestError::BadRequest),
        Ok(httparse::Status::Partial) => return Ok(None),
        Ok(httparse::Status::Complete(_)) => {}
    }
    let head_only = match request.method {
        Some("GET") => false,
        Some("HEAD") => true,
        _ => return Err(RequestError::MethodNotAllowed),
    };
    let target = request.path.unwrap_or_default();
    // A request may name the whole URL (RFC 9112, 3.2.2).
    let target = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => target,
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut client = from.ip().to_canonical();
    if trusted.contains(&client) {
        client = forwarded(request.headers, client, trusted).ok_or(RequestError::BadRequest)?;
    }
    Ok(Some(Request { path, query, head_only, client }))
}

/// Returns the last address in `X-Forwarded-For` that is not a trusted proxy. Each proxy appends the address it received the
/// request from; addresses further left were sent by the client and could be forged.
fn forwarded(headers: &[httparse::Header], proxy: IpAddr, trusted: &[IpAddr]) -> Option<IpAddr> {
    let mut client = proxy;
    let forwarded = headers.iter().rev().filter(|header| header.name.eq_ignore_ascii_case("x-forwarded-for"));
    for header in forwarded {
        for hop in str::from_utf8(header.value).ok()?.rsplit(',') {
            client = parse_address(hop.trim())?;
            if !trusted.contains(&client) {
                return Some(client);
            }
        }
    }
    // The request came from the proxy itself.
    Some(client)
}

/// Parses an address; some proxies add the port.
fn parse_address(hop: &str) -> Option<IpAddr> {
    let ip = hop.parse::<IpAddr>().ok().or_else(|| Some(hop.parse::<SocketAddr>().ok()?.ip()));
    let ip = ip.or_else(|| hop.strip_prefix('[')?.strip_suffix(']')?.parse().ok());
    ip.map(|ip| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn from(ip: &str) -> SocketAddr {
        SocketAddr::new(ip.parse().unwrap(), 1)
    }

    fn client(peer: &str, forwarded: &str) -> Option<String> {
        let trusted = ["127.0.0.1".parse().unwrap(), "10.0.0.1".parse().unwrap()];
        let text = format!("GET /announce?a=b HTTP/1.1\r\nHost: t\r\n{forwarded}\r\n");
        let request = parse(text.as_bytes(), from(peer), &trusted).ok()?.expect("whole");
        assert_eq!((request.path, request.query), ("/announce", "a=b"));
        Some(request.client.to_string())
    }

    #[test]
    fn targets() {
        let target = |text: &str| {
            let bytes = text.as_bytes().to_owned();
            let parsed = parse(&bytes, from("::ffff:1.2.3.4"), &[]);
            parsed.map(|parsed| {
                parsed.map(|request| (request.path.to_owned(), request.query.to_owned(), request.client.to_string()))
            })
        };
        let expected = |path: &str, query: &str| Ok(Some((path.to_owned(), query.to_owned(), "1.2.3.4".to_owned())));
        assert_eq!(target("GET / HTTP/1.0\r\n\r\n"), expected("/", ""));
        assert_eq!(target("GET /a?b?c HTTP/1.1\r\nx: y\r\n\r\n"), expected("/a", "b?c"));
        assert_eq!(target("GET http://t:80/a?b HTTP/1.1\r\n\r\n"), expected("/a", "b"));
        assert_eq!(target("GET http://t HTTP/1.1\r\n\r\n"), expected("/", ""));
        assert_eq!(target("HEAD /a HTTP/1.1\r\n\r\n"), expected("/a", ""));
        for partial in ["", "G", "GET /a HTTP/1.1\r\nx: y\r\n"] {
            assert_eq!(target(partial), Ok(None), "{partial}");
        }
        for bad in ["\0\x01\x02\r\n\r\n", "GET /\r\n\r\n", "GET / HTTP/2.0\r\n\r\n", "\x16\x03\x01\x02"] {
            assert_eq!(target(bad), Err(RequestError::BadRequest), "{bad}");
        }
        assert_eq!(target(&format!("GET /{}", "a".repeat(MAX_HEADER))), Err(RequestError::BadRequest));
        assert_eq!(target(&format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(65))), Err(RequestError::BadRequest));
        assert_eq!(target("POST / HTTP/1.1\r\n\r\n"), Err(RequestError::MethodNotAllowed));
    }

    #[test]
    fn only_trusted_proxies_can_name_the_client() {
        assert_eq!(client("8.8.8.8", "X-Forwarded-For: 1.1.1.1\r\n").unwrap(), "8.8.8.8");
        assert_eq!(client("127.0.0.1", "").unwrap(), "127.0.0.1");
        assert_eq!(client("127.0.0.1", "x-forwarded-for: 1.1.1.1\r\n").unwrap(), "1.1.1.1");
        // The client sent the first address.
        assert_eq!(client("127.0.0.1", "X-Forwarded-For: 6.6.6.6, 1.1.1.1\r\n").unwrap(), "1.1.1.1");
        assert_eq!(client("127.0.0.1", "X-Forwarded-For: 6.6.6.6,1.1.1.1 , 10.0.0.1\r\n").unwrap(), "1.1.1.1");
        let two = "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 1.1.1.1\r\n";
        assert_eq!(client("127.0.0.1", two).unwrap(), "1.1.1.1");
        assert_eq!(client("127.0.0.1", "X-Forwarded-For: 2001:db8::1\r\n").unwrap(), "2001:db8::1");
        assert_eq!(client("127.0.0.1", "X-Forwarded-For: [2001:db8::1]:80\r\n").unwrap(), "2001:db8::1");
        assert_eq!(client("127.0.0.1", "X-Forwarded-For: 10.0.0.1\r\n").unwrap(), "10.0.0.1");
        assert_eq!(client("127.0.0.1", "X-Forwarded-For: unknown\r\n"), None);
    }

    proptest! {
        #[test]
        fn any_header_is_handled(bytes: Vec<u8>, forwarded in ".{0,40}") {
            let proxy = from("127.0.0.1");
            let _ = parse(&bytes, proxy, &[proxy.ip()]);
            let text = format!("GET / HTTP/1.1\r\nx-forwarded-for: {forwarded}\r\n\r\n");
            let _ = parse(text.as_bytes(), proxy, &[proxy.ip()]);
        }
    }
}
