//! What the nodes are told, and what they want done.

use super::*;

impl World {
    /// Lets the nodes do all that follows from what has happened.
    pub(super) fn work(&mut self) -> Result<(), Broken> {
        while let Some((node, conn, input)) = self.inputs.pop_front() {
            let now = self.now(node);
            if let Input::Octets { side, octets, .. } = &input {
                let who = if *side == Side::Client { "C->" } else { "    <-S" };
                let slot = self.slot_of(conn).unwrap_or(usize::MAX);
                self.trace.note(self.now_us, slot, who, octets);
            }
            self.sites[node].node.handle(now, input);
            while let Some(output) = self.sites[node].node.poll_output() {
                self.obey(output)?;
            }
            if let Some(slot) = self.slot_of(conn) {
                self.check_budget(slot)?;
                self.offer(slot);
            }
            if self.inputs.is_empty() {
                self.wake(node);
            }
        }
        Ok(())
    }

    pub(super) fn slot_of(&self, conn: ConnId) -> Option<usize> {
        self.lines.iter().position(|line| line.conn == conn)
    }

    pub(super) fn wake(&mut self, node: usize) {
        let start = self.start;
        let site = &mut self.sites[node];
        let Some(due) = site.node.poll_timeout() else { return };
        let us = u64::try_from(due.saturating_duration_since(start).as_micros()).unwrap() + 1;
        if site.woken_at.is_none_or(|at| at > us) {
            site.woken_at = Some(us);
            self.at(us, Event::Tick(node));
        }
    }

    pub(super) fn check_budget(&mut self, slot: usize) -> Result<(), Broken> {
        let line = &self.lines[slot];
        let site = &self.sites[line.node];
        let Some((client, origin)) = site.node.waiting(line.conn) else { return Ok(()) };
        let beyond = client.max(origin).saturating_sub(site.window);
        self.totals.waiting_max = self.totals.waiting_max.max(beyond);
        if beyond > BEYOND_WINDOW_MAX {
            let lie = format!("{beyond} octets wait beyond the window of {}", site.window);
            return Err(self.broken(slot, Checker::Budget, lie));
        }
        Ok(())
    }

    pub(super) fn obey(&mut self, output: Output) -> Result<(), Broken> {
        let conn = match &output {
            Output::Open { conn, .. }
            | Output::Write { conn, .. }
            | Output::WriteFrom { conn, .. }
            | Output::Catalog { conn, .. }
            | Output::StartTls { conn }
            | Output::Deflate { conn, .. }
            | Output::Close { conn }
            | Output::HandOver { conn, .. }
            | Output::Count { conn, .. } => *conn,
        };
        let Some(slot) = self.slot_of(conn) else { return Ok(()) };
        let tick = self.servers[self.lines[slot].server].mail.tick;
        match output {
            Output::Open { anew, .. } => self.open(slot, anew),
            Output::Write { side: Side::Client, octets, .. } => {
                self.lines[slot].seen.told(&octets);
                self.lines[slot].to_client.push_back(Written::Octets(tick, octets));
                self.tell_on(slot);
            }
            Output::Write { side: Side::Server, octets, .. } => {
                self.trace.note(self.now_us, slot, "    ->S", &octets);
                let line = &mut self.lines[slot];
                if !line.deceived
                    && let Err(lie) = line.seen.forwarded(&octets)
                {
                    return Err(self.broken(slot, Checker::Seen, lie));
                }
                line.to_origin.push_back(octets);
                self.forward_on(slot);
            }
            Output::WriteFrom { reader, offset, octets, .. } => {
                self.lines[slot].to_client.push_back(Written::From(tick, reader, offset, octets));
                self.tell_on(slot);
            }
            Output::Catalog { op, .. } => {
                if let CatalogOp::FillOpen { fill, .. } = &op {
                    self.lines[slot].number = Some(fill.session);
                }
                self.lines[slot].errands.push_back(op);
                self.store_on(slot);
            }
            Output::StartTls { .. } | Output::Deflate { .. } => {
                return Err(self.broken(slot, Checker::Transcript, "nobody wanted that".into()));
            }
            Output::Close { .. } => return self.closed(slot, None),
            Output::HandOver { facts, ahead, .. } => {
                self.lines[slot].ahead = ahead;
                return self.closed(slot, Some(facts));
            }
            Output::Count { what, .. } => self.counted(slot, &what)?,
        }
        Ok(())
    }

    /// The node is done with the client, and with the origin unless it keeps it.
    fn closed(&mut self, slot: usize, facts: Option<Box<Facts>>) -> Result<(), Broken> {
        self.lines[slot].closed = true;
        self.lines[slot].handing = facts;
        if self.lines[slot].tell.black_hole {
            return self.line_ends(slot);
        }
        self.put(slot, Way::Tell, Segment { last: true, ..Segment::default() });
        Ok(())
    }

    pub(super) fn counted(&mut self, slot: usize, what: &Count) -> Result<(), Broken> {
        self.trace.event(self.now_us, slot, what);
        if let Count::Event(event) = what {
            self.house_hears(self.lines[slot].node, event)?;
        }
        let line = &mut self.lines[slot];
        match what {
            Count::Ended(how) => {
                match how {
                    Ended::Done => {}
                    // The client must go because of others; the other words are for what nobody did.
                    Ended::Drained => drop(line.excuse.get_or_insert("drained")),
                    Ended::Full => drop(line.excuse.get_or_insert("full")),
                    Ended::IdleBeforeLogin => drop(line.excuse.get_or_insert("idle before login")),
                    Ended::NoOrigin
                    | Ended::OriginLost
                    | Ended::ClientGarbled
                    | Ended::OriginGarbled
                    | Ended::StartTlsSurplus
                    | Ended::StartTlsFailed
                    | Ended::StoreLost
                    | Ended::Stuck => {}
                }
                *self.totals.ended.entry(format!("{how:?}")).or_default() += 1;
            }
            Count::Event(Learned::Desync(why) | Learned::Tunnel(why)) if !line.deceived => {
                let lie = format!("gave up on an honest server: {why}");
                return Err(self.broken(slot, Checker::Transcript, lie));
            }
            Count::Event(Learned::Unread) if !line.deceived => {
                let lie = "a FETCH response was not understood".to_owned();
                return Err(self.broken(slot, Checker::Transcript, lie));
            }
            Count::Accepted
            | Count::OriginReplaced
            | Count::OpenFailed(_)
            | Count::NobodyThere
            | Count::Event(_) => {}
        }
        Ok(())
    }

    /// The operator lets a node come to rest.
    pub(crate) fn order(&mut self, node: usize, after: Duration) -> Result<(), Broken> {
        let by = self.now(node).mono + after;
        self.sites[node].draining = true;
        self.inputs.push_back((node, ConnId(0), Input::Operator(Order::DrainBy(by))));
        let gone = self.now_us + u64::try_from(after.as_micros()).unwrap() + 6_000_000;
        self.at(gone, Event::Restarted(node));
        self.drain_kept(node)
    }

    /// The receiver of this line is there no more, and nobody says so.
    pub(crate) fn vanish(&mut self, slot: usize) {
        let line = &mut self.lines[slot];
        if line.connected && !line.closed {
            line.tell.black_hole = true;
            line.hung_up = true;
            line.excuse = Some("vanished");
        }
    }
}
