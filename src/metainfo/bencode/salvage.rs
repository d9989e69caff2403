//! Reading of bencode that may be malformed, as the scripts of trackers write it.
//!
//! [`decode`](super::decode) refuses a value if any part of it is malformed. Here every part that can be told apart is
//! read: a [`Reader`] returns values up to the first one that it does not recognize, and numbers in any spelling. What a
//! part means is up to the caller.
//!
//! A reader holds a slice of the input and allocates nothing. It does not recurse, so nesting needs no limit, and reading
//! the items of a list takes linear time.

/// Longest integer that is recognized, in bytes between `i` and `e`.
const MAX_INTEGER: usize = 32;

/// One value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    /// The text between `i` and `e`.
    Integer(&'a [u8]),
    /// A string; what there is of it, if the input ends within it.
    String(&'a [u8]),
    /// The items of a list.
    List(Reader<'a>),
    /// The keys and values of a dictionary, in turns.
    Dict(Reader<'a>),
}

impl<'a> Value<'a> {
    /// Returns a number, which may also be written as a string. A fraction or a unit after the digits is cut off, and a
    /// number that exceeds 64 bits becomes the largest or smallest one.
    pub(crate) fn number(&self) -> Option<i64> {
        let (Self::Integer(text) | Self::String(text)) = self else { return None };
        let text = text.trim_ascii();
        let (negative, digits) = match text {
            [b'-', digits @ ..] => (true, digits),
            [b'+', digits @ ..] | digits => (false, digits),
        };
        let len = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let add = |number: i64, digit: &u8| number.saturating_mul(10).saturating_add(i64::from(digit - b'0'));
        let number = digits[..len].iter().fold(0, add);
        (len > 0).then_some(if negative { -number } else { number })
    }

    /// Returns the bytes of a string, or the digits of an integer.
    pub(crate) fn bytes(&self) -> Option<&'a [u8]> {
        match self {
            Self::Integer(text) | Self::String(text) => Some(text),
            Self::List(_) | Self::Dict(_) => None,
        }
    }
}

/// Reads values, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    /// The end of the surrounding list or dictionary was found.
    closed: bool,
    /// Something was not recognized; nothing after it is read.
    broken: bool,
}

impl<'a> Reader<'a> {
    /// Reads the values in `bytes`.
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, closed: true, broken: false }
    }

    /// Returns whether the surrounding list or dictionary has its end, and everything so far was recognized.
    pub(crate) fn is_sound(&self) -> bool {
        self.closed && !self.broken
    }

    /// Returns what has not been read.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Reads the keys and values of a dictionary. A key that is not a string is skipped with its value.
    pub(crate) fn pairs(self) -> Pairs<'a> {
        Pairs(self)
    }

    fn give_up(&mut self) -> Option<Value<'a>> {
        (self.rest, self.broken) = (&[], true);
        None
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        let (token, len) = match token(self.rest) {
            Some(found) => found,
            None if self.rest.is_empty() => return None,
            None => return self.give_up(),
        };
        match token {
            Token::Integer(text) => {
                self.rest = &self.rest[len..];
                Some(Value::Integer(text))
            }
            Token::String { text, cut } => {
                self.rest = &self.rest[len..];
                self.broken |= cut;
                Some(Value::String(text))
            }
            Token::Open(kind) => {
                let (content, len, closed) = content(self.rest);
                self.rest = &self.rest[len..];
                self.broken |= !closed;
                let inside = Reader { rest: content, closed, broken: false };
                Some(if kind == b'l' { Value::List(inside) } else { Value::Dict(inside) })
            }
            Token::End => self.give_up(),
        }
    }
}

/// The keys and values of a dictionary.
pub(crate) struct Pairs<'a>(Reader<'a>);

impl Pairs<'_> {
    /// Returns whether the dictionary has its end, and everything so far was recognized.
    pub(crate) fn is_sound(&self) -> bool {
        self.0.is_sound()
    }
}

impl<'a> Iterator for Pairs<'a> {
    type Item = (&'a [u8], Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let key = self.0.next()?;
            let Some(value) = self.0.next() else {
                // A key without a value.
                self.0.broken = true;
                return None;
            };
            match key {
                Value::String(key) => return Some((key, value)),
                _ => self.0.broken = true,
            }
        }
    }
}

enum Token<'a> {
    Integer(&'a [u8]),
    /// `cut`: the input ends within it.
    String {
        text: &'a [u8],
        cut: bool,
    },
    /// `l` or `d`.
    Open(u8),
    End,
}

/// Returns the token at the start of `bytes` and its length; `None` if it is none.
fn token(bytes: &[u8]) -> Option<(Token<'_>, usize)> {
    match bytes.first()? {
        b'i' => {
            let text = &bytes[1..];
            let len = text.iter().take(MAX_INTEGER + 1).position(|byte| *byte == b'e')?;
            Some((Token::Integer(&text[..len]), len + 2))
        }
        b'0'..=b'9' => {
            let digits = bytes.iter().take(MAX_INTEGER).take_while(|byte| byte.is_ascii_digit()).count();
            let add = |len: usize, digit: &u8| len.saturating_mul(10).saturating_add(usize::from(digit - b'0'));
            let len = bytes[..digits].iter().fold(0, add);
            let text = bytes[digits..].strip_prefix(b":")?;
            let cut = len > text.len();
            let text = &text[..len.min(text.len())];
            Some((Token::String { text, cut }, digits + 1 + text.len()))
        }
        kind @ (b'l' | b'd') => Some((Token::Open(*kind), 1)),
        b'e' => Some((Token::End, 1)),
        _ => None,
    }
}

/// Returns the content of the list or dictionary at the start of `bytes`, its length with both ends, and whether its end
/// was found. Without an end it takes up all of `bytes`.
fn content(bytes: &[u8]) -> (&[u8], usize, bool) {
    let (mut at, mut depth) = (0, 0usize);
    while let Some((token, len)) = token(&bytes[at..]) {
        at += len;
        match token {
            Token::Open(_) => depth += 1,
            Token::End if depth <= 1 => return (&bytes[1..at - 1], at, true),
            Token::End => depth -= 1,
            Token::Integer(_) | Token::String { .. } => {}
        }
    }
    (&bytes[1..], bytes.len(), false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metainfo::bencode::{Limits, spans};
    use proptest::prelude::*;

    fn fields(bytes: &[u8]) -> (Vec<(&[u8], Value<'_>)>, bool) {
        let Some(Value::Dict(dict)) = Reader::new(bytes).next() else { return (Vec::new(), false) };
        let mut pairs = dict.pairs();
        let fields = pairs.by_ref().collect();
        (fields, pairs.is_sound())
    }

    #[test]
    fn numbers_are_read_in_any_spelling() {
        for (text, number) in [
            ("i1800e", Some(1800)),
            ("4:1800", Some(1800)),
            ("i01800e", Some(1800)),
            ("i+7e", Some(7)),
            ("i-7e", Some(-7)),
            ("6:1800.5", Some(1800)),
            ("5: 30 s", Some(30)),
            ("i99999999999999999999e", Some(i64::MAX)),
            ("i-99999999999999999999e", Some(-i64::MAX)),
            ("i-e", None),
            ("ie", None),
            ("0:", None),
            ("4:soon", None),
            ("le", None),
        ] {
            assert_eq!(Reader::new(text.as_bytes()).next().unwrap().number(), number, "{text}");
        }
    }

    #[test]
    fn everything_before_a_fault_is_read() {
        let (a, b) = ((b"a".as_slice(), Value::Integer(b"1")), (b"b".as_slice(), Value::String(b"xy")));
        assert_eq!(fields(b"d1:ai1e1:b2:xye"), (vec![a, b], true));
        assert_eq!(fields(b"d1:ai1e1:b2:xy"), (vec![a, b], false));
        assert_eq!(fields(b"d1:ai1e1:b9:xy"), (vec![a, b], false));
        assert_eq!(fields(b"d1:ai1e1:b02:xy?"), (vec![a, b], false));
        assert_eq!(fields(b"d1:ai1ei5ei6e1:b2:xye"), (vec![a, b], false));
        assert_eq!(fields(b"d1:ai1e1:be"), (vec![a], false));
        assert_eq!(fields(b"de"), (vec![], true));
        // The list is not closed, so what follows counts as its items.
        let (found, sound) = fields(b"d1:cl1:ai1e1:b");
        assert!(!sound && matches!(found[..], [(b"c", Value::List(list))] if list.count() == 3));
    }

    #[test]
    fn bytes_after_a_value_are_left() {
        let mut reader = Reader::new(b"d1:ai1eee");
        assert!(matches!(reader.next(), Some(Value::Dict(_))));
        assert!(reader.is_sound());
        assert_eq!(reader.rest(), b"e");
        assert_eq!(reader.next(), None);
        assert!(!reader.is_sound());
    }

    #[test]
    fn deep_nesting_takes_linear_time() {
        let nested = b"l".repeat(1 << 20);
        assert!(matches!(Reader::new(&nested).next(), Some(Value::List(list)) if !list.is_sound()));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_end(bytes in proptest::collection::vec(proptest::sample::select(b"dlei0123456789:-ab".to_vec()), 0..200)) {
            let mut readers = vec![Reader::new(&bytes)];
            let mut values = 0;
            while let Some(reader) = readers.pop() {
                for value in reader {
                    values += 1;
                    match value {
                        Value::List(inside) | Value::Dict(inside) => readers.push(inside),
                        Value::Integer(_) | Value::String(_) => { value.number(); }
                    }
                }
            }
            prop_assert!(values <= bytes.len());
        }

        /// Valid bencode is read as the strict decoder reads it.
        #[test]
        fn valid_dictionaries_are_read_in_full(
            fields in proptest::collection::btree_map("[a-z]{1,3}", "(i[1-9][0-9]{0,5}e|1:x|l1:y(le)?e|d1:zi0ee)", 0..6),
        ) {
            let body: String = fields.iter().map(|(key, value)| format!("{}:{key}{value}", key.len())).collect();
            let body = format!("d{body}e");
            let strict = spans(body.as_bytes(), &Limits::TRACKER).unwrap().unwrap();
            let (loose, sound) = super::tests::fields(body.as_bytes());
            prop_assert!(sound);
            let keys: Vec<&[u8]> = strict.iter().map(|(key, _)| *key).collect();
            prop_assert_eq!(loose.iter().map(|(key, _)| *key).collect::<Vec<_>>(), keys);
        }
    }
}
