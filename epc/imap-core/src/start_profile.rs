//! What a mail program always says first. Programs begin each session alike; once the same beginning was seen three
//! times, it is foreseen, and can be asked behind the login instead of after it. Learned as values: the commands with
//! their arguments, octet for octet, without their tags. A login is never among them.

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
    /// A session of this key has begun with these commands and then said something that is never foreseen.
    fn observe(&self, key: &StartKey, commands: Vec<Bytes>);
    /// A session of this key is over.
    fn end(&self, key: &StartKey);
}

/// All beginnings known to a process.
#[derive(Debug, Default)]
pub struct StartProfiles {
    profiles: BTreeMap<StartKey, Profile>,
    /// Which sessions of a program are open: a bit for each.
    open: BTreeMap<(AccountKey, Bytes), u8>,
}

#[derive(Debug, Default)]
struct Profile {
    /// Each command with how many times in a row it stood at its place behind the same ones.
    steps: Vec<(Bytes, u8)>,
}

impl StartHabits for Mutex<StartProfiles> {
    fn begin(&self, account: &AccountKey, opening: Bytes) -> (StartKey, Vec<Bytes>) {
        self.lock().unwrap_or_else(PoisonError::into_inner).begin(account, opening)
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
        let steps = self.profiles.get(&key).map(|profile| profile.steps.iter());
        let certain = steps.into_iter().flatten().take_while(|(_, times)| *times >= CERTAIN);
        let commands = certain.map(|(command, _)| command.clone()).collect();
        (key, commands)
    }

    fn end(&mut self, key: &StartKey) {
        let program = (key.account.clone(), key.opening.clone());
        if let Some(open) = self.open.get_mut(&program) {
            *open &= !(1 << key.nth);
            if *open == 0 {
                self.open.remove(&program);
            }
        }
    }

    fn observe(&mut self, key: StartKey, commands: Vec<Bytes>) {
        if self.profiles.len() >= PROFILES_MAX && !self.profiles.contains_key(&key) {
            self.profiles.pop_first();
        }
        let steps = &mut self.profiles.entry(key).or_default().steps;
        let same = steps.iter().zip(&commands).take_while(|((known, _), said)| known == *said).count();
        for (_, times) in steps.iter_mut().take(same) {
            *times = times.saturating_add(1);
        }
        steps.truncate(same);
        let fits = |command: &Bytes| command.len() <= COMMAND_OCTETS_MAX;
        let new = commands.into_iter().take(COMMANDS_MAX).skip(same).take_while(fits);
        steps.extend(new.map(|command| (Bytes::copy_from_slice(&command), 1)));
    }
}

/// So often the same, and it is expected again.
const CERTAIN: u8 = 3;
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
