//! What moves between clients, nodes and origins.

use super::*;

impl World {
    pub(super) fn arrive(&mut self, slot: usize, conn: ConnId, way: Way) -> Result<(), Broken> {
        let Some(line) = self.line(slot, conn) else { return Ok(()) };
        let pipe = match way {
            Way::Ask => &mut line.ask,
            Way::Tell => &mut line.tell,
            Way::Forward => &mut line.forward,
            Way::Answer => &mut line.answer,
        };
        pipe.arrive();
        match way {
            Way::Ask | Way::Answer => {}
            Way::Tell => return self.client_hears(slot),
            Way::Forward => {
                while let Some(segment) = self.lines[slot].forward.take() {
                    self.lines[slot].origin.receive(&segment.octets);
                }
                self.forward_on(slot);
                self.origin_soon(slot, 2000);
            }
        }
        // The node reads what has come when it wants to.
        self.offer(slot);
        Ok(())
    }

    /// Gives the node what has come, as far as it reads.
    pub(super) fn offer(&mut self, slot: usize) {
        let line = &mut self.lines[slot];
        if !line.connected || line.closed {
            return;
        }
        let (node, conn) = (line.node, line.conn);
        let site = &self.sites[node];
        if !line.ask.inbox.is_empty()
            && site.node.reads(conn, Side::Client)
            && let Some(segment) = line.ask.take()
        {
            let input = Input::Octets { conn, side: Side::Client, octets: segment.octets };
            self.inputs.push_back((node, conn, input));
            return self.ask_on(slot);
        }
        let line = &mut self.lines[slot];
        if !line.answer.inbox.is_empty()
            && site_reads_origin(&self.sites[node], conn)
            && let Some(segment) = line.answer.take()
        {
            let clock = Duration::from_micros(self.now_us);
            let tick = self.servers[line.server].mail.tick;
            for mark in segment.marks {
                line.canary.proved(&mark, &self.servers[line.server].mail);
                line.reached.take(mark, clock, tick);
            }
            let input = if segment.octets.is_empty() && segment.last {
                Input::Finished { conn, side: Side::Server }
            } else {
                Input::Octets { conn, side: Side::Server, octets: segment.octets }
            };
            self.inputs.push_back((node, conn, input));
            self.answer_on(slot);
        }
    }

    pub(super) fn put(&mut self, slot: usize, way: Way, segment: Segment) {
        let now = self.now_us;
        let line = &mut self.lines[slot];
        let (pipe, road) = match way {
            Way::Ask => (&mut line.ask, line.lan),
            Way::Tell => (&mut line.tell, line.lan),
            Way::Forward => (&mut line.forward, line.wan),
            Way::Answer => (&mut line.answer, line.wan),
        };
        if matches!(way, Way::Forward | Way::Answer) {
            pipe.blocked_until = self.sites[line.node].parted_until[line.server];
        }
        let arrives = pipe.send(now, road, segment);
        let conn = line.conn;
        self.at(arrives, Event::Arrive(slot, conn, way));
    }

    pub(super) fn ask_on(&mut self, slot: usize) {
        while self.lines[slot].ask.room() > 0 && !self.lines[slot].asked.is_empty() {
            let n = some(&mut self.random);
            let line = &mut self.lines[slot];
            let octets: Vec<u8> = line.asked.drain(..n.min(line.asked.len())).collect();
            self.put(slot, Way::Ask, Segment { octets: octets.into(), ..Segment::default() });
        }
    }

    pub(super) fn answer_on(&mut self, slot: usize) {
        while self.lines[slot].answer.room() > 0 && self.lines[slot].origin.has_output() {
            let n = some(&mut self.random);
            let (octets, marks) = self.lines[slot].origin.take_output(n);
            self.put(slot, Way::Answer, Segment { octets: octets.into(), marks, ..Segment::default() });
        }
        let line = &self.lines[slot];
        if (line.origin.said_bye || line.origin.is_gone) && !line.origin.has_output() && !line.hung_up {
            self.lines[slot].hung_up = true;
            self.put(slot, Way::Answer, Segment { last: true, ..Segment::default() });
        }
    }

    pub(super) fn forward_on(&mut self, slot: usize) {
        while self.lines[slot].forward.room() > 0 && !self.lines[slot].to_origin.is_empty() {
            let n = some(&mut self.random);
            let line = &mut self.lines[slot];
            let Some(front) = line.to_origin.front_mut() else { return };
            let octets = front.split_to(n.min(front.len()));
            let done = front.is_empty();
            if done {
                line.to_origin.pop_front();
            }
            let (node, conn, n) = (line.node, line.conn, octets.len());
            let wrote = Input::Wrote { conn, side: Side::Server, octets: n, pieces: usize::from(done) };
            self.inputs.push_back((node, conn, wrote));
            self.put(slot, Way::Forward, Segment { octets, ..Segment::default() });
        }
    }

    pub(super) fn tell_on(&mut self, slot: usize) {
        while self.lines[slot].tell.room() > 0 {
            let n = some(&mut self.random);
            let line = &mut self.lines[slot];
            let (node, conn) = (line.node, line.conn);
            let Some(front) = line.to_client.front_mut() else { break };
            let (octets, said, done, counted) = match front {
                Written::Octets(said, octets) => {
                    let piece = octets.split_to(n.min(octets.len()));
                    let n = piece.len();
                    (piece, *said, octets.is_empty(), n)
                }
                Written::From(said, reader, offset, left) => {
                    let mut buf = vec![0; usize::try_from(*left).unwrap().min(n)];
                    let n = reader.read_at(*offset, &mut buf).unwrap_or(0);
                    if n == 0 && reader.wait(*offset, Duration::ZERO).is_err() {
                        line.excuse = Some("body lost");
                        line.to_client.clear();
                        self.inputs.push_back((node, conn, Input::BodyLost { conn }));
                        return;
                    }
                    if n == 0 {
                        if !std::mem::replace(&mut line.pump_waits, true) {
                            self.soon(20_000, Event::PumpAgain(slot, conn));
                        }
                        return;
                    }
                    buf.truncate(n);
                    *offset += n as u64;
                    *left -= n as u64;
                    (buf.into(), *said, *left == 0, 0)
                }
            };
            if done {
                line.to_client.pop_front();
            }
            let wrote = Input::Wrote { conn, side: Side::Client, octets: counted, pieces: usize::from(done) };
            self.inputs.push_back((node, conn, wrote));
            self.put(slot, Way::Tell, Segment { octets, said, ..Segment::default() });
        }
    }

    pub(super) fn client_hears(&mut self, slot: usize) -> Result<(), Broken> {
        let clock = self.clock();
        while let Some(segment) = self.lines[slot].tell.take() {
            if segment.last {
                return self.line_ends(slot);
            }
            let line = &mut self.lines[slot];
            let server = &self.servers[line.server];
            self.trace.note(self.now_us, slot, "C<-", &segment.octets);
            if let Err(lie) = line.canary.hear(&segment.octets, &line.client.user, &server.mail) {
                return Err(self.broken(slot, Checker::Canary, lie));
            }
            if line.deceived {
                continue;
            }
            line.heard += segment.octets.len();
            let truth = truth(&line.origin, &line.reached, server, &line.client.user, clock, segment.said);
            match line.client.hear(&segment.octets, &truth) {
                Ok(says) => line.asked.extend(says),
                Err(lie) => {
                    let checker = Checker::of_lie(&lie);
                    return Err(self.broken(slot, checker, lie));
                }
            }
        }
        self.ask_on(slot);
        self.tell_on(slot);
        Ok(())
    }
}
