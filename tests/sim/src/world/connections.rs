//! Clients that come, origins that are opened, and how a connection ends.

use super::*;

impl World {
    pub(super) fn connect(&mut self, slot: usize) {
        if self.lines[slot].connected {
            return;
        }
        let node = self.lines[slot].node;
        if self.resting {
            return;
        }
        if self.sites[node].draining {
            self.soon(1_000_000, Event::Reconnect(slot));
            return;
        }
        let line = &mut self.lines[slot];
        line.connected = true;
        let (conn, server) = (line.conn, server_id(line.server));
        let arrival = Arrival { conn, server, road: session::Road::Tls, nonce: [1, 2, 3, 4, 5, 6] };
        self.inputs.push_back((node, conn, Input::Accepted(arrival)));
        self.soon(200_000, Event::ClientTurn(slot, conn));
    }

    pub(super) fn open(&mut self, slot: usize, anew: bool) {
        let line = &self.lines[slot];
        let (conn, rtt) = (line.conn, 4 * line.wan.delay_us);
        let parted = self.sites[line.node].parted_until[line.server] > self.now_us;
        let (node, server) = (line.node, line.server);
        if anew {
            self.lines[slot].origin = Origin::new(self.servers[server].manner);
            self.lines[slot].answer = Pipe::default();
            self.lines[slot].forward = Pipe::default();
            self.lines[slot].to_origin.clear();
            self.lines[slot].hung_up = false;
            self.totals.replaced += 1;
        }
        if !anew && self.random.once_in(3) {
            self.at(self.now_us + 1, Event::OriginReady(slot, conn, true));
        } else if parted {
            // Nothing comes back; the node has its own patience.
            self.lines[slot].excuse = Some("parted");
        } else if !self.resting && self.random.once_in(60) {
            self.lines[slot].excuse = Some("refused");
            let why = NoOrigin("refused");
            self.inputs.push_back((node, conn, Input::OriginFailed { conn, why }));
        } else {
            self.at(self.now_us + rtt, Event::OriginReady(slot, conn, false));
        }
    }

    pub(super) fn origin_ready(&mut self, slot: usize, conn: ConnId, parked: bool) {
        let may_forget = parked && !self.resting && self.random.once_in(3);
        let Some(line) = self.line(slot, conn) else { return };
        line.opened = true;
        line.parked = parked;
        let greeting = format!("* OK [CAPABILITY {}] ready\r\n", line.origin.capabilities()).into();
        let node = line.node;
        self.inputs.push_back((node, conn, Input::OriginOpened { conn, greeting, parked }));
        if may_forget {
            // The server had ended it; the news comes now.
            self.inputs.push_back((node, conn, Input::Broken { conn, side: Side::Server }));
        }
        self.origin_soon(slot, 1000);
    }

    /// Ends a line from outside; what it had is lost.
    pub(crate) fn sever(&mut self, slot: usize, side: Side, why: &'static str, quietly: bool) {
        let line = &mut self.lines[slot];
        if !line.connected || line.closed {
            return;
        }
        line.excuse = Some(why);
        let (node, conn) = (line.node, line.conn);
        let input = if quietly { Input::Finished { conn, side } } else { Input::Broken { conn, side } };
        self.inputs.push_back((node, conn, input));
    }

    /// The process of a node is gone, and with it its connections.
    pub(crate) fn node_gone(&mut self, node: usize, why: &'static str) {
        self.inputs.retain(|(at, ..)| *at != node);
        for slot in 0..self.lines.len() {
            if self.lines[slot].node == node && self.lines[slot].connected {
                self.lines[slot].excuse = Some(why);
                self.lines[slot].errands.clear();
                self.renew(slot);
            }
        }
        self.kept_gone(node);
        let servers = self.servers.len();
        let random = &mut self.random;
        let window = *random.pick(&[16 * 1024, 64 * 1024]);
        let site = &mut self.sites[node];
        site.window = window;
        site.node = new_node(random, window, servers);
        site.draining = false;
        site.woken_at = None;
    }

    /// Another client takes the slot.
    pub(super) fn renew(&mut self, slot: usize) {
        let node = self.lines[slot].node;
        let fresh = self.fresh_line(node);
        let line = std::mem::replace(&mut self.lines[slot], fresh);
        self.totals.replies += line.client.replies;
        self.totals.from_store += line.client.from_store;
        self.totals.ahead += line.client.told_ahead;
        self.totals.sessions += 1;
        self.soon(1_000_000, Event::Reconnect(slot));
    }

    /// The node has closed the connection, and the client has heard everything.
    pub(super) fn line_ends(&mut self, slot: usize) -> Result<(), Broken> {
        let (node, now) = (self.lines[slot].node, self.now_us);
        let errands: Vec<_> = self.lines[slot].errands.drain(..).collect();
        for op in errands {
            self.sites[node].store.handle(now, op);
        }
        let line = &self.lines[slot];
        let mourned = line.client.logged_out || line.excuse.is_some() || line.deceived;
        if !mourned {
            let asked = line.client.outstanding();
            return Err(self.broken(slot, Checker::NothingLost, format!("ended by itself; asked {asked}")));
        }
        if let Some(number) = line.number {
            let store = &self.sites[node].store;
            if store.fills_of(number) > 0 || store.has_claim(number) {
                let lie = "a session is over, and still holds a body or a claim in the store".to_owned();
                return Err(self.broken(slot, Checker::Budget, lie));
            }
        }
        if let Some(facts) = self.lines[slot].handing.take() {
            self.keep(slot, *facts)?;
        }
        self.renew(slot);
        Ok(())
    }

    pub(crate) fn broken(&self, slot: usize, checker: Checker, what: String) -> Broken {
        Broken { checker, what: format!("line {slot} at {:.3} s: {what}", self.now_us as f64 / 1e6) }
    }
}
