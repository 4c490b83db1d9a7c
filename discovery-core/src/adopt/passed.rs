//! Connections whose SYNs were seen and which went past: what they settled is needed when they are adopted later, and
//! outlives the process, for it is after a restart that they are.
//!
//! ```text
//! octet  0        4        8
//!        'WPF' 1  count    rows
//! row    family   1  4 | 6      client  address  port, 2      server  address  port, 2
//!        mss 2    scale of the client 1, of the server 1 (255: none)    flags 1 (1: selective acknowledgements)
//!        seen 8 (milliseconds since 1970)
//! ```

use super::Terms;
use crate::{
    flow::Flow,
    lru::Lru,
    now::UnixMillis,
    octets::{Reader, put_socket},
    packet::SynFacts,
};
use std::time::Duration;

/// The table. Bounded: the connection longest not asked for goes first.
#[derive(Clone, Debug)]
pub struct Passed {
    syns: Lru<Flow, (u32, SynFacts)>,
    terms: Lru<Flow, (Terms, UnixMillis)>,
}

impl Default for Passed {
    fn default() -> Self {
        Self { syns: Lru::new(SYNS_MAX), terms: Lru::new(Self::FLOWS_MAX) }
    }
}

impl Passed {
    /// So many connections are known at once.
    pub const FLOWS_MAX: usize = 16_384;

    /// A client's SYN went past.
    pub fn syn(&mut self, flow: Flow, seq: u32, facts: SynFacts) {
        self.syns.insert(flow, (seq, facts));
    }

    /// Its server's answer went past.
    pub fn syn_ack(&mut self, wall: UnixMillis, flow: Flow, ack: u32, facts: &SynFacts) {
        let Some((seq, client)) = self.syns.peek(&flow) else { return };
        if seq.wrapping_add(1) == ack {
            let terms = Terms::of(client, facts, flow.client.is_ipv4());
            self.terms.insert(flow, (terms, wall));
        }
    }

    /// What this connection settled.
    pub fn terms(&mut self, flow: &Flow) -> Option<Terms> {
        self.terms.touch(flow).map(|(terms, _)| *terms)
    }

    /// All of them, for whoever keeps them.
    #[must_use]
    pub fn rows(&self) -> Vec<(Flow, Terms, UnixMillis)> {
        self.terms.iter().map(|(flow, (terms, seen))| (*flow, *terms, *seen)).collect()
    }

    /// Takes back what an earlier process kept. A day later the same client may have another connection from the same
    /// port.
    pub fn restore(&mut self, wall: UnixMillis, rows: &[(Flow, Terms, UnixMillis)]) {
        for (flow, terms, seen) in rows {
            // What was seen in the future was seen by another clock, and would be fresh for ever.
            if *seen <= wall && wall.since(*seen) < KEPT_FOR {
                self.terms.insert(*flow, (*terms, *seen));
            }
        }
    }
}

/// The rows as octets.
#[must_use]
pub fn encode(rows: &[(Flow, Terms, UnixMillis)]) -> Vec<u8> {
    let rows = rows.get(..Passed::FLOWS_MAX).unwrap_or(rows);
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&u32::try_from(rows.len()).unwrap_or(0).to_be_bytes());
    for (flow, terms, seen) in rows {
        out.push(if flow.client.is_ipv4() { 4 } else { 6 });
        put_socket(&mut out, flow.client);
        put_socket(&mut out, flow.server);
        out.extend_from_slice(&terms.mss.to_be_bytes());
        let (client, server) = terms.scale.unwrap_or((UNSCALED, UNSCALED));
        out.extend_from_slice(&[client, server, u8::from(terms.sack)]);
        out.extend_from_slice(&seen.0.to_be_bytes());
    }
    out
}

/// The rows of what [`encode`] made; none when it is anything else.
#[must_use]
pub fn decode(octets: &[u8]) -> Option<Vec<(Flow, Terms, UnixMillis)>> {
    let mut reader = Reader::new(octets);
    if reader.take::<4>()? != *MAGIC {
        return None;
    }
    let count = usize::try_from(reader.u32()?).ok().filter(|count| *count <= Passed::FLOWS_MAX)?;
    let mut rows = Vec::new();
    for _ in 0..count {
        let flow = match reader.u8()? {
            4 => Flow { client: reader.socket_v4()?, server: reader.socket_v4()? },
            6 => Flow { client: reader.socket_v6()?, server: reader.socket_v6()? },
            _ => return None,
        };
        let mss = reader.u16()?;
        let scale = match (reader.u8()?, reader.u8()?) {
            (UNSCALED, UNSCALED) => None,
            (client, server) if client <= 14 && server <= 14 => Some((client, server)),
            (_, _) => return None,
        };
        let sack = match reader.u8()? {
            0 => false,
            1 => true,
            _ => return None,
        };
        let seen = UnixMillis(i64::from_be_bytes(reader.take()?));
        rows.push((flow, Terms { mss, scale, sack }, seen));
    }
    reader.is_empty().then_some(rows)
}

const MAGIC: &[u8; 4] = b"WPF\x01";
const UNSCALED: u8 = 255;
/// SYNs that wait for their answers.
const SYNS_MAX: usize = 4096;
const KEPT_FOR: Duration = Duration::from_secs(24 * 3600);
