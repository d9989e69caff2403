//! Edits of a `.torrent` file that preserve everything else, byte for byte.
//!
//! The file is split into the keys of its top-level dictionary and their raw values. An unchanged value is never decoded
//! and encoded again, so the info hash and unknown keys are preserved whatever program wrote them. Only [`Edit::rename`]
//! changes `info`, and replaces nothing but the name in it.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_bytes::Bytes;

use super::bencode::{self, Field, Limits, List, Shape};
use super::error::{Location, MetainfoError};
use super::torrent::{Metainfo, dictionary};

/// A string in a torrent, which may not be UTF-8.
type Text = Vec<u8>;

/// A `.torrent` file split into its fields, to be edited and rebuilt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// Raw values by key, sorted as bencode requires.
    fields: BTreeMap<Text, Text>,
}

impl Edit {
    /// Splits a file, which must be one that [`Metainfo::parse`] accepts.
    pub fn new(torrent: &[u8]) -> Result<Self, MetainfoError> {
        Metainfo::parse(torrent)?;
        let torrent = &*dictionary(torrent)?;
        let spans = bencode::spans(torrent, &Limits::TORRENT)?.ok_or(MetainfoError::NotADictionary)?;
        let fields = spans.into_iter().map(|(key, span)| (key.to_vec(), torrent[span].to_vec())).collect();
        Ok(Self { fields })
    }

    /// Returns the edited file.
    pub fn build(&self) -> Vec<u8> {
        let len: usize = self.fields.iter().map(|(key, value)| key.len() + value.len() + 24).sum();
        let mut out = Vec::with_capacity(len + 2);
        out.push(b'd');
        for (key, value) in &self.fields {
            out.extend(raw(Bytes::new(key)));
            out.extend(value);
        }
        out.push(b'e');
        out
    }

    /// Returns all trackers in tiers, exactly as in the file. An `announce` that is not in the list is the first tier: other
    /// programs use it, so it must not get lost.
    pub fn trackers(&self) -> Vec<Vec<Text>> {
        let list = self.value::<List<List<Text, { usize::MAX }>, { usize::MAX }>>("announce-list");
        let tiers =
            list.into_iter().flat_map(List::valid_items).map(|tier| tier.valid_items().filter(|url| !url.is_empty()));
        let mut tiers: Vec<Vec<Text>> =
            tiers.map(Iterator::collect).filter(|tier: &Vec<Text>| !tier.is_empty()).collect();
        if let Some(first) = self.value::<Text>("announce").filter(|url| !url.is_empty())
            && !tiers.iter().flatten().any(|url| *url == first)
        {
            tiers.insert(0, vec![first]);
        }
        tiers
    }

    /// Sets the trackers. Changes no byte if they are the same as before.
    pub fn set_trackers(&mut self, tiers: &[Vec<Text>]) {
        let tiers: Vec<&Vec<Text>> = tiers.iter().filter(|tier| !tier.is_empty()).collect();
        if self.trackers().iter().eq(tiers.iter().copied()) {
            return;
        }
        let first = tiers.iter().copied().flatten().next();
        self.set("announce", first.map(|url| raw(Bytes::new(url))));
        let many = tiers.iter().copied().flatten().nth(1).is_some();
        let list: Vec<Vec<&Bytes>> =
            tiers.iter().map(|tier| tier.iter().map(|url| Bytes::new(url)).collect()).collect();
        self.set("announce-list", many.then(|| raw(&list)));
    }

    /// Returns all web seeds (BEP 19).
    pub fn web_seeds(&self) -> Vec<Text> {
        let list = self.value::<List<Text, { usize::MAX }>>("url-list").map(|list| list.valid_items().collect());
        let seeds: Vec<Text> = list.or_else(|| self.value::<Text>("url-list").map(|url| vec![url])).unwrap_or_default();
        seeds.into_iter().filter(|url| !url.is_empty()).collect()
    }

    /// Sets the web seeds. Changes no byte if they are the same as before.
    pub fn set_web_seeds(&mut self, urls: &[Text]) {
        if self.web_seeds() != urls {
            let list: Vec<&Bytes> = urls.iter().map(|url| Bytes::new(url)).collect();
            self.set("url-list", (!urls.is_empty()).then(|| raw(&list)));
        }
    }

    /// Sets the comment; `None` removes it.
    pub fn set_comment(&mut self, comment: Option<&str>) {
        self.set("comment", comment.map(raw));
        // Readers prefer this key to the one above.
        self.set("comment.utf-8", None);
    }

    /// Sets the program that created the torrent; `None` removes it.
    pub fn set_created_by(&mut self, program: Option<&str>) {
        self.set("created by", program.map(raw));
    }

    /// Sets the creation date in seconds since 1970; `None` removes it.
    pub fn set_creation_date(&mut self, date: Option<i64>) {
        self.set("creation date", date.map(|date| format!("i{date}e").into_bytes()));
    }

    /// Renames the torrent. This changes its info hash, so it becomes a different torrent.
    pub fn rename(&mut self, name: &str) -> Result<(), MetainfoError> {
        let info =
            self.fields.get(&b"info"[..]).ok_or(MetainfoError::Missing { location: Location::Top, key: "info" })?;
        let spans = bencode::spans(info, &Limits::TORRENT)?;
        let spans =
            spans.ok_or(MetainfoError::Kind { location: Location::Top, key: "info", wanted: "a dictionary" })?;
        let mut renamed = Vec::with_capacity(info.len() + name.len());
        let mut at = 0;
        for (key, span) in spans {
            if matches!(key, b"name" | b"name.utf-8") {
                renamed.extend(&info[at..span.start]);
                renamed.extend(raw(name));
                at = span.end;
            }
        }
        renamed.extend(&info[at..]);
        self.fields.insert(b"info".to_vec(), renamed);
        Ok(())
    }

    fn set(&mut self, key: &str, value: Option<Vec<u8>>) {
        match value {
            Some(value) => drop(self.fields.insert(key.into(), value)),
            None => drop(self.fields.remove(key.as_bytes())),
        }
    }

    /// Returns the value of a key, if it has the right kind.
    fn value<T: Shape>(&self, key: &str) -> Option<T> {
        let raw = self.fields.get(key.as_bytes())?;
        bencode::decode::<Field<T>>(raw, &Limits::TORRENT).ok()?.ok()
    }
}

/// Encodes a value in bencode.
fn raw(value: impl Serialize) -> Vec<u8> {
    // Encoding fails only if a dictionary key is not a string, and no caller encodes a dictionary.
    serde_bencode::to_bytes(&value).expect("there are no keys")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metainfo::InfoHash;
    use proptest::prelude::*;
    use serde_bytes::ByteBuf;

    const HASHES: &str = "6:pieces20:hhhhhhhhhhhhhhhhhhhh";

    /// A torrent of one file, with additional keys at the top level and in `info`; the latter come first, out of order.
    fn torrent(top: &str, info: &str) -> Vec<u8> {
        format!("d{top}4:infod{info}6:lengthi5e4:name1:t12:piece lengthi16384e{HASHES}ee").into_bytes()
    }

    fn texts(urls: &[&str]) -> Vec<Text> {
        urls.iter().map(|url| url.as_bytes().to_vec()).collect()
    }

    #[test]
    fn unchanged_fields_are_preserved() {
        let mut odd = torrent("1:zli1e0:dee9:weird key2:\u{e9}", "4:zzzzi1e");
        odd.extend(b"\r\n");
        let mut edit = Edit::new(&odd).unwrap();
        let (info_hash, before) = (Metainfo::parse(&odd).unwrap().info_hash, edit.clone());
        edit.set_trackers(&[]);
        edit.set_web_seeds(&[]);
        assert_eq!(edit, before);
        edit.set_comment(Some("é\n"));
        edit.set_creation_date(Some(-3));
        edit.set_created_by(None);
        let built = edit.build();
        let read = Metainfo::parse(&built).unwrap();
        assert_eq!((read.info_hash, read.comment.as_deref()), (info_hash, Some("é\n")));
        for kept in ["1:zli1e0:dee", "9:weird key2:\u{e9}", "13:creation datei-3e"] {
            assert!(built.windows(kept.len()).any(|part| part == kept.as_bytes()), "{kept}");
        }
        let mut edit = Edit::new(&built).unwrap();
        edit.set_comment(None);
        edit.set_creation_date(None);
        assert_eq!(edit, before);
    }

    #[test]
    fn trackers_are_read_from_and_written_to_both_keys() {
        let announce = "8:announce8:http://a";
        let with = |top: &str| Edit::new(&torrent(top, "")).unwrap();
        assert_eq!(with(announce).trackers(), [texts(&["http://a"])]);
        let list = "13:announce-listll8:http://b3:u\u{e9}eleli1eee";
        let both = with(&format!("{announce}{list}"));
        assert_eq!(both.trackers(), [texts(&["http://a"]), texts(&["http://b", "u\u{e9}"])]);
        let mut edit = both.clone();
        edit.set_trackers(&both.trackers());
        assert_eq!(edit, both, "not even the odd list is written again");
        edit.set_trackers(&[texts(&["http://c"])]);
        assert_eq!(edit, with("8:announce8:http://c"));
        edit.set_trackers(&[texts(&["http://c"]), vec![], texts(&["http://d"])]);
        assert_eq!(edit, with("8:announce8:http://c13:announce-listll8:http://cel8:http://dee"));
        edit.set_trackers(&[vec![]]);
        assert_eq!(edit, with(""));
    }

    #[test]
    fn web_seeds_are_one_or_many() {
        let mut edit = Edit::new(&torrent("8:url-list8:http://a", "")).unwrap();
        assert_eq!(edit.web_seeds(), texts(&["http://a"]));
        edit.set_web_seeds(&texts(&["http://a", "http://b"]));
        assert_eq!(Metainfo::parse(&edit.build()).unwrap().web_seeds, ["http://a", "http://b"]);
        edit.set_web_seeds(&[]);
        assert_eq!(edit, Edit::new(&torrent("", "")).unwrap());
    }

    #[test]
    fn a_new_name_is_the_only_change_in_info() {
        let mut edit = Edit::new(&torrent("7:comment1:c", "1:zd4:name1:xe10:name.utf-81:u")).unwrap();
        edit.rename("n\u{e9}w").unwrap();
        let expected = torrent("7:comment1:c", "1:zd4:name1:xe10:name.utf-84:n\u{e9}w");
        let expected = String::from_utf8(expected).unwrap().replace("e4:name1:t", "e4:name4:n\u{e9}w");
        assert_eq!(String::from_utf8(edit.build()).unwrap(), expected);
        assert_eq!(Metainfo::parse(&edit.build()).unwrap().name, "n\u{e9}w");
    }

    #[test]
    fn files_that_are_no_torrents_are_refused() {
        for nothing in [&b""[..], b"de", b"le", b"d4:infodee", b"i1e"] {
            assert!(Edit::new(nothing).is_err());
        }
    }

    /// A value in bencode.
    fn value() -> impl Strategy<Value = Vec<u8>> {
        let text = |text: Vec<u8>| raw(ByteBuf::from(text));
        let leaf = prop_oneof![
            any::<i64>().prop_map(|n| format!("i{n}e").into_bytes()),
            proptest::collection::vec(any::<u8>(), 0..12).prop_map(text),
        ];
        leaf.prop_recursive(3, 20, 4, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4)
                    .prop_map(|items| [&b"l"[..], &items.concat(), b"e"].concat()),
                dictionary(inner, 4).prop_map(|fields| join(&fields)),
            ]
        })
    }

    type Fields = BTreeMap<Vec<u8>, Vec<u8>>;

    fn dictionary(values: impl Strategy<Value = Vec<u8>>, most: usize) -> impl Strategy<Value = Fields> {
        proptest::collection::btree_map(proptest::collection::vec(any::<u8>(), 0..6), values, 0..most)
    }

    /// Keys in order, or in reverse order: both are accepted.
    fn join(fields: &Fields) -> Vec<u8> {
        let field = |(key, value): (&Vec<u8>, &Vec<u8>)| [raw(Bytes::new(key)), value.clone()].concat();
        let parts: Vec<Vec<u8>> = match fields.len() % 2 {
            0 => fields.iter().map(field).collect(),
            _ => fields.iter().rev().map(field).collect(),
        };
        [&b"d"[..], &parts.concat(), b"e"].concat()
    }

    proptest! {
        #[test]
        fn no_edit_touches_info_or_unknown_keys(
            mut info in dictionary(value(), 6),
            mut top in dictionary(value(), 6),
            odd in proptest::collection::vec((proptest::sample::select(vec![
                "announce", "announce-list", "url-list", "comment", "comment.utf-8", "creation date",
            ]), value()), 0..4),
            urls in proptest::collection::vec(proptest::collection::vec("[a-z]{1,9}", 0..3), 0..4),
        ) {
            for (key, raw) in [("length", "i5e"), ("name", "1:t"), ("piece length", "i16384e")] {
                info.insert(key.into(), raw.into());
            }
            info.insert("pieces".into(), raw(Bytes::new(&[7; 20])));
            let unknown = top.clone();
            top.extend(odd.into_iter().map(|(key, raw)| (key.into(), raw)));
            let raw_info = join(&info);
            top.insert("info".into(), raw_info.clone());
            let Ok(mut edit) = Edit::new(&join(&top)) else { return Ok(()) };
            prop_assert_eq!(&edit.fields, &top);

            let tiers: Vec<Vec<Text>> =
                urls.iter().map(|tier| tier.iter().map(|url| url.clone().into_bytes()).collect()).collect();
            let seeds = tiers.concat();
            edit.set_trackers(&tiers);
            edit.set_web_seeds(&seeds);
            edit.set_comment(Some("c"));
            edit.set_created_by(Some("p"));
            edit.set_creation_date(Some(1));
            let built = edit.build();
            prop_assert_eq!(edit.trackers(), tiers.iter().filter(|tier| !tier.is_empty()).cloned().collect::<Vec<_>>());
            prop_assert_eq!(edit.web_seeds(), seeds);
            let read = Metainfo::parse(&built).unwrap();
            prop_assert_eq!(&read.info.load().unwrap(), &raw_info);
            prop_assert_eq!(read.info_hash, InfoHash::of(&raw_info));
            prop_assert_eq!((read.comment.as_deref(), read.creation_date), (Some("c"), Some(1)));
            let again = Edit::new(&built).unwrap();
            prop_assert_eq!(&again, &edit);
            for (key, value) in &unknown {
                prop_assert_eq!(again.fields.get(key), Some(value));
            }
        }
    }
}
