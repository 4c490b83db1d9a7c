//! Plans as sessions hold them: each has its own place, those of one account share what they know.

use super::{Around, Plan, Reading};
use discovery_core::{
    id::{AccountKey, ServerId, UserKeying},
    now::Now,
    seam::{
        advisor::{Advisor, Held},
        gate::{BackgroundGate, Grant},
        preloaded::PreloadLedger,
    },
    value::Class,
};
use imap_core::{
    catalog::MailboxKey,
    mutants,
    preload::{Description, Order, Preload, Read, Work},
    retained::UidRanges,
    uid::Uid,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

/// Whom the plans of a node ask and tell.
pub struct PlansAround {
    /// Gives each session an advisor; all of them know the same.
    pub advisor: Arc<dyn Fn() -> Box<dyn Advisor> + Send + Sync>,
    /// What came of what was fetched.
    pub ledger: Arc<dyn PreloadLedger>,
    /// When octets may move.
    pub gate: Arc<dyn BackgroundGate>,
    /// Hashes senders and threads.
    pub keying: Arc<dyn UserKeying>,
}

/// The plans of a node. Clones are the same.
#[derive(Clone)]
pub struct Plans(Arc<Inner>);

struct Inner {
    around: PlansAround,
    plans: Mutex<BTreeMap<AccountKey, Arc<Mutex<Plan>>>>,
}

/// Accounts of which something is remembered beyond their last session; up to some 600 kB each, mostly far less.
const ACCOUNTS_MAX: usize = 512;

impl Plans {
    /// None yet.
    #[must_use]
    pub fn new(around: PlansAround) -> Self {
        Self(Arc::new(Inner { around, plans: Mutex::default() }))
    }

    /// For a session with `server`; whose it is shows in the mailboxes that it opens.
    #[must_use]
    pub fn for_session(&self, server: ServerId) -> Box<dyn Preload> {
        Box::new(Planner {
            advisor: (self.0.around.advisor)(),
            inner: Arc::clone(&self.0),
            server,
            plan: None,
            reading: Reading::default(),
            order: None,
            is_lane: false,
            foreground: 0,
            last: None,
        })
    }

    /// Forgets an account's mailboxes.
    pub fn forget(&self, account: &AccountKey) {
        self.0.plans.lock().unwrap_or_else(PoisonError::into_inner).remove(account);
    }
}

impl Inner {
    fn plan(&self, account: &AccountKey) -> Arc<Mutex<Plan>> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plan) = plans.get(account) {
            return Arc::clone(plan);
        }
        if plans.len() >= ACCOUNTS_MAX {
            // Those that no session holds.
            plans.retain(|_, plan| Arc::strong_count(plan) > 1);
        }
        let plan = Arc::new(Mutex::new(Plan::new(account.clone(), Arc::clone(&self.around.keying))));
        plans.insert(account.clone(), Arc::clone(&plan));
        plan
    }
}

struct Planner {
    inner: Arc<Inner>,
    advisor: Box<dyn Advisor>,
    server: ServerId,
    plan: Option<(AccountKey, Arc<Mutex<Plan>>)>,
    reading: Reading,
    /// What it was told to do last, and has not done yet.
    order: Option<Order>,
    /// It has said that it roams: nobody waits on its connection.
    is_lane: bool,
    /// Commands of the client that were told to be under way.
    foreground: u32,
    last: Option<Now>,
}

impl Planner {
    fn with<T>(
        &mut self,
        account: &AccountKey,
        now: Now,
        tell: impl FnOnce(&mut Plan, &mut Around<'_>) -> T,
    ) -> T {
        self.last = Some(now);
        let held = self.plan.take().filter(|(of, _)| of == account);
        let (of, plan) = held.unwrap_or_else(|| (account.clone(), self.inner.plan(account)));
        let told = {
            let mut plan = plan.lock().unwrap_or_else(PoisonError::into_inner);
            let ledger = &*self.inner.around.ledger;
            let mut around = Around { advisor: &mut *self.advisor, ledger, reading: &mut self.reading };
            tell(&mut plan, &mut around)
        };
        self.plan = Some((of, plan));
        told
    }
}

impl Preload for Planner {
    fn listed(&mut self, mailbox: &MailboxKey, uids: &UidRanges, now: Now) {
        self.with(&mailbox.account, now, |plan, _| plan.listed(mailbox, uids, now));
    }

    fn described(&mut self, mailbox: &MailboxKey, uid: Uid, said: &Description, now: Now) {
        self.with(&mailbox.account, now, |plan, around| plan.described(mailbox, uid, said, now, around));
    }

    fn held(&mut self, mailbox: &MailboxKey, uid: Uid, held: Held) {
        let Some(now) = self.last else { return };
        self.with(&mailbox.account, now, |plan, _| plan.held(mailbox, uid, held, now));
    }

    fn read(&mut self, mailbox: &MailboxKey, uid: Uid, read: Read, now: Now) {
        self.with(&mailbox.account, now, |plan, around| plan.read(mailbox, uid, read, now, around));
    }

    fn fetched(&mut self, mailbox: &MailboxKey, uid: Uid, octets: u64, now: Now) {
        let orders = |order: &Order| match &order.work {
            Work::Describe(_) => false,
            Work::Whole { uid: of, .. } | Work::Sections { uid: of, .. } => *of == uid,
        };
        self.order = self.order.take().filter(|order| !orders(order));
        self.with(&mailbox.account, now, |plan, around| plan.fetched(mailbox, uid, octets, now, around));
    }

    fn gone(&mut self, mailbox: &MailboxKey, uids: &[Uid], now: Now) {
        self.with(&mailbox.account, now, |plan, around| plan.gone(mailbox, uids, around));
    }

    fn next(&mut self, open: &MailboxKey, roams: bool, now: Now) -> Option<Order> {
        let new = roams && !self.is_lane;
        self.is_lane |= roams;
        // Whoever asks again has done it, or cannot; unless it has left the mailbox in the middle.
        let left = self.order.take().filter(|order| order.mailbox != *open && !roams);
        let order = self.with(&open.account, now, |plan, around| {
            if new {
                plan.lane(true);
            }
            left.iter().for_each(|order| plan.returned(order, around));
            plan.next(open, roams, now, around)
        });
        self.order.clone_from(&order);
        order
    }

    fn ask(&mut self, octets: u32, now: Now) -> Grant {
        self.inner.around.gate.ask(Class::Background, &self.server, octets, now)
    }

    fn standstill(&mut self, now: Now) -> Option<Instant> {
        self.inner.around.gate.standstill(&self.server, now)
    }

    fn foreground(&mut self, active: bool, now: Now) {
        self.last = Some(now);
        if active {
            self.foreground = self.foreground.saturating_add(1);
        } else {
            let Some(left) = self.foreground.checked_sub(1) else { return };
            self.foreground = left;
        }
        self.inner.around.gate.foreground(&self.server, active, now);
    }
}

impl Drop for Planner {
    /// A session that ends in the middle of a command keeps nobody waiting, and what it read was read.
    fn drop(&mut self) {
        let Some(now) = self.last else { return };
        let open = if mutants::on("planner-foreground-leaks") { 0 } else { self.foreground };
        for _ in 0..open {
            self.inner.around.gate.foreground(&self.server, false, now);
        }
        if let Some((account, _)) = &self.plan {
            let account = account.clone();
            let (lane, order) = (self.is_lane, self.order.take());
            self.with(&account, now, |plan, around| {
                plan.finish(now, around);
                order.iter().for_each(|order| plan.returned(order, around));
                if lane {
                    plan.lane(false);
                }
            });
        }
    }
}
