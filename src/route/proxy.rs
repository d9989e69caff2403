//! A proxy's URL.

use std::fmt;
use std::str::FromStr;

use percent_encoding::percent_decode_str;
use reqwest::Url;

/// What a proxy speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProxyKind {
    /// SOCKS5: carries peers and HTTP.
    Socks5,
    /// HTTP: carries requests to trackers and web seeds, no peers.
    Http,
}

/// A proxy: where it is, and who we are to it. `Display` and `Debug` show no user name and no password.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    kind: ProxyKind,
    /// A name or address with its port, as the resolver takes it.
    host: String,
    login: Option<(String, String)>,
    url: String,
}

/// Why a text is no proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}: write socks5://HOST:PORT or http://HOST:PORT, with USER:PASSWORD@ before HOST if it asks")]
pub struct BadProxy(&'static str);

impl FromStr for Proxy {
    type Err = BadProxy;

    fn from_str(text: &str) -> Result<Self, BadProxy> {
        let mut url = Url::parse(text).map_err(|_| BadProxy("not a URL"))?;
        let (kind, usual) = match url.scheme() {
            "socks5" | "socks5h" => (ProxyKind::Socks5, 1080),
            "http" => (ProxyKind::Http, 80),
            _ => return Err(BadProxy("neither a SOCKS5 nor an HTTP proxy")),
        };
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(BadProxy("nothing may follow the port"));
        }
        let host = url.host().filter(|host| !host.to_string().is_empty()).ok_or(BadProxy("no host"))?;
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
        let host = match url.port().unwrap_or(usual) {
            0 => return Err(BadProxy("port 0 is none")),
            port => format!("{host}:{port}"),
        };
        // The `h`: names are the proxy's to resolve, or our resolver would learn whom we ask.
        if kind == ProxyKind::Socks5 {
            url.set_scheme("socks5h").map_err(|()| BadProxy("not a URL"))?;
        }
        Ok(Self { kind, host, login, url: url.into() })
    }
}

/// The password stays out of logs.
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
    /// What it speaks.
    pub fn kind(&self) -> ProxyKind {
        self.kind
    }

    /// For HTTP clients, login and all: host names are a SOCKS proxy's to resolve (`socks5h`).
    pub fn url(&self) -> &str {
        &self.url
    }

    /// `HOST:PORT`, as the resolver takes it.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// User and password.
    pub fn login(&self) -> Option<(&str, &str)> {
        self.login.as_ref().map(|(user, password)| (user.as_str(), password.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
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
    fn the_password_is_not_shown() {
        let proxy: Proxy = "socks5://me:secret@host:1".parse().unwrap();
        assert_eq!(format!("{proxy} {proxy:?}"), "socks5://host:1 Proxy(socks5://host:1)");
    }
}
