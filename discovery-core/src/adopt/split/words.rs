//! What two nodes say to each other to adopt a connection, one socket each; it stands at the head of the stream that then
//! carries the connection's octets. Numbers are big-endian.
//!
//! ```text
//! READY   with OPENED                version 1    terms
//! CUT     the client's node, first   version 1    expects 4    terms
//! YE      the server's node, first   version 1    from 4       ye 4
//! terms   mss 2    scale of the client 1, of the server 1 (255: none)    flags 1 (1: selective acknowledgements, 2: unknown)
//! ```
//! Behind CUT comes what the client says, from the octet `expects` on; behind YE what the server says, from the octet
//! `from` on.

use crate::{adopt::Terms, octets::Reader};

/// The server's node can cut at any moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// What the SYNs settled, if it knows.
    pub terms: Option<Terms>,
}

/// The client's node lets nothing more of the client's pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutWord {
    /// The number of the first octet of the client's that does not pass.
    pub expects: u32,
    /// What the SYNs settled.
    pub terms: Terms,
}

/// The server's node has cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ye {
    /// The number of the first octet that the stream has of the server's.
    pub from: u32,
    /// The number of the first octet that did not pass.
    pub ye: u32,
}

impl Ready {
    /// As octets.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        put_terms(&mut out, self.terms);
        out
    }

    /// The inverse; none of anything else.
    #[must_use]
    pub fn decode(octets: &[u8]) -> Option<Self> {
        let mut reader = versioned(octets)?;
        let terms = take_terms(&mut reader)?;
        reader.is_empty().then_some(Self { terms })
    }
}

impl CutWord {
    /// How many octets it has.
    pub const OCTETS: usize = 1 + 4 + TERMS_OCTETS;

    /// As octets.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend_from_slice(&self.expects.to_be_bytes());
        put_terms(&mut out, Some(self.terms));
        out
    }

    /// The inverse; none of anything else.
    #[must_use]
    pub fn decode(octets: &[u8]) -> Option<Self> {
        let mut reader = versioned(octets)?;
        let word = Self { expects: reader.u32()?, terms: take_terms(&mut reader)?? };
        reader.is_empty().then_some(word)
    }
}

impl Ye {
    /// How many octets it has.
    pub const OCTETS: usize = 1 + 4 + 4;

    /// As octets.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend_from_slice(&self.from.to_be_bytes());
        out.extend_from_slice(&self.ye.to_be_bytes());
        out
    }

    /// The inverse; none of anything else, nor when more octets are told again than anybody keeps.
    #[must_use]
    pub fn decode(octets: &[u8]) -> Option<Self> {
        let mut reader = versioned(octets)?;
        let word = Self { from: reader.u32()?, ye: reader.u32()? };
        (reader.is_empty() && word.again() <= super::super::OCTETS_MAX).then_some(word)
    }

    /// How many octets the stream begins with that have passed, as far as they did not get lost.
    #[must_use]
    pub fn again(&self) -> usize {
        usize::try_from(self.ye.wrapping_sub(self.from)).unwrap_or(usize::MAX)
    }
}

fn versioned(octets: &[u8]) -> Option<Reader<'_>> {
    let mut reader = Reader::new(octets);
    (reader.u8()? == VERSION).then_some(reader)
}

fn put_terms(out: &mut Vec<u8>, terms: Option<Terms>) {
    let Some(Terms { mss, scale, sack }) = terms else {
        return out.extend_from_slice(&[0, 0, UNSCALED, UNSCALED, UNKNOWN]);
    };
    let (client, server) = scale.unwrap_or((UNSCALED, UNSCALED));
    out.extend_from_slice(&mss.to_be_bytes());
    out.extend_from_slice(&[client, server, u8::from(sack)]);
}

/// The outer one is none when there are no such terms.
#[allow(clippy::option_option, reason = "unreadable, and unknown to whoever wrote it")]
fn take_terms(reader: &mut Reader<'_>) -> Option<Option<Terms>> {
    let mss = reader.u16()?;
    let scale = match (reader.u8()?, reader.u8()?) {
        (UNSCALED, UNSCALED) => None,
        (client, server) if client <= SCALE_MAX && server <= SCALE_MAX => Some((client, server)),
        (_, _) => return None,
    };
    match (reader.u8()?, mss, scale) {
        (UNKNOWN, 0, None) => Some(None),
        (flags @ (0 | 1), mss, scale) if mss >= super::super::MSS_MIN => {
            Some(Some(Terms { mss, scale, sack: flags == 1 }))
        }
        (_, _, _) => None,
    }
}

const VERSION: u8 = 1;
const TERMS_OCTETS: usize = 5;
const UNSCALED: u8 = 255;
const UNKNOWN: u8 = 2;
/// RFC 7323 §2.3.
const SCALE_MAX: u8 = 14;
