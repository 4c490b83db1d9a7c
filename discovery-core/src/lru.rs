//! A map that holds at most so many entries and forgets the one that was longest not used.

use std::collections::BTreeMap;

/// Ordered, so that the same events always give the same answers.
#[derive(Clone, Debug)]
pub(crate) struct Lru<K, V> {
    entries: BTreeMap<K, (V, u64)>,
    by_use: BTreeMap<u64, K>,
    uses: u64,
    entries_max: usize,
}

impl<K: Ord + Copy, V> Lru<K, V> {
    pub(crate) fn new(entries_max: usize) -> Self {
        Self { entries: BTreeMap::new(), by_use: BTreeMap::new(), uses: 0, entries_max: entries_max.max(1) }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Looks without counting as use.
    pub(crate) fn peek(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(value, _)| value)
    }

    /// Looks, and keeps the entry from being forgotten next.
    pub(crate) fn touch(&mut self, key: &K) -> Option<&mut V> {
        let (value, used) = self.entries.get_mut(key)?;
        self.by_use.remove(used);
        self.uses += 1;
        *used = self.uses;
        self.by_use.insert(self.uses, *key);
        Some(value)
    }

    /// Puts a value in; what had to go for it comes back.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<(K, V)> {
        if let Some(held) = self.touch(&key) {
            *held = value;
            return None;
        }
        let evicted = if self.entries.len() >= self.entries_max { self.pop_oldest() } else { None };
        self.uses += 1;
        self.entries.insert(key, (value, self.uses));
        self.by_use.insert(self.uses, key);
        evicted
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter().map(|(key, (value, _))| (key, value))
    }

    fn pop_oldest(&mut self) -> Option<(K, V)> {
        let (_, key) = self.by_use.pop_first()?;
        let (value, _) = self.entries.remove(&key)?;
        Some((key, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_unused_goes_first() {
        let mut lru = Lru::new(2);
        assert_eq!(lru.insert(1, 'a'), None);
        assert_eq!(lru.insert(2, 'b'), None);
        assert_eq!(lru.touch(&1), Some(&mut 'a'));
        assert_eq!(lru.insert(3, 'c'), Some((2, 'b')));
        assert_eq!(lru.insert(1, 'd'), None);
        assert_eq!(lru.iter().collect::<Vec<_>>(), [(&1, &'d'), (&3, &'c')]);
        assert_eq!((lru.len(), lru.peek(&2)), (2, None));
    }

    #[test]
    fn its_size_is_kept_whatever_happens() {
        let mut lru = Lru::new(8);
        for n in 0..1000_u32 {
            lru.insert(n % 13, n);
            lru.touch(&(n % 7));
            assert!(lru.len() <= 8 && lru.by_use.len() == lru.entries.len());
        }
    }
}
