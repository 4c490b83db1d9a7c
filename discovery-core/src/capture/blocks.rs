//! The form of pcapng: blocks, each with its kind and its length before and behind it. What is not about packets is
//! passed over.
//!
//! ```text
//! block              kind (4) | length (4) | body, whole words | length (4)
//! section, 0a0d0d0a  order 1a2b3c4d (4) | version (4) | length (8) | options
//! interface, 1       link type (2) | 0 (2) | longest (4) | options, of which 9 is the unit of time
//! packet, 6          interface (4) | time (8) | octets here (4) | octets on the wire (4) | frame | options
//! simple packet, 3   octets on the wire (4) | frame
//! ```

use super::{CaptureError, Captured, Endian, INTERFACES_MAX, PACKET_OCTETS_MAX, frame::Link};
use std::time::Duration;

/// A section's kind reads the same in either order.
pub(super) const MAGIC: u32 = 0x0a0d_0d0a;

#[derive(Clone, Debug)]
pub(super) struct Blocks<'a> {
    file: &'a [u8],
    at: usize,
    endian: Endian,
    interfaces: Vec<Interface>,
}

#[derive(Clone, Copy, Debug)]
struct Interface {
    link: Link,
    /// Ticks in a second.
    ticks: u64,
    longest: u32,
}

impl<'a> Blocks<'a> {
    pub(super) fn new(file: &'a [u8]) -> Self {
        Self { file, at: 0, endian: Endian { big: true }, interfaces: Vec::new() }
    }

    pub(super) fn next(&mut self) -> Option<Result<Captured<'a>, CaptureError>> {
        while self.at < self.file.len() {
            match self.block() {
                Ok(None) => {}
                Ok(Some(packet)) => return Some(Ok(packet)),
                Err(error) => return Some(Err(error)),
            }
        }
        None
    }

    fn block(&mut self) -> Result<Option<Captured<'a>>, CaptureError> {
        let (at, what) = (self.at, "a block");
        let ends = CaptureError::Ends { at, what };
        if self.file.get(at..at + 4) == Some(&MAGIC.to_be_bytes()) {
            // From here on numbers are in this section's order.
            let order = self.file.get(at + 8..).and_then(|rest| rest.first_chunk::<4>()).ok_or(ends)?;
            let big = match order {
                [0x1a, 0x2b, 0x3c, 0x4d] => true,
                [0x4d, 0x3c, 0x2b, 0x1a] => false,
                other => return Err(CaptureError::Form(u32::from_be_bytes(*other))),
            };
            self.endian = Endian { big };
            self.interfaces.clear();
        }
        let endian = self.endian;
        let (kind, length) =
            (endian.u32(self.file, at).ok_or(ends)?, endian.u32(self.file, at + 4).ok_or(ends)?);
        let octets = usize::try_from(length).unwrap_or(usize::MAX);
        if octets < 12 || !octets.is_multiple_of(4) {
            return Err(CaptureError::Length { at, what, octets: length.into() });
        }
        let block = at.checked_add(octets).and_then(|end| self.file.get(at..end)).ok_or(ends)?;
        let body = block.get(8..octets - 4).unwrap_or_default();
        self.at = at + octets;
        match kind {
            1 => self.interface(at, body).map(|()| None),
            6 => self.packet(at, body).map(Some),
            3 => self.simple(at, body).map(Some),
            _ => Ok(None),
        }
    }

    fn interface(&mut self, at: usize, body: &[u8]) -> Result<(), CaptureError> {
        let ends = CaptureError::Ends { at, what: "an interface" };
        if self.interfaces.len() >= INTERFACES_MAX {
            return Err(CaptureError::Interfaces { at });
        }
        let link = Link::new(self.endian.u16(body, 0).ok_or(ends)?.into(), at)?;
        let longest = self.endian.u32(body, 4).ok_or(ends)?;
        let mut ticks = 1_000_000;
        let mut options = body.get(8..).unwrap_or_default();
        while let (Some(code @ 1..), Some(length)) =
            (self.endian.u16(options, 0), self.endian.u16(options, 2))
        {
            let length = usize::from(length);
            if let (9, Some(unit)) = (code, options.get(4)) {
                let power = u32::from(unit & 0x7f);
                let base: u64 = if unit & 0x80 == 0 { 10 } else { 2 };
                ticks = base.checked_pow(power).unwrap_or(u64::MAX);
            }
            options = options.get(4 + length.next_multiple_of(4)..).unwrap_or_default();
        }
        self.interfaces.push(Interface { link, ticks, longest });
        Ok(())
    }

    fn packet(&self, at: usize, body: &'a [u8]) -> Result<Captured<'a>, CaptureError> {
        let number = |place| self.endian.u32(body, place).ok_or(CaptureError::Ends { at, what: PACKET });
        let interface = self.described(at, number(0)?)?;
        let ticks = u64::from(number(4)?) << 32 | u64::from(number(8)?);
        let second = interface.ticks.max(1);
        let nanoseconds = u128::from(ticks % second) * 1_000_000_000 / u128::from(second);
        let fraction = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0));
        let frame = frame(at, body.get(20..).unwrap_or_default(), number(12)?)?;
        Ok(interface.link.packet(Duration::from_secs(ticks / second) + fraction, frame))
    }

    fn simple(&self, at: usize, body: &'a [u8]) -> Result<Captured<'a>, CaptureError> {
        let interface = self.described(at, 0)?;
        let octets = self.endian.u32(body, 0).ok_or(CaptureError::Ends { at, what: PACKET })?;
        let octets = if interface.longest == 0 { octets } else { octets.min(interface.longest) };
        let frame = frame(at, body.get(4..).unwrap_or_default(), octets)?;
        Ok(interface.link.packet(Duration::ZERO, frame))
    }

    fn described(&self, at: usize, interface: u32) -> Result<Interface, CaptureError> {
        let known = self.interfaces.len();
        let found = usize::try_from(interface).ok().and_then(|nth| self.interfaces.get(nth)).copied();
        found.ok_or(CaptureError::Interface { at, interface, known })
    }
}

fn frame(at: usize, rest: &[u8], octets: u32) -> Result<&[u8], CaptureError> {
    if octets > PACKET_OCTETS_MAX {
        return Err(CaptureError::Length { at, what: PACKET, octets: octets.into() });
    }
    let frame = usize::try_from(octets).ok().and_then(|octets| rest.get(..octets));
    frame.ok_or(CaptureError::Length { at, what: PACKET, octets: octets.into() })
}

const PACKET: &str = "a packet";
