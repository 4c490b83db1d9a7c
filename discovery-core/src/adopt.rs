//! Taking a live connection over in its middle (US 9,172,620: 'observing the current protocol parameters in the active
//! session e.g. sequence numbers advertised window and so forth'). Whoever forwards its packets shows each to an
//! [`Observation`]; at a moment at which everything under way is known, [`Observation::cut`] says with which numbers two
//! sockets, one towards each end, go on where the ends are.
//!
//! What has been forwarded and not been acknowledged is kept: the new sockets must be able to send it again. Nothing is
//! held up meanwhile, so that nobody notices the cut.

mod passed;
mod shadow;
pub mod split;
pub mod tracked;

pub use passed::{Passed, decode, encode};

use crate::{
    flow::Flow,
    mutants,
    packet::flags::{ACK, FIN, RST, SYN, URG},
    packet::{Item, SynFacts, Tcp, Timestamps},
    reason::Reason,
};
use shadow::{Shadow, behind};
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

/// What the two SYNs settled, and nobody says again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Terms {
    /// The largest segment that both take.
    pub mss: u16,
    /// By how many bits the client's and the server's windows are to be shifted; none: not at all.
    pub scale: Option<(u8, u8)>,
    /// Both understand selective acknowledgements.
    pub sack: bool,
}

impl Terms {
    /// Out of both SYNs.
    #[must_use]
    pub fn of(client: &SynFacts, server: &SynFacts, v4: bool) -> Self {
        let default = if v4 { 536 } else { 1220 };
        let mss = client.mss.unwrap_or(default).min(server.mss.unwrap_or(default));
        Self {
            mss: mss.max(MSS_MIN),
            scale: client.window_scale.zip(server.window_scale),
            sack: client.sack_permitted && server.sack_permitted,
        }
    }

    /// The same, with the other end as the client.
    #[must_use]
    pub fn turned(self) -> Self {
        Self { scale: self.scale.map(|(client, server)| (server, client)), ..self }
    }
}

/// A packet of the connection that was forwarded, or is about to be.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// Sent by the client.
    pub up: bool,
    /// Its sequence number.
    pub seq: u32,
    /// Its acknowledgement number.
    pub ack: u32,
    /// Its flags, as [`Tcp::flags`] has them.
    pub flags: u8,
    /// Its window, not scaled.
    pub window: u16,
    /// Its timestamps.
    pub timestamps: Option<Timestamps>,
    /// The end of the furthest octets that it acknowledges behind a gap (RFC 2018).
    pub sacked: Option<u32>,
    /// What it carries.
    pub payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Of a packet.
    #[must_use]
    pub fn of(tcp: &Tcp<'a>, up: bool) -> Self {
        Self {
            up,
            seq: tcp.seq(),
            ack: tcp.ack(),
            flags: tcp.flags(),
            window: tcp.window(),
            timestamps: tcp.syn_facts().timestamps,
            sacked: sacked(tcp),
            payload: tcp.payload(),
        }
    }
}

/// The furthest right edge of a block beyond the acknowledgement; one before it tells of octets that came twice (RFC
/// 2883).
fn sacked(tcp: &Tcp<'_>) -> Option<u32> {
    let blocks = tcp.options().filter_map(|item| match item {
        Item::Option(option) if option.kind == SACK => Some(option.body()),
        Item::Option(_) | Item::Nop | Item::End | Item::Malformed => None,
    });
    let ends = blocks.flat_map(|body| body.chunks_exact(8)).filter_map(|block| block.last_chunk::<4>());
    let ends = ends.map(|end| u32::from_be_bytes(*end)).filter(|end| behind(tcp.ack(), *end));
    ends.max_by_key(|end| end.wrapping_sub(tcp.ack()))
}

/// What is known of a connection whose packets pass.
#[derive(Clone, Debug)]
pub struct Observation {
    /// None until somebody says.
    terms: Option<Terms>,
    up: Way,
    down: Way,
    since: Instant,
    /// Everything under way was known once, and every packet has been seen since.
    sure: bool,
}

/// One direction.
#[derive(Clone, Debug, Default)]
struct Way {
    /// One past the highest octet that was forwarded.
    next: Option<u32>,
    /// The highest number that its receiver acknowledged.
    acked: Option<u32>,
    /// Its receiver has octets behind a gap, as it said last.
    gap: bool,
    /// The window that its sender announced last.
    window: u16,
    /// Its sender's clock, and when that was read.
    clock: Option<(u32, Instant)>,
    shadow: Shadow,
}

/// A socket that goes on in the middle of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Half {
    /// In whose name it speaks.
    pub local: SocketAddr,
    /// To whom.
    pub remote: SocketAddr,
    /// What `local` has sent and `remote` not acknowledged.
    pub unacknowledged: Vec<u8>,
    /// The sequence number of its first octet.
    pub first: u32,
    /// What `local` expects next from `remote`.
    pub expects: u32,
    /// The shifts of `remote`'s windows and of `local`'s.
    pub scale: Option<(u8, u8)>,
    /// The window that `remote` has announced, in octets.
    pub their_window: u32,
    /// The window that `local` has announced, in octets, or a little more.
    pub our_window: u32,
    /// The largest segment.
    pub mss: u16,
    /// Selective acknowledgements are understood.
    pub sack: bool,
    /// `local`'s clock, which must not go backwards; none: no timestamps.
    pub clock: Option<u32>,
}

/// Both sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Speaks to the client in the server's name.
    pub to_client: Half,
    /// Speaks to the server in the client's name.
    pub to_server: Half,
}

impl Observation {
    /// Begins; nothing is known yet.
    #[must_use]
    pub fn begin(now: Instant, terms: Terms) -> Self {
        Self { terms: Some(terms), ..Self::without_terms(now) }
    }

    /// The same, where somebody else is still to say what the SYNs settled. There is no moment before.
    fn without_terms(now: Instant) -> Self {
        Self { terms: None, up: Way::default(), down: Way::default(), since: now, sure: false }
    }

    /// Takes note of a packet.
    ///
    /// # Errors
    /// Why the connection cannot be adopted.
    pub fn see(&mut self, now: Instant, segment: &Segment<'_>) -> Result<(), Reason> {
        if segment.flags & (FIN | SYN | RST) != 0 {
            return Err(Reason::AdoptEnding);
        }
        // Urgent data would lose its place; what acknowledges nothing is no packet of a connection that stands.
        if segment.flags & (ACK | URG) != ACK {
            return Err(Reason::AdoptUnsteady);
        }
        // A receiver that cannot say so may have octets beyond all that was seen.
        if self.terms.is_some_and(|terms| !terms.sack) {
            return Err(Reason::AdoptUnsteady);
        }
        let (own, other) =
            if segment.up { (&mut self.up, &mut self.down) } else { (&mut self.down, &mut self.up) };
        own.window = segment.window;
        if let Some(Timestamps { value, .. }) = segment.timestamps
            && own.clock.is_none_or(|(before, _)| !behind(value, before))
        {
            own.clock = Some((value, now));
        }
        let octets = u32::try_from(segment.payload.len()).unwrap_or(u32::MAX);
        let end = segment.seq.wrapping_add(octets);
        if own.next.is_none_or(|next| behind(next, end)) {
            own.next = Some(end);
        }
        own.shadow.sent(segment.seq, segment.payload);
        if other.acked.is_none_or(|acked| behind(acked, segment.ack)) {
            other.acked = Some(segment.ack);
            other.shadow.acked(segment.ack);
        }
        // What was sent before anybody looked shows in what is acknowledged, in order or behind a gap.
        for shown in [Some(segment.ack), segment.sacked].into_iter().flatten() {
            if other.next.is_some_and(|next| behind(next, shown)) {
                other.next = Some(shown);
            }
        }
        if other.acked == Some(segment.ack) {
            other.gap = segment.sacked.is_some();
        }
        if self.octets() > OCTETS_MAX {
            return Err(Reason::AdoptFull);
        }
        if now.saturating_duration_since(self.since) > OBSERVE_MAX {
            return Err(Reason::AdoptUnsteady);
        }
        Ok(())
    }

    /// Whether it has been observed in vain.
    #[must_use]
    pub fn expired(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) > OBSERVE_MAX
    }

    /// How many octets it keeps.
    #[must_use]
    pub fn octets(&self) -> usize {
        self.up.shadow.octets() + self.down.shadow.octets()
    }

    /// Whether everything under way is known: in both directions what was forwarded last is what is kept last, without a
    /// gap, and begins where it was acknowledged.
    #[must_use]
    pub fn is_steady(&self, now: Instant) -> bool {
        (now.saturating_duration_since(self.since) >= OBSERVE_MIN || mutants::on("adopt-at-once"))
            && self.up.whole().is_some()
            && self.down.whole().is_some()
    }

    /// Remembers that this was a moment at which everything under way was known.
    fn settle(&mut self, now: Instant) {
        self.sure |= self.is_steady(now);
    }

    /// Two sockets that go on from here, if everything under way is known.
    #[must_use]
    pub fn cut(&self, now: Instant, flow: Flow) -> Option<Cut> {
        if !self.is_steady(now) {
            return None;
        }
        let (up, down) = (self.up.whole()?, self.down.whole()?);
        Some(Cut {
            to_client: self.to_client(now, flow, down, up.1)?,
            to_server: self.to_server(now, flow, up, down.1)?,
        })
    }

    /// The socket that speaks to the client, which has everything before `expects` from it.
    fn to_client(&self, now: Instant, flow: Flow, under_way: (u32, u32), expects: u32) -> Option<Half> {
        let (scale, back) = (self.terms?.scale, self.terms?.turned().scale);
        let windows = (scaled(&self.up, scale), scaled(&self.down, back));
        self.half(now, (flow.server, flow.client), &self.down, under_way, expects, scale, windows)
    }

    /// The one that speaks to the server.
    fn to_server(&self, now: Instant, flow: Flow, under_way: (u32, u32), expects: u32) -> Option<Half> {
        let (scale, back) = (self.terms?.scale, self.terms?.turned().scale);
        let windows = (scaled(&self.down, back), scaled(&self.up, scale));
        self.half(now, (flow.client, flow.server), &self.up, under_way, expects, back, windows)
    }

    #[allow(clippy::too_many_arguments, reason = "what differs between the two sockets")]
    fn half(
        &self,
        now: Instant,
        (local, remote): (SocketAddr, SocketAddr),
        way: &Way,
        (first, _): (u32, u32),
        expects: u32,
        scale: Option<(u8, u8)>,
        (their_window, our_window): (u32, u32),
    ) -> Option<Half> {
        let Terms { mss, sack, .. } = self.terms?;
        let clocks = self.up.clock.is_some() && self.down.clock.is_some();
        Some(Half {
            local,
            remote,
            unacknowledged: way.shadow.copy(),
            first,
            expects,
            scale,
            their_window,
            our_window: our_window.max(0xffff),
            mss,
            sack,
            clock: way.clock.filter(|_| clocks).map(|(value, at)| {
                let since = now.saturating_duration_since(at).as_millis();
                // At least a tick further, and never back: the fastest clock in use counts milliseconds.
                value.wrapping_add(u32::try_from(since).unwrap_or(0)).wrapping_add(2)
            }),
        })
    }
}

/// The window that the sender of `way` has announced; it shifts by the first of these.
fn scaled(way: &Way, scale: Option<(u8, u8)>) -> u32 {
    u32::from(way.window) << scale.map_or(0, |(own, _)| own).min(14)
}

impl Way {
    /// The first number that is not acknowledged, and the next to be sent; none while anything between is not known.
    fn whole(&self) -> Option<(u32, u32)> {
        // Not all blocks behind a gap fit an acknowledgement: only one without any tells all that has arrived.
        if self.gap && !mutants::on("adopt-behind-a-gap") {
            return None;
        }
        self.known(false)
    }

    /// The same; `sure`: nothing older is under way.
    fn known(&self, sure: bool) -> Option<(u32, u32)> {
        let (next, acked) = (self.next?, self.acked?);
        match self.shadow.ends() {
            // An acknowledgement of what was kept shows that nothing older is under way.
            Some((first, end)) => {
                let certain =
                    sure || self.shadow.confirmed() || first == end || mutants::on("adopt-unconfirmed");
                (first == acked && end == next && certain).then_some((first, end))
            }
            None => (acked == next).then_some((acked, next)),
        }
    }
}

/// The option's kind.
const SACK: u8 = 5;

/// RFC 879 and every stack since.
const MSS_MIN: u16 = 88;
/// What was sent before anybody looked is acknowledged, or sent again, by then.
const OBSERVE_MIN: Duration = Duration::from_millis(500);
/// Packets of an observed connection go a slow way.
const OBSERVE_MAX: Duration = Duration::from_secs(10);
/// Of one connection; more than this under way is a line that needs no help.
const OCTETS_MAX: usize = 32 << 20;

#[cfg(test)]
mod tests;
