//! The TCP header of a packet (RFC 9293 §3.1).

use super::{
    Options, SynFacts,
    flags::{ACK, FIN, RST, SYN},
};

/// The TCP header of a packet.
#[derive(Clone, Copy, Debug)]
pub struct Tcp<'a> {
    header: &'a [u8; HEADER_OCTETS],
    options: &'a [u8],
    payload: &'a [u8],
}

/// What a segment is for a connection's beginning and end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// SYN without ACK.
    Syn,
    /// SYN with ACK.
    SynAck,
    /// RST, with or without ACK.
    Rst,
    /// FIN, data, acknowledgements, and combinations that no stack sends.
    Other,
}

impl<'a> Tcp<'a> {
    pub(super) fn parse(octets: &'a [u8]) -> Option<Self> {
        let header = octets.first_chunk::<HEADER_OCTETS>()?;
        let [_, _, _, _, _, _, _, _, _, _, _, _, offset, ..] = *header;
        let header_octets = usize::from(offset >> 4) * 4;
        let options = octets.get(HEADER_OCTETS..header_octets)?;
        let payload = octets.get(header_octets..)?;
        Some(Self { header, options, payload })
    }

    /// The sequence number; of a SYN the client's initial one.
    #[must_use]
    pub fn seq(&self) -> u32 {
        let [_, _, _, _, a, b, c, d, ..] = *self.header;
        u32::from_be_bytes([a, b, c, d])
    }

    /// The acknowledgement number, meaningful with ACK only.
    #[must_use]
    pub fn ack(&self) -> u32 {
        let [_, _, _, _, _, _, _, _, a, b, c, d, ..] = *self.header;
        u32::from_be_bytes([a, b, c, d])
    }

    /// FIN, SYN, RST, PSH, ACK, URG, ECE, CWR from the lowest bit up.
    #[must_use]
    pub fn flags(&self) -> u8 {
        let [_, _, _, _, _, _, _, _, _, _, _, _, _, flags, ..] = *self.header;
        flags
    }

    /// The window as it stands there, not scaled.
    #[must_use]
    pub fn window(&self) -> u16 {
        let [_, _, _, _, _, _, _, _, _, _, _, _, _, _, a, b, ..] = *self.header;
        u16::from_be_bytes([a, b])
    }

    /// What it is for a connection's beginning and end.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match (self.flags() & RST != 0, self.flags() & (SYN | ACK | FIN)) {
            (true, _) => Kind::Rst,
            (false, SYN) => Kind::Syn,
            (false, SYN_ACK) => Kind::SynAck,
            (false, _) => Kind::Other,
        }
    }

    /// Its options.
    #[must_use]
    pub fn options(&self) -> Options<'a> {
        Options::new(self.options)
    }

    /// The octets of its options, filling too: a multiple of four, at most 40.
    #[must_use]
    pub fn options_octets(&self) -> &'a [u8] {
        self.options
    }

    /// What a SYN or SYN-ACK says about the connection.
    #[must_use]
    pub fn syn_facts(&self) -> SynFacts {
        SynFacts::of(self.options())
    }

    /// What it carries; a SYN too may (RFC 7413).
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// The fixed part of a TCP header.
pub(super) const HEADER_OCTETS: usize = 20;

pub(super) const SYN_ACK: u8 = SYN | ACK;
