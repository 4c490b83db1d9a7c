//! Views against a model: a server that keeps RFC 9051's EXPUNGE rules and otherwise speaks when it likes, a
//! client that believes every number it hears, and everybody else changing the mailbox in between.

use super::*;
use proptest::prelude::*;
use std::collections::HashMap;

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn views_never_lie(steps in prop::collection::vec((0..KINDS, any::<u16>()), 1..200)) {
        let lie = run(&steps).err();
        prop_assert!(lie.is_none(), "{:?}", lie);
    }
}

#[test]
fn views_never_lie_in_a_million_events() {
    let mut seed = 0x5EED_u64;
    // SplitMix64.
    let mut random = move || {
        seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (seed ^ (seed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    let (mut events, mut runs) = (0, 0);
    while events < 1_000_000 {
        let steps: Vec<_> = (0..400)
            .map(|_| {
                (u8::try_from(random() % u64::from(KINDS)).unwrap(), u16::try_from(random() >> 48).unwrap())
            })
            .collect();
        events += run(&steps).unwrap_or_else(|lie| panic!("run {runs}: {lie}"));
        runs += 1;
    }
    println!("views_never_lie: {events} events in {runs} runs, no lie");
}

/// How many kinds of step [`run`] knows; the likelier ones have several.
const KINDS: u8 = 24;

/// Plays the steps and a last NOOP; gives the events said and told, or the lie.
fn run(steps: &[(u8, u16)]) -> Result<u64, String> {
    let mut world = World::default();
    for _ in 0..steps.first().map_or(0, |step| step.1 % 12) {
        world.arrive();
    }
    world.select()?;
    for (kind, pick) in steps {
        let pick = usize::from(*pick);
        match kind {
            0..=3 => world.arrive(),
            4..=6 => world.remove(pick),
            7..=8 => world.flag(pick),
            9..=11 => world.server_speaks_unasked(pick)?,
            12..=13 => world.idle = !world.idle,
            14..=17 => world.client_fetches(pick)?,
            18..=20 => world.client_noop(pick)?,
            21 => world.learn(pick)?,
            22 => world.line_or_recent(pick)?,
            _ if pick.is_multiple_of(16) => world.select()?,
            _ => world.learn_all()?,
        }
        world.check()?;
    }
    world.client_noop(usize::MAX)?;
    world.check_converged()?;
    Ok(world.events)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Running {
    Nothing,
    /// FETCH, STORE or SEARCH by number.
    ByNumber,
    Other,
}

enum Pending {
    Arrived(u32),
    Removed(u32),
    Flagged(u32, u32),
}

#[derive(Default)]
struct World {
    views: Views,
    next_uid: u32,
    next_line: u32,
    events: u64,
    /// The mailbox.
    mailbox: Vec<u32>,
    flags: HashMap<u32, u32>,
    /// What the server has told this session, and what it has not.
    said: Vec<u32>,
    said_flags: HashMap<u32, u32>,
    pending: Vec<Pending>,
    truth: HashMap<SlotId, u32>,
    // What the client believes.
    idle: bool,
    client: Vec<Option<u32>>,
    client_flags: HashMap<u32, u32>,
    client_lines: Vec<u32>,
    recent: (u32, u32),
}

impl World {
    fn arrive(&mut self) {
        if self.mailbox.len() < 40 {
            self.next_uid += 1;
            self.mailbox.push(self.next_uid);
            self.pending.push(Pending::Arrived(self.next_uid));
        }
    }

    fn remove(&mut self, pick: usize) {
        if !self.mailbox.is_empty() {
            let uid = self.mailbox.remove(pick % self.mailbox.len());
            self.pending.push(Pending::Removed(uid));
        }
    }

    fn flag(&mut self, pick: usize) {
        if !self.mailbox.is_empty() {
            let uid = self.mailbox[pick % self.mailbox.len()];
            let flags = self.flags.entry(uid).or_default();
            *flags += 1;
            self.pending.push(Pending::Flagged(uid, *flags));
        }
    }

    fn select(&mut self) -> Result<(), String> {
        self.views.reset();
        self.pending.clear();
        self.said = self.mailbox.clone();
        self.said_flags.clear();
        self.client.clear();
        self.client_flags.clear();
        self.recent = (0, 0);
        self.idle = false;
        self.exists()?;
        let told = self.deliver(Running::Other, Window::All)?;
        if told != [Told::Exists(u32::try_from(self.said.len()).unwrap())] {
            return Err(format!("SELECT told {told:?}"));
        }
        Ok(())
    }

    /// The server says some or all of what is pending; EXPUNGEs only if it may.
    fn server_speaks(&mut self, pick: usize, may_expunge: bool) -> Result<(), String> {
        let now =
            if pick.is_multiple_of(3) { pick / 3 % (self.pending.len() + 1) } else { self.pending.len() };
        let mut later = self.pending.split_off(now);
        let mut kept = Vec::new();
        let mut vanished = Vec::new();
        for event in mem::take(&mut self.pending) {
            match event {
                Pending::Arrived(uid) => {
                    self.said.push(uid);
                    self.exists()?;
                }
                Pending::Removed(_) if !may_expunge => {
                    kept.push(event);
                    continue;
                }
                Pending::Removed(uid) => {
                    let at =
                        self.said.iter().position(|said| *said == uid).ok_or("the model lost a message")?;
                    if self.views.all_uids_known() && pick % 5 < 2 {
                        vanished.push(uid);
                    } else {
                        let known =
                            self.views.handle_expunge(msn_at(at).unwrap()).map_err(|e| e.to_string())?;
                        if known.is_some_and(|known| known.get() != uid) {
                            return Err(format!("expunged {uid}, was told {known:?}"));
                        }
                    }
                    self.said.remove(at);
                    if !vanished.is_empty() {
                        let gone = self.views.handle_vanished(|uid| vanished.contains(&uid.get()));
                        if gone.iter().map(|uid| uid.get()).ne(vanished.drain(..)) {
                            return Err(format!("vanished {gone:?}"));
                        }
                    }
                }
                Pending::Flagged(uid, flags) => {
                    if let Some(at) = self.said.iter().position(|said| *said == uid) {
                        let told = pick.is_multiple_of(2);
                        let uid_told = if told { Uid::new(uid) } else { None };
                        let slot = self.fetch(at, uid_told, Some(flags.is_multiple_of(2)))?;
                        // The flags say whose they are, so that the client can tell.
                        let uid_item = if told { format!(" UID {uid}") } else { String::new() };
                        let payload = format!("(FLAGS ({uid}/{flags}){uid_item})\r\n");
                        self.views.log_fetch(slot, payload.into());
                        self.said_flags.insert(uid, flags);
                    }
                }
            }
            self.events += 1;
        }
        kept.append(&mut later);
        self.pending = kept;
        Ok(())
    }

    fn exists(&mut self) -> Result<(), String> {
        let had = self.views.server_len() as usize;
        self.views.handle_exists(u32::try_from(self.said.len()).unwrap()).map_err(|e| e.to_string())?;
        for at in had..self.said.len() {
            let slot = self.views.slot_of_server(msn_at(at).unwrap()).ok_or("EXISTS made no slot")?;
            if self.truth.insert(slot, self.said[at]).is_some() {
                return Err("a slot was used twice".into());
            }
        }
        Ok(())
    }

    fn fetch(&mut self, at: usize, uid: Option<Uid>, seen: Option<bool>) -> Result<SlotId, String> {
        let slot = self.views.handle_fetch(msn_at(at).unwrap(), uid, seen).map_err(|e| e.to_string())?;
        if self.truth.get(&slot) != self.said.get(at) {
            return Err(format!("server's number {} means another message", at + 1));
        }
        Ok(slot)
    }

    /// A synthetic command runs, the client's IDLE, or nothing at all.
    fn server_speaks_unasked(&mut self, pick: usize) -> Result<(), String> {
        let synthetic = pick.is_multiple_of(2);
        self.server_speaks(pick / 2, synthetic || self.idle)?;
        if self.idle {
            self.deliver(Running::Nothing, Window::All)?;
        } else if pick % 7 < 4 {
            self.deliver(Running::Nothing, Window::NoExpunge)?;
        }
        Ok(())
    }

    /// FETCH by the client's number: mapped to the server's, and the answer mapped back.
    fn client_fetches(&mut self, pick: usize) -> Result<(), String> {
        self.idle = false;
        if self.client.is_empty() {
            return Ok(());
        }
        let asked = msn_at(pick % self.client.len()).unwrap();
        let slot = self.views.slot_of_client(asked).ok_or("the client's number means nothing")?;
        let meant = self.client[index_of(asked)];
        self.server_speaks(pick, false)?;
        if pick.is_multiple_of(3) {
            self.deliver(Running::ByNumber, Window::NoExpunge)?;
        }
        if let Some(msn) = self.views.server_msn(slot) {
            let uid = self.said[index_of(msn)];
            if meant.is_some_and(|meant| meant != uid) {
                return Err(format!("the client meant {meant:?} and the server was asked for {uid}"));
            }
            self.fetch(index_of(msn), Uid::new(uid), None)?;
            let msn = self.views.client_msn(slot).ok_or("the answer has no number")?;
            self.hear(Running::ByNumber, Told::Fetch { msn, payload: format!("(UID {uid})\r\n").into() })?;
        }
        self.deliver(Running::ByNumber, Window::NoExpunge)?;
        Ok(())
    }

    fn client_noop(&mut self, pick: usize) -> Result<(), String> {
        self.idle = false;
        if pick.is_multiple_of(4) {
            self.deliver(Running::Other, Window::All)?;
        }
        self.server_speaks(pick, true)?;
        self.deliver(Running::Other, Window::All)?;
        if !self.views.is_settled() || self.client.len() != self.said.len() {
            return Err("a command that allows everything left something untold".into());
        }
        Ok(())
    }

    fn learn(&mut self, pick: usize) -> Result<(), String> {
        if !self.said.is_empty() {
            let at = pick % self.said.len();
            self.fetch(at, Uid::new(self.said[at]), None)?;
        }
        Ok(())
    }

    fn learn_all(&mut self) -> Result<(), String> {
        for at in (0..self.said.len()).rev() {
            self.fetch(at, Uid::new(self.said[at]), None)?;
        }
        if !self.views.all_uids_known() {
            return Err("all were told and some are unknown".into());
        }
        Ok(())
    }

    fn line_or_recent(&mut self, pick: usize) -> Result<(), String> {
        self.events += 1;
        if pick.is_multiple_of(3) {
            self.recent.0 += 1;
            self.views.log_recent(self.recent.0);
        } else {
            self.views.log_line(format!("* {}\r\n", self.next_line).into());
            self.next_line += 1;
        }
        // A line nobody waits for is told now or with the next command.
        if pick.is_multiple_of(2) {
            self.deliver(Running::Nothing, if self.idle { Window::All } else { Window::NoExpunge })?;
        }
        Ok(())
    }

    fn deliver(&mut self, running: Running, window: Window) -> Result<Vec<Told>, String> {
        let mut told = Vec::new();
        self.views.deliver(window, &mut |event| told.push(event));
        for event in &told {
            self.hear(running, event.clone())?;
        }
        // From now on, asking for a new number gives this message: the client believes it.
        for (at, known) in self.client.iter_mut().enumerate().filter(|(_, known)| known.is_none()) {
            let slot = self.views.slot_of_client(msn_at(at).unwrap()).ok_or("told of more than there is")?;
            *known = self.truth.get(&slot).copied();
            if !self.said.contains(&known.unwrap()) {
                return Err(format!("told of {known:?}, which the server had taken back"));
            }
        }
        Ok(told)
    }

    /// The client hears one line.
    fn hear(&mut self, running: Running, told: Told) -> Result<(), String> {
        self.events += 1;
        match told {
            Told::Exists(n) if (n as usize) < self.client.len() => return Err("EXISTS shrinks".into()),
            Told::Exists(n) => self.client.resize(n as usize, None),
            Told::Expunge(msn) => {
                if running == Running::ByNumber || (running == Running::Nothing && !self.idle) {
                    return Err(format!("EXPUNGE {msn} in a forbidden window"));
                }
                if index_of(msn) >= self.client.len() {
                    return Err(format!("EXPUNGE {msn} of {}", self.client.len()));
                }
                let known = self.client.remove(index_of(msn));
                if known.is_some_and(|uid| self.said.contains(&uid)) {
                    return Err(format!("EXPUNGE {msn} hit {known:?}, which is still there"));
                }
            }
            Told::Recent(n) => self.recent.1 = n,
            Told::Fetch { msn, payload } => {
                let known = self.client.get_mut(index_of(msn)).ok_or(format!("FETCH {msn} of none"))?;
                let payload = std::str::from_utf8(&payload).unwrap();
                let flags =
                    payload.strip_prefix("(FLAGS (").and_then(|rest| rest.split(')').next()?.split_once('/'));
                let uid = match flags {
                    Some((uid, _)) => uid.parse(),
                    None => payload.trim_start_matches("(UID ").trim_end_matches(")\r\n").parse(),
                };
                let uid: u32 = uid.unwrap();
                if *known.get_or_insert(uid) != uid {
                    return Err(format!("FETCH {msn} was {known:?} and speaks of {uid}"));
                }
                if let Some((_, flags)) = flags {
                    let flags = flags.parse().unwrap();
                    if self.client_flags.insert(uid, flags).is_some_and(|older| older > flags) {
                        return Err(format!("flags of {uid} went back"));
                    }
                }
            }
            Told::Line(line) => {
                let n =
                    std::str::from_utf8(&line).unwrap().trim_start_matches("* ").trim_end().parse().unwrap();
                if self.client_lines.last().is_some_and(|last| *last >= n) {
                    return Err("lines out of order".into());
                }
                self.client_lines.push(n);
            }
        }
        Ok(())
    }

    /// What holds at any time.
    fn check(&self) -> Result<(), String> {
        let views = &self.views;
        let server: Vec<_> =
            (0..self.said.len()).filter_map(|at| views.slot_of_server(msn_at(at)?)).collect();
        let client: Vec<_> =
            (0..self.client.len()).filter_map(|at| views.slot_of_client(msn_at(at)?)).collect();
        let truth = |slots: &[SlotId]| slots.iter().map(|slot| self.truth[slot]).collect::<Vec<_>>();
        let known: Vec<_> = server.iter().filter_map(|slot| Some((*slot, views.uid(*slot)?))).collect();
        for (held, what) in [
            (truth(&server) == self.said, "the server's view"),
            (truth(&client).into_iter().map(Some).eq(self.client.iter().copied()), "the client's view"),
            (views.server_len() as usize == self.said.len(), "server_len"),
            (views.client_len() as usize == self.client.len(), "client_len"),
            (views.agree() == (server == client), "agree"),
            (!views.is_settled() || server == client, "is_settled"),
            (known.iter().all(|(slot, uid)| self.truth[slot] == uid.get()), "a UID"),
            (known.iter().all(|(slot, uid)| views.slot_of_uid(*uid) == Some(*slot)), "slot_of_uid"),
            (views.uids_between(0..=u32::MAX).eq(known.iter().copied()), "uids_between"),
            (views.known_uids().map(|(_, uid)| uid).eq(known.iter().map(|(_, uid)| *uid)), "known_uids"),
            (
                views.known_uids().all(|(msn, uid)| self.said[index_of(msn)] == uid.get()),
                "known_uids' numbers",
            ),
            (views.all_uids_known() == (known.len() == server.len()), "all_uids_known"),
        ] {
            if !held {
                return Err(format!("{what} is wrong"));
            }
        }
        Ok(())
    }

    fn check_converged(&self) -> Result<(), String> {
        let still = |flags: &HashMap<u32, u32>, uid: &u32| flags.get(uid).copied();
        let flags_lost =
            self.mailbox.iter().any(|uid| still(&self.said_flags, uid) != still(&self.client_flags, uid));
        if !self.client.iter().copied().eq(self.said.iter().copied().map(Some))
            || flags_lost
            || self.recent.0 != self.recent.1
        {
            return Err(format!(
                "not converged: {:?} and {:?}, flags lost: {flags_lost}",
                self.client, self.mailbox
            ));
        }
        Ok(())
    }
}

fn msn(n: u32) -> Msn {
    Msn::new(n).unwrap()
}

fn told(views: &mut Views, window: Window) -> Vec<Told> {
    let mut told = Vec::new();
    views.deliver(window, &mut |event| told.push(event));
    told
}

fn selected(n: u32) -> Views {
    let mut views = Views::new();
    views.handle_exists(n).unwrap();
    assert_eq!(told(&mut views, Window::All), [Told::Exists(n)]);
    views
}

#[test]
fn an_empty_mailbox_is_told_too() {
    assert_eq!(selected(0).client_len(), 0);
}

#[test]
fn a_withheld_expunge_holds_nothing_else_back() {
    let mut views = selected(3);
    let third = views.slot_of_server(msn(3)).unwrap();
    views.handle_expunge(msn(1)).unwrap();
    views.log_fetch(third, Bytes::from_static(b"(FLAGS (\\Seen))\r\n"));
    views.handle_exists(3).unwrap();
    views.log_recent(1);
    let flags = Bytes::from_static(b"(FLAGS (\\Seen))\r\n");
    assert_eq!(
        told(&mut views, Window::NoExpunge),
        [Told::Fetch { msn: msn(3), payload: flags }, Told::Exists(4), Told::Recent(1)]
    );
    assert!(views.has_log() && !views.agree());
    assert_eq!(told(&mut views, Window::All), [Told::Expunge(msn(1))]);
    assert!(views.is_settled() && views.client_msn(third) == Some(msn(2)));
}

#[test]
fn what_came_and_went_unheard_is_never_told() {
    let mut views = selected(2);
    views.handle_exists(3).unwrap();
    let third = views.slot_of_server(msn(3)).unwrap();
    views.log_fetch(third, Bytes::from_static(b"(FLAGS ())\r\n"));
    views.handle_expunge(msn(3)).unwrap();
    assert_eq!(told(&mut views, Window::All), []);
    assert!(views.is_settled());
}

#[test]
fn what_was_told_is_taken_back() {
    let mut views = selected(2);
    views.handle_exists(3).unwrap();
    assert_eq!(told(&mut views, Window::NoExpunge), [Told::Exists(3)]);
    views.handle_expunge(msn(3)).unwrap();
    assert_eq!(told(&mut views, Window::NoExpunge), []);
    assert_eq!(told(&mut views, Window::All), [Told::Expunge(msn(3))]);
}

#[test]
fn newer_flags_replace_older_unless_something_is_lost() {
    let mut views = selected(1);
    let slot = views.slot_of_server(msn(1)).unwrap();
    let mut log = |payload: &'static str| views.log_fetch(slot, Bytes::from_static(payload.as_bytes()));
    log("(FLAGS (a) UID 1)\r\n");
    log("(UID 1 FLAGS (b))\r\n");
    log("(MODSEQ (12) UID 1)\r\n");
    log("(FLAGS (c) UID 1 MODSEQ (13))\r\n");
    log("(FLAGS (d \"))\r\n");
    log("(FLAGS (e))\r\n");
    views.log_line(Bytes::from_static(b"* FLAGS (f)\r\n"));
    views.log_fetch(slot, Bytes::from_static(b"(FLAGS (f))\r\n"));
    let told: Vec<_> = told(&mut views, Window::NoExpunge)
        .into_iter()
        .map(|told| match told {
            Told::Fetch { payload, .. } => payload,
            Told::Line(line) => line,
            Told::Exists(_) | Told::Expunge(_) | Told::Recent(_) => panic!("{told:?}"),
        })
        .collect();
    assert_eq!(
        told,
        [
            "(UID 1 FLAGS (b))\r\n",
            "(FLAGS (c) UID 1 MODSEQ (13))\r\n",
            "(FLAGS (d \"))\r\n",
            "(FLAGS (e))\r\n",
            "* FLAGS (f)\r\n",
            "(FLAGS (f))\r\n"
        ]
    );
}

#[test]
fn views_never_lie_about_uids_that_cannot_be() {
    let mut views = selected(5);
    let uid = |n| Uid::new(n);
    views.handle_fetch(msn(2), uid(20), None).unwrap();
    views.handle_fetch(msn(4), uid(40), None).unwrap();
    let changed = Desync::UidChanged { msn: msn(2), had: Uid::new(20).unwrap(), said: Uid::new(21).unwrap() };
    assert_eq!(views.handle_fetch(msn(2), uid(21), None), Err(changed));
    for (at, wrong) in [(1, 20), (1, 21), (3, 20), (3, 40), (3, 19), (3, 41), (5, 40), (5, 1)] {
        let order = Desync::UidOrder { msn: msn(at), said: Uid::new(wrong).unwrap() };
        assert_eq!(views.handle_fetch(msn(at), uid(wrong), None), Err(order), "{at} {wrong}");
    }
    for (at, right) in [(1, 19), (3, 30), (5, 41), (2, 20)] {
        views.handle_fetch(msn(at), uid(right), Some(true)).unwrap();
    }
    assert!(views.all_uids_known() && views.largest_uid() == Uid::new(41));
    let between: Vec<_> = views.uids_between(20..=40).map(|(_, uid)| uid.get()).collect();
    assert_eq!(between, [20, 30, 40]);
    let none = (5, 4);
    assert_eq!(views.uids_between(none.0..=none.1).count() + views.uids_between(0..=0).count(), 0);
}

#[test]
fn what_the_server_cannot_say_changes_nothing() {
    let mut views = selected(2);
    assert_eq!(views.handle_exists(1), Err(Desync::ExistsShrank { had: 2, said: 1 }));
    assert_eq!(views.handle_exists(u32::MAX), Err(Desync::TooManyMessages { said: u32::MAX }));
    assert_eq!(views.handle_expunge(msn(3)), Err(Desync::NoSuchMessage { msn: msn(3), had: 2 }));
    assert!(views.handle_fetch(msn(3), None, None).is_err());
    assert!(views.is_settled() && views.server_len() == 2);
}

#[test]
fn seen_survives_for_what_only_the_client_counts() {
    let mut views = selected(2);
    let slot = views.handle_fetch(msn(1), Uid::new(7), Some(false)).unwrap();
    assert_eq!(views.handle_expunge(msn(1)), Ok(Uid::new(7)));
    views.set_seen(slot, true);
    assert_eq!((views.uid(slot), views.seen(slot)), (Uid::new(7), Some(true)));
    assert_eq!((views.server_msn(slot), views.slot_of_uid(Uid::new(7).unwrap())), (None, None));
    told(&mut views, Window::All);
    assert_eq!(views.uid(slot), None);
}

#[test]
fn slots_of_an_earlier_selection_mean_nothing() {
    let mut views = selected(2);
    let old = views.slot_of_client(msn(1)).unwrap();
    views.reset();
    assert!(views.is_settled());
    views.handle_exists(2).unwrap();
    views.log_fetch(old, Bytes::from_static(b"(FLAGS ())\r\n"));
    assert_eq!(told(&mut views, Window::All), [Told::Exists(2)]);
    assert_eq!((views.client_msn(old), views.uid(old)), (None, None));
}

#[test]
fn a_hundred_thousand_messages_are_no_work() {
    let n = 100_000;
    let mut views = selected(n);
    for at in (1..=n).rev() {
        let slot = views.handle_fetch(msn(at), Uid::new(at * 2), Some(false)).unwrap();
        assert_eq!(views.client_msn(slot), Some(msn(at)));
    }
    assert_eq!(views.handle_vanished(|uid| uid.get() % 100 == 0).len(), 2000);
    for _ in 0..LOG_EVENTS_MAX - 2000 {
        assert!(!views.is_full());
        views.handle_expunge(msn(views.server_len() / 2)).unwrap();
    }
    assert!(views.is_full());
    assert_eq!(told(&mut views, Window::NoExpunge), []);
    assert!(!views.is_full() && views.has_log());
    assert!(views.handle_exists(MESSAGES_MAX - u32::try_from(LOG_EVENTS_MAX).unwrap() + 1).is_err());
    assert_eq!(told(&mut views, Window::All).len(), LOG_EVENTS_MAX);
    assert!(views.is_settled());
}

#[test]
fn long_lines_fill_the_log_as_well() {
    let mut views = selected(1);
    for _ in 0..LOG_OCTETS_MAX / 65536 {
        assert!(!views.is_full());
        views.log_line(vec![b'x'; 65536].into());
    }
    assert!(views.is_full());
    told(&mut views, Window::NoExpunge);
    assert!(!views.is_full());
}
