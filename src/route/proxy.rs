//! The URL of a proxy.

use std::fmt;
use std::str::FromStr;

use percent_encoding::percent_decode_str;
use reqwest::Url;

/// The protocol of a proxy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProxyKind {
    /// SOCKS5, which carries peer connections and HTTP.
    Socks5,
    /// HTTP, which carries requests to trackers and web seeds but no peer connections.
    Http,
}

/// A proxy with its login. `Display` and `Debug` show neither user name nor password.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    kind: ProxyKind,
    /// `host:port`, as the resolver accepts it.
    host: String,
    login: Option<(String, String)>,
    url: String,
}

/// The reason why a text is not a proxy URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}: write socks5://HOST:PORT or http://HOST:PORT, with USER:PASSWORD@ before HOST if it asks")]
pub struct BadProxy(&'static str);

impl FromStr for Proxy {
    type Err = BadProxy;

    fn from_str(text: &str) -> Result<Self, BadProxy> {
        let mut url = Url::parse(text).map_err(|_| BadProxy("not a URL"))?;
        let (kind, default_port) = match url.scheme() {
            "socks5" | "socks5h" => (ProxyKind::Socks5, 1080),
            "http" => (ProxyKind::Http, 80),
            _ => return Err(BadProxy("neither a SOCKS5 nor an HTTP proxy")),
        };
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(BadProxy("nothing may follow the port number"));
        }
        let host = url
            .host()
            .map(|host| host.to_owned())
            .filter(|host| !host.to_string().is_empty())
            .ok_or(BadProxy("no host"))?;
        let decoded = |part: &str| percent_decode_str(part).decode_utf8().map(String::from);
        let decoded = |part| decoded(part).map_err(|_| BadProxy("user and password must be UTF-8"));
        let login = match (url.username(), url.password()) {
            ("", None) => None,
            (user, password) => {
                let login = (decoded(user)?, decoded(password.unwrap_or(""))?);
                // RFC 1929: each is 1 to 255 bytes.
                if [&login.0, &login.1].iter().any(|part| !(1..=255).contains(&part.len())) {
                    return Err(BadProxy("user and password must have 1 to 255 bytes"));
                }
                Some(login)
            }
        };
        let host = match url.port().unwrap_or(default_port) {
            0 => return Err(BadProxy("port 0 is not valid")),
            port => {
                // HTTP clients know no default port of SOCKS.
                url.set_port(Some(port)).map_err(|()| BadProxy("not a URL"))?;
                format!("{host}:{port}")
            }
        };
        // `socks5h` lets the proxy resolve names; our own resolver would learn which hosts we contact.
        if kind == ProxyKind::Socks5 {
            url.set_scheme("socks5h").map_err(|()| BadProxy("not a URL"))?;
        }
        Ok(Self { kind, host, login, url: url.into() })
    }
}

/// Shows no user name and no password, so that logs contain none.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.kind {
            ProxyKind::Socks5 => "socks5",
            ProxyKind::Http => "http",
        };
        write!(f, "{scheme}://{}", self.host)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

impl Proxy {
    /// Returns the protocol.
    pub fn kind(&self) -> ProxyKind {
        self.kind
    }

    /// Returns the URL for HTTP clients, including the login. With a SOCKS proxy (`socks5h`), the proxy resolves names.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns `host:port`, as the resolver accepts it.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns user name and password.
    pub fn login(&self) -> Option<(&str, &str)> {
        self.login.as_ref().map(|(user, password)| (user.as_str(), password.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_proxy_urls_are_parsed() {
        let proxy = |text: &str| text.parse::<Proxy>();
        let login = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));
        for (text, host, expected) in [
            ("socks5://127.0.0.1:9050", "127.0.0.1:9050", None),
            ("socks5h://proxy.example", "proxy.example:1080", None),
            ("socks5://[::1]:99/", "[::1]:99", None),
            ("socks5://me:p%40ss:w@host:1", "host:1", login("me", "p@ss:w")),
        ] {
            let proxy = proxy(text).unwrap();
            assert_eq!((&*proxy.host, proxy.login.clone()), (host, expected), "{text}");
            assert!(proxy.url.starts_with("socks5h://"), "{}", proxy.url);
            assert!(proxy.url.trim_end_matches('/').ends_with(host), "{}", proxy.url);
            assert_eq!(proxy.kind(), ProxyKind::Socks5);
        }
        let http = proxy("http://[::1]").unwrap();
        assert_eq!((http.kind(), http.to_string().as_str()), (ProxyKind::Http, "http://[::1]:80"));
        for text in [
            "",
            "host:1080",
            "https://host:1",
            "socks5://host:0",
            "socks4://host:1",
            "socks5://",
            "socks5://host/x",
            "socks5://me@host:1",
            "socks5://:secret@host:1",
            "socks5://host:99999",
        ] {
            assert!(proxy(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_password_is_not_displayed() {
        let proxy: Proxy = "socks5://me:secret@host:1".parse().unwrap();
        assert_eq!(format!("{proxy} {proxy:?}"), "socks5://host:1 Proxy(socks5://host:1)");
    }
}
