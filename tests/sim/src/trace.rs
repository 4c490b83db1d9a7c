//! What happened, as a number that two runs can be compared by, and on request as lines to read.

use node::Count;

/// The trace of one run.
pub(crate) struct Trace {
    hash: u64,
    lines: Option<Vec<String>>,
}

impl Trace {
    pub(crate) fn new(readable: bool) -> Self {
        Self { hash: 0xCBF2_9CE4_8422_2325, lines: readable.then(Vec::new) }
    }

    pub(crate) fn note(&mut self, now_us: u64, slot: usize, who: &str, octets: &[u8]) {
        if octets.is_empty() {
            return;
        }
        self.mix(now_us);
        self.mix(slot as u64);
        let (words, rest) = octets.as_chunks();
        for word in words {
            self.mix(u64::from_le_bytes(*word));
        }
        let mut word = [0; 8];
        word[..rest.len()].copy_from_slice(rest);
        self.mix(u64::from_le_bytes(word));
        if let Some(lines) = &mut self.lines {
            let text = octets[..octets.len().min(SHOWN_OCTETS)].escape_ascii();
            lines.push(format!("{:10.4} line {slot} {who} {text}", now_us as f64 / 1e6));
        }
    }

    /// Something that a node counted.
    pub(crate) fn event(&mut self, now_us: u64, slot: usize, what: &Count) {
        self.mix(now_us);
        self.mix(slot as u64);
        if let Some(lines) = &mut self.lines {
            lines.push(format!("{:10.4} line {slot}   event {what:?}", now_us as f64 / 1e6));
        }
    }

    fn mix(&mut self, word: u64) {
        self.hash = (self.hash ^ word).wrapping_mul(0x0000_0100_0000_01B3);
        self.hash ^= self.hash >> 31;
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    /// The lines, the newest last.
    pub(crate) fn lines(&self) -> &[String] {
        self.lines.as_deref().unwrap_or_default()
    }
}

const SHOWN_OCTETS: usize = 200;
