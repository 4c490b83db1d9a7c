//! A disk as power cuts see it: what was written is there, what was synced survives, and of the rest a prefix does,
//! its last record perhaps in part.

use crate::random::Random;
use std::cell::Cell;

/// Records in the order in which they were written.
pub(crate) struct Disk {
    records: Vec<Record>,
    /// How many of them are synced.
    durable: usize,
    /// Until this moment, in microseconds, nothing more fits.
    pub(crate) full_until: u64,
}

#[derive(Clone)]
pub(crate) struct Record {
    octets: Vec<u8>,
    sum: u64,
    /// Whether the sum is that of the octets, as far as that was looked at since they last changed.
    is_good: Cell<Option<bool>>,
}

impl Record {
    /// The content, unless it is not what was written.
    pub(crate) fn read(&self) -> Option<&[u8]> {
        let is_good = self.is_good.get().unwrap_or_else(|| sum(&self.octets) == self.sum);
        self.is_good.set(Some(is_good));
        is_good.then_some(&self.octets)
    }

    fn changing(&mut self) -> &mut Vec<u8> {
        self.is_good.set(None);
        &mut self.octets
    }
}

impl Disk {
    pub(crate) fn new() -> Self {
        Self { records: Vec::new(), durable: 0, full_until: 0 }
    }

    /// Writes; gives the place. `None` where there is no room.
    pub(crate) fn write(&mut self, now: u64, octets: Vec<u8>) -> Option<usize> {
        if now < self.full_until {
            return None;
        }
        let sum = sum(&octets);
        self.records.push(Record { octets, sum, is_good: Cell::new(None) });
        Some(self.records.len() - 1)
    }

    pub(crate) fn read(&self, at: usize) -> Option<&[u8]> {
        self.records.get(at)?.read()
    }

    pub(crate) fn sync(&mut self) {
        self.durable = self.records.len();
    }

    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// The power goes: what was synced stays, and a random prefix of the rest, torn at its end.
    pub(crate) fn cut(&mut self, random: &mut Random) {
        let pending = self.records.len() - self.durable;
        let kept = self.durable + random.below(pending + 1);
        self.records.truncate(kept);
        if kept > self.durable && random.once_in(2) {
            let last = self.records[kept - 1].changing();
            last.truncate(random.below(last.len() + 1));
        }
        self.durable = kept;
    }

    /// One bit of one record changes by itself.
    pub(crate) fn flip(&mut self, random: &mut Random) -> bool {
        if self.records.is_empty() {
            return false;
        }
        let at = random.below(self.records.len());
        let octets = self.records[at].changing();
        if octets.is_empty() {
            return false;
        }
        let octet = random.below(octets.len());
        octets[octet] ^= 1 << random.below(8);
        true
    }
}

/// FNV-1a over words: any single bit is noticed, which is what is asked of it here.
fn sum(octets: &[u8]) -> u64 {
    let mut sum = 0xCBF2_9CE4_8422_2325_u64 ^ octets.len() as u64;
    let mut mix = |word: [u8; 8]| {
        sum = (sum ^ u64::from_le_bytes(word)).wrapping_mul(0x0000_0100_0000_01B3);
        sum ^= sum >> 29;
    };
    let (words, rest) = octets.as_chunks();
    words.iter().copied().for_each(&mut mix);
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    mix(last);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_keeps_what_was_synced_and_a_prefix() {
        for seed in 0..200 {
            let (mut disk, mut random) = (Disk::new(), Random::new(seed));
            for n in 0..10_u8 {
                disk.write(0, vec![n; 20]).unwrap();
                if n == 4 {
                    disk.sync();
                }
            }
            disk.cut(&mut random);
            assert!(disk.len() >= 5);
            for at in 0..disk.len() {
                let whole = vec![u8::try_from(at).unwrap(); 20];
                let last = at + 1 == disk.len() && at >= 5;
                assert!(disk.read(at).is_some_and(|octets| octets == whole) || last);
            }
        }
    }

    #[test]
    fn a_flipped_bit_is_noticed() {
        for seed in 0..200 {
            let (mut disk, mut random) = (Disk::new(), Random::new(seed));
            disk.write(0, vec![7; 1 + random.below(50)]).unwrap();
            assert!(disk.flip(&mut random));
            assert_eq!(disk.read(0), None);
        }
    }
}
