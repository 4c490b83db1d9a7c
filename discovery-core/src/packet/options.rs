//! TCP options, one after the other (RFC 9293 §3.1), whatever stands there.

/// Goes through an options area. It ends behind [`Item::End`] and behind [`Item::Malformed`], as receivers do.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    rest: &'a [u8],
}

/// What stands next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// One octet of filling.
    Nop,
    /// The end of the list; what follows means nothing.
    End,
    /// An option.
    Option(TcpOption<'a>),
    /// An option whose length is 0, 1 or more than there is. Nothing behind it can be read.
    Malformed,
}

/// One option with a length of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpOption<'a> {
    /// Which.
    pub kind: u8,
    /// All of it, kind and length too: at least two octets.
    pub octets: &'a [u8],
}

impl<'a> TcpOption<'a> {
    /// What follows kind and length.
    #[must_use]
    pub fn body(&self) -> &'a [u8] {
        self.octets.get(2..).unwrap_or_default()
    }

    /// Whether it is of the same kind as `other` and has the same experiment identifier (RFC 6994 §3).
    #[must_use]
    pub fn same_experiment(&self, other: &[u8]) -> bool {
        let identifier = |octets: &[u8]| octets.get(2..4).and_then(|id| <[u8; 2]>::try_from(id).ok());
        other.first() == Some(&self.kind)
            && identifier(self.octets).is_some_and(|mine| identifier(other) == Some(mine))
    }
}

impl<'a> Options<'a> {
    /// The options in these octets.
    #[must_use]
    pub fn new(area: &'a [u8]) -> Self {
        Self { rest: area }
    }
}

impl<'a> Iterator for Options<'a> {
    type Item = Item<'a>;

    fn next(&mut self) -> Option<Item<'a>> {
        let (&kind, behind) = self.rest.split_first()?;
        match kind {
            END => {
                self.rest = &[];
                return Some(Item::End);
            }
            NOP => {
                self.rest = behind;
                return Some(Item::Nop);
            }
            2..=u8::MAX => {}
        }
        let length = behind.first().map_or(0, |&octets| usize::from(octets));
        match self.rest.split_at_checked(length) {
            Some((octets, rest)) if length >= 2 => {
                self.rest = rest;
                Some(Item::Option(TcpOption { kind, octets }))
            }
            Some(_) | None => {
                self.rest = &[];
                Some(Item::Malformed)
            }
        }
    }
}

pub(super) const END: u8 = 0;
pub(super) const NOP: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    /// Every kind with every length field in areas of 0 to 41 octets: it ends, and what it tells adds up.
    #[test]
    fn every_kind_and_length_ends() {
        for kind in 0..=u8::MAX {
            for octets in 0..=41_usize {
                for length in 0..=u8::MAX {
                    let mut area = vec![0x5A; octets];
                    if let Some(first) = area.first_mut() {
                        *first = kind;
                    }
                    if let Some(second) = area.get_mut(1) {
                        *second = length;
                    }
                    let items: Vec<_> = Options::new(&area).collect();
                    assert!(items.len() <= octets);
                    let first = items.first().copied();
                    let expected = match (octets, kind) {
                        (0, _) => None,
                        (_, 0) => Some(Item::End),
                        (_, 1) => Some(Item::Nop),
                        (1, _) => Some(Item::Malformed),
                        (_, _) if length < 2 || usize::from(length) > octets => Some(Item::Malformed),
                        (_, _) => {
                            Some(Item::Option(TcpOption { kind, octets: &area[..usize::from(length)] }))
                        }
                    };
                    assert_eq!(first, expected, "kind {kind}, length {length} in {octets}");
                }
            }
        }
    }

    #[test]
    fn an_experiment_needs_its_identifier() {
        let of = |octets| TcpOption { kind: 253, octets };
        assert!(of(&[253, 4, 0x57, 0x50]).same_experiment(&[253, 6, 0x57, 0x50, 1, 0]));
        assert!(!of(&[253, 4, 0x57, 0x51]).same_experiment(&[253, 6, 0x57, 0x50, 1, 0]));
        assert!(!of(&[253, 3, 0x57]).same_experiment(&[253, 3, 0x57]));
        assert!(!of(&[253, 2]).same_experiment(&[253, 2]));
    }
}
