//! What is said on a link. Every frame is `length varint | type u8 | body`, the length counting type and body; all
//! numbers are [`varint`]s unless a width is given, fixed widths are big-endian.
//!
//! | type | frame | body |
//! |---|---|---|
//! | 0x01 | HELLO | see [`hello`](crate::hello) |
//! | 0x02 | RESUME | lane u8, last u8, opened, credit, entries: stream, flags u8 (1: answered, 2: reset), then received, limit or reason u8 |
//! | 0x03 | OPEN | stream, limit, class u8, kind u8, flags u8 (1: spoof), client, server, length of name u8, name, ignored rest |
//! | 0x04 | OPENED | stream, limit, what the opener is told |
//! | 0x05 | REFUSED | stream, reason u8, 0 u8 |
//! | 0x06 | DATA | stream, offset, flags u8 (the low four bits are hints), encoding u8 (0: raw), octets |
//! | 0x07 | FIN | stream, offset of the end |
//! | 0x08 | RST | stream, reason u8, answer u8 (1: in answer to an RST, and not to be answered) |
//! | 0x09 | WINDOW | stream, received, limit: an acknowledgement and a credit |
//! | 0x0a | CREDIT | lane u8, limit, counted from RESUME on |
//! | 0x0b, 0x0c | PING, PONG | token u64 |
//! | 0x0d | GOAWAY | reason u8, ignored rest |
//! | 0x0e | NOTICE | stream 0, kind, octets |
//! | 0x0f | | ignored: what was CANDIDATES once, of nodes alone |
//! | 0x10 | WARM | ignored: reserved for octets that nobody waits for |
//! | 0x20-0x3f | | reserved for segments: not before both sides agreed on them |
//! | 0x40 | CANDIDATES | number u8 of networks, each: 4 or 6 u8, its octets, bits u8; then nodes, each: address, key hint (8 octets), rank u8, flags u8 (1: takes connections), load u16 |
//! | 0x41-0x7f | | of a newer minor version, ignored |
//!
//! Offsets, limits and credit count octets of the streams as their ends see them, so that another encoding changes
//! none. A FIN counts as one more received. An address is `4 | 6` as u8, its octets, port u16.

mod read;
#[cfg(test)]
mod tests;

use crate::{
    hello::Hello,
    lane::Lane,
    notice::{CANDIDATE_NETWORKS_MAX, CANDIDATES_MAX, Candidates, NOTICE_OCTETS_MAX, Notice},
    open::OpenFrame,
    reason::Reason,
    stream_id::StreamId,
    varint,
};
use bytes::{BufMut, Bytes, BytesMut};
use discovery_core::{flow::Flow, value::Class};
use std::net::{IpAddr, SocketAddr};

pub use read::decode;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The first on every connection.
    Hello(Hello),
    /// How far the sender came, lane by lane; the first thing behind HELLO.
    Resume {
        /// Which lane.
        lane: Lane,
        /// The list ends with this frame.
        last: bool,
        /// The highest counter of a stream that the receiver opened and the sender has seen.
        opened: u64,
        /// How many octets the sender takes on this connection, of all the lane's streams together.
        credit: u64,
        /// The streams that the sender holds.
        entries: Vec<Entry>,
    },
    /// Asks for a stream.
    Open {
        /// Its name.
        id: StreamId,
        /// How much the opener takes.
        limit: u64,
        /// What is asked for.
        open: OpenFrame,
    },
    /// The stream stands.
    Opened {
        /// Which.
        id: StreamId,
        /// How much the other side takes, from the first octet on.
        limit: u64,
        /// What the opener is told: opaque here.
        info: Bytes,
    },
    /// There will be no stream.
    Refused(Reset),
    /// Octets of a stream.
    Data {
        /// Which.
        id: StreamId,
        /// Where they belong.
        offset: u64,
        /// What the sender knows about them; may be ignored.
        hints: u8,
        /// The octets.
        octets: Bytes,
    },
    /// One direction of a stream has ended.
    Fin {
        /// Which.
        id: StreamId,
        /// How many octets it had.
        offset: u64,
    },
    /// Both directions of a stream have ended, and nothing more is delivered.
    Rst(Reset),
    /// What arrived, and what may come.
    Window {
        /// Of which stream.
        id: StreamId,
        /// So many octets arrived, and one more for the FIN.
        received: u64,
        /// So many may be sent, from the first octet on.
        limit: u64,
    },
    /// What may come on a lane.
    Credit {
        /// Which.
        lane: Lane,
        /// So many octets, of all its streams together, from RESUME on.
        limit: u64,
    },
    /// Are you there?
    Ping(u64),
    /// Yes.
    Pong(u64),
    /// No new streams, please; or: this connection ends now.
    Goaway(Reason),
    /// A message beside the streams.
    Notice(Notice),
    /// Who could serve in the sender's place.
    Candidates(Candidates),
    /// Of a newer minor version.
    Ignored,
}

/// A stream ended before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reset {
    /// Which.
    pub id: StreamId,
    /// Why.
    pub reason: Reason,
    /// The sender no longer holds it and wants no answer.
    pub answer: bool,
}

/// A stream that the sender of RESUME holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Still standing.
    Live {
        /// Which.
        id: StreamId,
        /// The sender has had the answer to its OPEN, or has given one.
        answered: bool,
        /// As in WINDOW.
        received: u64,
        /// As in WINDOW.
        limit: u64,
    },
    /// Ended, and the sender does not know whether the receiver knows.
    Reset {
        /// Which.
        id: StreamId,
        /// Why.
        reason: Reason,
    },
}

impl Frame {
    /// Appends the frame. Lists and texts beyond their bounds are cut.
    pub fn encode(&self, out: &mut BytesMut) {
        let mut body = BytesMut::new();
        match self {
            Self::Hello(hello) => {
                body.put_u8(kind::HELLO);
                hello.put(&mut body);
            }
            Self::Resume { lane, last, opened, credit, entries } => {
                body.put_slice(&[kind::RESUME, lane.code(), u8::from(*last)]);
                varint::put(&mut body, *opened);
                varint::put(&mut body, *credit);
                entries.iter().take(ENTRIES_MAX).for_each(|entry| put_entry(&mut body, entry));
            }
            Self::Open { id, limit, open } => put_open(&mut body, *id, *limit, open),
            Self::Opened { id, limit, info } => {
                body.put_u8(kind::OPENED);
                varint::put(&mut body, id.to_wire());
                varint::put(&mut body, *limit);
                body.put_slice(info.get(..INFO_OCTETS_MAX).unwrap_or(info));
            }
            Self::Refused(reset) => {
                body.put_u8(kind::REFUSED);
                put_reset(&mut body, reset);
            }
            Self::Data { id, offset, hints, octets } => {
                put_data_fields(&mut body, *id, *offset, *hints);
                body.put_slice(octets.get(..DATA_OCTETS_MAX).unwrap_or(octets));
            }
            Self::Fin { id, offset } => {
                body.put_u8(kind::FIN);
                varint::put(&mut body, id.to_wire());
                varint::put(&mut body, *offset);
            }
            Self::Rst(reset) => {
                body.put_u8(kind::RST);
                put_reset(&mut body, reset);
            }
            Self::Window { id, received, limit } => {
                body.put_u8(kind::WINDOW);
                varint::put(&mut body, id.to_wire());
                varint::put(&mut body, *received);
                varint::put(&mut body, *limit);
            }
            Self::Credit { lane, limit } => {
                body.put_slice(&[kind::CREDIT, lane.code()]);
                varint::put(&mut body, *limit);
            }
            Self::Ping(token) => {
                body.put_u8(kind::PING);
                body.put_u64(*token);
            }
            Self::Pong(token) => {
                body.put_u8(kind::PONG);
                body.put_u64(*token);
            }
            Self::Goaway(reason) => body.put_slice(&[kind::GOAWAY, reason.code()]),
            Self::Notice(notice) => put_notice(&mut body, notice),
            Self::Candidates(candidates) => put_candidates(&mut body, candidates),
            Self::Ignored => body.put_u8(kind::IGNORED_FIRST),
        }
        varint::put(out, body.len() as u64);
        out.put_slice(&body);
    }
}

/// Appends everything of a DATA frame but its `octets` octets, which follow it.
pub(crate) fn put_data_head(out: &mut BytesMut, id: StreamId, offset: u64, octets: usize) {
    let fields = 3 + varint::width(id.to_wire()) + varint::width(offset);
    varint::put(out, (fields + octets) as u64);
    put_data_fields(out, id, offset, 0);
}

fn put_data_fields(out: &mut BytesMut, id: StreamId, offset: u64, hints: u8) {
    out.put_u8(kind::DATA);
    varint::put(out, id.to_wire());
    varint::put(out, offset);
    out.put_slice(&[hints & HINTS, ENCODING_RAW]);
}

fn put_open(out: &mut BytesMut, id: StreamId, limit: u64, open: &OpenFrame) {
    let class = match open.class {
        Class::Interactive => 0,
        Class::Bulk => 1,
        Class::Background => 2,
    };
    out.put_u8(kind::OPEN);
    varint::put(out, id.to_wire());
    varint::put(out, limit);
    out.put_slice(&[class, open.kind.code(), u8::from(open.spoof)]);
    put_address(out, open.flow.client);
    put_address(out, open.flow.server);
    // A name has at most 253 octets: its type sees to that.
    let name = open.server.as_ref().map_or("", |name| name.as_str());
    out.put_u8(u8::try_from(name.len()).unwrap_or(0));
    out.put_slice(name.as_bytes());
}

fn put_reset(out: &mut BytesMut, reset: &Reset) {
    varint::put(out, reset.id.to_wire());
    out.put_slice(&[reset.reason.code(), u8::from(reset.answer)]);
}

fn put_entry(out: &mut BytesMut, entry: &Entry) {
    match entry {
        Entry::Live { id, answered, received, limit } => {
            varint::put(out, id.to_wire());
            out.put_u8(if *answered { ENTRY_ANSWERED } else { 0 });
            varint::put(out, *received);
            varint::put(out, *limit);
        }
        Entry::Reset { id, reason } => {
            varint::put(out, id.to_wire());
            out.put_slice(&[ENTRY_RESET, reason.code()]);
        }
    }
}

fn put_notice(out: &mut BytesMut, notice: &Notice) {
    out.put_u8(kind::NOTICE);
    varint::put(out, 0);
    match notice {
        Notice::Abort { flow: Flow { client, server }, isn } => {
            varint::put(out, NOTICE_ABORT);
            put_address(out, *client);
            put_address(out, *server);
            varint::put(out, u64::from(*isn));
        }
        Notice::Other { kind, octets } => {
            varint::put(out, (*kind).max(1));
            out.put_slice(octets.get(..NOTICE_OCTETS_MAX).unwrap_or(octets));
        }
    }
}

fn put_candidates(out: &mut BytesMut, candidates: &Candidates) {
    let networks = candidates.networks.get(..CANDIDATE_NETWORKS_MAX).unwrap_or(&candidates.networks);
    out.put_slice(&[kind::CANDIDATES, u8::try_from(networks.len()).unwrap_or(0)]);
    for network in networks {
        put_ip(out, network.address());
        out.put_u8(network.bits());
    }
    for node in candidates.nodes.iter().take(CANDIDATES_MAX) {
        put_address(out, node.link);
        out.put_slice(&node.key.0);
        out.put_slice(&[node.rank, u8::from(node.able)]);
        out.put_u16(node.load);
    }
}

fn put_address(out: &mut BytesMut, address: SocketAddr) {
    put_ip(out, address.ip());
    out.put_u16(address.port());
}

fn put_ip(out: &mut BytesMut, address: IpAddr) {
    match address {
        IpAddr::V4(ip) => {
            out.put_u8(4);
            out.put_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out.put_u8(6);
            out.put_slice(&ip.octets());
        }
    }
}

mod kind {
    pub(super) const HELLO: u8 = 0x01;
    pub(super) const RESUME: u8 = 0x02;
    pub(super) const OPEN: u8 = 0x03;
    pub(super) const OPENED: u8 = 0x04;
    pub(super) const REFUSED: u8 = 0x05;
    pub(super) const DATA: u8 = 0x06;
    pub(super) const FIN: u8 = 0x07;
    pub(super) const RST: u8 = 0x08;
    pub(super) const WINDOW: u8 = 0x09;
    pub(super) const CREDIT: u8 = 0x0a;
    pub(super) const PING: u8 = 0x0b;
    pub(super) const PONG: u8 = 0x0c;
    pub(super) const GOAWAY: u8 = 0x0d;
    pub(super) const NOTICE: u8 = 0x0e;
    /// Other octets under the same number would break the link with an older node.
    pub(super) const CANDIDATES_ONCE: u8 = 0x0f;
    pub(super) const WARM: u8 = 0x10;
    /// Among what is ignored by those that do not know it.
    pub(super) const CANDIDATES: u8 = 0x40;
    pub(super) const IGNORED_FIRST: u8 = 0x41;
    pub(super) const IGNORED_LAST: u8 = 0x7f;
}

const ENTRY_ANSWERED: u8 = 1;
const ENTRY_RESET: u8 = 2;
const NOTICE_ABORT: u64 = 0;
const ENCODING_RAW: u8 = 0;

/// The bits of DATA's flags that may say something about its octets.
pub const HINTS: u8 = 0x0f;
/// Octets in a DATA frame: with its head it fills one TLS record, so that a lost segment holds back little, and a
/// person's frame waits behind at most one.
pub const DATA_OCTETS_MAX: usize = 16 * 1024 - 32;
/// What OPENED may tell.
pub const INFO_OCTETS_MAX: usize = 8 * 1024;
/// Entries in one RESUME; longer lists take several.
pub const ENTRIES_MAX: usize = 512;
/// What is taken of a newer version's frame, and held until it is whole.
pub const FRAME_OCTETS_MAX: usize = 64 * 1024 + 256;
