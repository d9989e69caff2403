//! Dictionary fields that may be absent or of the wrong kind.
//!
//! Torrents and peers send strings instead of numbers, or lists within lists. A wrong optional field is ignored; a wrong
//! required one is an error that names it. Neither may make the decoding of the surrounding dictionary fail, and neither
//! may a key that is not UTF-8. A derived `Deserialize` would fail in both cases.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The value of a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Field<T> {
    /// The key is missing.
    #[default]
    Absent,
    /// The value has another kind and was skipped.
    Wrong,
    /// The value has the expected kind.
    Is(T),
}

impl<T> Field<T> {
    /// Returns the value, if it is present and of the expected kind.
    pub(crate) fn ok(self) -> Option<T> {
        match self {
            Field::Is(value) => Some(value),
            Field::Absent | Field::Wrong => None,
        }
    }
}

/// A kind of value. Each method converts one of bencode's four types, or returns `None` if it is the wrong one.
pub(crate) trait Shape: Sized {
    /// The kind's name, as in "`length` is not …".
    const KIND: &'static str;

    fn integer(_: i64) -> Option<Self> {
        None
    }

    fn string(_: &[u8]) -> Option<Self> {
        None
    }

    fn list<'de, A: SeqAccess<'de>>(mut list: A) -> Result<Option<Self>, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn dict<'de, A: MapAccess<'de>>(mut dict: A) -> Result<Option<Self>, A::Error> {
        while dict.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

impl<'de, T: Shape> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyKind<T>(PhantomData<T>);

        impl<'de, T: Shape> Visitor<'de> for AnyKind<T> {
            type Value = Option<T>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str(T::KIND)
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
                Ok(T::integer(number))
            }

            fn visit_bytes<E: Error>(self, text: &[u8]) -> Result<Self::Value, E> {
                Ok(T::string(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
                T::list(list)
            }

            fn visit_map<A: MapAccess<'de>>(self, dict: A) -> Result<Self::Value, A::Error> {
                T::dict(dict)
            }
        }

        let value = deserializer.deserialize_any(AnyKind(PhantomData))?;
        Ok(value.map_or(Field::Wrong, Field::Is))
    }
}

impl Shape for i64 {
    const KIND: &'static str = "a whole number";

    fn integer(number: i64) -> Option<Self> {
        Some(number)
    }
}

impl Shape for Vec<u8> {
    const KIND: &'static str = "a string";

    fn string(text: &[u8]) -> Option<Self> {
        Some(text.to_vec())
    }
}

/// The first `MAX` items of a list. Further items are skipped, because a decoded item takes more memory than its bencode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct List<T, const MAX: usize> {
    pub(crate) items: Vec<Field<T>>,
    /// Whether items were skipped.
    pub(crate) overflow: bool,
}

impl<T, const MAX: usize> List<T, MAX> {
    /// Returns the items of the right kind.
    pub(crate) fn valid_items(self) -> impl Iterator<Item = T> {
        self.items.into_iter().filter_map(Field::ok)
    }

    /// Returns all items, if each has the right kind and none was skipped.
    pub(crate) fn all_items(self) -> Option<Vec<T>> {
        if self.overflow { None } else { self.items.into_iter().map(Field::ok).collect() }
    }
}

impl<T: Shape, const MAX: usize> Shape for List<T, MAX> {
    const KIND: &'static str = "a list";

    fn list<'de, A: SeqAccess<'de>>(mut list: A) -> Result<Option<Self>, A::Error> {
        let mut items = Vec::new();
        while items.len() < MAX {
            match list.next_element()? {
                Some(item) => items.push(item),
                None => return Ok(Some(Self { items, overflow: false })),
            }
        }
        let mut overflow = false;
        while list.next_element::<IgnoredAny>()?.is_some() {
            overflow = true;
        }
        Ok(Some(Self { items, overflow }))
    }
}

/// Defines a struct of [`Field`]s with their keys. Other keys, whatever their bytes, are skipped.
macro_rules! dict {
    ($(#[$attr:meta])* $vis:vis struct $name:ident { $($field:ident: $kind:ty = $key:literal,)* }) => {
        $(#[$attr])*
        #[derive(Default)]
        $vis struct $name {
            $($field: $crate::metainfo::bencode::Field<$kind>,)*
        }

        impl $crate::metainfo::bencode::Shape for $name {
            const KIND: &'static str = "a dictionary";

            fn dict<'de, A: serde::de::MapAccess<'de>>(mut dict: A) -> Result<Option<Self>, A::Error> {
                let mut this = Self::default();
                while let Some(key) = dict.next_key::<serde_bytes::ByteBuf>()? {
                    match key.as_slice() {
                        $(key if key == $key.as_bytes() => this.$field = dict.next_value()?,)*
                        _ => {
                            dict.next_value::<serde::de::IgnoredAny>()?;
                        }
                    }
                }
                Ok(Some(this))
            }
        }
    };
}
pub(crate) use dict;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metainfo::bencode::{Limits, decode};

    dict! {
        struct Sample {
            number: i64 = "number",
            text: Vec<u8> = "text",
            list: List<Vec<u8>, 2> = "list",
        }
    }

    fn sample(bytes: &[u8]) -> Sample {
        decode::<Field<Sample>>(bytes, &Limits::PEER).unwrap().ok().unwrap()
    }

    #[test]
    fn a_wrong_field_does_not_affect_others() {
        let it = sample(b"d4:listd1:ai1ee6:numberl1:ae4:text2:hie");
        assert_eq!((it.list, it.number, it.text), (Field::Wrong, Field::Wrong, Field::Is(b"hi".to_vec())));
    }

    #[test]
    fn unknown_keys_are_skipped_even_when_not_utf8() {
        let it = sample(b"d2:\xff\xfeli1ee6:numberi7e3:zzzdee");
        assert_eq!((it.number, it.text), (Field::Is(7), Field::Absent));
    }

    #[test]
    fn lists_keep_their_first_items() {
        let list = sample(b"d4:listl1:ai1e1:bee").list.ok().unwrap();
        assert!(list.overflow);
        assert_eq!(list.items, [Field::Is(b"a".to_vec()), Field::Wrong]);
        assert_eq!(list.all_items(), None);
        let list = sample(b"d4:listl1:a1:bee").list.ok().unwrap();
        assert_eq!(list.all_items(), Some(vec![b"a".to_vec(), b"b".to_vec()]));
    }

    #[test]
    fn the_value_itself_may_be_wrong() {
        assert!(matches!(decode::<Field<Sample>>(b"i1e", &Limits::PEER), Ok(Field::Wrong)));
    }
}
