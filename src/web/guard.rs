//! Access control for requests over TCP: they need the token, if one is set, and must not come from a page of another
//! site.
//!
//! Any page can make the user's browser send requests to this server. Three checks prevent that such a request has an
//! effect or that the page reads the response:
//!
//! - `Host` must be an IP address or `localhost`. Another name may have been made to resolve to this machine (DNS
//!   rebinding).
//! - `Origin` and `Sec-Fetch-Site` must not name another site.
//! - A request that changes something needs a content type that a page cannot send to another site without a preflight.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;

use super::problem::Problem;

/// Rules for requests over TCP.
#[derive(Debug)]
pub(super) struct Guard {
    /// Token that every request must carry.
    pub token: Option<String>,
}

/// Middleware that passes a request on if the guard allows it, and otherwise responds with the reason.
pub(super) async fn check(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    match guard.check_request(request.method(), request.uri().authority().map(|host| host.as_str()), request.headers())
    {
        Ok(()) => next.run(request).await,
        Err(problem) => {
            let status = problem.status;
            let mut response = problem.into_response();
            if status == StatusCode::UNAUTHORIZED {
                // Makes browsers and players ask for credentials: any user name, and the token as the password.
                let challenge = HeaderValue::from_static(r#"Basic realm="torrentfs""#);
                response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
            }
            response
        }
    }
}

impl Guard {
    /// Checks a request by its method, the authority of its target, and its headers.
    fn check_request(&self, method: &Method, target: Option<&str>, headers: &HeaderMap) -> Result<(), Problem> {
        let forbidden = |why: &str| Err(Problem::new(StatusCode::FORBIDDEN, why));
        let text = |name: header::HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
        let mut hosts = headers.get_all(header::HOST).iter();
        let (Some(host), None) = (hosts.next().and_then(|host| host.to_str().ok()), hosts.next()) else {
            return Err(Problem::bad_request("a request needs exactly one Host header"));
        };
        if !is_local_name(host) || target.is_some_and(|target| target != host) {
            return forbidden(
                "use an IP address or localhost in the URL: other names are refused to prevent DNS rebinding",
            );
        }
        if text(header::ORIGIN).is_some_and(|origin| !is_same(origin, host)) {
            return forbidden("requests from pages of other sites are refused");
        }
        let is_read = method == Method::GET || method == Method::HEAD;
        let fetch = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
        let cross_site = fetch("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none");
        // A user who follows a link does no harm.
        if cross_site && !(is_read && fetch("sec-fetch-mode") == Some("navigate")) {
            return forbidden("requests from pages of other sites are refused");
        }
        if !is_read {
            let kind = text(header::CONTENT_TYPE).unwrap_or_default().split(';').next().unwrap_or_default().trim();
            if !["application/json", "application/x-bittorrent"].iter().any(|known| kind.eq_ignore_ascii_case(known)) {
                return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "set Content-Type: application/json"));
            }
        }
        match &self.token {
            Some(token) if !text(header::AUTHORIZATION).is_some_and(|credentials| has_token(credentials, token)) => {
                Err(Problem::new(StatusCode::UNAUTHORIZED, "the token is missing or wrong"))
            }
            _ => Ok(()),
        }
    }
}

/// Returns whether a `Host` is an IP address or `localhost`, with or without a port.
fn is_local_name(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => {
            rest.split_once(']').map(|(name, port)| (name, port.strip_prefix(':').or(port.is_empty().then_some("0"))))
        }
        None => Some(match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, Some("0")),
        }),
    };
    let Some((name, Some(port))) = name else { return false };
    port.parse::<u16>().is_ok() && (name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok())
}

/// Returns whether an `Origin` is this server, as named in `Host`.
fn is_same(origin: &str, host: &str) -> bool {
    origin.strip_prefix("http://").is_some_and(|origin| origin.eq_ignore_ascii_case(host))
}

/// Checks `Authorization`: `Bearer TOKEN`, or `Basic` with any user name and the token as the password.
fn has_token(credentials: &str, token: &str) -> bool {
    let Some((scheme, value)) = credentials.split_once(' ') else { return false };
    let given = match scheme {
        _ if scheme.eq_ignore_ascii_case("bearer") => value.trim().as_bytes().to_vec(),
        _ if scheme.eq_ignore_ascii_case("basic") => {
            let decoded = data_encoding::BASE64.decode(value.trim().as_bytes()).unwrap_or_default();
            match decoded.iter().position(|byte| *byte == b':') {
                Some(colon) => decoded[colon + 1..].to_vec(),
                None => return false,
            }
        }
        _ => return false,
    };
    given.ct_eq(token.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status_of(token: Option<&str>, method: &str, headers: &[(&'static str, &str)]) -> u16 {
        let guard = Guard { token: token.map(str::to_owned) };
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        guard
            .check_request(&method.parse().unwrap(), None, &map)
            .map_or_else(|problem| problem.status.as_u16(), |()| 200)
    }

    #[test]
    fn other_names_and_sites_are_refused() {
        for (host, code) in [
            ("127.0.0.1:8080", 200),
            ("127.0.0.1", 200),
            ("localhost:1", 200),
            ("LOCALHOST", 200),
            ("[::1]:8080", 200),
            ("[::1]", 200),
            ("192.168.1.5:80", 200),
            ("evil.example:8080", 403),
            ("localhost.evil.example", 403),
            ("127.0.0.1.evil.example", 403),
            ("127.0.0.1:port", 403),
            ("[::1", 403),
            ("[evil]:80", 403),
            ("", 403),
        ] {
            assert_eq!(status_of(None, "GET", &[("host", host)]), code, "{host}");
        }
        assert_eq!(status_of(None, "GET", &[]), 400);
        assert_eq!(status_of(None, "GET", &[("host", "localhost"), ("host", "localhost")]), 400);
        let here = ("host", "127.0.0.1:80");
        for (origin, code) in
            [("http://127.0.0.1:80", 200), ("http://127.0.0.1:81", 403), ("http://evil.example", 403), ("null", 403)]
        {
            assert_eq!(status_of(None, "GET", &[here, ("origin", origin)]), code, "{origin}");
        }
        let site = |site, mode, method| {
            let json = ("content-type", "application/json");
            status_of(None, method, &[here, ("sec-fetch-site", site), ("sec-fetch-mode", mode), json])
        };
        assert_eq!(site("cross-site", "no-cors", "GET"), 403);
        assert_eq!(site("same-site", "cors", "GET"), 403);
        assert_eq!(site("cross-site", "navigate", "GET"), 200);
        assert_eq!(site("cross-site", "navigate", "POST"), 403);
        assert_eq!(site("same-origin", "cors", "POST"), 200);
        assert_eq!(site("none", "navigate", "GET"), 200);
    }

    #[test]
    fn forms_of_other_sites_change_nothing() {
        let here = ("host", "127.0.0.1:80");
        for (kind, code) in [("application/json", 200), ("text/plain", 415), ("application/x-www-form-urlencoded", 415)]
        {
            assert_eq!(status_of(None, "POST", &[here, ("content-type", kind)]), code, "{kind}");
        }
        assert_eq!(status_of(None, "DELETE", &[here]), 415);
    }

    #[test]
    fn the_token_is_required() {
        let here = ("host", "127.0.0.1:80");
        let with =
            |credentials: &str| status_of(Some("0123456789abcdef"), "GET", &[here, ("authorization", credentials)]);
        assert_eq!(status_of(Some("0123456789abcdef"), "GET", &[here]), 401);
        assert_eq!(with("Bearer 0123456789abcdef"), 200);
        assert_eq!(with("bearer 0123456789abcdef"), 200);
        // The base64 of me:0123456789abcdef.
        assert_eq!(with("Basic bWU6MDEyMzQ1Njc4OWFiY2RlZg=="), 200);
        for wrong in ["Bearer 0123456789abcdeF", "Bearer ", "Bearer", "Basic !!", "Basic bWU=", "0123456789abcdef"] {
            assert_eq!(with(wrong), 401, "{wrong}");
        }
    }
}
