//! Who may ask over TCP: whoever has the token, if there is one, and never a page of somebody else's.
//!
//! A browser on this machine may be made to ask in the name of a strange page. So a request must name us by address or
//! as `localhost` (a strange name may have been pointed here: DNS rebinding), must not say that it comes from another
//! site, and what changes something must have a kind of body that a page cannot send elsewhere without asking first.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;

use super::Refusal;

/// What is let through.
#[derive(Debug)]
pub(super) struct Guard {
    pub(super) token: Option<String>,
}

/// Lets a request through, or says why not.
pub(super) async fn check(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    match guard.admits(request.method(), request.uri().authority().map(|host| host.as_str()), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => {
            let status = refusal.status;
            let mut answer = refusal.into_response();
            if status == StatusCode::UNAUTHORIZED {
                // So that browsers and players ask for it: any user, and the token as the password.
                let how = HeaderValue::from_static(r#"Basic realm="torrentfs""#);
                answer.headers_mut().insert(header::WWW_AUTHENTICATE, how);
            }
            answer
        }
    }
}

impl Guard {
    fn admits(&self, method: &Method, target: Option<&str>, headers: &HeaderMap) -> Result<(), Refusal> {
        let forbidden = |why: &str| Err(Refusal::new(StatusCode::FORBIDDEN, why));
        let text = |name: header::HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
        let mut hosts = headers.get_all(header::HOST).iter();
        let (Some(host), None) = (hosts.next().and_then(|host| host.to_str().ok()), hosts.next()) else {
            return Err(Refusal::bad("a request names one host"));
        };
        if !is_ours(host) || target.is_some_and(|target| target != host) {
            return forbidden("name this server by its address, or as localhost: a name could be anybody's");
        }
        if text(header::ORIGIN).is_some_and(|origin| !is_same(origin, host)) {
            return forbidden("not for pages of another site");
        }
        let is_read = method == Method::GET || method == Method::HEAD;
        let fetch = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
        let elsewhere = fetch("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none");
        // A link that somebody follows is no harm.
        if elsewhere && !(is_read && fetch("sec-fetch-mode") == Some("navigate")) {
            return forbidden("not for pages of another site");
        }
        if !is_read {
            let kind = text(header::CONTENT_TYPE).unwrap_or_default().split(';').next().unwrap_or_default().trim();
            if !["application/json", "application/x-bittorrent"].iter().any(|known| kind.eq_ignore_ascii_case(known)) {
                return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "say Content-Type: application/json"));
            }
        }
        match &self.token {
            Some(token) if !text(header::AUTHORIZATION).is_some_and(|said| has_token(said, token)) => {
                Err(Refusal::new(StatusCode::UNAUTHORIZED, "the token is missing or wrong"))
            }
            _ => Ok(()),
        }
    }
}

/// An address, or the name that is always this machine.
fn is_ours(host: &str) -> bool {
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

fn is_same(origin: &str, host: &str) -> bool {
    origin.strip_prefix("http://").is_some_and(|origin| origin.eq_ignore_ascii_case(host))
}

/// `Bearer TOKEN`, or `Basic` with the token as the password of any user.
fn has_token(said: &str, token: &str) -> bool {
    let Some((scheme, said)) = said.split_once(' ') else { return false };
    let said = match scheme {
        _ if scheme.eq_ignore_ascii_case("bearer") => said.trim().as_bytes().to_vec(),
        _ if scheme.eq_ignore_ascii_case("basic") => {
            let decoded = data_encoding::BASE64.decode(said.trim().as_bytes()).unwrap_or_default();
            match decoded.iter().position(|byte| *byte == b':') {
                Some(colon) => decoded[colon + 1..].to_vec(),
                None => return false,
            }
        }
        _ => return false,
    };
    said.ct_eq(token.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(token: Option<&str>, method: &str, headers: &[(&'static str, &str)]) -> u16 {
        let guard = Guard { token: token.map(str::to_owned) };
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        guard.admits(&method.parse().unwrap(), None, &map).map_or_else(|refusal| refusal.status.as_u16(), |()| 200)
    }

    #[test]
    fn strange_names_and_pages_are_refused() {
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
            assert_eq!(verdict(None, "GET", &[("host", host)]), code, "{host}");
        }
        assert_eq!(verdict(None, "GET", &[]), 400);
        assert_eq!(verdict(None, "GET", &[("host", "localhost"), ("host", "localhost")]), 400);
        let here = ("host", "127.0.0.1:80");
        for (origin, code) in
            [("http://127.0.0.1:80", 200), ("http://127.0.0.1:81", 403), ("http://evil.example", 403), ("null", 403)]
        {
            assert_eq!(verdict(None, "GET", &[here, ("origin", origin)]), code, "{origin}");
        }
        let site = |site, mode, method| {
            let json = ("content-type", "application/json");
            verdict(None, method, &[here, ("sec-fetch-site", site), ("sec-fetch-mode", mode), json])
        };
        assert_eq!(site("cross-site", "no-cors", "GET"), 403);
        assert_eq!(site("same-site", "cors", "GET"), 403);
        assert_eq!(site("cross-site", "navigate", "GET"), 200);
        assert_eq!(site("cross-site", "navigate", "POST"), 403);
        assert_eq!(site("same-origin", "cors", "POST"), 200);
        assert_eq!(site("none", "navigate", "GET"), 200);
    }

    #[test]
    fn what_a_form_can_send_changes_nothing() {
        let here = ("host", "127.0.0.1:80");
        for (kind, code) in [("application/json", 200), ("text/plain", 415), ("application/x-www-form-urlencoded", 415)]
        {
            assert_eq!(verdict(None, "POST", &[here, ("content-type", kind)]), code, "{kind}");
        }
        assert_eq!(verdict(None, "DELETE", &[here]), 415);
    }

    #[test]
    fn the_token_is_asked_for() {
        let here = ("host", "127.0.0.1:80");
        let with = |said: &str| verdict(Some("0123456789abcdef"), "GET", &[here, ("authorization", said)]);
        assert_eq!(verdict(Some("0123456789abcdef"), "GET", &[here]), 401);
        assert_eq!(with("Bearer 0123456789abcdef"), 200);
        assert_eq!(with("bearer 0123456789abcdef"), 200);
        // me:0123456789abcdef
        assert_eq!(with("Basic bWU6MDEyMzQ1Njc4OWFiY2RlZg=="), 200);
        for wrong in ["Bearer 0123456789abcdeF", "Bearer ", "Bearer", "Basic !!", "Basic bWU=", "0123456789abcdef"] {
            assert_eq!(with(wrong), 401, "{wrong}");
        }
    }
}
