//! What a SYN and its SYN-ACK settle for the whole connection. Whoever takes a connection over later needs it, and
//! nobody says it again.

use super::{Item, Options};

/// Out of the options of one SYN or SYN-ACK, read as Linux reads them: of two of a kind the last counts, one of a
/// wrong length is passed over, and behind a malformed one nothing is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SynFacts {
    /// The largest segment its sender takes; none means 536 (IPv4) or 1220 (IPv6).
    pub mss: Option<u16>,
    /// By how many bits its sender's windows are to be shifted, at most 14 (RFC 7323 §2.3).
    pub window_scale: Option<u8>,
    /// Its sender understands selective acknowledgements.
    pub sack_permitted: bool,
    /// Its sender uses timestamps.
    pub timestamps: Option<Timestamps>,
}

/// RFC 7323 §3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timestamps {
    /// The sender's clock.
    pub value: u32,
    /// The receiver's, sent back.
    pub echo: u32,
}

impl SynFacts {
    pub(super) fn of(options: Options<'_>) -> Self {
        let mut facts = Self::default();
        for item in options {
            let Item::Option(option) = item else { continue };
            match (option.kind, option.body()) {
                (2, &[a, b]) if [a, b] != [0, 0] => facts.mss = Some(u16::from_be_bytes([a, b])),
                (3, &[shift]) => facts.window_scale = Some(shift.min(14)),
                (4, &[]) => facts.sack_permitted = true,
                (8, &[a, b, c, d, e, f, g, h]) => {
                    facts.timestamps = Some(Timestamps {
                        value: u32::from_be_bytes([a, b, c, d]),
                        echo: u32::from_be_bytes([e, f, g, h]),
                    });
                }
                (_, _) => {}
            }
        }
        facts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linux_syn() {
        let area = [2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 1, 0, 0, 0, 0, 0, 1, 3, 3, 7];
        let facts = SynFacts::of(Options::new(&area));
        assert_eq!(
            facts,
            SynFacts {
                mss: Some(1460),
                window_scale: Some(7),
                sack_permitted: true,
                timestamps: Some(Timestamps { value: 256, echo: 0 }),
            }
        );
    }

    #[test]
    fn odd_ones() {
        let rows: &[(&[u8], SynFacts)] = &[
            (&[], SynFacts::default()),
            (&[2, 4, 0, 0], SynFacts::default()),
            (&[2, 3, 5, 1], SynFacts::default()),
            (&[3, 3, 200], SynFacts { window_scale: Some(14), ..SynFacts::default() }),
            (&[3, 3, 1, 3, 3, 2], SynFacts { window_scale: Some(2), ..SynFacts::default() }),
            (&[0, 4, 2], SynFacts::default()),
            (&[5, 1, 4, 2], SynFacts::default()),
            (&[4, 2, 8, 9, 1], SynFacts { sack_permitted: true, ..SynFacts::default() }),
        ];
        for (area, expected) in rows {
            assert_eq!(SynFacts::of(Options::new(area)), *expected, "{area:?}");
        }
    }
}
