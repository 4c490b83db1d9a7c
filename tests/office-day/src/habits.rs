//! The hidden parameters of one office, drawn from its seed: who lives there, what reaches them, what they read.

use crate::rng::Rng;

/// What kind of source a message comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A colleague of the same organisation.
    Colleague,
    /// A person elsewhere.
    Outsider,
    /// A discussion list that several of the office are on.
    List,
    /// Advertising and digests, once in a day or week.
    Newsletter,
    /// A machine: tickets, builds, calendars, monitoring.
    Machine,
    /// Somebody who writes once and never again.
    Stranger,
}

/// Who writes to a user.
#[derive(Clone, Debug)]
pub struct Source {
    /// Unique in the office; what a mail proxy would take from `From` or `List-Id`.
    pub id: u64,
    /// What kind.
    pub kind: Kind,
    /// Messages on a working day, on average.
    pub a_day: f64,
    /// The chance that this user opens one of them.
    pub opened: f64,
    /// The mailbox into which a rule at the server files them; 0 is INBOX.
    pub mailbox: usize,
}

/// How one user works.
#[derive(Clone, Debug)]
pub struct User {
    /// What writes to him.
    pub sources: Vec<Source>,
    /// How many mailboxes he has, INBOX included.
    pub mailboxes: usize,
    /// The chance that a look at his mail includes a look into the mailbox.
    pub looks_into: Vec<f64>,
    /// Minutes from midnight at which he comes and leaves, on average.
    pub hours: (f64, f64),
    /// Minutes between two looks at new mail while he is there.
    pub look_every: f64,
    /// The chance that he is away for a whole day.
    pub away: f64,
    /// Old messages that he opens again on a day.
    pub again_a_day: f64,
    /// Of these, the part from before Waypost came.
    pub again_from_archive: f64,
    /// His program fetches the text first, and attachments when he asks.
    pub reads_parts: bool,
    /// The chance that he then asks.
    pub asks_for_attachment: f64,
    /// Begins with the newest, or with the oldest unread.
    pub newest_first: bool,
    /// The chance that he returns to a message that he passed over.
    pub second_thought: f64,
}

/// One office.
#[derive(Clone, Debug)]
pub struct Office {
    /// Its people.
    pub users: Vec<User>,
}

impl Office {
    /// Draws an office.
    #[must_use]
    pub fn draw(rng: &mut Rng) -> Self {
        let n = 24 + rng.below(17);
        let mut ids = 0..;
        let mut id = || ids.next().unwrap_or(u64::MAX);
        let lists: Vec<(u64, f64)> = (0..4 + rng.below(5)).map(|_| (id(), rng.range(2.0, 18.0))).collect();
        // Some offices answer everything, others let much lie.
        let diligence = rng.range(0.82, 0.97);
        let users = (0..n).map(|_| User::draw(rng, diligence, &lists, &mut id)).collect();
        Self { users }
    }
}

impl User {
    fn draw(rng: &mut Rng, diligence: f64, lists: &[(u64, f64)], id: &mut impl FnMut() -> u64) -> Self {
        let mailboxes = 2 + rng.below(5);
        let mut sources = Vec::new();
        let mut add = |kind, id, a_day, opened: f64, mailbox| {
            sources.push(Source { id, kind, a_day, opened: opened.clamp(0.0, 0.995), mailbox });
        };
        let colleagues = 6 + rng.below(10);
        for nth in 0..colleagues {
            add(Kind::Colleague, id(), 9.0 / small(nth + 1), diligence + rng.range(-0.08, 0.08), 0);
        }
        for nth in 0..10 + rng.below(25) {
            let filed = if rng.chance(0.1) { 1 + rng.below(mailboxes - 1) } else { 0 };
            add(Kind::Outsider, id(), 6.0 / small(nth + 2), diligence + rng.range(-0.2, 0.08), filed);
        }
        for &(list, a_day) in lists {
            if rng.chance(0.45) {
                let interest = match rng.below(10) {
                    0..4 => rng.range(0.7, 0.95),
                    4..7 => rng.range(0.15, 0.5),
                    _ => rng.range(0.0, 0.05),
                };
                let filed = if rng.chance(0.6) { 1 + rng.below(mailboxes - 1) } else { 0 };
                add(Kind::List, list, a_day, interest, filed);
            }
        }
        for _ in 0..3 + rng.below(9) {
            let interest = match rng.below(10) {
                0..7 => 0.0,
                7..9 => rng.range(0.05, 0.3),
                _ => rng.range(0.6, 0.9),
            };
            add(Kind::Newsletter, id(), rng.range(0.15, 1.0), interest, 0);
        }
        for _ in 0..2 + rng.below(4) {
            let interest = if rng.chance(0.5) { rng.range(0.8, 0.97) } else { rng.range(0.0, 0.12) };
            let filed = if rng.chance(0.5) { 1 + rng.below(mailboxes - 1) } else { 0 };
            add(Kind::Machine, id(), rng.range(1.0, 12.0), interest, filed);
        }
        add(Kind::Stranger, u64::MAX, rng.range(0.5, 4.0), rng.range(0.02, 0.3), 0);
        let comes = rng.range(420.0, 570.0);
        Self {
            sources,
            mailboxes,
            looks_into: (0..mailboxes).map(|nth| if nth == 0 { 1.0 } else { rng.range(0.05, 0.9) }).collect(),
            hours: (comes, comes + rng.range(450.0, 600.0)),
            look_every: if rng.chance(0.7) { rng.range(3.0, 15.0) } else { rng.range(60.0, 180.0) },
            away: rng.range(0.03, 0.2),
            again_a_day: rng.range(1.0, 6.0),
            again_from_archive: rng.range(0.1, 0.4),
            reads_parts: rng.chance(0.3),
            asks_for_attachment: rng.range(0.4, 0.8),
            newest_first: rng.chance(0.6),
            second_thought: rng.range(0.005, 0.03),
        }
    }
}

fn small(n: usize) -> f64 {
    f64::from(u32::try_from(n).unwrap_or(u32::MAX))
}
