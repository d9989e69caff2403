//! Decoding of untrusted bencode.
//!
//! Hostile input can overflow the stack of a recursive decoder, exhaust the memory of one that trusts lengths, and be read
//! differently by a lenient one than by other programs. Therefore an iterative scanner checks the bytes first: nesting,
//! number of values, size and string lengths are bounded; integers are canonical and fit 64 bits; keys are strings, each
//! at most once per dictionary; nothing follows the value, unless the caller asks how many bytes were consumed. Keys out
//! of order are accepted, because torrents with them exist and their meaning is clear. Duplicate keys are refused, because
//! two programs could read two different torrents under one info hash.
//!
//! `serde_bencode` decodes only bytes that passed the scan, into typed structs and never into a tree of values.

mod field;
mod salvage;

use std::ops::Range;

use serde::de::DeserializeOwned;

pub(crate) use field::{Field, List, Shape, dict};
pub(crate) use salvage::{Reader, Value};

/// Nesting limit of lists and dictionaries. Real torrents nest about ten deep, v2 file trees as deep as their paths.
pub const MAX_DEPTH: usize = 64;

/// Size limits for bencode from one kind of source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Length of the value in bytes.
    pub bytes: usize,
    /// Number of strings, integers, lists and dictionaries in it, including keys and the value itself.
    pub values: usize,
}

impl Limits {
    /// For a `.torrent` file: half a million files fit, or the hashes of the largest number of pieces that is accepted.
    pub const TORRENT: Self = Self { bytes: 96 << 20, values: 4 << 20 };
    /// For a tracker's reply: a few thousand peers fit, even as dictionaries.
    pub const TRACKER: Self = Self { bytes: 1 << 20, values: 64 << 10 };
    /// For a peer's extension message.
    pub const PEER: Self = Self { bytes: 256 << 10, values: 4 << 10 };
}

/// Why bytes are not the expected bencode. Positions are byte offsets from 0.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BencodeError {
    /// There are no bytes.
    #[error("there is no data")]
    Empty,
    /// It exceeds [`Limits::bytes`].
    #[error("it is larger than {0} bytes")]
    TooLarge(usize),
    /// It exceeds [`MAX_DEPTH`].
    #[error("it nests deeper than {MAX_DEPTH} levels at byte {0}")]
    TooDeep(usize),
    /// It exceeds [`Limits::values`].
    #[error("it holds more than {0} values")]
    TooManyValues(usize),
    /// The data ends within a value, or a string is longer than the rest of the data.
    #[error("it is truncated: the value at byte {0} extends past the end")]
    Truncated(usize),
    /// An integer is empty, has leading zeros, is `-0`, or exceeds 64 bits.
    #[error("the integer at byte {0} is malformed")]
    BadInteger(usize),
    /// A string's length has leading zeros, has no colon after it, or overflows.
    #[error("the string at byte {0} has a malformed length")]
    BadLength(usize),
    /// No bencoded value starts with this byte.
    #[error("there is no bencoded value at byte {0}")]
    NoValue(usize),
    /// A key of a dictionary is not a string.
    #[error("the dictionary key at byte {0} is not a string")]
    BadKey(usize),
    /// A dictionary ends after a key.
    #[error("the dictionary that ends at byte {0} has a key without a value")]
    KeyWithoutValue(usize),
    /// A dictionary has two values for one key.
    #[error("the key `{0}` occurs twice in one dictionary")]
    DuplicateKey(String),
    /// There are bytes after the value.
    #[error("there is extra data after the value, from byte {0} on")]
    Trailing(usize),
    /// It is valid bencode, but not of the expected kind.
    #[error("it does not have the expected form: {0}")]
    Kind(String),
}

/// A key of a dictionary and the byte range of its value.
pub type Span<'a> = (&'a [u8], Range<usize>);

/// Decodes a value that takes up all of `bytes`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], limits: &Limits) -> Result<T, BencodeError> {
    let scan = scan(bytes, limits)?;
    if scan.consumed < bytes.len() {
        return Err(BencodeError::Trailing(scan.consumed));
    }
    decode_scanned(bytes)
}

/// Decodes the dictionary that takes up all of `bytes` as if `key` were not in it. Returns it with the byte range of the
/// value of `key`. For a value so large that no copy of it should be made, as decoding does even of what it ignores.
pub fn decode_without<T: DeserializeOwned>(
    bytes: &[u8],
    key: &[u8],
    limits: &Limits,
) -> Result<(T, Option<Range<usize>>), BencodeError> {
    let Some(span) = span_of(bytes, key, limits)? else { return Ok((decode_scanned(bytes)?, None)) };
    // The scan accepts a length only without leading zeros.
    let key_len = key.len().to_string().len() + 1 + key.len();
    let rest = [&bytes[..span.start - key_len], &bytes[span.end..]].concat();
    Ok((decode_scanned(&rest)?, Some(span)))
}

/// Returns the content of the string that takes up all of `bytes`, as a range of them. Returns `None` if it is another value.
pub fn string_in(bytes: &[u8]) -> Option<Range<usize>> {
    let mut end = 0;
    let content = string(bytes, &mut end).ok().filter(|_| end == bytes.len())?;
    Some(end - content.len()..end)
}

/// Decodes the value at the start of `bytes`, and returns it with its length in bytes. For messages in which raw bytes follow
/// a dictionary (BEP 9).
pub fn decode_prefix<T: DeserializeOwned>(bytes: &[u8], limits: &Limits) -> Result<(T, usize), BencodeError> {
    let consumed = scan(bytes, limits)?.consumed;
    Ok((decode_scanned(&bytes[..consumed])?, consumed))
}

/// Returns the length in bytes of the value at the start of `bytes`.
pub fn len_of(bytes: &[u8], limits: &Limits) -> Result<usize, BencodeError> {
    Ok(scan(bytes, limits)?.consumed)
}

/// Returns the byte range of the value of `key` in the dictionary that takes up all of `bytes`. The raw bytes are what is
/// hashed; encoding them again might change them. Returns `None` if there is no such key or it is not a dictionary.
pub fn span_of(bytes: &[u8], key: &[u8], limits: &Limits) -> Result<Option<Range<usize>>, BencodeError> {
    let spans = spans(bytes, limits)?.unwrap_or_default();
    Ok(spans.into_iter().find(|(name, _)| *name == key).map(|(_, span)| span))
}

/// Returns the keys of the dictionary that takes up all of `bytes`, in its order, each with the byte range of its value.
/// Returns `None` if it is not a dictionary.
pub fn spans<'a>(bytes: &'a [u8], limits: &Limits) -> Result<Option<Vec<Span<'a>>>, BencodeError> {
    let scan = scan(bytes, limits)?;
    if scan.consumed < bytes.len() {
        return Err(BencodeError::Trailing(scan.consumed));
    }
    Ok((bytes.first() == Some(&b'd')).then_some(scan.fields))
}

fn decode_scanned<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, BencodeError> {
    serde_bencode::from_bytes(bytes).map_err(|error| BencodeError::Kind(error.to_string()))
}

/// The result of a scan.
struct Scan<'a> {
    /// Length of the value in bytes.
    consumed: usize,
    /// The fields of the outermost dictionary.
    fields: Vec<Span<'a>>,
}

/// A list or dictionary that is still open.
enum Open<'a> {
    List,
    Dict {
        /// Index of its first key in the shared stack of keys.
        first_key: usize,
        /// Every key so far is greater than the one before, so none occurs twice.
        ascending: bool,
        /// The key whose value comes next.
        key: Option<&'a [u8]>,
    },
}

fn scan<'a>(bytes: &'a [u8], limits: &Limits) -> Result<Scan<'a>, BencodeError> {
    if bytes.is_empty() {
        return Err(BencodeError::Empty);
    }
    if bytes.len() <= limits.bytes {
        return scan_within(bytes, limits);
    }
    // The value may end within the limit, and other bytes follow it.
    match scan_within(&bytes[..limits.bytes], limits) {
        Err(BencodeError::Truncated(_)) => Err(BencodeError::TooLarge(limits.bytes)),
        result => result,
    }
}

fn scan_within<'a>(bytes: &'a [u8], limits: &Limits) -> Result<Scan<'a>, BencodeError> {
    let mut open: Vec<Open> = Vec::new();
    let mut keys: Vec<&'a [u8]> = Vec::new();
    let mut fields: Vec<Span> = Vec::new();
    let mut values = 0;
    let mut at = 0;
    loop {
        let from = at;
        let first = *bytes.get(at).ok_or(BencodeError::Truncated(at))?;
        if first != b'e' {
            values += 1;
            if values > limits.values {
                return Err(BencodeError::TooManyValues(limits.values));
            }
        }
        let depth = open.len();

        if let Some(Open::Dict { first_key, ascending, key: key @ None }) = open.last_mut()
            && first != b'e'
        {
            if !first.is_ascii_digit() {
                return Err(BencodeError::BadKey(at));
            }
            let name = string(bytes, &mut at)?;
            *ascending &= keys[*first_key..].last().is_none_or(|last| *last < name);
            keys.push(name);
            *key = Some(name);
            if depth == 1 {
                fields.push((name, at..at));
            }
            continue;
        }

        match first {
            b'i' => integer(bytes, &mut at)?,
            b'0'..=b'9' => {
                string(bytes, &mut at)?;
            }
            b'l' | b'd' => {
                if depth == MAX_DEPTH {
                    return Err(BencodeError::TooDeep(at));
                }
                at += 1;
                open.push(match first {
                    b'l' => Open::List,
                    _ => Open::Dict { first_key: keys.len(), ascending: true, key: None },
                });
                continue;
            }
            b'e' => {
                at += 1;
                match open.pop() {
                    None => return Err(BencodeError::NoValue(from)),
                    Some(Open::List) => {}
                    Some(Open::Dict { key: Some(_), .. }) => return Err(BencodeError::KeyWithoutValue(from)),
                    Some(Open::Dict { first_key, ascending, key: None }) => {
                        if !ascending {
                            check_unique(&mut keys[first_key..])?;
                        }
                        keys.truncate(first_key);
                    }
                }
            }
            _ => return Err(BencodeError::NoValue(at)),
        }

        // A value ends here.
        match open.last_mut() {
            None => return Ok(Scan { consumed: at, fields }),
            Some(Open::List) => {}
            Some(Open::Dict { key, .. }) => *key = None,
        }
        // This also runs for the items of an outermost list, but then there are no fields.
        if open.len() == 1
            && let Some((_, span)) = fields.last_mut()
        {
            span.end = at;
        }
    }
}

fn check_unique(keys: &mut [&[u8]]) -> Result<(), BencodeError> {
    keys.sort_unstable();
    match keys.windows(2).find(|pair| pair[0] == pair[1]) {
        None => Ok(()),
        Some(pair) => {
            let shown = &pair[0][..pair[0].len().min(64)];
            Err(BencodeError::DuplicateKey(shown.escape_ascii().to_string()))
        }
    }
}

/// Checks `i…e` and moves `at` past it.
fn integer(bytes: &[u8], at: &mut usize) -> Result<(), BencodeError> {
    let from = *at;
    // A 64-bit integer has at most 20 characters, with its sign.
    let window = &bytes[from + 1..bytes.len().min(from + 22)];
    let Some(len) = window.iter().position(|byte| *byte == b'e') else {
        let cut_off = from + 22 > bytes.len();
        return Err(if cut_off { BencodeError::Truncated(from) } else { BencodeError::BadInteger(from) });
    };
    let text = &window[..len];
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let canonical = match digits {
        [b'0'] => text.len() == 1,
        [b'1'..=b'9', rest @ ..] => rest.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    let fits = || std::str::from_utf8(text).is_ok_and(|text| text.parse::<i64>().is_ok());
    if !canonical || !fits() {
        return Err(BencodeError::BadInteger(from));
    }
    *at = from + 1 + len + 1;
    Ok(())
}

/// Checks `length:bytes`, moves `at` past it and returns the bytes.
fn string<'a>(bytes: &'a [u8], at: &mut usize) -> Result<&'a [u8], BencodeError> {
    let from = *at;
    let mut len: usize = 0;
    let mut end = from;
    loop {
        match bytes.get(end) {
            None => return Err(BencodeError::Truncated(from)),
            Some(b':') if end > from => break,
            Some(digit @ b'0'..=b'9') => {
                let leading_zero = end > from && len == 0;
                len = len
                    .checked_mul(10)
                    .and_then(|len| len.checked_add(usize::from(digit - b'0')))
                    .filter(|_| !leading_zero)
                    .ok_or(BencodeError::BadLength(from))?;
            }
            Some(_) => return Err(BencodeError::BadLength(from)),
        }
        end += 1;
    }
    let start = end + 1;
    let value = start.checked_add(len).and_then(|end| bytes.get(start..end)).ok_or(BencodeError::Truncated(from))?;
    *at = start + len;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::de::IgnoredAny;

    fn check(bytes: &[u8]) -> Result<(), BencodeError> {
        decode::<IgnoredAny>(bytes, &Limits::PEER).map(|_| ())
    }

    #[test]
    fn valid_bencode_is_accepted() {
        let sound: [&[u8]; 9] = [
            b"i0e",
            b"i-7e",
            b"i9223372036854775807e",
            b"i-9223372036854775808e",
            b"0:",
            b"le",
            b"de",
            b"d1:bi1e1:al0:i2eee",
            b"ld1:ad1:bleeee",
        ];
        for sound in sound {
            assert_eq!(check(sound), Ok(()), "{}", sound.escape_ascii());
        }
    }

    #[test]
    fn invalid_bencode_is_refused() {
        use BencodeError::*;
        let cases: [(&[u8], BencodeError); 27] = [
            (b"", Empty),
            (b"x", NoValue(0)),
            (b"e", NoValue(0)),
            (b"-1:", NoValue(0)),
            (b"i007e", BadInteger(0)),
            (b"i-0e", BadInteger(0)),
            (b"ie", BadInteger(0)),
            (b"i-e", BadInteger(0)),
            (b"i+1e", BadInteger(0)),
            (b"i1.5e", BadInteger(0)),
            (b"i9223372036854775808e", BadInteger(0)),
            (b"i111111111111111111111111111111111e", BadInteger(0)),
            (b"i12", Truncated(0)),
            (b"03:abc", BadLength(0)),
            (b"00:", BadLength(0)),
            (b"3abc", BadLength(0)),
            (b"3", Truncated(0)),
            (b"4:abc", Truncated(0)),
            (b"99999999999:abc", Truncated(0)),
            (b"99999999999999999999999:abc", BadLength(0)),
            (b"l", Truncated(1)),
            (b"di1ei2ee", BadKey(1)),
            (b"d1:ae", KeyWithoutValue(4)),
            (b"d1:ai1e1:ai2ee", DuplicateKey("a".into())),
            (b"d1:ai1e1:bi2e1:ai2ee", DuplicateKey("a".into())),
            (b"i1ei2e", Trailing(3)),
            (b"de\n", Trailing(2)),
        ];
        for (bytes, fault) in cases {
            assert_eq!(check(bytes), Err(fault), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn depth_count_and_size_are_bounded() {
        let nested = |depth: usize| [vec![b'l'; depth], vec![b'e'; depth]].concat();
        assert_eq!(check(&nested(MAX_DEPTH)), Ok(()));
        assert_eq!(check(&nested(MAX_DEPTH + 1)), Err(BencodeError::TooDeep(MAX_DEPTH)));
        assert_eq!(check(&vec![b'l'; 200_000]), Err(BencodeError::TooDeep(MAX_DEPTH)));
        assert_eq!(check(&b"d1:a".repeat(50_000)), Err(BencodeError::TooDeep(4 * MAX_DEPTH)));

        let limits = Limits { bytes: 8, values: 3 };
        assert!(decode::<IgnoredAny>(b"l0:0:e", &limits).is_ok());
        assert_eq!(decode::<IgnoredAny>(b"l0:0:0:e", &limits).err(), Some(BencodeError::TooManyValues(3)));
        assert_eq!(decode::<IgnoredAny>(b"7:1234567", &limits).err(), Some(BencodeError::TooLarge(8)));
    }

    #[test]
    fn decode_prefix_ignores_the_rest() {
        let limits = Limits { bytes: 4, values: 4 };
        assert_eq!(decode_prefix::<i64>(b"i42e and raw bytes", &limits), Ok((42, 4)));
        assert_eq!(decode_prefix::<i64>(b"i421e", &limits), Err(BencodeError::TooLarge(4)));
    }

    #[test]
    fn a_large_value_is_left_out() {
        let decode = |bytes: &[u8]| {
            decode_without::<std::collections::BTreeMap<String, i64>>(bytes, b"pieces", &Limits::PEER)
                .map(|(rest, span)| (rest.into_iter().collect::<Vec<_>>(), span))
        };
        let bytes = b"d1:ai1e6:pieces4:abcd1:zi2ee";
        assert_eq!(decode(bytes), Ok((vec![("a".into(), 1), ("z".into(), 2)], Some(15..21))));
        assert_eq!(string_in(&bytes[15..21]), Some(2..6));
        assert_eq!(decode(b"d1:ai1ee"), Ok((vec![("a".into(), 1)], None)));
        assert_eq!(decode(b"d6:pieceslee"), Ok((vec![], Some(9..11))));
        assert!(decode(b"d6:pieces4:abce").is_err() && decode(b"li1ee").is_err());
        for other in [&b"le"[..], b"4:abc", b"4:abcde", b"i1e", b""] {
            assert_eq!(string_in(other), None);
        }
    }

    #[test]
    fn the_span_of_a_top_level_key_is_found() {
        let bytes = b"d1:ad4:infoi1ee4:infod1:xi1eee";
        let span = span_of(bytes, b"info", &Limits::PEER).unwrap().unwrap();
        assert_eq!(&bytes[span], b"d1:xi1ee");
        let fields = spans(bytes, &Limits::PEER).unwrap().unwrap();
        let fields: Vec<_> = fields.into_iter().map(|(key, span)| (key, &bytes[span])).collect();
        assert_eq!(fields, [(&b"a"[..], &b"d4:infoi1ee"[..]), (b"info", b"d1:xi1ee")]);
        assert_eq!(spans(b"de", &Limits::PEER), Ok(Some(vec![])));
        assert_eq!(spans(b"l1:ae", &Limits::PEER), Ok(None));
        assert_eq!(span_of(b"d4:infoi5ee", b"info", &Limits::PEER), Ok(Some(7..10)));
        assert_eq!(span_of(b"d1:a4:infoe", b"info", &Limits::PEER), Ok(None));
        assert_eq!(span_of(b"l4:infoi5ee", b"info", &Limits::PEER), Ok(None));
    }

    /// Bencode of a random value with sorted keys, and its number of values.
    fn value() -> impl Strategy<Value = (Vec<u8>, usize)> {
        let string = |text: &[u8]| [text.len().to_string().as_bytes(), b":", text].concat();
        let leaf = prop_oneof![
            any::<i64>().prop_map(|n| (format!("i{n}e").into_bytes(), 1)),
            proptest::collection::vec(any::<u8>(), 0..20).prop_map(move |text| (string(&text), 1)),
        ];
        leaf.prop_recursive(6, 60, 6, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(|items| {
                    let count = 1 + items.iter().map(|(_, n)| n).sum::<usize>();
                    let body: Vec<u8> = items.into_iter().flat_map(|(bytes, _)| bytes).collect();
                    ([b"l", body.as_slice(), b"e"].concat(), count)
                }),
                proptest::collection::btree_map(proptest::collection::vec(any::<u8>(), 0..5), inner, 0..6).prop_map(
                    move |items| {
                        let count = 1 + items.values().map(|(_, n)| n + 1).sum::<usize>();
                        let body: Vec<u8> =
                            items.into_iter().flat_map(|(key, (bytes, _))| [string(&key), bytes].concat()).collect();
                        ([b"d", body.as_slice(), b"e"].concat(), count)
                    }
                ),
            ]
        })
    }

    proptest! {
        #[test]
        fn random_bencode_passes_and_is_measured((bytes, count) in value(), tail in ".{0,8}") {
            let limits = Limits { bytes: bytes.len(), values: count };
            prop_assert!(decode::<IgnoredAny>(&bytes, &limits).is_ok());
            let long = [bytes.as_slice(), tail.as_bytes()].concat();
            prop_assert_eq!(decode_prefix::<IgnoredAny>(&long, &limits).map(|(_, n)| n), Ok(bytes.len()));
            let fewer = Limits { values: count - 1, ..limits };
            prop_assert_eq!(
                decode::<IgnoredAny>(&bytes, &fewer).err(),
                Some(BencodeError::TooManyValues(count - 1))
            );
            let cut = decode::<IgnoredAny>(&bytes[..bytes.len() - 1], &limits);
            prop_assert!(matches!(cut.err(), Some(BencodeError::Truncated(_) | BencodeError::Empty)));
        }

        #[test]
        fn bencode_that_passes_the_scan_decodes(bytes in proptest::collection::vec(
            proptest::sample::select(b"deli0123:-x".to_vec()), 0..40,
        )) {
            if let Ok(scan) = scan(&bytes, &Limits::PEER) {
                prop_assert!(decode_scanned::<IgnoredAny>(&bytes[..scan.consumed]).is_ok());
            }
        }
    }
}
