//! Changes inputs at random, from a seed: what a coverage-guided fuzzer does, without the coverage.

/// SplitMix64.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `n`, 0 for `n` = 0.
    pub fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { usize::try_from(self.number() % n as u64).unwrap_or(0) }
    }
}

/// Makes new inputs out of a corpus.
#[derive(Debug)]
pub struct Mutator {
    random: Random,
    pool: Vec<Vec<u8>>,
}

impl Mutator {
    /// Starts from these inputs.
    #[must_use]
    pub fn new(seed: u64, pool: Vec<Vec<u8>>) -> Self {
        Self { random: Random::new(seed), pool }
    }

    /// One more input, of bounded length.
    pub fn input(&mut self) -> Vec<u8> {
        let random = &mut self.random;
        let pick = random.below(self.pool.len());
        let mut octets = self.pool.get(pick).cloned().unwrap_or_default();
        for _ in 0..=random.below(6) {
            let at = random.below(octets.len() + 1);
            let end = (at + random.below(12)).min(octets.len());
            match random.below(12) {
                0 => drop(octets.drain(at..end)),
                1 => octets.truncate(at),
                2 if at < octets.len() => octets[at] = random.number().to_le_bytes()[0],
                3 if at < octets.len() => octets[at] ^= 1 << random.below(8),
                4 | 5 => drop(octets.splice(at..at, TOKENS[random.below(TOKENS.len())].iter().copied())),
                6 => drop(octets.splice(at..end, TOKENS[random.below(TOKENS.len())].iter().copied())),
                7 => {
                    let other = &self.pool[random.below(self.pool.len())];
                    octets.truncate(at);
                    octets.extend_from_slice(&other[random.below(other.len() + 1)..]);
                }
                8 => {
                    let piece = octets[at..end].to_vec();
                    let to = random.below(octets.len() + 1);
                    drop(octets.splice(to..to, piece));
                }
                9 => {
                    let piece = octets[at..end].repeat(1 + random.below(8));
                    drop(octets.splice(at..at, piece));
                }
                10 => octets[at..end]
                    .iter_mut()
                    .for_each(|o| *o ^= if o.is_ascii_alphabetic() { 32 } else { 0 }),
                _ => {
                    let number = match random.below(4) {
                        0 => random.below(10).to_string(),
                        1 => random.number().to_string(),
                        2 => (u64::from(u32::MAX) + random.number() % 3).to_string(),
                        _ => (i64::MAX as u64 + random.number() % 3).to_string(),
                    };
                    drop(octets.splice(at..end.min(at + 2), number.into_bytes()));
                }
            }
        }
        octets.truncate(INPUT_OCTETS_MAX);
        octets
    }
}

/// What matters to some decoder.
const TOKENS: &[&[u8]] = &[
    b" ",
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b"\"",
    b"\\",
    b"(",
    b")",
    b"[",
    b"]",
    b"<",
    b">",
    b"{",
    b"}",
    b"~",
    b"+",
    b"*",
    b":",
    b",",
    b"=",
    b"$",
    b"%",
    b"\x01",
    b"\xff",
    b"\t",
    b"--",
    b"--x\r\n",
    b"--x--\r\n",
    b"{0}\r\n",
    b"{3}\r\n",
    b"{3+}\r\n",
    b"~{3}\r\n",
    b"{3}\n",
    b"{3} \r\n",
    b"{-1}\r\n",
    b"NIL",
    b"* ",
    b"* 1 FETCH (",
    b"* NO ",
    b"* OK ",
    b"a1 ",
    b"UID ",
    b"FETCH ",
    b"BODY[]",
    b"BODY.PEEK[",
    b"HEADER.FIELDS (",
    b"FLAGS (\\Seen)",
    b"1:*",
    b"4294967295",
    b"4294967296",
    b"9223372036854775807",
    b"18446744073709551616",
    b"AUTH=",
    b"SCRAM-SHA-256-PLUS",
    b"COMPRESS=DEFLATE",
    b"Content-Type: ",
    b"multipart/mixed; boundary=x",
    b"message/rfc822",
    b"MIME-Version: 1.0\r\n",
];

/// Longer inputs find little more and take long.
const INPUT_OCTETS_MAX: usize = 8 * 1024;
