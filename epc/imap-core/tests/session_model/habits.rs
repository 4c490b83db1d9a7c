//! What mail programs say and in which order; chance recombines it.

use super::{Asked, Client, Fetch, Truth, What};
use crate::{mail::Content, origin::label, random::Random, wire::numbers};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
};

/// What a program still means to do.
pub(crate) struct Habit(VecDeque<Step>);

#[derive(Clone, Copy, Debug)]
enum Step {
    /// SELECT or EXAMINE of a mailbox.
    Open(&'static str, bool),
    /// These items of everything, by UID.
    All(&'static [&'static str]),
    /// These items of everything, by number.
    ByNumber(&'static [&'static str]),
    /// These items of one of the newest messages that it knows of.
    Newest(&'static [&'static str]),
    Noop,
    Idle,
    /// Something else that a person does.
    Other,
}

use Step::{All, ByNumber, Idle, Newest, Noop, Open, Other};

const THUNDERBIRD: &[Step] = &[
    Open("INBOX", false),
    All(&["FLAGS"]),
    All(&["UID", "RFC822.SIZE", "FLAGS", "BODY.PEEK[HEADER.FIELDS (From Subject X-Odd)]"]),
    Newest(&["UID", "RFC822.SIZE", "BODY[]"]),
    Newest(&["UID", "RFC822.SIZE", "BODY.PEEK[]<0.65536>"]),
    Idle,
    Newest(&["UID", "RFC822.SIZE", "BODY[]"]),
    Noop,
    Other,
];

const MUTT: &[Step] = &[
    Open("INBOX", false),
    ByNumber(&["UID", "FLAGS", "INTERNALDATE", "RFC822.SIZE", "BODY.PEEK[HEADER.FIELDS (From Subject)]"]),
    Newest(&["BODY.PEEK[]"]),
    Noop,
    Newest(&["BODY.PEEK[]"]),
    Other,
    Open("Work Stuff", true),
    ByNumber(&["UID", "FLAGS", "INTERNALDATE", "RFC822.SIZE", "BODY.PEEK[HEADER.FIELDS (From Subject)]"]),
    Idle,
];

const MBSYNC: &[Step] = &[
    Open("INBOX", false),
    All(&["UID", "FLAGS", "RFC822.SIZE"]),
    Newest(&["UID", "FLAGS", "BODY.PEEK[]"]),
    Newest(&["UID", "FLAGS", "BODY.PEEK[]"]),
    Newest(&["UID", "FLAGS", "BODY.PEEK[]"]),
    Newest(&["UID", "FLAGS", "BODY.PEEK[]"]),
    Other,
    Open("Shared", false),
    All(&["UID", "FLAGS", "RFC822.SIZE"]),
    Newest(&["UID", "FLAGS", "BODY.PEEK[]"]),
    Noop,
];

impl Habit {
    /// One program's, or the beginning of one's and the end of another's.
    pub(crate) fn any(random: &mut Random) -> Self {
        let programs = [THUNDERBIRD, MUTT, MBSYNC];
        let (first, second) = (*random.pick(&programs), *random.pick(&programs));
        let cut = random.below(first.len() + 1);
        let mut steps: VecDeque<Step> = first[..cut].iter().copied().collect();
        steps.extend(&second[cut.min(second.len())..]);
        Self(steps)
    }
}

impl Client {
    /// Says what comes next of its habit; by chance, and after its end, anything else.
    pub(crate) fn follow(
        &mut self,
        habit: &mut Habit,
        random: &mut Random,
        truth: &Truth<'_>,
        uploads: &mut Vec<Rc<Content>>,
    ) -> Option<String> {
        let lost = !self.authenticated || self.said_bye || self.logged_out || self.is_idle();
        if lost || habit.0.is_empty() || random.once_in(10) {
            return self.speak(random, truth, uploads);
        }
        if !self.asked.is_empty() {
            return None;
        }
        let step = habit.0.pop_front()?;
        let known: Vec<u32> = self.open.iter().flat_map(|open| open.view.iter().copied().flatten()).collect();
        match step {
            Open(name, examine) => {
                let verb = if examine { "EXAMINE" } else { "SELECT" };
                let what = What::Select { name: name.to_owned(), examine, count: None, validity: None };
                Some(self.ask(what, truth, &format!("{verb} \"{name}\"")))
            }
            Noop => Some(self.ask(What::Other, truth, "NOOP")),
            Other => self.speak(random, truth, uploads),
            // What is below needs an open mailbox; a SELECT that was refused leaves none.
            _ if self.open.is_none() => None,
            Idle => Some(self.ask(What::Idle { listening: false, done: false }, truth, "IDLE")),
            All(items) => Some(self.fetches(true, "1:*", items, known, truth)),
            ByNumber(items) => {
                let count = self.open.as_ref().map_or(0, |open| open.view.len());
                let set = if count > 1 { format!("1:{count}") } else { "1".to_owned() };
                (count > 0).then(|| self.fetches(false, &set, items, known, truth))
            }
            Newest(items) => {
                let newest = known.len().checked_sub(1 + random.below(3))?;
                let set = known[newest].to_string();
                Some(self.fetches(true, &set, items, known, truth))
            }
        }
    }

    fn fetches(
        &mut self,
        uid_form: bool,
        set: &str,
        items: &[&str],
        known: Vec<u32>,
        truth: &Truth<'_>,
    ) -> String {
        let written = items.join(" ");
        let items: Vec<String> = items.iter().map(|item| (*item).to_owned()).collect();
        debug_assert_eq!(items.iter().map(|item| label(item)).collect::<BTreeSet<_>>().len(), items.len());
        let alone = !self.asked.iter().any(|Asked { what, .. }| matches!(what, What::Fetch(_)));
        let numbers = numbers(set, 1_000_000);
        let fetch = Fetch { uid_form, numbers, items, known, got: BTreeMap::new(), alone };
        let verb = if uid_form { "UID FETCH" } else { "FETCH" };
        self.ask(What::Fetch(fetch), truth, &format!("{verb} {set} ({written})"))
    }
}
