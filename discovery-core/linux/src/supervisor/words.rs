//! What the two say to each other: a message each, its first octet a letter. Both are one executable's, but for the time
//! of an upgrade: a message that one of them does not know is passed over.

use crate::rules::Listen;

/// What a worker says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// Its work loop turns.
    Beat,
    /// It can carry what is taken, and its listeners are there.
    Ready(Listen),
    /// It has done what it was told.
    Heard,
    /// Others may have the addresses and files that only one can have; it goes on with what it carries.
    Released,
}

impl Said {
    pub(super) fn write(self) -> Vec<u8> {
        match self {
            Self::Beat => b".".to_vec(),
            Self::Ready(Listen { v4, v6 }) => {
                let [a, b] = v4.to_be_bytes();
                let [c, d] = v6.unwrap_or(0).to_be_bytes();
                vec![b'r', a, b, c, d]
            }
            Self::Heard => b"h".to_vec(),
            Self::Released => b"f".to_vec(),
        }
    }

    pub(super) fn read(message: &[u8]) -> Option<Self> {
        match message {
            [b'.'] => Some(Self::Beat),
            [b'h'] => Some(Self::Heard),
            [b'f'] => Some(Self::Released),
            [b'r', a, b, c, d] => {
                let (v4, v6) = (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]));
                (v4 != 0).then_some(Self::Ready(Listen { v4, v6: (v6 != 0).then_some(v6) }))
            }
            _ => None,
        }
    }
}

/// What a worker is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Packets stop coming, or come again: the engine is to know it.
    Bypass(bool),
    /// Take nothing new, finish what can be finished, end.
    Leave,
    /// End now.
    Hurry,
    /// Read the configuration again.
    Reload,
    /// A successor is to start: give free what only one can have, say so, and go on with what is carried.
    HandOver,
}

impl Wish {
    pub(crate) fn write(self) -> [u8; 1] {
        [match self {
            Self::Bypass(true) => b'B',
            Self::Bypass(false) => b'b',
            Self::Leave => b'L',
            Self::Hurry => b'H',
            Self::Reload => b'R',
            Self::HandOver => b'U',
        }]
    }

    pub(crate) fn read(message: &[u8]) -> Option<Self> {
        match message {
            [b'B'] => Some(Self::Bypass(true)),
            [b'b'] => Some(Self::Bypass(false)),
            [b'L'] => Some(Self::Leave),
            [b'H'] => Some(Self::Hurry),
            [b'R'] => Some(Self::Reload),
            [b'U'] => Some(Self::HandOver),
            _ => None,
        }
    }
}

/// Longer than any of them.
pub(super) const MESSAGE_OCTETS_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let listens = [Listen { v4: 1, v6: None }, Listen { v4: 65535, v6: Some(258) }];
        for said in
            [Said::Beat, Said::Heard, Said::Released].into_iter().chain(listens.into_iter().map(Said::Ready))
        {
            assert_eq!(Said::read(&said.write()), Some(said));
            assert!(said.write().len() < MESSAGE_OCTETS_MAX);
        }
        for wish in
            [Wish::Bypass(true), Wish::Bypass(false), Wish::Leave, Wish::Hurry, Wish::Reload, Wish::HandOver]
        {
            assert_eq!(Wish::read(&wish.write()), Some(wish));
        }
    }

    #[test]
    fn what_nobody_said_is_nothing() {
        for message in [&b""[..], b"..", b"r", b"r\0\0\0\x01", b"x", b"r\0\x01\0\x01\0"] {
            assert_eq!(Said::read(message), None, "{message:?}");
        }
        assert_eq!((Wish::read(b""), Wish::read(b"LL"), Wish::read(b".")), (None, None, None));
    }
}
