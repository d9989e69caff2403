//! The local end of sockets.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::str::FromStr;

use socket2::Socket;

/// The address or interface to which sockets are bound.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Bind {
    /// All addresses of the machine.
    #[default]
    Anywhere,
    /// Only this address. Connections to peers of the other family use an address chosen by the system.
    Address(IpAddr),
    /// Only this network interface (SO_BINDTODEVICE), such as a VPN's. If it goes down, nothing is sent by another.
    Interface(String),
}

/// The error for text that is neither an address nor an interface name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is neither an IP address nor the name of a network interface")]
pub struct BadBind(String);

/// Parses an address, or else the name of an interface.
impl FromStr for Bind {
    type Err = BadBind;

    fn from_str(text: &str) -> Result<Self, BadBind> {
        if let Ok(ip) = text.trim_start_matches('[').trim_end_matches(']').parse() {
            return Ok(Self::Address(ip));
        }
        // The kernel's rules for interface names.
        let valid = (1..16).contains(&text.len())
            && !matches!(text, "." | "..")
            && !text.contains(|c: char| c == '/' || c == ':' || c == '\0' || c.is_whitespace());
        if valid { Ok(Self::Interface(text.into())) } else { Err(BadBind(text.into())) }
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anywhere => f.write_str("any address"),
            Self::Address(ip) => ip.fmt(f),
            Self::Interface(name) => write!(f, "interface {name}"),
        }
    }
}

impl Bind {
    /// Returns the address, if it is one.
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Address(ip) => Some(*ip),
            Self::Anywhere | Self::Interface(_) => None,
        }
    }

    /// Binds a socket to the interface, if it is one. Call it before the socket's `bind`.
    pub(crate) fn bind_device(&self, socket: &Socket) -> io::Result<()> {
        match self {
            Self::Interface(name) => socket.bind_device(Some(name.as_bytes())),
            Self::Anywhere | Self::Address(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_interfaces_are_parsed() {
        assert_eq!("192.0.2.1".parse(), Ok(Bind::Address([192, 0, 2, 1].into())));
        assert_eq!("[::1]".parse(), Ok(Bind::Address("::1".parse().unwrap())));
        assert_eq!("eth0".parse(), Ok(Bind::Interface("eth0".into())));
        assert_eq!("wg-home.1".parse(), Ok(Bind::Interface("wg-home.1".into())));
        for text in ["", "a/b", "two words", "a-name-that-is-too-long", "..", "1.2.3.4:5"] {
            assert_eq!(text.parse::<Bind>(), Err(BadBind(text.into())));
        }
    }
}
