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
        self.put(key, value, |lru| lru.entries.len() >= lru.entries_max, |_| false)
    }

    /// The same, and of those that `stay` none has to go, nor are they counted. Looks at all of them.
    pub(crate) fn insert_beside(&mut self, key: K, value: V, stay: impl Fn(&K) -> bool) -> Option<(K, V)> {
        let stays = stay(&key);
        let others = |lru: &Self| lru.entries.keys().filter(|key| !stay(key)).count();
        self.put(key, value, |lru| !stays && others(lru) >= lru.entries_max, &stay)
    }

    fn put(
        &mut self,
        key: K,
        value: V,
        is_full: impl FnOnce(&Self) -> bool,
        stay: impl Fn(&K) -> bool,
    ) -> Option<(K, V)> {
        if let Some(held) = self.touch(&key) {
            *held = value;
            return None;
        }
        let evicted = if is_full(self) { self.pop_oldest(stay) } else { None };
        self.uses += 1;
        self.entries.insert(key, (value, self.uses));
        self.by_use.insert(self.uses, key);
        evicted
    }

    /// Changes every value; none counts as used.
    pub(crate) fn change_each(&mut self, mut change: impl FnMut(&mut V)) {
        self.entries.values_mut().for_each(|(value, _)| change(value));
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter().map(|(key, (value, _))| (key, value))
    }

    fn pop_oldest(&mut self, stay: impl Fn(&K) -> bool) -> Option<(K, V)> {
        let (used, key) = self.by_use.iter().find(|(_, key)| !stay(key)).map(|(used, key)| (*used, *key))?;
        self.by_use.remove(&used);
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
    fn who_stays_has_a_place_of_its_own() {
        let mut lru = Lru::new(2);
        let stay = |key: &u32| *key < 2;
        for key in 0..9 {
            lru.insert_beside(key, (), stay);
        }
        assert_eq!(lru.iter().map(|(key, _)| *key).collect::<Vec<_>>(), [0, 1, 7, 8]);
        lru.insert_beside(0, (), stay);
        assert_eq!((lru.insert_beside(9, (), stay), lru.len()), (Some((7, ())), 4));
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
