//! Nothing new happens; what is owed must come.

use super::*;

/// More than any mailbox takes on the thinnest line, so that one that is told the same for ever is found.
const STEPS_MAX: usize = 40;

impl Line {
    fn is_owed(&self) -> bool {
        self.is_watched() && (self.client.is_owed() || !self.tell.is_empty())
    }
}

impl World {
    /// Nothing new happens; everything that is owed must come, and everybody must then believe what is.
    pub(crate) fn rest(&mut self) -> Result<(), Broken> {
        self.resting = true;
        for slot in 0..self.lines.len() {
            if self.lines[slot].tell.black_hole {
                self.sever(slot, Side::Client, "vanished", false);
            }
        }
        self.work()?;
        self.end_idles();
        self.run_until(self.now_us + REST_US)?;
        for round in 0..4 {
            self.end_idles();
            self.run_while_it_comes()?;
            for slot in 0..self.lines.len() {
                let line = &self.lines[slot];
                if line.is_owed() {
                    let lie = format!("nothing moves; asked {}", line.client.outstanding());
                    return Err(self.broken(slot, Checker::NoWedge, lie));
                }
                if round < 3 && line.is_watched() {
                    self.ask_at_rest(slot, round);
                }
            }
            self.work()?;
        }
        for slot in 0..self.lines.len() {
            let line = &self.lines[slot];
            if line.is_watched()
                && let Err(lie) = line.client.check_converged(&self.servers[line.server].mail)
            {
                return Err(self.broken(slot, Checker::Transcript, lie));
            }
        }
        self.check_kept_at_rest()?;
        self.finish();
        Ok(())
    }

    /// Megabytes take their time on a thin line: nobody is forgotten while he still hears something.
    fn run_while_it_comes(&mut self) -> Result<(), Broken> {
        for _ in 0..STEPS_MAX {
            let before: Vec<usize> = self.lines.iter().map(|line| line.heard).collect();
            self.run_until(self.now_us + REST_US / 4)?;
            let comes = |(line, before): (&Line, usize)| line.is_owed() && line.heard > before;
            if !self.lines.iter().zip(before).any(comes) {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn end_idles(&mut self) {
        for slot in 0..self.lines.len() {
            if let Some(done) = self.lines[slot].client.end_idle() {
                self.lines[slot].asked.extend(done.as_bytes());
                self.ask_on(slot);
            }
        }
    }

    pub(super) fn ask_at_rest(&mut self, slot: usize, round: usize) {
        let clock = self.clock();
        let line = &mut self.lines[slot];
        let server = &self.servers[line.server];
        let truth = truth(&line.origin, &line.reached, server, &line.client.user, clock, server.mail.tick);
        let words = match round {
            0 | 1 => Some(line.client.noop(&truth)),
            _ => line.client.ask_everything(&truth),
        };
        line.asked.extend(words.unwrap_or_default().as_bytes());
        self.ask_on(slot);
    }

    pub(super) fn finish(&mut self) {
        for line in &self.lines {
            self.totals.replies += line.client.replies;
            self.totals.from_store += line.client.from_store;
            self.totals.ahead += line.client.told_ahead;
            self.totals.sessions += 1;
        }
        for site in &self.sites {
            self.totals.damaged += site.store.damaged;
            self.totals.refused += site.store.refused;
        }
        self.totals.hash = self.trace.hash();
    }
}
