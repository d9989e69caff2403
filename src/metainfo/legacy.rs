//! Names in legacy encodings.
//!
//! Names in a torrent are UTF-8 (BEP 3). Older programs wrote them in the encoding of their system, and some said which: in
//! `encoding` (a name) or `codepage` (a number of Windows). Many say nothing or something wrong, so we fall back to the
//! guess of a browser's detector, over all names of the torrent together: one name alone is too short.

use std::borrow::Cow;

use chardetng::{EncodingDetector, Iso2022JpDetection, Utf8Detection};
use encoding_rs::{Encoding, IBM866, ISO_8859_5, KOI8_R, KOI8_U, SHIFT_JIS, UTF_8, WINDOWS_1251};

/// Limit on the bytes that the detector examines. Its guess does not change after a few hundred.
const MAX_EXAMINED: usize = 64 << 10;
/// Number of bytes beyond ASCII from which on the detector is right.
const ENOUGH: usize = 40;

/// Decodes the names of one torrent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decoder {
    /// The encoding of names that are not UTF-8.
    encoding: &'static Encoding,
    /// Whether names that are UTF-8 too have that encoding all the same.
    all: bool,
}

impl Decoder {
    /// Chooses the encoding for names that are not UTF-8: the one that the torrent states, if all names are valid in it, or
    /// else the most likely one.
    pub(super) fn new<'a>(stated: Option<&'static Encoding>, names: impl Iterator<Item = &'a [u8]> + Clone) -> Self {
        let legacy = || names.clone().filter(|name| !is_utf8(name));
        if legacy().next().is_none() {
            return Self::default();
        }
        let fits = |encoding: &'static Encoding| {
            legacy().all(|name| encoding.decode_without_bom_handling_and_without_replacement(name).is_some())
        };
        if let Some(encoding) = stated.filter(|stated| *stated != UTF_8 && fits(stated)) {
            // Two bytes of a Chinese name may be one character in UTF-8, as unlikely as that is for all names.
            let mut accidents = names.clone().filter(|name| is_utf8(name) && !name.is_ascii());
            let all = !encoding.is_single_byte() && accidents.all(is_accident);
            return Self { encoding, all };
        }
        Self { encoding: likely(legacy()), all: false }
    }

    /// Returns the encoding of names that are not UTF-8.
    pub(super) fn legacy(&self) -> Option<&'static Encoding> {
        (self.encoding != UTF_8).then_some(self.encoding)
    }

    /// Decodes a name. Sequences that are invalid in its encoding become U+FFFD.
    pub(super) fn decode<'a>(&self, name: &'a [u8]) -> Cow<'a, str> {
        let encoding = if is_utf8(name) && !self.all { UTF_8 } else { self.encoding };
        encoding.decode_without_bom_handling(name).0
    }
}

impl Default for Decoder {
    /// Returns a decoder of UTF-8.
    fn default() -> Self {
        Self { encoding: UTF_8, all: false }
    }
}

/// Returns the most likely encoding of names that are not UTF-8.
///
/// The detector needs a few words. Names are often shorter, and then it takes Russian for Greek or Hebrew, and Japanese for
/// Czech. Torrents with Russian or Japanese names are far more common, so those come first where they read well.
fn likely<'a>(names: impl Iterator<Item = &'a [u8]> + Clone) -> &'static Encoding {
    let mut detector = EncodingDetector::new(Iso2022JpDetection::Deny);
    let (mut examined, mut beyond_ascii) = (0, 0);
    for name in names.clone() {
        if examined >= MAX_EXAMINED {
            break;
        }
        let name = &name[..name.len().min(MAX_EXAMINED)];
        examined += name.len();
        beyond_ascii += name.iter().filter(|byte| !byte.is_ascii()).count();
        detector.feed(name, false);
        // Between the words of two names.
        detector.feed(b"\n", false);
    }
    detector.feed(b"", true);
    let guess = detector.guess(None, Utf8Detection::Deny);
    if !guess.is_single_byte() {
        return guess;
    }
    let reads_as_russian = |encoding: &&'static Encoding| {
        let mut russian = Russian::default();
        names.clone().take_while(|name| russian.add(&encoding.decode_without_bom_handling(name).0)).for_each(drop);
        russian.is_likely()
    };
    let cyrillic = [WINDOWS_1251, KOI8_R, IBM866];
    if [KOI8_U, ISO_8859_5].contains(&guess) || cyrillic.contains(&guess) {
        let better = || cyrillic.into_iter().find(reads_as_russian);
        return if reads_as_russian(&guess) { guess } else { better().unwrap_or(guess) };
    }
    if beyond_ascii >= ENOUGH {
        return guess;
    }
    if reads_as_russian(&WINDOWS_1251) {
        return WINDOWS_1251;
    }
    if names.clone().all(reads_as_japanese) { SHIFT_JIS } else { guess }
}

/// Counts of the letters in names that are Russian so far.
#[derive(Default)]
struct Russian {
    letters: usize,
    vowels: usize,
    longest_word: usize,
    /// Whether something is not Russian.
    refuted: bool,
}

impl Russian {
    /// Adds a name. Returns false once it is clear that the names are not Russian.
    fn add(&mut self, name: &str) -> bool {
        // Box drawing characters show the wrong one of the Cyrillic encodings.
        self.refuted |=
            name.contains(|c| c == '\u{fffd}' || matches!(c, '\u{2500}'..='\u{25ff}' | '\u{80}'..='\u{9f}'));
        for word in name.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_ascii()) {
            let is_vowel = |c: char| c.to_lowercase().all(|c| "аеёиоуыэюяіїє".contains(c));
            let is_letter = |c: char| matches!(c, 'А'..='я' | 'Ё' | 'ё') || "ІіЇїЄєҐґЎў".contains(c);
            let mut chars = word.chars();
            let first = chars.next().unwrap_or_default();
            let (upper, lower) = (chars.clone().any(char::is_uppercase), chars.any(char::is_lowercase));
            // Capitals only at the start, or all; й after a vowel; no word begins with a sign.
            let cased = !(upper && (lower || first.is_lowercase()));
            let after = word.chars().zip(word.chars().skip(1));
            let spelt = after.clone().all(|(before, c)| !matches!(c, 'й' | 'Й') || is_vowel(before));
            self.refuted |= !word.chars().all(is_letter) || !cased || !spelt || "ьъыЬЪЫ".contains(first);
            self.letters += word.chars().count();
            self.vowels += word.chars().filter(|c| is_vowel(*c)).count();
            self.longest_word = self.longest_word.max(word.chars().count());
        }
        !self.refuted
    }

    fn is_likely(&self) -> bool {
        // One letter in eight: Russian has more than three, the other readings of its letters have hardly any.
        !self.refuted && self.longest_word >= 3 && self.vowels * 8 >= self.letters
    }
}

/// Returns whether a name is Japanese in Shift_JIS: common characters in groups, which begin with bytes that hardly occur in
/// other encodings.
fn reads_as_japanese(name: &[u8]) -> bool {
    let Some(text) = SHIFT_JIS.decode_without_bom_handling_and_without_replacement(name) else { return false };
    let is_japanese =
        |c: char| matches!(c, '\u{3000}'..='\u{30ff}' | '\u{4e00}'..='\u{9fff}' | '\u{ff00}'..='\u{ff60}');
    let (mut pairs, mut high, mut at) = (0, 0, 0);
    while let Some(byte) = name.get(at) {
        let is_lead = matches!(byte, 0x81..=0x9f | 0xe0..=0xfc);
        if is_lead {
            pairs += usize::from(*byte < 0xa0);
            high += usize::from(name.get(at + 1).is_some_and(|trail| !trail.is_ascii()));
        }
        at += 1 + usize::from(is_lead);
    }
    let count = text.chars().filter(|c| is_japanese(*c)).count();
    let mut runs = text.split(|c: char| !is_japanese(c)).map(|run| run.chars().count()).filter(|run| *run > 0);
    text.chars().all(|c| c.is_ascii() || is_japanese(c))
        && runs.all(|run| run >= 2)
        && pairs * 2 > count
        && high * 2 >= count
}

/// Returns the encoding with a name (`encoding`) or a number of Windows (`codepage`).
pub(super) fn stated(encoding: Option<&[u8]>, codepage: Option<i64>) -> Option<&'static Encoding> {
    let by_name = encoding.and_then(|name| {
        let name = name.trim_ascii();
        // "CP1251" and "cp936" are common, but not among the labels of the web.
        let digits = name.iter().rposition(|byte| !byte.is_ascii_digit()).map_or(0, |last| last + 1);
        let number = std::str::from_utf8(&name[digits..]).ok().and_then(|digits| digits.parse().ok());
        Encoding::for_label_no_replacement(name).or_else(|| number.and_then(by_codepage))
    });
    by_name.or_else(|| codepage.and_then(by_codepage))
}

fn by_codepage(number: i64) -> Option<&'static Encoding> {
    let label = match number {
        866 => "ibm866",
        932 => "shift_jis",
        936 => "gbk",
        949 | 51949 => "euc-kr",
        950 => "big5",
        20866 => "koi8-r",
        21866 => "koi8-u",
        51932 => "euc-jp",
        54936 => "gb18030",
        874 | 1250..=1258 => return Encoding::for_label_no_replacement(format!("windows-{number}").as_bytes()),
        28592..=28606 => {
            return Encoding::for_label_no_replacement(format!("iso-8859-{}", number - 28590).as_bytes());
        }
        _ => return None,
    };
    Encoding::for_label_no_replacement(label.as_bytes())
}

/// Returns whether a name may be UTF-8 by accident: it has no character of three bytes.
fn is_accident(name: &[u8]) -> bool {
    name.iter().all(|byte| *byte < 0xe0)
}

/// Returns whether a name is UTF-8, perhaps cut off in the middle of its last character, as programs did that cut by bytes.
pub(super) fn is_utf8(name: &[u8]) -> bool {
    match std::str::from_utf8(name) {
        Ok(_) => true,
        // Something else before the cut shows that it is UTF-8.
        Err(error) => error.error_len().is_none() && !name[..error.valid_up_to()].is_ascii(),
    }
}

#[cfg(test)]
mod tests {
    use encoding_rs::{BIG5, EUC_JP, EUC_KR, GBK, WINDOWS_1250, WINDOWS_1252, WINDOWS_1253};
    use proptest::prelude::*;

    use super::*;

    fn round(encoding: &'static Encoding, stated: Option<&'static Encoding>, names: &[&str]) {
        let raw: Vec<Vec<u8>> = names.iter().map(|name| encoding.encode(name).0.into_owned()).collect();
        let decoder = Decoder::new(stated, raw.iter().map(Vec::as_slice));
        let found: Vec<_> = raw.iter().map(|name| decoder.decode(name)).collect();
        assert_eq!(found, names, "{} as {}", encoding.name(), decoder.encoding.name());
    }

    #[test]
    fn names_without_a_stated_encoding_are_readable() {
        round(WINDOWS_1251, None, &["Фильм", "Музыка.mp3"]);
        for name in ["фильм.bin", "Кино", "файл", "Тест", "МУЗЫКА", "01 Песня.mp3", "Взгляд № 2", "«Кот» — Film.avi"]
        {
            round(WINDOWS_1251, None, &[name]);
        }
        round(WINDOWS_1251, None, &["аааа", "бббб", "вввв"]);
        round(WINDOWS_1251, None, &["файл1", "файл2", "файл3"]);
        round(KOI8_R, None, &["фильм"]);
        round(IBM866, None, &["Фильм.avi"]);
        round(WINDOWS_1251, None, &["фильм.bin", "книга.bin", "музон.bin"]);
        round(WINDOWS_1251, None, &["Война и мир (1967).avi"]);
        round(KOI8_R, None, &["Война и мир", "Том первый"]);
        round(GBK, None, &["电影.mkv", "第一集 大结局.mp4"]);
        round(GBK, None, &["中文字幕.srt"]);
        round(SHIFT_JIS, None, &["映画のテスト.mkv", "第一話.mp4"]);
        for name in ["アニメ.avi", "日本語.txt", "映画", "東京", "[Group] 第01話 ファイル.mkv"] {
            round(SHIFT_JIS, None, &[name]);
        }
        round(EUC_JP, None, &["日本語テスト"]);
        round(BIG5, None, &["電影第一集.mkv", "香港電視劇"]);
        round(EUC_KR, None, &["영화 제목.mkv", "한국어 자막.smi"]);
        round(WINDOWS_1250, None, &["Žluťoučký kůň příliš.avi"]);
        round(WINDOWS_1253, None, &["Ελλάδα", "ταινία"]);
        for name in ["Café.mp3", "für Elise", "L’été à Paris", "Motörhead", "España", "Don’t", "“Hello” – x", "Là"]
        {
            round(WINDOWS_1252, None, &[name]);
        }
    }

    #[test]
    fn a_stated_encoding_is_used_where_it_fits() {
        for label in ["windows-1253", "CP1253", " cp1253 ", "1253"] {
            round(WINDOWS_1253, stated(Some(label.as_bytes()), None), &["αβ", "γ"]);
        }
        round(WINDOWS_1253, stated(None, Some(1253)), &["αβ", "γ"]);
        // The second name is UTF-8, too, by accident.
        round(GBK, stated(Some(b"GBK"), None), &["电影", "一"]);
        // Wrong: the names are not valid in it, or it is UTF-8, which these names are not.
        round(WINDOWS_1251, stated(Some(b"Shift_JIS"), None), &["Фильм первый, часть вторая"]);
        round(WINDOWS_1251, stated(Some(b"UTF-8"), None), &["Фильм первый"]);
        for unknown in ["", "klingon", "UTF-7", "99999999999999999999"] {
            assert_eq!(stated(Some(unknown.as_bytes()), None), None, "{unknown}");
        }
    }

    #[test]
    fn utf8_stays_utf8() {
        let cut = &"фильм".as_bytes()[..9];
        let raw = ["été".as_bytes(), b"plain", b"\xd4\xe8\xeb\xfc\xec", cut];
        let decoder = Decoder::new(None, raw.into_iter());
        assert_eq!(raw.map(|name| decoder.decode(name).into_owned()), ["été", "plain", "Фильм", "филь\u{fffd}"]);
    }

    proptest! {
        #[test]
        fn every_name_decodes(names in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..6)) {
            let decoder = Decoder::new(None, names.iter().map(Vec::as_slice));
            for name in &names {
                let text = decoder.decode(name);
                prop_assert!(std::str::from_utf8(name).map_or(true, |same| same == text));
            }
        }
    }
}
