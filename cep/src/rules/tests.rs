//! The rules row by row, and what holds whatever happens.

use super::*;
use proptest::prelude::*;

const TERMS: Terms = Terms { lane: true, user_connections_max: 4, per_server_max: 2 };

#[expect(clippy::disallowed_methods, reason = "std has no other way to any Instant")]
fn any_time() -> Instant {
    Instant::now()
}

fn account(user: u8) -> AccountKey {
    let server = ServerId::new("mail.example.org").unwrap();
    AccountKey { server, user: UserKey { version: 1, hash: [user; 16] } }
}

fn left(user: u8, kept: u64) -> Event {
    Event::Left(account(user), KeptId(kept))
}

fn login(user: u8) -> Event {
    Event::LoggedIn(account(user))
}

fn logout(user: u8) -> Event {
    Event::LoggedOut(account(user))
}

fn end(kept: u64, why: Why) -> Verdict {
    Verdict::End(KeptId(kept), why)
}

fn beside(kept: u64, is: bool) -> Verdict {
    Verdict::Beside(KeptId(kept), is)
}

/// After `before`, `event` has these verdicts.
fn row(terms: Terms, before: &[Event], event: Event, verdicts: &[Verdict]) {
    let (mut rules, now) = (Rules::new(terms), any_time());
    for event in before {
        rules.handle(event.clone(), now);
    }
    assert_eq!(rules.handle(event.clone(), now), verdicts, "{event:?} after {before:?}");
}

#[test]
fn rules_row_by_row() {
    let alone = Terms { lane: false, ..TERMS };
    let user = account(1).user;
    let over = |kept| Event::Over(account(1), KeptId(kept));
    for (terms, before, event, verdicts) in [
        (TERMS, vec![], left(1, 1), vec![]),
        (TERMS, vec![login(1), logout(1)], left(1, 1), vec![]),
        (TERMS, vec![left(1, 1)], left(1, 2), vec![end(1, Why::Replaced)]),
        (TERMS, vec![left(1, 1)], login(1), vec![beside(1, true)]),
        (TERMS, vec![left(1, 1), login(1), login(1)], logout(1), vec![]),
        (TERMS, vec![left(1, 1), login(1)], logout(1), vec![beside(1, false)]),
        (TERMS, vec![login(1)], left(1, 1), vec![beside(1, true)]),
        (alone, vec![left(1, 1)], login(1), vec![end(1, Why::NewLogin)]),
        (alone, vec![login(1)], left(1, 1), vec![end(1, Why::NewLogin)]),
        (TERMS, vec![left(1, 1), left(2, 2)], left(3, 3), vec![end(3, Why::Full)]),
        (TERMS, vec![left(1, 1), left(2, 2)], left(2, 3), vec![end(2, Why::Replaced)]),
        (TERMS, vec![left(1, 1), left(2, 2), over(1)], left(3, 3), vec![]),
        (TERMS, vec![left(1, 1), left(2, 2)], Event::Operator(user), vec![end(1, Why::Operator)]),
        (TERMS, vec![left(1, 1), Event::Operator(user)], Event::Operator(user), vec![]),
        (TERMS, vec![left(1, 1)], Event::ServerGone(account(1).server), vec![end(1, Why::Operator)]),
        (TERMS, vec![left(1, 1)], Event::Limited(account(1)), vec![end(1, Why::Connections)]),
        (TERMS, vec![], Event::Limited(account(1)), vec![]),
        (TERMS, vec![left(1, 1), over(1)], login(1), vec![]),
        (TERMS, vec![left(1, 1), over(1)], Event::Refused(account(1)), vec![]),
    ] {
        row(terms, &before, event, &verdicts);
    }
}

#[test]
fn whoever_names_a_user_ends_nothing() {
    let (mut rules, now) = (Rules::new(TERMS), any_time());
    rules.handle(left(1, 1), now);
    let said = rules.handle(Event::Refused(account(1)), now);
    assert_eq!(said, [Verdict::Suspend(KeptId(1), now + SUSPENSION)]);
}

#[test]
fn what_the_operator_ends_is_ended() {
    row(TERMS, &[left(1, 1), login(1)], Event::Operator(account(1).user), &[end(1, Why::Operator)]);
}

#[test]
fn a_user_who_needs_his_connections_gets_them() {
    // Three clients and the lane are the four that he may have.
    row(TERMS, &[left(1, 1), login(1), login(1)], login(1), &[beside(1, true)]);
    row(TERMS, &[left(1, 1), login(1), login(1), login(1)], login(1), &[end(1, Why::Budget)]);
    // What says goodbye still counts.
    let before = [left(1, 1), login(1), login(1), login(1), login(1), logout(1)];
    row(TERMS, &before, left(1, 2), &[end(2, Why::Budget)]);
}

#[test]
fn a_limit_that_the_origin_named_is_remembered() {
    let (mut rules, now) = (Rules::new(TERMS), any_time());
    rules.handle(left(1, 1), now);
    for _ in 0..2 {
        assert_eq!(rules.handle(login(1), now), [beside(1, true)]);
    }
    // Three connections were as many as there may be: one is left to us only if it is alone.
    assert_eq!(rules.handle(Event::Limited(account(1)), now), [end(1, Why::Connections)]);
    rules.handle(Event::Over(account(1), KeptId(1)), now);
    assert_eq!(rules.limited_accounts(now), 1);
    rules.handle(logout(1), now);
    assert_eq!(rules.handle(left(1, 2), now), [end(2, Why::Budget)]);
    rules.handle(Event::Over(account(1), KeptId(2)), now);
    rules.handle(logout(1), now);
    assert_eq!(rules.handle(left(1, 3), now), []);
    assert_eq!(rules.handle(login(1), now), [end(3, Why::Budget)]);
    rules.handle(Event::Over(account(1), KeptId(3)), now);
    let later = now + CEILING_FOR;
    assert_eq!(rules.limited_accounts(later), 0);
    assert_eq!(rules.handle(left(1, 4), later), [beside(4, true)]);
}

proptest! {
    /// However clients come and go: at most one stands, all that ever was is told to end or has ended, and with it no
    /// user has more connections than he may.
    #[test]
    fn connections_stay_within_the_budget(
        steps in prop::collection::vec((0_u8..9, 1_u8..4), 0..120),
        lane in any::<bool>(),
        max in 1_usize..6,
    ) {
        let mut rules = Rules::new(Terms { lane, user_connections_max: max, per_server_max: 2 });
        let now = any_time();
        let mut next = 0;
        // Kept sessions that run, whether they were told to end.
        let mut running: BTreeMap<KeptId, (AccountKey, bool)> = BTreeMap::new();
        let mut clients: BTreeMap<AccountKey, usize> = BTreeMap::new();
        for (what, user) in steps {
            let who = account(user);
            let event = match what {
                0 | 1 => {
                    *clients.entry(who.clone()).or_default() += 1;
                    Event::LoggedIn(who)
                }
                2 | 3 if clients.get(&who).is_some_and(|n| *n > 0) => {
                    *clients.entry(who.clone()).or_default() -= 1;
                    Event::LoggedOut(who)
                }
                4 | 5 => {
                    next += 1;
                    running.insert(KeptId(next), (who.clone(), false));
                    Event::Left(who, KeptId(next))
                }
                6 => match running.iter().find(|(_, (account, _))| *account == who).map(|(kept, _)| *kept) {
                    Some(kept) => {
                        running.remove(&kept);
                        Event::Over(who, kept)
                    }
                    None => continue,
                },
                7 => Event::Limited(who),
                _ => Event::Refused(who),
            };
            for verdict in rules.handle(event, now) {
                match verdict {
                    Verdict::End(kept, _) => {
                        let told = running.get_mut(&kept).expect("it runs");
                        prop_assert!(!std::mem::replace(&mut told.1, true), "told twice");
                    }
                    Verdict::Beside(kept, _) | Verdict::Suspend(kept, _) => {
                        prop_assert!(!running.get(&kept).expect("it runs").1, "it is ending");
                    }
                }
            }
            for user in 1..4 {
                let who = account(user);
                let standing = running.values().filter(|(account, told)| *account == who && !told).count();
                let clients = clients.get(&who).copied().unwrap_or(0);
                prop_assert!(standing <= 1);
                if standing == 1 && clients > 0 {
                    prop_assert!(lane);
                    prop_assert!(standing + clients <= max, "{clients} and ours of {max}");
                }
            }
        }
        for (who, n) in clients {
            for _ in 0..n {
                rules.handle(Event::LoggedOut(who.clone()), now);
            }
        }
        for (kept, (who, _)) in running {
            rules.handle(Event::Over(who, kept), now);
        }
        prop_assert!(rules.accounts.is_empty());
    }
}
