//! Whoever decides what is fetched ahead, by chance: worthwhile or not, of messages that are there or are not, with
//! sizes that are right or are not. Holds the session to what it owes: to ask before each slice, to fetch nothing while
//! a client waits, and to tell the end of all waiting.

use crate::{client::OURS, random::Random};
use discovery_core::{
    now::Now,
    seam::{
        advisor::Held,
        gate::{Grant, Why},
    },
};
use imap_core::{
    catalog::MailboxKey,
    item::ItemKey,
    preload::{Description, Order, Preload, Read, Work},
    retained::UidRanges,
    uid::Uid,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

/// See the module's text. Clones are one.
#[derive(Clone)]
pub(crate) struct Whims(Arc<Mutex<State>>);

struct State {
    random: Random,
    listed: BTreeMap<MailboxKey, Vec<u32>>,
    sizes: BTreeMap<(MailboxKey, Uid), u64>,
    granted: Option<u32>,
    foreground: bool,
    /// Wants nothing any more.
    content: bool,
    slices: u64,
    /// IDLEs in place of the client's.
    idles: u64,
    kept: u64,
    described: u64,
    /// The tag of the last slice.
    slice: Option<String>,
    lie: Option<String>,
}

impl Whims {
    pub(crate) fn new(random: Random) -> Self {
        Self(Arc::new(Mutex::new(State {
            random,
            listed: BTreeMap::new(),
            sizes: BTreeMap::new(),
            granted: None,
            foreground: false,
            content: false,
            slices: 0,
            idles: 0,
            kept: 0,
            described: 0,
            slice: None,
            lie: None,
        })))
    }

    pub(crate) fn be_content(&self) {
        self.0.lock().unwrap().content = true;
    }

    /// Slices, IDLEs in place of the client's, bodies and descriptions that came of it.
    pub(crate) fn came(&self) -> [u64; 4] {
        let state = self.0.lock().unwrap();
        [state.slices, state.idles, state.kept, state.described]
    }

    /// The tag of the last slice.
    pub(crate) fn slice(&self) -> Option<String> {
        self.0.lock().unwrap().slice.clone()
    }

    /// The session sends this to the origin.
    pub(crate) fn sends(&self, octets: &[u8]) -> Result<(), String> {
        let mut state = self.0.lock().unwrap();
        let line = String::from_utf8_lossy(octets).into_owned();
        let mut words = line.split_ascii_whitespace();
        let tag = words.next().filter(|tag| tag.starts_with(OURS)).map(str::to_owned);
        let verb = words.next();
        state.idles += u64::from(tag.is_some() && verb == Some("IDLE"));
        if tag.is_some() && verb == Some("FETCH") {
            state.slices += 1;
            state.slice = tag;
            let granted = state.granted.take().ok_or_else(|| format!("it did not ask before {line}"))?;
            let asked = line
                .split_once("]<")
                .and_then(|(_, piece)| piece.split_once('.')?.1.split('>').next()?.parse::<u32>().ok());
            if asked.is_some_and(|asked| asked > granted) {
                return Err(format!("{granted} octets were granted, and it said {line}"));
            }
            if state.foreground {
                return Err(format!("a client waits, and it said {line}"));
            }
        }
        state.lie.take().map_or(Ok(()), Err)
    }

    /// The session is over.
    pub(crate) fn ends(&self) -> Result<(), String> {
        let mut state = self.0.lock().unwrap();
        if state.foreground {
            return Err("over, and a client waits for ever".into());
        }
        state.lie.take().map_or(Ok(()), Err)
    }
}

impl Preload for Whims {
    fn listed(&mut self, mailbox: &MailboxKey, uids: &UidRanges, _: Now) {
        self.0.lock().unwrap().listed.insert(mailbox.clone(), uids.newest_first().collect());
    }

    fn described(&mut self, mailbox: &MailboxKey, uid: Uid, said: &Description, _: Now) {
        let mut state = self.0.lock().unwrap();
        state.described += 1;
        state.sizes.insert((mailbox.clone(), uid), said.octets);
    }

    fn held(&mut self, _: &MailboxKey, _: Uid, held: Held) {
        self.0.lock().unwrap().kept += u64::from(held == Held::Whole);
    }

    fn read(&mut self, _: &MailboxKey, _: Uid, _: Read, _: Now) {}

    fn fetched(&mut self, mailbox: &MailboxKey, uid: Uid, octets: u64, _: Now) {
        if octets == 0 {
            self.0.lock().unwrap().lie = Some(format!("nothing came of {uid} in {:?}", mailbox.name));
        }
    }

    fn gone(&mut self, mailbox: &MailboxKey, uids: &[Uid], _: Now) {
        let mut state = self.0.lock().unwrap();
        for uid in uids {
            state.sizes.remove(&(mailbox.clone(), *uid));
            // It may want one of them all the same.
            if !state.random.once_in(10)
                && let Some(listed) = state.listed.get_mut(mailbox)
            {
                listed.retain(|there| *there != uid.get());
            }
        }
    }

    fn next(&mut self, open: &MailboxKey, roams: bool, _: Now) -> Option<Order> {
        assert!(!roams);
        let mut state = self.0.lock().unwrap();
        let state = &mut *state;
        if state.content || state.random.once_in(30) {
            return None;
        }
        // Of those that are gone, too.
        let listed = state.listed.get(open).filter(|listed| !listed.is_empty())?;
        let some = |random: &mut Random| Uid::new(*random.pick(listed)).unwrap();
        let uid = some(&mut state.random);
        let known = state.sizes.get(&(open.clone(), uid)).copied();
        let octets = known.filter(|_| !state.random.once_in(5));
        let octets = octets.unwrap_or(*state.random.pick(&[0, 9, 300, 40_000, 100_000]));
        let work = match state.random.below(6) {
            0 => Work::Describe((0..=state.random.below(50)).map(|_| some(&mut state.random)).collect()),
            1 => Work::Sections {
                uid,
                sections: vec![
                    (ItemKey::section(b"HEADER").unwrap(), 400),
                    (ItemKey::section(b"1").unwrap(), octets),
                ],
            },
            _ => Work::Whole { uid, octets },
        };
        let other = state.random.once_in(200);
        let mut mailbox = open.clone();
        if other {
            mailbox.name = "Elsewhere".into();
        }
        Some(Order { mailbox, work })
    }

    fn ask(&mut self, octets: u32, now: Now) -> Grant {
        let mut state = self.0.lock().unwrap();
        if state.content || state.random.once_in(200) {
            return Grant::Never(Why::Budget);
        }
        if state.random.once_in(5) {
            let millis = *state.random.pick(&[0, 30, 500, 1500, 5000]);
            return Grant::Wait(now.mono + Duration::from_millis(millis));
        }
        state.granted = Some(octets);
        Grant::Go
    }

    fn foreground(&mut self, active: bool, _: Now) {
        let mut state = self.0.lock().unwrap();
        if state.foreground == active {
            state.lie = Some(format!("told twice that somebody waits: {active}"));
        }
        state.foreground = active;
    }
}
