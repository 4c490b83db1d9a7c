//! The first frame of each connection: which version, which lanes, and whether this is the process that was spoken to
//! before. Body: magic `WPLK`, major u8, minor u8, lanes u8, birth u64, ignored rest. The first six octets
//! mean the same in every version, so that two of them can refuse each other precisely.

use crate::{lane::LaneSet, reason::Reason};
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// What this build speaks.
pub const VERSION: Version = Version { major: 1, minor: 0 };

/// A version of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Different ones do not understand each other.
    pub major: u8,
    /// A higher one says more, and ignores that the lower one does not listen.
    pub minor: u8,
}

/// One side's state of one link, from its making to its end: a random number, so that a peer that was started anew, or
/// forgot, is told from one whose connection broke. Never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Birth(u64);

impl Birth {
    /// Of any random number.
    #[must_use]
    pub const fn new(random: u64) -> Self {
        Self(if random == 0 { 1 } else { random })
    }
}

/// A greeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hello {
    /// Of the major version that this build speaks.
    Known(Greeting),
    /// Of another one: the rest means nothing here.
    Foreign(Version),
}

/// What a HELLO says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// What its sender speaks.
    pub version: Version,
    /// What this connection is for.
    pub lanes: LaneSet,
    /// The sender's state of the link.
    pub birth: Birth,
}

impl Hello {
    pub(crate) fn put(&self, out: &mut BytesMut) {
        out.put_slice(MAGIC);
        match self {
            Self::Known(greeting) => {
                let Version { major, minor } = greeting.version;
                out.put_slice(&[major, minor, greeting.lanes.bits()]);
                out.put_u64(greeting.birth.0);
            }
            Self::Foreign(Version { major, minor }) => out.put_slice(&[*major, *minor]),
        }
    }

    pub(crate) fn take(body: &mut Bytes) -> Option<Self> {
        if body.len() < MAGIC.len() + 2 || body.split_to(MAGIC.len()) != MAGIC[..] {
            return None;
        }
        let version = Version { major: body.get_u8(), minor: body.get_u8() };
        if version.major != VERSION.major {
            return Some(Self::Foreign(version));
        }
        if body.len() < 1 + 8 {
            return None;
        }
        let lanes = LaneSet::from_bits(body.get_u8())?;
        let birth = Some(body.get_u64()).filter(|birth| *birth != 0).map(Birth)?;
        Some(Self::Known(Greeting { version, lanes, birth }))
    }

    /// The minor version that both speak.
    ///
    /// # Errors
    /// The other side's major version is older or newer.
    pub fn agree(&self) -> Result<(Greeting, u8), Reason> {
        match self {
            // The lower of both; with the first minor that is ours.
            #[allow(clippy::unnecessary_min_or_max, reason = "true of minor 0 only")]
            Self::Known(greeting) => Ok((*greeting, greeting.version.minor.min(VERSION.minor))),
            Self::Foreign(version) if version.major < VERSION.major => Err(Reason::OlderVersion),
            Self::Foreign(_) => Err(Reason::NewerVersion),
        }
    }
}

const MAGIC: &[u8; 4] = b"WPLK";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn majors_must_agree_and_minors_meet_below() {
        let greeting =
            |minor| Greeting { version: Version { major: 1, minor }, lanes: LaneSet::ALL, birth: Birth(9) };
        assert_eq!(Hello::Known(greeting(7)).agree(), Ok((greeting(7), 0)));
        let foreign = |major| Hello::Foreign(Version { major, minor: 3 }).agree();
        assert_eq!((foreign(0), foreign(2)), (Err(Reason::OlderVersion), Err(Reason::NewerVersion)));
    }

    #[test]
    fn what_a_newer_minor_adds_is_ignored_and_what_lacks_is_refused() {
        let greeting = Greeting { version: VERSION, lanes: LaneSet::ALL, birth: Birth(1) };
        let mut octets = BytesMut::new();
        Hello::Known(greeting).put(&mut octets);
        octets.put_slice(b"and more");
        let whole = octets.freeze();
        assert_eq!(Hello::take(&mut whole.clone()), Some(Hello::Known(greeting)));
        for cut in 0..MAGIC.len() + 2 + 9 {
            assert_eq!(Hello::take(&mut whole.slice(..cut)), None, "{cut}");
        }
        assert_eq!(
            Hello::take(&mut Bytes::from_static(b"WPLK\x02\x00")),
            Some(Hello::Foreign(Version { major: 2, minor: 0 }))
        );
        assert_eq!(Hello::take(&mut Bytes::from_static(b"HTTP/1")), None);
    }
}
