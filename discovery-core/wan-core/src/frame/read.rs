//! Octets to frames. Everything here comes from somebody else.

use super::{
    CANDIDATE_NETWORKS_MAX, CANDIDATES_MAX, DATA_OCTETS_MAX, ENCODING_RAW, ENTRIES_MAX, ENTRY_ANSWERED,
    ENTRY_RESET, Entry, FRAME_OCTETS_MAX, Frame, HINTS, INFO_OCTETS_MAX, NOTICE_ABORT, NOTICE_OCTETS_MAX,
    Reset, kind,
};
use crate::{
    hello::Hello,
    lane::Lane,
    notice::{Candidate, Candidates, Notice},
    open::{Kind, OpenFrame},
    reason::{Reason, Violation},
    stream_id::StreamId,
    varint,
};
use bytes::{Buf, Bytes, BytesMut};
use discovery_core::{flow::Flow, id::ServerId, pmt::Prefix, probe::KeyHint, value::Class};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Takes one frame from the front of `octets`; none when it is not whole yet.
///
/// # Errors
/// The first rule that it breaks. What follows it means nothing then.
pub fn decode(octets: &mut BytesMut) -> Result<Option<Frame>, Violation> {
    let Some((length, head)) = varint::peek(octets).map_err(|varint::Overlong| Violation::Overlong)? else {
        return Ok(None);
    };
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > FRAME_OCTETS_MAX {
        return Err(Violation::FrameTooLong);
    }
    if length == 0 {
        return Err(Violation::WrongLength);
    }
    if octets.len() < head + length {
        return Ok(None);
    }
    octets.advance(head);
    let mut body = Body(octets.split_to(length).freeze());
    let frame = body.frame()?;
    Ok(Some(frame))
}

struct Body(Bytes);

impl Body {
    fn frame(&mut self) -> Result<Frame, Violation> {
        let frame = match self.octet()? {
            kind::HELLO => return Hello::take(&mut self.0).map(Frame::Hello).ok_or(Violation::BadValue),
            kind::RESUME => self.resume()?,
            kind::OPEN => return self.open(),
            kind::OPENED => {
                let (id, limit) = (self.stream()?, self.number()?);
                Frame::Opened { id, limit, info: self.rest(INFO_OCTETS_MAX)? }
            }
            kind::REFUSED => Frame::Refused(self.reset()?),
            kind::DATA => {
                let (id, offset) = (self.stream()?, self.number()?);
                let (hints, encoding) = (self.octet()?, self.octet()?);
                if hints & !HINTS != 0 {
                    return Err(Violation::BadValue);
                }
                if encoding != ENCODING_RAW {
                    return Err(Violation::UnknownEncoding);
                }
                Frame::Data { id, offset, hints, octets: self.rest(DATA_OCTETS_MAX)? }
            }
            kind::FIN => Frame::Fin { id: self.stream()?, offset: self.number()? },
            kind::RST => Frame::Rst(self.reset()?),
            kind::WINDOW => {
                Frame::Window { id: self.stream()?, received: self.number()?, limit: self.number()? }
            }
            kind::CREDIT => Frame::Credit { lane: self.lane()?, limit: self.number()? },
            kind::PING => Frame::Ping(self.token()?),
            kind::PONG => Frame::Pong(self.token()?),
            // A newer version may say more.
            kind::GOAWAY => return Ok(Frame::Goaway(Reason::from_code(self.octet()?))),
            kind::NOTICE => self.notice()?,
            kind::CANDIDATES => self.candidates()?,
            kind::CANDIDATES_ONCE | kind::WARM | kind::IGNORED_FIRST..=kind::IGNORED_LAST => {
                return Ok(Frame::Ignored);
            }
            _ => return Err(Violation::UnknownType),
        };
        if self.0.is_empty() { Ok(frame) } else { Err(Violation::WrongLength) }
    }

    fn open(&mut self) -> Result<Frame, Violation> {
        let (id, limit) = (self.stream()?, self.number()?);
        let class = match self.octet()? {
            0 => Class::Interactive,
            1 => Class::Bulk,
            2 => Class::Background,
            _ => return Err(Violation::BadValue),
        };
        let kind = Kind::from_code(self.octet()?).ok_or(Violation::BadValue)?;
        let spoof = self.flag()?;
        let flow = Flow { client: self.address()?, server: self.address()? };
        let length = usize::from(self.octet()?);
        let name = self.octets(length)?;
        let name = std::str::from_utf8(&name).map_err(|_| Violation::BadValue)?;
        let server = match name {
            "" => None,
            name => Some(ServerId::new(name).map_err(|_| Violation::BadValue)?),
        };
        if Lane::from(class) != id.lane() {
            return Err(Violation::WrongLane);
        }
        Ok(Frame::Open { id, limit, open: OpenFrame { flow, class, kind, spoof, server } })
    }

    fn resume(&mut self) -> Result<Frame, Violation> {
        let lane = self.lane()?;
        let last = self.flag()?;
        let (opened, credit) = (self.number()?, self.number()?);
        let mut entries = Vec::new();
        while !self.0.is_empty() {
            if entries.len() == ENTRIES_MAX {
                return Err(Violation::WrongLength);
            }
            let id = self.stream()?;
            entries.push(match self.octet()? {
                ENTRY_RESET => Entry::Reset { id, reason: Reason::from_code(self.octet()?) },
                flags @ (0 | ENTRY_ANSWERED) => Entry::Live {
                    id,
                    answered: flags == ENTRY_ANSWERED,
                    received: self.number()?,
                    limit: self.number()?,
                },
                _ => return Err(Violation::BadValue),
            });
        }
        Ok(Frame::Resume { lane, last, opened, credit, entries })
    }

    fn reset(&mut self) -> Result<Reset, Violation> {
        let (id, reason) = (self.stream()?, Reason::from_code(self.octet()?));
        Ok(Reset { id, reason, answer: self.flag()? })
    }

    fn notice(&mut self) -> Result<Frame, Violation> {
        if self.number()? != 0 {
            return Err(Violation::BadValue);
        }
        Ok(Frame::Notice(match self.number()? {
            NOTICE_ABORT => {
                let flow = Flow { client: self.address()?, server: self.address()? };
                let isn = u32::try_from(self.number()?).map_err(|_| Violation::BadValue)?;
                Notice::Abort { flow, isn }
            }
            kind => Notice::Other { kind, octets: self.rest(NOTICE_OCTETS_MAX)? },
        }))
    }

    fn candidates(&mut self) -> Result<Frame, Violation> {
        let mut candidates = Candidates::default();
        for _ in 0..self.octet()? {
            if candidates.networks.len() == CANDIDATE_NETWORKS_MAX {
                return Err(Violation::WrongLength);
            }
            let (address, bits) = (self.ip()?, self.octet()?);
            let network = Prefix::new(address, bits);
            // One way to say it.
            if (network.address(), network.bits()) != (address, bits) {
                return Err(Violation::BadValue);
            }
            candidates.networks.push(network);
        }
        while !self.0.is_empty() {
            if candidates.nodes.len() == CANDIDATES_MAX {
                return Err(Violation::WrongLength);
            }
            let link = self.address()?;
            candidates.nodes.push(Candidate {
                link,
                key: KeyHint(self.array()?),
                rank: self.octet()?,
                able: self.flag()?,
                load: u16::from_be_bytes(self.array()?),
            });
        }
        Ok(Frame::Candidates(candidates))
    }

    fn address(&mut self) -> Result<SocketAddr, Violation> {
        Ok(SocketAddr::new(self.ip()?, u16::from_be_bytes(self.array()?)))
    }

    fn ip(&mut self) -> Result<IpAddr, Violation> {
        match self.octet()? {
            4 => Ok(IpAddr::V4(Ipv4Addr::from(self.array::<4>()?))),
            6 => Ok(IpAddr::V6(Ipv6Addr::from(self.array::<16>()?))),
            _ => Err(Violation::BadValue),
        }
    }

    fn stream(&mut self) -> Result<StreamId, Violation> {
        StreamId::from_wire(self.number()?).ok_or(Violation::BadValue)
    }

    fn lane(&mut self) -> Result<Lane, Violation> {
        Lane::from_code(self.octet()?).ok_or(Violation::BadValue)
    }

    fn number(&mut self) -> Result<u64, Violation> {
        match varint::peek(&self.0) {
            Ok(Some((value, wide))) => {
                self.0.advance(wide);
                Ok(value)
            }
            Ok(None) => Err(Violation::WrongLength),
            Err(varint::Overlong) => Err(Violation::Overlong),
        }
    }

    fn flag(&mut self) -> Result<bool, Violation> {
        match self.octet()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Violation::BadValue),
        }
    }

    fn token(&mut self) -> Result<u64, Violation> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    fn octet(&mut self) -> Result<u8, Violation> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Violation> {
        let octets = self.octets(N)?;
        octets.as_ref().try_into().map_err(|_| Violation::WrongLength)
    }

    fn octets(&mut self, n: usize) -> Result<Bytes, Violation> {
        if self.0.len() < n { Err(Violation::WrongLength) } else { Ok(self.0.split_to(n)) }
    }

    fn rest(&mut self, most: usize) -> Result<Bytes, Violation> {
        if self.0.len() > most { Err(Violation::FrameTooLong) } else { Ok(self.0.split_off(0)) }
    }
}
