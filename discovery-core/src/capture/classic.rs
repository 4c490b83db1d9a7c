//! The form of libpcap: a header of 24 octets, then for each packet 16 octets and the frame.
//!
//! ```text
//! file    magic | version (4) | zone (4) | accuracy (4) | longest (4) | link type (4)
//! packet  seconds (4) | micro- or nanoseconds (4) | octets here (4) | octets on the wire (4) | frame
//! ```

use super::{CaptureError, Captured, Endian, PACKET_OCTETS_MAX, frame::Link};
use std::time::Duration;

/// How a file's numbers are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Order {
    endian: Endian,
    nanoseconds: bool,
}

impl Order {
    /// By a file's first word, read as big-endian.
    pub(super) fn of(magic: u32) -> Option<Self> {
        let (big, nanoseconds) = match magic {
            0xa1b2_c3d4 => (true, false),
            0xd4c3_b2a1 => (false, false),
            0xa1b2_3c4d => (true, true),
            0x4d3c_b2a1 => (false, true),
            _ => return None,
        };
        Some(Self { endian: Endian { big }, nanoseconds })
    }
}

#[derive(Clone, Debug)]
pub(super) struct Classic<'a> {
    file: &'a [u8],
    at: usize,
    order: Order,
    link: Link,
}

impl<'a> Classic<'a> {
    pub(super) fn open(file: &'a [u8], order: Order) -> Result<Self, CaptureError> {
        let link = order.endian.u32(file, 20).ok_or(CaptureError::Ends { at: 0, what: "its header" })?;
        // The upper bits tell of checksums at the frame's end.
        let link = Link::new(link & 0xffff, 20)?;
        Ok(Self { file, at: HEADER, order, link })
    }

    pub(super) fn next(&mut self) -> Option<Result<Captured<'a>, CaptureError>> {
        if self.at >= self.file.len() {
            return None;
        }
        Some(self.packet())
    }

    fn packet(&mut self) -> Result<Captured<'a>, CaptureError> {
        let (at, what) = (self.at, "a packet");
        let number = |place| self.order.endian.u32(self.file, at + place);
        let (Some(seconds), Some(fraction), Some(octets), Some(_)) =
            (number(0), number(4), number(8), number(12))
        else {
            return Err(CaptureError::Ends { at, what });
        };
        if octets > PACKET_OCTETS_MAX {
            return Err(CaptureError::Length { at, what, octets: octets.into() });
        }
        let begins = at + RECORD;
        let frame = usize::try_from(octets).ok().and_then(|octets| self.file.get(begins..begins + octets));
        let frame = frame.ok_or(CaptureError::Ends { at, what })?;
        self.at = begins + frame.len();
        let unit = if self.order.nanoseconds { 1 } else { 1_000 };
        let fraction = Duration::from_nanos(u64::from(fraction) * unit);
        Ok(self.link.packet(Duration::from_secs(seconds.into()) + fraction, frame))
    }
}

const HEADER: usize = 24;
const RECORD: usize = 16;
