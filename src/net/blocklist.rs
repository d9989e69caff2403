//! The blocklist: addresses that are neither dialed nor accepted.
//!
//! Reads the common formats: PeerGuardian text (`description:1.2.3.4-1.2.3.9`), eMule's `.dat` (`001.002.003.004 -
//! 001.002.003.009 , 000 , description`), and plain addresses, ranges or CIDR blocks, one per line. Other lines are
//! counted and skipped, because one mistake must not disable the whole list. Sizes are bounded.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::str::FromStr;
use std::sync::{PoisonError, RwLock};

/// Largest file that is read, in bytes. The lists in use have about 20 MB.
const MAX_FILE: u64 = 256 << 20;

/// Longest line that is parsed, in bytes.
const MAX_LINE: usize = 4096;

/// Highest level that blocks in the eMule format; higher levels allow.
const EMULE_LEVEL: u32 = 127;

/// Sorted ranges of addresses that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
    unread: Unread,
}

/// The lines of a list that could not be parsed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unread {
    /// Number of such lines.
    pub lines: usize,
    /// Line number of the first one, from 1; 0 if there is none.
    pub first: usize,
}

impl Ranges {
    /// Reads a file. Fails if it cannot be read, is too large, or is compressed.
    pub fn load(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let ranges = Self::read(BufReader::new(file.take(MAX_FILE + 1)))?;
        Ok(ranges)
    }

    /// Reads a list.
    pub fn read(mut list: impl BufRead) -> io::Result<Self> {
        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        let begins = list.fill_buf()?;
        if [&b"\x1F\x8B"[..], b"PK\x03\x04", b"BZh", b"\xFD7zXZ", b"\xFF\xFF\xFF\xFFP2B"]
            .iter()
            .any(|magic| begins.starts_with(magic))
        {
            return Err(invalid("it is compressed or binary; unpack it to text first".into()));
        }
        let mut ranges = Self::default();
        let (mut line, mut number, mut total) = (Vec::new(), 0, 0);
        loop {
            line.clear();
            let n = list.by_ref().take(MAX_LINE as u64).read_until(b'\n', &mut line)?;
            if n == 0 {
                break;
            }
            number += 1;
            total += n as u64;
            let cut = n == MAX_LINE && line.last() != Some(&b'\n');
            if cut {
                total += list.skip_until(b'\n')? as u64;
            }
            if total > MAX_FILE {
                return Err(invalid(format!("it is larger than {} MiB", MAX_FILE >> 20)));
            }
            // Descriptions may be in any encoding.
            let text = String::from_utf8_lossy(&line);
            if cut || !ranges.parse_line(text.trim()) {
                if ranges.unread.lines == 0 {
                    ranges.unread.first = number;
                }
                ranges.unread.lines += 1;
            }
        }
        ranges.v4 = merged(std::mem::take(&mut ranges.v4), |end| end.checked_add(1));
        ranges.v6 = merged(std::mem::take(&mut ranges.v6), |end| end.checked_add(1));
        Ok(ranges)
    }

    /// Parses one line. Returns false if it has none of the formats.
    fn parse_line(&mut self, line: &str) -> bool {
        if line.is_empty() || ["#", ";", "//"].iter().any(|comment| line.starts_with(comment)) {
            return true;
        }
        // The description may contain colons, and so may an IPv6 address after it: take the longest suffix that is a
        // range.
        let range = emule(line)
            .or_else(|| range(line).map(Some))
            .or_else(|| line.match_indices(':').find_map(|(at, _)| range(&line[at + 1..])).map(Some));
        match range {
            Some(Some((IpAddr::V4(from), IpAddr::V4(to)))) => self.v4.push((from.into(), to.into())),
            Some(Some((IpAddr::V6(from), IpAddr::V6(to)))) => self.v6.push((from.into(), to.into())),
            Some(None) => {}
            Some(Some(_)) | None => return false,
        }
        true
    }

    /// Returns whether `ip` is in one of the ranges.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match ip.to_canonical() {
            IpAddr::V4(ip) => within(&self.v4, ip.into()),
            IpAddr::V6(ip) => within(&self.v6, ip.into()),
        }
    }

    /// Returns the number of ranges, after merging.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Returns whether there is no range.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the lines that could not be parsed.
    pub fn unread(&self) -> Unread {
        self.unread
    }
}

type Range = (IpAddr, IpAddr);

/// Parses `from - to , level , description`. `Some(None)` is a valid line whose level allows the range.
fn emule(line: &str) -> Option<Option<Range>> {
    let mut fields = line.splitn(3, ',');
    let addresses = range(fields.next()?)?;
    let level: u32 = fields.next()?.trim().parse().ok()?;
    Some((level <= EMULE_LEVEL).then_some(addresses))
}

/// Parses an address, two addresses with a dash between them, or a CIDR block.
fn range(text: &str) -> Option<Range> {
    let text = text.trim();
    if let Some((from, to)) = text.split_once('-') {
        let (from, to) = (address(from)?, address(to)?);
        return (from.is_ipv4() == to.is_ipv4() && from <= to).then_some((from, to));
    }
    let Some((ip, bits)) = text.split_once('/') else {
        return address(text).map(|ip| (ip, ip));
    };
    let bits: u32 = bits.parse().ok()?;
    Some(match address(ip)? {
        IpAddr::V4(ip) => {
            let host = u32::MAX.checked_shr(bits).unwrap_or(0);
            let ip = (bits <= 32).then_some(u32::from(ip))?;
            (Ipv4Addr::from(ip & !host).into(), Ipv4Addr::from(ip | host).into())
        }
        IpAddr::V6(ip) => {
            let host = u128::MAX.checked_shr(bits).unwrap_or(0);
            let ip = (bits <= 128).then_some(u128::from(ip))?;
            (Ipv6Addr::from(ip & !host).into(), Ipv6Addr::from(ip | host).into())
        }
    })
}

/// Parses an address. Lists write `001.002.003.004`, which the standard library rejects because leading zeros may mean
/// octal.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    if text.contains(':') {
        return Ipv6Addr::from_str(text).ok().map(|ip| IpAddr::V6(ip).to_canonical());
    }
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next().filter(|part| part.len() <= 3 && part.bytes().all(|byte| byte.is_ascii_digit()))?;
        *octet = part.parse().ok()?;
    }
    parts.next().is_none().then_some(IpAddr::V4(octets.into()))
}

/// Sorts ranges and merges those that overlap or touch.
fn merged<T: Ord + Copy>(mut ranges: Vec<(T, T)>, after: impl Fn(T) -> Option<T>) -> Vec<(T, T)> {
    ranges.sort_unstable();
    let mut out: Vec<(T, T)> = Vec::with_capacity(ranges.len());
    for (from, to) in ranges {
        match out.last_mut() {
            Some(last) if after(last.1).is_none_or(|next| from <= next) => last.1 = last.1.max(to),
            _ => out.push((from, to)),
        }
    }
    out.shrink_to_fit();
    out
}

fn within<T: Ord + Copy>(ranges: &[(T, T)], ip: T) -> bool {
    let next = ranges.partition_point(|(from, _)| *from <= ip);
    next.checked_sub(1).is_some_and(|at| ip <= ranges[at].1)
}

/// The list in force. It can be replaced at run time.
#[derive(Debug, Default)]
pub struct Blocklist(RwLock<Ranges>);

impl Blocklist {
    /// Creates a blocklist with these ranges.
    pub fn new(ranges: Ranges) -> Self {
        Self(RwLock::new(ranges))
    }

    /// Replaces the ranges. Open connections stay; check them with [`Self::blocks`].
    pub fn replace(&self, ranges: Ranges) {
        // The ranges are replaced as a whole, so they are consistent even if a thread panicked while it held the lock.
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = ranges;
    }

    /// Returns whether `ip` is blocked.
    pub fn blocks(&self, ip: IpAddr) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains(ip)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranges(text: &str) -> Ranges {
        Ranges::read(text.as_bytes()).unwrap()
    }

    #[track_caller]
    fn check(list: &Ranges, inside: &[&str], outside: &[&str]) {
        for ip in inside {
            assert!(list.contains(ip.parse().unwrap()), "{ip} in {list:?}");
        }
        for ip in outside {
            assert!(!list.contains(ip.parse().unwrap()), "{ip} not in {list:?}");
        }
    }

    #[test]
    fn peerguardian_text_is_parsed() {
        let list = ranges(
            "# a list\nSome Corp: the other one:1.2.3.4-1.2.3.9\r\n\nnothing:5.6.7.8-5.6.7.8\n\
             Six:2001:db8::-2001:db8::ff\nCaf\u{e9} 10-20:9.9.9.0-9.9.9.255\n",
        );
        check(
            &list,
            &["1.2.3.4", "1.2.3.9", "5.6.7.8", "2001:db8::7f", "9.9.9.9"],
            &["1.2.3.3", "1.2.3.10", "2001:db8::100"],
        );
        assert_eq!((list.len(), list.unread()), (4, Unread::default()));
    }

    #[test]
    fn emule_levels_are_respected() {
        let list = ranges(
            "001.002.003.000 - 001.002.003.255 , 000 , Some, with commas\n\
             010.000.000.000 - 010.255.255.255 , 127 , blocked\n\
             192.168.000.000 - 192.168.255.255 , 200 , let through\n",
        );
        check(&list, &["1.2.3.77", "10.1.2.3"], &["192.168.1.1", "1.2.4.0"]);
        assert_eq!(list.unread(), Unread::default());
    }

    #[test]
    fn cidr_blocks_and_addresses_are_parsed() {
        let list = ranges("10.0.0.1/8\n 1.1.1.1\n2001:db8::/33 \n; so what\n// and this\n192.0.2.7/32\n");
        check(
            &list,
            &["10.0.0.0", "10.255.255.255", "1.1.1.1", "2001:db8:7fff::1", "192.0.2.7", "::ffff:10.1.1.1"],
            &["11.0.0.0", "1.1.1.2", "2001:db8:8000::", "192.0.2.8"],
        );
        check(&ranges("0.0.0.0/0\n::/0"), &["255.255.255.255", "::", "ffff::"], &[]);
    }

    #[test]
    fn invalid_lines_are_counted_and_skipped() {
        let long = format!("x:{}1.1.1.1-1.1.1.1", " ".repeat(MAX_LINE));
        let list = ranges(&format!(
            "1.2.3.4\nhello\n5.6.7.8-5.6.7.1\n1.2.3.256\n1.2.3.4/33\n1.2.3.4-::1\n::/129\n{long}\n8.8.8.8\n1.2.3\n"
        ));
        check(&list, &["1.2.3.4", "8.8.8.8"], &["1.1.1.1", "5.6.7.8"]);
        assert_eq!(list.unread(), Unread { lines: 8, first: 2 });
        let packed = Ranges::read(&b"\x1F\x8B\x08\x00"[..]).unwrap_err();
        assert!(packed.to_string().contains("unpack"), "{packed}");
    }

    #[test]
    fn a_blocklist_can_be_replaced() {
        let list = Blocklist::default();
        let ip = "1.2.3.4".parse().unwrap();
        assert!(!list.blocks(ip));
        list.replace(ranges("1.2.3.0/24"));
        assert!(list.blocks(ip));
        list.replace(Ranges::default());
        assert!(!list.blocks(ip));
    }

    proptest! {
        /// The result is the same as for a list of single addresses.
        #[test]
        fn merging_changes_nothing(parts in prop::collection::vec((0..60_u32, 0..10_u32), 0..12), last: bool) {
            let mut text = String::new();
            for (from, len) in &parts {
                text += &format!("{}-{}\n", Ipv4Addr::from(*from), Ipv4Addr::from(from + len));
            }
            if last {
                text += "255.255.255.0-255.255.255.255\n255.255.255.255\n";
            }
            let list = ranges(&text);
            for ip in 0..75 {
                let expected = parts.iter().any(|(from, len)| (*from..=from + len).contains(&ip));
                prop_assert_eq!(list.contains(Ipv4Addr::from(ip).into()), expected);
            }
            prop_assert!(list.v4.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0));
            prop_assert_eq!(list.contains(Ipv4Addr::BROADCAST.into()), last);
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes: Vec<u8>) {
            let _ = Ranges::read(&bytes[..]);
        }
    }
}
