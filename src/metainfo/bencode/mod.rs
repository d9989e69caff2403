//! The guard before every decode of bencode from outside, and the decode itself.
//!
//! A decoder that recurses can be made to overflow its stack, one that trusts lengths to run out of memory, and one
//! that is lenient to read another torrent than its neighbour does. So a small iterative scanner goes over the bytes
//! first: nesting, number of values, size and string lengths are bounded; integers are canonical and fit 64 bits;
//! keys are strings, each at most once in its dictionary; nothing follows the value, unless the caller asks for what
//! was consumed. Keys out of order are accepted, because torrents with them exist and their meaning is plain.
//! Duplicate keys are refused: two programs would see two torrents under one info hash.
//!
//! Only then does `serde_bencode` see the bytes, and it fills typed structs, never a tree of values.

mod field;

use std::ops::Range;

use serde::de::DeserializeOwned;

pub(crate) use field::{Field, List, Shape, dict};

/// How deep lists and dictionaries may nest.
pub const MAX_DEPTH: usize = 64;

/// What a source may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the value.
    pub bytes: usize,
    /// Strings, integers, lists and dictionaries in it, itself and keys included.
    pub values: usize,
}

impl Limits {
    /// A `.torrent` file. Room for half a million files or for the hashes of the most pieces we accept.
    pub const TORRENT: Self = Self { bytes: 96 << 20, values: 4 << 20 };
    /// The reply of a tracker: a few thousand peers, even in the long form.
    pub const TRACKER: Self = Self { bytes: 1 << 20, values: 64 << 10 };
    /// A message of a peer's extension.
    pub const PEER: Self = Self { bytes: 256 << 10, values: 4 << 10 };
}

/// Why bytes are not the bencode that was expected. Positions count bytes from 0.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BencodeError {
    /// Nothing at all.
    #[error("there is no data")]
    Empty,
    /// Over [`Limits::bytes`].
    #[error("it is larger than {0} bytes")]
    TooLarge(usize),
    /// Over [`MAX_DEPTH`].
    #[error("it nests deeper than {MAX_DEPTH} levels at byte {0}")]
    TooDeep(usize),
    /// Over [`Limits::values`].
    #[error("it holds more than {0} values")]
    TooManyValues(usize),
    /// The data ends within a value, or a string is longer than what is left.
    #[error("it is cut off: the value at byte {0} goes past the end")]
    Truncated(usize),
    /// Empty, with leading zeros, `-0`, or beyond 64 bits.
    #[error("the integer at byte {0} is malformed")]
    BadInteger(usize),
    /// With leading zeros, without a colon, or absurdly large.
    #[error("the string at byte {0} has a malformed length")]
    BadLength(usize),
    /// No value begins like this.
    #[error("there is no bencoded value at byte {0}")]
    NoValue(usize),
    /// A dictionary's key is not a string.
    #[error("the dictionary key at byte {0} is not a string")]
    BadKey(usize),
    /// A dictionary ends after a key.
    #[error("the dictionary that ends at byte {0} has a key without a value")]
    KeyWithoutValue(usize),
    /// A dictionary has two values for one key.
    #[error("the key `{0}` occurs twice in one dictionary")]
    DuplicateKey(String),
    /// Bytes after the value.
    #[error("there is excess data after the value, from byte {0}")]
    Trailing(usize),
    /// Sound bencode, but not of the expected kind.
    #[error("it is not what was expected: {0}")]
    Kind(String),
}

/// A key of a dictionary and where its value lies.
pub type Span<'a> = (&'a [u8], Range<usize>);

/// Decodes a value that is all of `bytes`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], limits: &Limits) -> Result<T, BencodeError> {
    let scan = scan(bytes, limits)?;
    if scan.consumed < bytes.len() {
        return Err(BencodeError::Trailing(scan.consumed));
    }
    decode_scanned(bytes)
}

/// Decodes the value that `bytes` begin with, and says how many bytes it took. For messages that are a dictionary and
/// then raw bytes (BEP 9).
pub fn decode_prefix<T: DeserializeOwned>(bytes: &[u8], limits: &Limits) -> Result<(T, usize), BencodeError> {
    let consumed = scan(bytes, limits)?.consumed;
    Ok((decode_scanned(&bytes[..consumed])?, consumed))
}

/// Where the value of `key` lies in the dictionary that is all of `bytes`: the raw bytes to hash, for re-encoding
/// might change them. `None` if it has no such key or is no dictionary.
pub fn span_of(bytes: &[u8], key: &[u8], limits: &Limits) -> Result<Option<Range<usize>>, BencodeError> {
    let spans = spans(bytes, limits)?.unwrap_or_default();
    Ok(spans.into_iter().find(|(name, _)| *name == key).map(|(_, span)| span))
}

/// Every key of the dictionary that is all of `bytes`, in its order, and where its value lies. `None`: it is no
/// dictionary.
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

struct Scan<'a> {
    consumed: usize,
    /// Of the outermost dictionary.
    fields: Vec<Span<'a>>,
}

/// A list or dictionary that is still open.
enum Open<'a> {
    List,
    Dict {
        /// Where its keys begin in the shared stack of keys.
        first_key: usize,
        /// Every key so far was greater than the one before: so none occurs twice.
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
    // What is over the limit may still follow a value that is within it.
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
                            no_key_twice(&mut keys[first_key..])?;
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
        // Of a list, too, but then there is no field.
        if open.len() == 1
            && let Some((_, span)) = fields.last_mut()
        {
            span.end = at;
        }
    }
}

fn no_key_twice(keys: &mut [&[u8]]) -> Result<(), BencodeError> {
    keys.sort_unstable();
    match keys.windows(2).find(|pair| pair[0] == pair[1]) {
        None => Ok(()),
        Some(pair) => {
            let shown = &pair[0][..pair[0].len().min(64)];
            Err(BencodeError::DuplicateKey(shown.escape_ascii().to_string()))
        }
    }
}

/// Passes over `i…e`.
fn integer(bytes: &[u8], at: &mut usize) -> Result<(), BencodeError> {
    let from = *at;
    // 64 bits take at most 20 characters, sign included.
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

/// Passes over `length:bytes` and yields the bytes.
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
    fn accepts_bencode() {
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
    fn refuses_what_is_not() {
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
    fn bounds_depth_count_and_size() {
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
    fn a_prefix_leaves_the_rest() {
        let limits = Limits { bytes: 4, values: 4 };
        assert_eq!(decode_prefix::<i64>(b"i42e and raw bytes", &limits), Ok((42, 4)));
        assert_eq!(decode_prefix::<i64>(b"i421e", &limits), Err(BencodeError::TooLarge(4)));
    }

    #[test]
    fn finds_the_span_of_a_key_at_the_top() {
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

    /// Bencode of a random value with keys in order, and its number of values.
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
        fn whatever_is_bencode_passes_and_is_measured((bytes, count) in value(), tail in ".{0,8}") {
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
        fn what_passes_the_guard_decodes(bytes in proptest::collection::vec(
            proptest::sample::select(b"deli0123:-x".to_vec()), 0..40,
        )) {
            if let Ok(scan) = scan(&bytes, &Limits::PEER) {
                prop_assert!(decode_scanned::<IgnoredAny>(&bytes[..scan.consumed]).is_ok());
            }
        }
    }
}
