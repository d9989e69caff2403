//! What each torrent is called in the root.
//!
//! A torrent has three names: its own, that with the first eight digits of its info hash, and that with all forty. It is
//! shown by the first of them that no other torrent here has, be it shown there or not. So what is shown follows from
//! which torrents there are, and not from the order in which they came; and no two are ever shown alike, for nobody
//! else can have the third name and be shown by it.

use std::collections::HashMap;
use std::sync::Arc;

use super::tree::MAX_NAME;
use crate::metainfo::InfoHash;

/// Digits of the info hash that tell two torrents of one name apart.
const SHORT: usize = 8;

/// The names of every torrent in the root.
#[derive(Debug, Default)]
pub(super) struct Names {
    torrents: HashMap<InfoHash, [Arc<str>; 3]>,
    /// Who has a name. One, nearly always.
    owners: HashMap<Arc<str>, Vec<InfoHash>>,
    /// By what is shown.
    shown: HashMap<Arc<str>, InfoHash>,
}

impl Names {
    /// Whose the name is that is shown.
    pub(super) fn find(&self, name: &str) -> Option<InfoHash> {
        self.shown.get(name).copied()
    }

    /// What a torrent is shown as.
    pub(super) fn of(&self, torrent: InfoHash) -> Option<&Arc<str>> {
        let names = self.torrents.get(&torrent)?;
        let mut best = names[..2].iter();
        best.find(|name| self.owners.get(*name).is_some_and(|owners| owners.len() == 1)).or(names.last())
    }

    /// Takes a torrent in. Names that are shown no longer or newly are put into `changed`.
    pub(super) fn add(&mut self, torrent: InfoHash, own: &str, is_directory: bool, changed: &mut Vec<Arc<str>>) {
        let names = names(own, torrent, is_directory).map(Arc::from);
        self.change(torrent, &names, changed, |this| {
            for name in distinct(&names) {
                this.owners.entry(name.clone()).or_default().push(torrent);
            }
            this.torrents.insert(torrent, names.clone());
        });
    }

    /// Lets a torrent go.
    pub(super) fn remove(&mut self, torrent: InfoHash, changed: &mut Vec<Arc<str>>) {
        let Some(names) = self.torrents.get(&torrent).cloned() else { return };
        self.change(torrent, &names, changed, |this| {
            for name in distinct(&names) {
                if let Some(owners) = this.owners.get_mut(name) {
                    owners.retain(|owner| *owner != torrent);
                    if owners.is_empty() {
                        this.owners.remove(name);
                    }
                }
            }
            this.torrents.remove(&torrent);
        });
    }

    /// Does something to the owners of these names, and brings up to date what is shown of whom it concerns.
    fn change(
        &mut self,
        torrent: InfoHash,
        names: &[Arc<str>; 3],
        changed: &mut Vec<Arc<str>>,
        change: impl FnOnce(&mut Self),
    ) {
        let mut concerned = self.concerned(torrent, names);
        let shown: Vec<Arc<str>> = concerned.iter().filter_map(|torrent| self.of(*torrent).cloned()).collect();
        change(self);
        concerned.extend(self.concerned(torrent, names));
        let now = concerned.into_iter().filter_map(|torrent| Some((self.of(torrent)?.clone(), torrent)));
        let after: Vec<(Arc<str>, InfoHash)> = now.collect();
        for name in shown.into_iter().filter(|name| after.iter().all(|(other, _)| other != name)) {
            self.shown.remove(&name);
            changed.push(name);
        }
        for (name, torrent) in after {
            if self.shown.insert(name.clone(), torrent) != Some(torrent) {
                changed.push(name);
            }
        }
    }

    /// A torrent with these names, and who may be shown by another one as it comes or goes. Where two have a name,
    /// whether a third comes makes no difference; so a thousand of one name cost no more than two.
    fn concerned(&self, torrent: InfoHash, names: &[Arc<str>; 3]) -> Vec<InfoHash> {
        let owners = names.iter().filter_map(|name| self.owners.get(name));
        let few = owners.filter(|owners| owners.len() <= 2).flatten();
        let mut all: Vec<InfoHash> = few.chain([&torrent]).copied().collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// Each once.
fn distinct(names: &[Arc<str>; 3]) -> impl Iterator<Item = &Arc<str>> {
    names.iter().enumerate().filter(|(at, name)| !names[..*at].contains(name)).map(|(_, name)| name)
}

/// The three names, best first. A file keeps its extension, by which players know it.
fn names(name: &str, info_hash: InfoHash, is_directory: bool) -> [String; 3] {
    let hash = info_hash.to_string();
    let (stem, extension) = match name.rfind('.') {
        Some(dot) if !is_directory && dot > 0 && name.len() - dot <= 16 => name.split_at(dot),
        _ => (name, ""),
    };
    let with = |mark: &str| {
        let mark = format!(" [{mark}]{extension}");
        let room = MAX_NAME.saturating_sub(mark.len()).min(stem.len());
        let end = (0..=room).rev().find(|&end| stem.is_char_boundary(end)).unwrap_or(0);
        format!("{}{mark}", &stem[..end])
    };
    [name.to_owned(), with(&hash[..SHORT]), with(&hash)]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hash(n: u8) -> InfoHash {
        InfoHash([n; 20])
    }

    fn shown(names: &Names) -> Vec<(String, InfoHash)> {
        let mut shown: Vec<_> = names.shown.iter().map(|(name, torrent)| (name.to_string(), *torrent)).collect();
        shown.sort();
        shown
    }

    #[test]
    fn both_of_a_name_are_marked_until_one_goes() {
        let (mut names, mut changed) = (Names::default(), Vec::new());
        names.add(hash(0xaa), "film.mkv", false, &mut changed);
        assert_eq!(changed, [Arc::from("film.mkv")]);
        changed.clear();
        names.add(hash(0xbb), "film.mkv", false, &mut changed);
        assert_eq!(names.of(hash(0xaa)).unwrap().as_ref(), "film [aaaaaaaa].mkv");
        assert_eq!(names.find("film [bbbbbbbb].mkv"), Some(hash(0xbb)));
        assert_eq!(names.find("film.mkv"), None);
        assert_eq!(changed, ["film.mkv", "film [aaaaaaaa].mkv", "film [bbbbbbbb].mkv"].map(Arc::from));
        names.remove(hash(0xaa), &mut changed);
        assert_eq!(shown(&names), [("film.mkv".to_owned(), hash(0xbb))]);
        names.remove(hash(0xbb), &mut changed);
        assert!(names.shown.is_empty() && names.owners.is_empty() && names.torrents.is_empty());
    }

    #[test]
    fn a_name_marked_apart_still_fits() {
        for name in names(&"ß".repeat(127), hash(0xab), true) {
            assert!(name.len() <= MAX_NAME, "{} bytes", name.len());
        }
        assert!(names(&format!("{}.mkv", "x".repeat(251)), hash(0xab), false)[1].ends_with(" [abababab].mkv"));
        assert_eq!(names(".hidden", hash(0xab), false)[1], ".hidden [abababab]");
    }

    proptest! {
        /// Also where torrents are named as others would be marked.
        #[test]
        fn what_is_shown_follows_from_who_is_there(
            torrents in prop::collection::btree_map(0u8..6, (0usize..8, any::<bool>()), 1..6),
            order in prop::collection::vec(any::<prop::sample::Index>(), 12),
        ) {
            let own = |at: usize| {
                let marked = |n: u8, at: usize| names("film.mkv", hash(n), false)[at].clone();
                ["film.mkv".into(), "film".into(), marked(0, 1), marked(0, 2), marked(1, 1), marked(1, 2), marked(2, 1), "x".into()][at].clone()
            };
            let mut straight = Names::default();
            for (n, (name, is_directory)) in &torrents {
                straight.add(hash(*n), &own(*name), *is_directory, &mut Vec::new());
            }
            // In another order, and some twice.
            let (mut crooked, mut there) = (Names::default(), std::collections::BTreeSet::new());
            for index in order {
                let (n, (name, is_directory)) = torrents.iter().nth(index.index(torrents.len())).unwrap();
                let before = shown(&crooked);
                let mut changed = Vec::new();
                if there.insert(*n) {
                    crooked.add(hash(*n), &own(*name), *is_directory, &mut changed);
                } else {
                    there.remove(n);
                    crooked.remove(hash(*n), &mut changed);
                }
                let after = shown(&crooked);
                let differs = before.iter().filter(|entry| !after.contains(entry)).chain(after.iter().filter(|entry| !before.contains(entry)));
                for (name, _) in differs {
                    prop_assert!(changed.iter().any(|changed| **changed == **name), "{name} is not told");
                }
                prop_assert_eq!(after.len(), there.len());
            }
            for (n, (name, is_directory)) in torrents.iter().filter(|(n, _)| !there.contains(n)) {
                crooked.add(hash(*n), &own(*name), *is_directory, &mut Vec::new());
            }
            prop_assert_eq!(shown(&crooked), shown(&straight));
            prop_assert_eq!(shown(&straight).len(), torrents.len(), "no two are shown alike");
        }
    }
}
