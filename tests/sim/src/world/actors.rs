//! Who does what of himself: clients, origins, stores, and everybody else.

use super::*;

impl World {
    pub(super) fn client_turn(&mut self, slot: usize, conn: ConnId) {
        let resting = self.resting;
        let clock = self.clock();
        let Some(line) = self.lines.get_mut(slot).filter(|line| line.conn == conn && line.connected) else {
            return;
        };
        if line.hung_up || line.closed || resting {
            return;
        }
        let think = line.think_us;
        if line.opened && !line.deceived {
            let server = &self.servers[line.server];
            let truth =
                truth(&line.origin, &line.reached, server, &line.client.user, clock, server.mail.tick);
            let mut uploads = Vec::new();
            if let Some(words) = line.client.follow(&mut line.habit, &mut self.random, &truth, &mut uploads) {
                line.seen.asked(&words);
                line.asked.extend(words.as_bytes());
            }
            line.origin.uploads.append(&mut uploads);
            self.ask_on(slot);
        }
        self.soon(think, Event::ClientTurn(slot, conn));
    }

    /// The origin does something within `max_us`, unless it does already.
    pub(super) fn origin_soon(&mut self, slot: usize, max_us: usize) {
        let at = self.now_us + 1 + self.random.below(max_us) as u64;
        let line = &mut self.lines[slot];
        if at < line.origin_at {
            line.origin_at = at;
            let conn = line.conn;
            self.at(at, Event::OriginTurn(slot, conn));
        }
    }

    pub(super) fn origin_turn(&mut self, slot: usize, conn: ConnId) {
        let (resting, now) = (self.resting, self.now_us);
        let Some(line) = self.line(slot, conn).filter(|line| line.origin_at == now) else { return };
        line.origin_at = u64::MAX;
        let line = &mut self.lines[slot];
        let server = &mut self.servers[line.server];
        line.origin.step(&mut server.mail, &mut self.random, resting);
        self.answer_on(slot);
        let line = &self.lines[slot];
        let quiet = line.origin.is_quiet();
        if !(line.hung_up || quiet && resting) {
            self.origin_soon(slot, if quiet { 2_000_000 } else { 3000 });
        }
    }

    pub(super) fn store_turn(&mut self, slot: usize, conn: ConnId) {
        let now = self.now_us;
        let Some(line) = self.line(slot, conn) else { return };
        line.store_busy = false;
        let node = line.node;
        if let Some(op) = line.errands.pop_front()
            && let Some(reply) = self.sites[node].store.handle(now, op)
        {
            self.inputs.push_back((node, conn, Input::Store { conn, reply }));
        }
        self.store_on(slot);
    }

    pub(super) fn store_on(&mut self, slot: usize) {
        let line = &mut self.lines[slot];
        if !line.store_busy && !line.errands.is_empty() {
            line.store_busy = true;
            let conn = line.conn;
            let slowness = if self.random.once_in(50) { 200_000 } else { 2000 };
            self.soon(slowness, Event::StoreTurn(slot, conn));
        }
    }

    /// Everybody else with an account on this server.
    pub(super) fn others(&mut self, at: usize) {
        let user = *self.random.pick(&USERS);
        let name = *self.random.pick(&BOXES);
        let mut name = box_of(user, name);
        let slot = self.random.below(self.lines.len());
        // More where somebody looks.
        if let Some(open) = self.lines[slot].origin.selected.as_ref()
            && self.lines[slot].server == at
            && !self.random.once_in(3)
        {
            name = open.name.clone();
        }
        let clock = self.clock();
        let server = &mut self.servers[at];
        let uid = {
            let live = &server.mail.boxes[&name].live;
            let some = if self.random.once_in(2) { live.len() } else { live.len().min(4) };
            if some == 0 { 0 } else { self.random.pick(&live[..some]).uid }
        };
        match self.random.below(12) {
            0 | 1 => server.mail.arrive(&mut self.random),
            4..=6 if uid > 0 => server.mail.expunge(&name, uid),
            7 | 8 if uid > 0 => {
                let (flag, on) = (*self.random.pick(&["\\Seen", "\\Flagged"]), self.random.once_in(2));
                server.mail.set_flag(&name, uid, flag, on);
            }
            9 if self.random.once_in(3) => {
                // Made anew, with other mail under the same UIDs; nobody may have it open.
                let has = |origin: &Origin| origin.selected.as_ref().is_some_and(|open| open.name == name);
                let open = self.lines.iter().any(|line| line.server == at && has(&line.origin))
                    || self.kept.iter().any(|kept| kept.server == at && has(&kept.origin));
                if !open {
                    server.mail.create(&name);
                    for _ in 0..8 {
                        server.mail.arrive_in(&name, &mut self.random);
                    }
                }
            }
            10 if server.manner == Manner::Cyrus && self.random.once_in(3) => {
                if server.revoked.remove(user).is_some() {
                    server.mail.revoked.remove(user);
                } else {
                    server.revoked.insert(user.to_owned(), clock);
                    server.mail.revoked.insert(user.to_owned(), server.mail.tick);
                }
            }
            _ => {}
        }
    }

    /// The server says something that is not so.
    pub(crate) fn lie(&mut self, slot: usize, line_said: &str) {
        let now = self.now_us;
        let line = &mut self.lines[slot];
        // Between two responses only: a lie within one is a lie about mail, which only its reader could notice.
        if !line.opened || line.closed || line.origin.has_output() {
            return;
        }
        line.deceived = true;
        let mark = (line.node, line.server, line.client.user.clone());
        let segment = Segment { octets: line_said.to_owned().into(), ..Segment::default() };
        let arrives = line.answer.send(now, line.wan, segment);
        let conn = line.conn;
        self.at(arrives, Event::Arrive(slot, conn, Way::Answer));
        // What this user's other sessions at the node are served from the store may be the lie.
        for other in &mut self.lines {
            if (other.node, other.server, &other.client.user) == (mark.0, mark.1, &mark.2) {
                other.deceived = true;
            }
        }
        if !self.deceived.contains(&mark) {
            self.deceived.push(mark);
        }
    }
}
