//! What the policy is measured against: everything, the newest twenty, and two that know what nobody can.

use crate::{
    office::{Days, Event},
    trial::message_of,
};
use affinity_db::policy::{Policy, Question};
use discovery_core::{
    id::UserKey,
    now::Now,
    seam::advisor::{Advisor, Amount, FetchOrder, Held, Item, Reason, SessionFacts},
    value::{Access, ObjectKey},
};

/// Whatever a rule says about an item, newest first, mailbox by mailbox.
pub struct Rule<F>(F);

impl<F: FnMut(&Item, usize) -> Option<Amount> + Send> Rule<F> {
    /// The rule is told the item and how many of its mailbox are newer.
    pub fn new(rule: F) -> Self {
        Self(rule)
    }
}

impl<F: FnMut(&Item, usize) -> Option<Amount> + Send> Advisor for Rule<F> {
    fn listed(&mut self, _: UserKey, _: &ObjectKey, _: &Item, _: Now) {}

    fn observe(&mut self, _: &Access, _: Now) {}

    fn next(&mut self, facts: &SessionFacts<'_>, _: Now) -> Option<FetchOrder> {
        facts.collections.iter().find_map(|collection| {
            let newest = collection.items.iter().rev().enumerate();
            newest.filter(|(_, item)| item.held == Held::Nothing).find_map(|(newer, item)| {
                let amount = (self.0)(item, newer)?;
                Some(FetchOrder {
                    collection: collection.object.clone(),
                    nth: item.nth,
                    object: item.object.clone(),
                    amount,
                    octets: item.octets,
                    reason: Reason::Rest,
                })
            })
        })
    }
}

/// Everything, the newest first.
#[must_use]
pub fn fetch_all() -> impl Advisor {
    Rule::new(|_, _| Some(Amount::Whole))
}

/// The newest twenty of each mailbox.
#[must_use]
pub fn newest_20() -> impl Advisor {
    Rule::new(|_, newer| (newer < 20).then_some(Amount::Whole))
}

/// Knows the future: what will be opened, and how much of it. It can fetch an old message only when it comes to
/// its turn on the line, as everybody.
#[must_use]
pub fn oracle(days: &Days) -> impl Advisor {
    let mut wanted = vec![None; days.messages.len()];
    for (_, event) in &days.events {
        if let Event::Opens { message, whole } = *event
            && let (Some(wanted), Some(message)) = (wanted.get_mut(message), days.messages.get(message))
        {
            let part = if whole { Amount::Whole } else { Amount::Start(message.text_octets) };
            if *wanted != Some(Amount::Whole) {
                *wanted = Some(part);
            }
        }
    }
    Rule::new(move |item, _| wanted.get(message_of(&item.object)?).copied().flatten())
}

/// Knows the hidden chance of every new message, and nothing of the future: no policy that learns can do better
/// with the same rule for what is worth its octets.
#[must_use]
pub fn knows_the_habits(days: &Days, policy: Policy) -> impl Advisor {
    let chances: Vec<u64> = days
        .messages
        .iter()
        .map(|message| if message.arrived < 0 { 0 } else { permille(message.chance) })
        .collect();
    Rule::new(move |item, _| {
        let chance = chances.get(message_of(&item.object)?).copied()?;
        policy.amount(Question {
            chance,
            whole: 880,
            octets: item.octets,
            main_octets: item.main_octets,
            held: item.held,
        })
    })
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a chance is between 0 and 1")]
fn permille(chance: f64) -> u64 {
    (chance * 1000.0) as u64
}
