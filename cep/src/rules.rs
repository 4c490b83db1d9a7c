//! The rules between kept sessions, their users' clients and the operator: events in, verdicts out. No stream, no clock.
//!
//! * At most one of a user and server stands: the one whose client left last.
//! * While its user is connected it is a *lane* beside him, if the terms allow that; else it ends when the origin has
//!   accepted the new login, never before (decisions/0003): whoever names a user ends nothing.
//! * Ours never take a connection that the user needs: all of his, and ours, stay within a budget, and an origin that
//!   says 'too many' is remembered.

use crate::keeper::Why;
use discovery_core::id::{AccountKey, ServerId, UserKey};
use imap_core::mutants;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// What the operator allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Whether a kept session stays beside its user's clients.
    pub lane: bool,
    /// Connections of one user and server, his clients' and ours.
    pub user_connections_max: usize,
    /// Sessions that are kept of one server.
    pub per_server_max: usize,
}

/// A kept session; never used again within the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeptId(pub u64);

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A client left and its connection is there to be kept.
    Left(AccountKey, KeptId),
    /// The origin accepted a login.
    LoggedIn(AccountKey),
    /// A client that had logged in has gone, its connection closed or left to us: comes before [`Event::Left`].
    LoggedOut(AccountKey),
    /// The origin refused a login that named this account.
    Refused(AccountKey),
    /// It did so because the account has too many connections.
    Limited(AccountKey),
    /// The operator ends what is kept of a user.
    Operator(UserKey),
    /// Nothing may go on with this server.
    ServerGone(ServerId),
    /// A kept session is over, for whatever reason.
    Over(AccountKey, KeptId),
}

/// What is to be done with a kept session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It ends.
    End(KeptId, Why),
    /// Whether its user is connected beside it.
    Beside(KeptId, bool),
    /// It fetches nothing until then.
    Suspend(KeptId, Instant),
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Rules {
    terms: Terms,
    /// Those of which anything is connected.
    accounts: BTreeMap<AccountKey, Account>,
    /// How many connections an origin was found to allow, and until when that is believed.
    ceilings: BTreeMap<AccountKey, (usize, Instant)>,
}

#[derive(Debug, Default)]
struct Account {
    /// Clients.
    connected: usize,
    /// The one that is kept.
    standing: Option<KeptId>,
    /// Those that say goodbye: the origin still counts them.
    ending: Vec<KeptId>,
}

impl Account {
    fn connections(&self) -> usize {
        self.connected + usize::from(self.standing.is_some()) + self.ending.len()
    }

    fn end(&mut self, why: Why) -> Option<Verdict> {
        let kept = self.standing.take()?;
        self.ending.push(kept);
        Some(Verdict::End(kept, why))
    }
}

impl Rules {
    /// Nothing is connected yet.
    #[must_use]
    pub fn new(terms: Terms) -> Self {
        Self { terms, accounts: BTreeMap::new(), ceilings: BTreeMap::new() }
    }

    /// What follows from it, in this order.
    pub fn handle(&mut self, event: Event, now: Instant) -> Vec<Verdict> {
        match event {
            Event::Left(account, kept) => self.left(&account, kept, now),
            Event::LoggedIn(account) => {
                let allowed = self.allowed(&account, now);
                let lane = self.terms.lane;
                let entry = self.accounts.entry(account).or_default();
                entry.connected += 1;
                match entry.standing {
                    Some(kept) if lane && entry.connections() <= allowed => vec![Verdict::Beside(kept, true)],
                    Some(_) => {
                        entry.end(if lane { Why::Budget } else { Why::NewLogin }).into_iter().collect()
                    }
                    None => Vec::new(),
                }
            }
            Event::LoggedOut(account) => self.of(&account, |entry| {
                entry.connected = entry.connected.saturating_sub(1);
                let alone = entry.standing.filter(|_| entry.connected == 0);
                alone.map(|kept| Verdict::Beside(kept, false))
            }),
            Event::Refused(account) => self.of(&account, |entry| {
                if mutants::on("rules-stranger-ends") {
                    return entry.end(Why::NewLogin);
                }
                entry.standing.map(|kept| Verdict::Suspend(kept, now + SUSPENSION))
            }),
            Event::Limited(account) => self.limited(account, now),
            Event::Operator(user) => {
                if mutants::on("rules-operator-is-ignored") {
                    return Vec::new();
                }
                self.end_all(|account| account.user == user)
            }
            Event::ServerGone(server) => self.end_all(|account| account.server == server),
            Event::Over(account, kept) => self.of(&account, |entry| {
                entry.standing = entry.standing.filter(|standing| *standing != kept);
                entry.ending.retain(|ending| *ending != kept);
                None
            }),
        }
    }

    /// Accounts of which an origin said that they have too many connections, as far as that is still believed.
    #[must_use]
    pub fn limited_accounts(&self, now: Instant) -> usize {
        self.ceilings.values().filter(|(_, until)| *until > now).count()
    }

    fn left(&mut self, account: &AccountKey, kept: KeptId, now: Instant) -> Vec<Verdict> {
        let stands = |(other, entry): (&AccountKey, &Account)| {
            other.server == account.server && other != account && entry.standing.is_some()
        };
        let full = self.accounts.iter().filter(|entry| stands(*entry)).count() >= self.terms.per_server_max;
        let allowed = self.allowed(account, now);
        let lane = self.terms.lane;
        let entry = self.accounts.entry(account.clone()).or_default();
        let refused = if full {
            Some(Why::Full)
        } else if entry.connected > 0 && !lane {
            Some(Why::NewLogin)
        } else if entry.connected + entry.ending.len() + 1 > allowed {
            Some(Why::Budget)
        } else {
            None
        };
        if let Some(why) = refused {
            // What stands is the one that was there before.
            entry.ending.push(kept);
            return vec![Verdict::End(kept, why)];
        }
        let mut verdicts: Vec<_> = entry.end(Why::Replaced).into_iter().collect();
        entry.standing = Some(kept);
        if entry.connected > 0 {
            verdicts.push(Verdict::Beside(kept, true));
        }
        verdicts
    }

    fn limited(&mut self, account: AccountKey, now: Instant) -> Vec<Verdict> {
        let connections = self.accounts.get(&account).map_or(0, Account::connections);
        let verdicts = self.of(&account, |entry| entry.end(Why::Connections));
        if mutants::on("rules-forget-the-ceiling") {
            return verdicts;
        }
        self.ceilings.retain(|_, (_, until)| *until > now);
        let known = self.ceilings.get(&account).map(|(ceiling, _)| *ceiling);
        if known.is_some() || self.ceilings.len() < CEILINGS_MAX {
            // One for the client that was refused, and one to spare.
            let found = connections.saturating_sub(2);
            let ceiling = known.map_or(found, |known| known.min(found));
            self.ceilings.insert(account, (ceiling, now + CEILING_FOR));
        }
        verdicts
    }

    fn allowed(&self, account: &AccountKey, now: Instant) -> usize {
        if mutants::on("rules-lock-the-user-out") {
            return usize::MAX;
        }
        let ceiling = self.ceilings.get(account).filter(|(_, until)| *until > now);
        ceiling.map_or(usize::MAX, |(ceiling, _)| *ceiling).min(self.terms.user_connections_max)
    }

    fn end_all(&mut self, whose: impl Fn(&AccountKey) -> bool) -> Vec<Verdict> {
        let named = self.accounts.iter_mut().filter(|(account, _)| whose(account));
        named.filter_map(|(_, entry)| entry.end(Why::Operator)).collect()
    }

    fn of(
        &mut self,
        account: &AccountKey,
        change: impl FnOnce(&mut Account) -> Option<Verdict>,
    ) -> Vec<Verdict> {
        let Some(entry) = self.accounts.get_mut(account) else { return Vec::new() };
        let verdict = change(entry);
        if entry.connections() == 0 {
            self.accounts.remove(account);
        }
        verdict.into_iter().collect()
    }
}

/// How long a refused login holds up synthetic work in that user's name.
const SUSPENSION: Duration = Duration::from_secs(15 * 60);
/// How long an origin's 'too many connections' is remembered.
const CEILING_FOR: Duration = Duration::from_secs(6 * 3600);
/// Accounts with such a memory; of more nothing is remembered. About 1 MB.
const CEILINGS_MAX: usize = 10_000;

#[cfg(test)]
mod tests;
