//! What a mail program always says first. Programs begin each session alike; once the same beginning was seen three
//! times, it is foreseen, and can be asked behind the login instead of after it. Learned as values: the commands with
//! their arguments, octet for octet, without their tags. A login is never among them.
//!
//! A beginning has two parts. Up to its first SELECT it is a habit of the first, the second, ... session that a program
//! has open; from there on, of the program in that mailbox. For which of a program's sessions opens INBOX may change
//! from start to start: two connections run for it. Then both are taken for the one that does, as long as each did so
//! lately; the other one has then opened a mailbox in vain.

use bytes::Bytes;
use discovery_core::id::AccountKey;
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// Whose beginnings are alike.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StartKey {
    /// Whose mail.
    pub account: AccountKey,
    /// How the program came to its login: the names of its commands, and its ID if it told one. No argument of a login.
    pub opening: Bytes,
    /// Which of the sessions that it has open: many programs open one for INBOX and another for the rest.
    pub nth: u8,
}

/// Learns beginnings and foresees them.
pub trait StartHabits: Send + Sync {
    /// A session of this account begins; gives its key, and the commands to expect.
    fn begin(&self, account: &AccountKey, opening: Bytes) -> (StartKey, Vec<Bytes>);
    /// A session of this key opens a mailbox by the command `select`; gives the commands to expect behind it.
    fn opens(&self, key: &StartKey, select: &Bytes) -> Vec<Bytes>;
    /// A session of this key has begun with these commands and then said something that is never foreseen.
    fn observe(&self, key: &StartKey, commands: Vec<Bytes>);
    /// A session of this key is over.
    fn end(&self, key: &StartKey);
}

/// All beginnings known to a process.
#[derive(Debug, Default)]
pub struct StartProfiles {
    /// What is said before a mailbox is opened.
    before: BTreeMap<StartKey, Before>,
    /// What is said in one, by its SELECT.
    inside: BTreeMap<(Program, Bytes), Steps>,
    /// Which sessions of a program are open: a bit for each.
    open: BTreeMap<Program, u8>,
}

/// An account and how a program comes to its login.
type Program = (AccountKey, Bytes);

#[derive(Debug, Default)]
struct Before {
    steps: Steps,
    /// The mailbox that was opened last.
    opened: Option<Opened>,
}

#[derive(Debug)]
struct Opened {
    select: Bytes,
    /// Behind so many commands.
    at: usize,
    /// So many sessions of this key have begun otherwise since.
    age: u8,
}

/// Each command with how many times in a row it stood at its place behind the same ones.
#[derive(Debug, Default)]
struct Steps(Vec<(Bytes, u8)>);

impl StartHabits for Mutex<StartProfiles> {
    fn begin(&self, account: &AccountKey, opening: Bytes) -> (StartKey, Vec<Bytes>) {
        self.lock().unwrap_or_else(PoisonError::into_inner).begin(account, opening)
    }

    fn opens(&self, key: &StartKey, select: &Bytes) -> Vec<Bytes> {
        self.lock().unwrap_or_else(PoisonError::into_inner).inside(key, select)
    }

    fn observe(&self, key: &StartKey, commands: Vec<Bytes>) {
        self.lock().unwrap_or_else(PoisonError::into_inner).observe(key.clone(), commands);
    }

    fn end(&self, key: &StartKey) {
        self.lock().unwrap_or_else(PoisonError::into_inner).end(key);
    }
}

impl StartProfiles {
    fn begin(&mut self, account: &AccountKey, opening: Bytes) -> (StartKey, Vec<Bytes>) {
        let open = self.open.entry((account.clone(), opening.clone())).or_default();
        let nth = open.trailing_ones().min(NTH_MAX);
        *open |= 1 << nth;
        let nth = u8::try_from(nth).unwrap_or(u8::MAX);
        let key = StartKey { account: account.clone(), opening, nth };
        let Some(before) = self.before.get(&key) else { return (key, Vec::new()) };
        let mut commands = before.steps.certain();
        let lately = before.opened.as_ref().filter(|opened| opened.at <= commands.len());
        if let Some(Opened { select, at, .. }) = lately {
            let inside = self.inside(&key, select);
            if !inside.is_empty() {
                commands.truncate(*at);
                commands.push(select.clone());
                commands.extend(inside);
            }
        }
        (key, commands)
    }

    fn inside(&self, key: &StartKey, select: &Bytes) -> Vec<Bytes> {
        self.inside.get(&(key.program(), select.clone())).map(Steps::certain).unwrap_or_default()
    }

    fn end(&mut self, key: &StartKey) {
        let program = key.program();
        if let Some(open) = self.open.get_mut(&program) {
            *open &= !(1 << key.nth);
            if *open == 0 {
                self.open.remove(&program);
            }
        }
    }

    fn observe(&mut self, key: StartKey, mut commands: Vec<Bytes>) {
        commands.truncate(COMMANDS_MAX);
        let known = commands.iter().position(|command| command.len() > COMMAND_OCTETS_MAX);
        commands.truncate(known.unwrap_or(commands.len()));
        let at = commands.iter().position(opens).unwrap_or(commands.len());
        let mut inside = commands.split_off(at).into_iter();
        let select = inside.next();
        if let Some(select) = &select {
            make_room(&mut self.inside);
            self.inside.entry((key.program(), select.clone())).or_default().observe(inside.collect());
        }
        make_room(&mut self.before);
        let before = self.before.entry(key).or_default();
        before.steps.observe(commands);
        before.opened = match (select, before.opened.take()) {
            (Some(select), _) => Some(Opened { select, at, age: 0 }),
            (None, Some(opened)) if opened.age < LATELY => Some(Opened { age: opened.age + 1, ..opened }),
            (None, _) => None,
        };
    }
}

impl StartKey {
    fn program(&self) -> Program {
        (self.account.clone(), self.opening.clone())
    }
}

impl Steps {
    fn certain(&self) -> Vec<Bytes> {
        let certain = self.0.iter().take_while(|(_, times)| *times >= CERTAIN);
        certain.map(|(command, _)| command.clone()).collect()
    }

    fn observe(&mut self, commands: Vec<Bytes>) {
        let steps = &mut self.0;
        let same = steps.iter().zip(&commands).take_while(|((known, _), said)| known == *said).count();
        for (_, times) in steps.iter_mut().take(same) {
            *times = times.saturating_add(1);
        }
        steps.truncate(same);
        let new = commands.into_iter().skip(same);
        steps.extend(new.map(|command| (Bytes::copy_from_slice(&command), 1)));
    }
}

fn opens(command: &Bytes) -> bool {
    command.get(..SELECT.len()).is_some_and(|name| name.eq_ignore_ascii_case(SELECT))
}

fn make_room<K: Ord, V>(profiles: &mut BTreeMap<K, V>) {
    if profiles.len() >= PROFILES_MAX {
        profiles.pop_first();
    }
}

const SELECT: &[u8] = b"SELECT ";
/// So often the same, and it is expected again.
const CERTAIN: u8 = 3;
/// A mailbox that a session has opened is expected again, until so many have begun without it.
const LATELY: u8 = 3;
/// More at once are not told apart.
const NTH_MAX: u32 = 4;
/// Commands of a beginning; programs that say more before the first FETCH are not known.
pub const COMMANDS_MAX: usize = 8;
/// One with a longer argument is no habit.
const COMMAND_OCTETS_MAX: usize = 512;
/// Accounts times programs of a large branch.
const PROFILES_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;
    use discovery_core::id::{ServerId, UserKey};
    use proptest::prelude::*;

    fn account(user: u8) -> AccountKey {
        let server = ServerId::new("mail.example.org").unwrap();
        AccountKey { server, user: UserKey { version: 1, hash: [user; 16] } }
    }

    fn commands(text: &str) -> Vec<Bytes> {
        text.split_terminator(',').map(|c| Bytes::copy_from_slice(c.as_bytes())).collect()
    }

    /// Sessions one after the other, each with what it was foreseen to say.
    fn play(sessions: &[&str]) -> Vec<String> {
        let mut profiles = StartProfiles::default();
        let mut foreseen = Vec::new();
        for said in sessions {
            let (key, expected) = profiles.begin(&account(1), Bytes::from_static(b"LOGIN"));
            foreseen.push(expected.iter().map(|c| String::from_utf8_lossy(c)).collect::<Vec<_>>().join(","));
            profiles.observe(key.clone(), commands(said));
            profiles.end(&key);
        }
        assert!(profiles.open.is_empty());
        foreseen
    }

    #[test]
    fn what_was_said_three_times_is_foreseen() {
        for (sessions, foreseen) in [
            (&["a,b", "a,b", "a,b", ""][..], "a,b"),
            (&["a,b", "a,b", ""], ""),
            // One that differs ends what follows it, and it must be seen three times again.
            (&["a,b", "a,b", "a,b", "a,c", ""], "a"),
            (&["a,b", "a,b", "a,b", "a,c", "a,b", "a,b", ""], "a"),
            (&["a,b", "a,b", "a,b", "a,c", "a,c", "a,c", ""], "a,c"),
            // Shorter: the rest was asked in vain.
            (&["a,b", "a,b", "a,b", "a", ""], "a"),
            (&["a", "a,b", "a,b", "a,b", ""], "a,b"),
            (&["b,a", "a,b", "a,b", ""], ""),
        ] {
            assert_eq!(play(sessions).last().map(String::as_str), Some(foreseen), "{sessions:?}");
        }
    }

    #[test]
    fn users_programs_and_sessions_at_a_time_are_told_apart() {
        let mut profiles = StartProfiles::default();
        for _ in 0..3 {
            let keys = ["inbox", "list"].map(|said| {
                let (key, _) = profiles.begin(&account(1), Bytes::from_static(b"LOGIN"));
                profiles.observe(key.clone(), commands(said));
                key
            });
            keys.iter().for_each(|key| profiles.end(key));
        }
        let mut foreseen =
            |user, opening: &'static [u8]| profiles.begin(&account(user), Bytes::from_static(opening)).1;
        assert_eq!(foreseen(1, b"LOGIN"), commands("inbox"));
        assert_eq!(foreseen(1, b"LOGIN"), commands("list"));
        assert_eq!(foreseen(1, b"LOGIN"), commands(""));
        assert_eq!(foreseen(1, b"CAPABILITY LOGIN"), commands(""));
        assert_eq!(foreseen(2, b"LOGIN"), commands(""));
    }

    /// A program with two sessions at a time: in each start, what the first says and what the second.
    fn start(profiles: &mut StartProfiles, said: [&str; 2]) -> [String; 2] {
        let begun = said.map(|said| {
            let (key, foreseen) = profiles.begin(&account(1), Bytes::from_static(b"LOGIN"));
            (key, foreseen, said)
        });
        begun.map(|(key, foreseen, said)| {
            profiles.observe(key.clone(), commands(said));
            profiles.end(&key);
            foreseen.iter().map(|c| String::from_utf8_lossy(c)).collect::<Vec<_>>().join(",")
        })
    }

    #[test]
    fn sessions_that_change_places_are_both_taken_for_the_one_that_opens_the_mailbox() {
        let (list, inbox) = ("id,list", "id,SELECT i,acl,flags");
        let mut profiles = StartProfiles::default();
        for said in [[list, inbox], [inbox, list], [list, inbox]] {
            start(&mut profiles, said);
        }
        for said in [[inbox, list], [inbox, list], [list, inbox], [list, inbox]] {
            assert_eq!(start(&mut profiles, said), [inbox, inbox]);
        }
        // One that has not opened it for a while is not asked to.
        for _ in 0..=LATELY {
            start(&mut profiles, [inbox, list]);
        }
        assert_eq!(start(&mut profiles, [inbox, list]), [inbox, list]);
    }

    #[test]
    fn in_a_mailbox_all_sessions_of_a_program_have_one_habit() {
        let mut profiles = StartProfiles::default();
        let select = Bytes::from_static(b"SELECT i");
        for said in [["SELECT i,flags", "list"], ["list", "SELECT i,flags"], ["SELECT i,flags", "list"]] {
            let (key, _) = profiles.begin(&account(1), Bytes::from_static(b"LOGIN"));
            assert_eq!(profiles.inside(&key, &select), commands(""));
            profiles.end(&key);
            start(&mut profiles, said);
        }
        let (key, _) = profiles.begin(&account(1), Bytes::from_static(b"LOGIN"));
        assert_eq!(profiles.inside(&key, &select), commands("flags"));
        assert_eq!(profiles.inside(&key, &Bytes::from_static(b"SELECT j")), commands(""));
        let (other, _) = profiles.begin(&account(2), Bytes::from_static(b"LOGIN"));
        assert_eq!(profiles.inside(&other, &select), commands(""));
    }

    proptest! {
        /// Only what stood at that place in each of the last three.
        #[test]
        fn nothing_is_foreseen_that_was_not_said_three_times_running(
            sessions in proptest::collection::vec("([ab],){0,4}", 1..12),
        ) {
            let sessions: Vec<&str> = sessions.iter().map(|s| s.trim_end_matches(',')).collect();
            for (at, foreseen) in play(&sessions).iter().enumerate() {
                let foreseen = commands(foreseen);
                for earlier in sessions[..at].iter().rev().take(3) {
                    prop_assert!(commands(earlier).starts_with(&foreseen));
                }
                prop_assert!(at >= 3 || foreseen.is_empty());
            }
        }
    }
}
