//! The ranges of a torrent that a server does not have.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of bytes as ranges that neither overlap nor touch, each by its start.
#[derive(Debug, Default)]
pub(super) struct Missing(BTreeMap<u64, u64>);

impl Missing {
    /// Adds a range.
    pub(super) fn add(&mut self, bytes: Range<u64>) {
        if bytes.is_empty() {
            return;
        }
        let (mut start, mut end) = (bytes.start, bytes.end);
        while let Some((from, to)) = self.0.range(..=end).next_back().map(|(from, to)| (*from, *to)) {
            if to < start {
                break;
            }
            self.0.remove(&from);
            (start, end) = (start.min(from), end.max(to));
        }
        self.0.insert(start, end);
    }

    /// Returns whether any of these bytes is in the set.
    pub(super) fn touches(&self, bytes: &Range<u64>) -> bool {
        self.0.range(..bytes.end).next_back().is_some_and(|(_, to)| *to > bytes.start)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn ranges(&self) -> impl Iterator<Item = Range<u64>> {
        self.0.iter().map(|(from, to)| *from..*to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ranges_add_up(added in prop::collection::vec((0u64..60, 0u64..20), 0..20), from in 0u64..80, len in 1u64..20) {
            let mut missing = Missing::default();
            let mut bytes = [false; 100];
            for (start, len) in added {
                missing.add(start..start + len);
                bytes[start as usize..(start + len) as usize].fill(true);
            }
            let listed: Vec<u64> = missing.ranges().flatten().collect();
            let expected: Vec<u64> = (0..100).filter(|at| bytes[*at as usize]).collect();
            prop_assert_eq!(listed, expected);
            prop_assert_eq!(missing.touches(&(from..from + len)), bytes[from as usize..(from + len) as usize].contains(&true));
            prop_assert!(missing.ranges().zip(missing.ranges().skip(1)).all(|(a, b)| a.end < b.start));
        }
    }
}
