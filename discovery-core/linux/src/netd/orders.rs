//! Carries out what the engine orders, one order at a time.

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use discovery_core::engine::{Event, Output, Reason, Unreachable};
use discovery_core::flow::Flow;
use discovery_core::packet::forge::{datagram, refused, reset, syn_ack, unreachable};
use discovery_core::packet::{self, Acknowledged, View};
use discovery_core::probe::{Answer, Probe, Response};

use super::connects::Connects;
use super::look::Looker;
use super::probes::Probes;
use super::{Agent, NetdSettings, Ready};
use crate::marks;
use crate::socket::RawSender;

/// Ways for packets made here.
#[derive(Debug)]
pub(super) struct Senders {
    inject: RawSender,
    forge: RawSender,
    release: RawSender,
    asked: RawSender,
}

impl Senders {
    pub(super) fn open(settings: &NetdSettings) -> io::Result<Self> {
        Ok(Self {
            inject: RawSender::open(marks::INJECTED, settings.v6)?,
            forge: RawSender::open(marks::FORGED, settings.v6)?,
            // Tracked like any packet, and not queued once more where the machine's own SYNs are.
            release: RawSender::open(marks::ALONE, settings.v6)?,
            asked: RawSender::open(marks::ASKED, settings.v6)?,
        })
    }
}

impl Senders {
    /// Gives a client's SYN to the own stack.
    pub(super) fn inject(&self, flow: Flow, packet: &[u8]) -> io::Result<()> {
        self.inject.send(packet).inspect_err(
            |error| tracing::debug!(%flow, %error, "a client's SYN does not reach the own stack"),
        )
    }

    /// Sends what another machine would have said.
    pub(super) fn forge(&self, packet: &[u8]) -> io::Result<()> {
        self.forge.send(packet)
    }

    /// From now on every packet of the flow comes to the queue. The rules refuse the primer, as they should.
    pub(super) fn ask_for(&self, flow: Flow) {
        if let Ok(packet) = reset(flow.client, flow.server, 0)
            && self.asked.send(&packet).is_ok()
        {
            tracing::debug!(%flow, "the rules are out: nobody has noted it");
        }
    }

    /// Tells the client that its connection is over.
    pub(super) fn reset_client(&self, flow: Flow, seq: u32) -> io::Result<()> {
        self.forge.send(&reset(flow.server, flow.client, seq).map_err(io::Error::other)?)
    }
}

/// What followed at once.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) event: Option<Event>,
    pub(super) unsent: bool,
}

impl Outcome {
    fn sent(result: io::Result<()>, what: &'static str, flow: Flow) -> Self {
        if let Err(error) = &result {
            tracing::debug!(%flow, %error, what, "a packet made here was not sent");
        }
        Self { event: None, unsent: result.is_err() }
    }
}

#[allow(clippy::too_many_arguments, reason = "the parts of the loop, each used by some order")]
pub(super) fn obey(
    output: Output,
    connects: &mut Connects,
    probes: &mut Probes,
    looker: &mut Looker,
    senders: &Senders,
    agent: &mut impl Agent,
    settings: &NetdSettings,
    poll: BorrowedFd<'_>,
) -> Outcome {
    match output {
        Output::InjectSyn { flow, packet } => {
            let sent = agent.inject(flow, packet).map_or(Ok(()), |packet| senders.inject(flow, &packet));
            return Outcome { event: None, unsent: sent.is_err() };
        }
        Output::ProbeSyn { flow, packet } => {
            let packet = looker.asking(&packet);
            return Outcome::sent(senders.release.send(packet), "SYN kept back, with the query", flow);
        }
        Output::ReleaseSyn { flow, packet } => {
            return Outcome::sent(senders.release.send(&packet), "SYN kept back", flow);
        }
        Output::Connect { flow } => return Outcome { event: connects.begin(flow, poll), unsent: false },
        Output::Abandon { flow, why } => {
            if !connects.abandon(flow) {
                agent.abandon(flow, why);
            }
        }
        Output::AnswerProbe { flow, seq, ack, connected } => {
            return Outcome::sent(answer(senders, settings, flow, (seq, ack), connected), "answer", flow);
        }
        Output::AnswerByDatagram { flow, isn, connected } => {
            let sent = answer_by_datagram(senders, settings, flow, isn, connected);
            return Outcome::sent(sent, "datagram", flow);
        }
        Output::Reset { flow, seq, ack } => {
            let packet = match ack {
                // The answer to a SYN: its sequence number is 0 (RFC 9293 §3.10.7.1).
                Some(ack) => refused(&flow, ack.wrapping_sub(1)),
                None => reset(flow.server, flow.client, seq),
            };
            let sent = packet.map_err(io::Error::other).and_then(|packet| senders.forge.send(&packet));
            return Outcome::sent(sent, "reset", flow);
        }
        Output::ResetServer { flow, seq } => {
            let packet = reset(flow.client, flow.server, seq).map_err(io::Error::other);
            return Outcome::sent(packet.and_then(|packet| senders.forge.send(&packet)), "reset", flow);
        }
        Output::Unreachable { flow, what, packet } => {
            let what = match what {
                Unreachable::Network => packet::Unreachable::Network,
                Unreachable::Host => packet::Unreachable::Host,
                Unreachable::Port => packet::Unreachable::Port,
                Unreachable::Prohibited => packet::Unreachable::Prohibited,
            };
            let made = View::parse(&packet)
                .map_err(io::Error::other)
                .and_then(|view| unreachable(&view, what, None).map_err(io::Error::other));
            return Outcome::sent(made.and_then(|made| senders.forge.send(&made)), "ICMP error", flow);
        }
        Output::Open { flow, peer } => agent.open(flow, peer),
        Output::Single { flow } => agent.single(flow),
        Output::Abort { flow, why } => agent.abort(flow, why),
        Output::ClaimReady { flow, onward: Some(peer) } => agent.claim_ready(flow, Ready::Onward(peer)),
        Output::ClaimReady { flow, onward: None } => match connects.take(flow) {
            Some(connection) => agent.claim_ready(flow, Ready::Here(connection)),
            None => {
                agent.claim_failed(flow, Reason::Closed);
                return Outcome { event: Some(Event::Closed { flow }), unsent: false };
            }
        },
        Output::ClaimFailed { flow, why } => agent.claim_failed(flow, why),
        Output::AbortOnward { flow, next, isn } => agent.abort_onward(flow, next, isn),
        Output::SendProbe { server, to } => {
            let sent = probes
                .make(server, to, &settings.codec)
                .and_then(|(flow, packet)| senders.release.send(&packet).map(|()| flow));
            // Without a way to ask, nobody is there; else an answer comes, or the engine waits in vain.
            let event = sent.is_err().then_some(Event::Probed { server, answer: None });
            return Outcome { event, unsent: sent.is_err() };
        }
        Output::Learnt(row) => agent.learnt(row),
    }
    Outcome::default()
}

fn answer(
    senders: &Senders,
    settings: &NetdSettings,
    flow: Flow,
    (seq, ack): (u32, u32),
    connected: bool,
) -> io::Result<()> {
    let option = settings.codec.encode(&Probe::Response(response(settings, flow, connected)?));
    let packet = syn_ack(&flow, ack, Acknowledged::Isn, seq, option.octets()).map_err(io::Error::other)?;
    senders.forge.send(&packet)
}

fn answer_by_datagram(
    senders: &Senders,
    settings: &NetdSettings,
    flow: Flow,
    isn: u32,
    connected: bool,
) -> io::Result<()> {
    let answer = Answer { flow, isn, response: response(settings, flow, connected)? };
    let at = |ip| SocketAddr::new(ip, settings.probe_port);
    let (from, to) = (at(flow.server.ip()), at(flow.client.ip()));
    let packet = datagram(from, to, &settings.codec.encode_datagram(&answer)).map_err(io::Error::other)?;
    senders.forge.send(&packet)
}

fn response(settings: &NetdSettings, flow: Flow, connected: bool) -> io::Result<Response> {
    let (v4, v6) = settings.link;
    let link = if flow.client.is_ipv4() { v4.or(v6) } else { v6.or(v4) };
    let link = link.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no link to tell of"))?;
    Ok(Response { link, key: settings.key, connected })
}
