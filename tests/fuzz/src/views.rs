//! The two views, driven by a script, against a mailbox and a client that are plain lists of UIDs. The script may
//! be of a server that lies: then an error comes back and nothing changes.

use bytes::Bytes;
use imap_core::{
    uid::{Msn, Uid},
    views::{SlotId, Told, Views, Window},
};
use std::collections::HashMap;

/// Steps of two octets, a letter and a number; see `World::step`. `e2x1d0` is: two messages arrive, the first
/// is expunged, the client hears everything.
pub fn run(data: &[u8]) {
    let mut world = World::default();
    for step in data.chunks_exact(2).take(2000) {
        world.step(step[0], u32::from(step[1].wrapping_sub(b'0')));
        world.check();
    }
    world.deliver(Window::All);
    assert!(world.views.is_settled() && world.client.len() == world.server.len(), "something stays untold");
    assert!(
        world.client.iter().zip(&world.server).all(|(c, s)| c.is_none_or(|c| c == *s)),
        "the views differ"
    );
}

#[derive(Default)]
struct World {
    views: Views,
    next_uid: u32,
    /// The server's messages, as it has told them.
    server: Vec<u32>,
    /// What the client believes; it learns which message a number means only when it is told.
    client: Vec<Option<u32>>,
    truth: HashMap<SlotId, u32>,
    lines: u32,
    lines_told: u32,
    gone: usize,
}

impl World {
    fn step(&mut self, letter: u8, n: u32) {
        match letter {
            b'e' if self.server.len() < 300 => {
                let arrived = n % 4;
                for _ in 0..arrived {
                    self.next_uid += 1;
                    self.server.push(self.next_uid);
                }
                self.exists();
            }
            b'x' => self.expunge(n),
            b'v' => self.vanish(n),
            b'f' => self.flags(n),
            b'u' => self.learn(n),
            b'l' => {
                self.views.log_line(Bytes::from(format!("* {}\r\n", self.lines)));
                self.lines += 1;
            }
            b'c' => self.views.log_recent(n),
            b'd' => self.deliver(Window::All),
            b'n' => self.deliver(Window::NoExpunge),
            b'r' => {
                self.views.reset();
                self.client.clear();
                self.lines_told = self.lines;
                self.exists();
            }
            b's' => self.lie_about_exists(n),
            b'w' => self.lie_about_uids(n),
            _ => {}
        }
    }

    fn exists(&mut self) {
        let had = self.views.server_len();
        let now = u32::try_from(self.server.len()).unwrap();
        self.views.handle_exists(now).expect("EXISTS grew");
        for n in had..now {
            let slot = self.views.slot_of_server(Msn::new(n + 1).unwrap()).expect("a slot for each");
            assert_eq!(self.truth.insert(slot, self.server[n as usize]), None, "a slot was used twice");
        }
    }

    /// The server's number that a step means, and its place.
    fn pick(&self, n: u32) -> Option<(Msn, usize)> {
        let at = (n as usize).checked_rem(self.server.len())?;
        Some((Msn::new(u32::try_from(at).unwrap() + 1).unwrap(), at))
    }

    fn expunge(&mut self, n: u32) {
        let Some((msn, at)) = self.pick(n) else { return };
        let uid = self.views.handle_expunge(msn).expect("it is there");
        assert!(uid.is_none_or(|uid| uid.get() == self.server[at]));
        self.server.remove(at);
    }

    fn vanish(&mut self, n: u32) {
        if self.views.all_uids_known() {
            let bits = n.wrapping_mul(0x9E37_79B9);
            let goes = |uid: u32| bits >> (uid % 32) & 1 == 1;
            let gone = self.views.handle_vanished(|uid| goes(uid.get()));
            let expected: Vec<u32> = self.server.iter().copied().filter(|uid| goes(*uid)).collect();
            assert!(gone.iter().map(|uid| uid.get()).eq(expected));
            self.server.retain(|uid| !goes(*uid));
        }
    }

    fn flags(&mut self, n: u32) {
        let Some((msn, at)) = self.pick(n) else { return };
        let slot = self.views.handle_fetch(msn, None, Some(n.is_multiple_of(2))).expect("it is there");
        assert_eq!(self.truth.get(&slot), Some(&self.server[at]));
        assert_eq!(self.views.seen(slot), Some(n.is_multiple_of(2)));
        // The flag says whose it is.
        self.views.log_fetch(slot, format!("(FLAGS (u{}))\r\n", self.server[at]).into());
    }

    fn learn(&mut self, n: u32) {
        let Some((msn, at)) = self.pick(n) else { return };
        let uid = Uid::new(self.server[at]);
        let slot = self.views.handle_fetch(msn, uid, None).expect("the truth fits");
        assert_eq!((self.views.uid(slot), self.views.slot_of_uid(uid.unwrap())), (uid, Some(slot)));
    }

    fn lie_about_exists(&mut self, n: u32) {
        let now = u32::try_from(self.server.len()).unwrap();
        assert!(self.views.handle_exists(now.saturating_sub(n % 3 + 1)).is_err() || now == 0);
        if now == 0 {
            self.exists();
        }
        assert!(self.views.handle_exists(u32::MAX - n).is_err());
        for msn in [now + 1, u32::MAX].map(|msn| Msn::new(msn).unwrap()) {
            assert!(
                self.views.handle_expunge(msn).is_err() && self.views.handle_fetch(msn, None, None).is_err()
            );
        }
    }

    fn lie_about_uids(&mut self, n: u32) {
        let Some((msn, at)) = self.pick(n) else { return };
        let lie = Uid::new(self.server[at].wrapping_add(n % 2 * 2).wrapping_sub(1));
        let neighbour = |at: Option<usize>| {
            let msn = at.and_then(|at| Msn::new(u32::try_from(at + 1).unwrap()));
            msn.and_then(|msn| self.views.slot_of_server(msn)).and_then(|slot| self.views.uid(slot)).is_some()
        };
        // A lie shows where the message's own UID is known, or that of the neighbour whose it is.
        let before = at.checked_sub(1).filter(|b| Uid::new(self.server[*b]) == lie && neighbour(Some(*b)));
        let after = Some(at + 1)
            .filter(|a| self.server.get(*a).and_then(|u| Uid::new(*u)) == lie && neighbour(Some(*a)));
        if lie.is_some() && (neighbour(Some(at)) || before.is_some() || after.is_some()) {
            assert!(self.views.handle_fetch(msn, lie, None).is_err(), "{lie:?} for {}", self.server[at]);
        }
    }

    fn deliver(&mut self, window: Window) {
        let mut told = Vec::new();
        self.views.deliver(window, &mut |event| told.push(event));
        for event in told {
            match event {
                Told::Exists(n) => {
                    let n = n as usize;
                    assert!(n >= self.client.len(), "EXISTS shrank to {n}");
                    self.client.resize(n, None);
                }
                Told::Expunge(msn) => {
                    assert_eq!(window, Window::All, "EXPUNGE where it is forbidden");
                    let gone = self.client.remove(msn.get() as usize - 1);
                    assert!(gone.is_none_or(|uid| !self.server.contains(&uid)), "{gone:?} is still there");
                }
                Told::Fetch { msn, payload } => {
                    let known = &mut self.client[msn.get() as usize - 1];
                    let text = String::from_utf8_lossy(&payload).into_owned();
                    let uid: u32 = text["(FLAGS (u".len()..text.len() - 4].parse().unwrap();
                    assert!(
                        known.is_none_or(|known| known == uid),
                        "number {msn} was {known:?} and is {uid}"
                    );
                    *known = Some(uid);
                }
                Told::Recent(_) => {}
                Told::Line(line) => {
                    assert_eq!(line, format!("* {}\r\n", self.lines_told), "lines come in order, each once");
                    self.lines_told += 1;
                }
            }
        }
        // A client that asks for a number now gets this message.
        for at in 0..self.client.len() {
            let slot = self.views.slot_of_client(Msn::new(u32::try_from(at).unwrap() + 1).unwrap());
            let uid = self.truth[&slot.expect("every number of the client means something")];
            assert!(
                self.client[at].is_none_or(|known| known == uid),
                "number {} changed its meaning",
                at + 1
            );
            self.client[at] = Some(uid);
        }
        let settled = self.server.iter().copied().map(Some).eq(self.client.iter().copied());
        assert_eq!(self.views.agree(), settled);
        self.gone = self.client.iter().flatten().filter(|uid| !self.server.contains(uid)).count();
        assert!(window == Window::NoExpunge || self.gone == 0);
    }

    fn check(&self) {
        assert_eq!(self.views.server_len() as usize, self.server.len());
        assert_eq!(self.views.client_len() as usize, self.client.len());
        let known: Vec<_> = self.views.known_uids().collect();
        assert!(known.iter().all(|(msn, uid)| self.server[msn.get() as usize - 1] == uid.get()));
        assert_eq!(self.views.all_uids_known(), known.len() == self.server.len());
    }
}
