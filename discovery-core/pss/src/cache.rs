//! Records that were read and verified lately, so that a run of small reads verifies each once.

use crate::place::Generation;
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

pub(crate) struct Cache {
    records: HashMap<Key, Arc<Vec<u8>>>,
    order: VecDeque<Key>,
    octets: usize,
    octets_max: usize,
}

type Key = (Generation, u32);

impl Cache {
    pub(crate) fn new(octets_max: usize) -> Self {
        Self { records: HashMap::new(), order: VecDeque::new(), octets: 0, octets_max }
    }

    pub(crate) fn get(&self, generation: Generation, at: u32) -> Option<Arc<Vec<u8>>> {
        self.records.get(&(generation, at)).map(Arc::clone)
    }

    /// The oldest go for it.
    pub(crate) fn insert(&mut self, generation: Generation, at: u32, content: Arc<Vec<u8>>) {
        self.octets += content.len();
        if self.records.insert((generation, at), content).is_none() {
            self.order.push_back((generation, at));
        }
        while self.octets > self.octets_max
            && let Some(key) = self.order.pop_front()
        {
            self.octets -= self.records.remove(&key).map_or(0, |content| content.len());
        }
    }

    /// Numbers of generations may come again where one was lost.
    pub(crate) fn forget(&mut self, generation: Generation) {
        self.order.retain(|key| key.0 != generation);
        self.records.retain(|key, _| key.0 != generation);
        self.octets = self.records.values().map(|content| content.len()).sum();
    }
}
