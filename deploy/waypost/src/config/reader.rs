//! Walks a parsed file along the table of keys, collecting problems instead of stopping at the first, and
//! noting every effective value for `config show`.

use super::{
    keys::{Key, Section},
    problem::{Place, Problem, did_you_mean},
    value::{Value, Wrong},
};
use toml::de::{DeTable, DeValue};

/// A value in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    /// `[node]`, `[[server]]`, …
    pub(crate) header: String,
    /// Counts repeated sections.
    pub(crate) nth: usize,
    pub(crate) key: &'static str,
    /// As TOML; `None` where nothing is set and nothing is the default.
    pub(crate) value: Option<String>,
    /// Whether it is a default.
    pub(crate) default: bool,
}

/// What the walk has found so far.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) problems: Vec<Problem>,
    pub(crate) shown: Vec<Shown>,
}

/// One table of the file, or an absent one.
pub(crate) struct TableReader<'r, 'i> {
    text: &'r str,
    section: &'static Section,
    nth: usize,
    table: Option<&'r DeTable<'i>>,
    /// Where the table begins; problems of absent keys point here.
    pub(crate) place: Place,
    found: &'r mut Found,
}

impl<'r, 'i> TableReader<'r, 'i> {
    /// Starts on `table`; keys that the section does not have are problems.
    pub(crate) fn new(
        text: &'r str,
        section: &'static Section,
        nth: usize,
        table: Option<(&'r DeTable<'i>, Place)>,
        found: &'r mut Found,
    ) -> Self {
        let place = table.map_or(Place::TOP, |(_, place)| place);
        let reader = Self { text, section, nth, table: table.map(|(table, _)| table), place, found };
        for (name, _) in reader.table.into_iter().flatten() {
            if section.key(name.get_ref()).is_none() {
                let place = Place::of(text, name.span().start);
                reader.found.problems.push(Problem::error(place, unknown_key(section, name.get_ref())));
            }
        }
        reader
    }

    fn entry(&self, name: &str) -> Option<(Place, &'r DeValue<'i>)> {
        let (_, value) = self.table?.iter().find(|(key, _)| key.get_ref() == name)?;
        Some((Place::of(self.text, value.span().start), value.get_ref()))
    }

    /// Where the value of `name` stands, else the table.
    pub(crate) fn place_of(&self, name: &str) -> Place {
        self.entry(name).map_or(self.place, |(place, _)| place)
    }

    /// Whether the file says anything about `name`.
    pub(crate) fn says(&self, name: &str) -> bool {
        self.entry(name).is_some()
    }

    /// The value, checked; a wrong one is reported and counts as absent.
    fn read<T: Value>(&mut self, name: &'static str) -> Option<T> {
        let (place, value) = self.entry(name)?;
        let key = self.section.key(name)?;
        match T::read(value) {
            Ok(value) => Some(value),
            Err(wrong) => {
                let what = wrong_value(self.section, key, &wrong);
                self.found.problems.push(Problem::error(place, what));
                None
            }
        }
    }

    fn show(&mut self, key: &'static str, value: Option<String>, default: bool) {
        let header = self.section.header();
        self.found.shown.push(Shown { header, nth: self.nth, key, value, default });
    }

    /// A key that has a default.
    pub(crate) fn get<T: Value>(&mut self, name: &'static str, default: T) -> T {
        let given = self.read(name);
        let is_default = given.is_none();
        let value = given.unwrap_or(default);
        self.show(name, Some(value.show()), is_default);
        value
    }

    /// A key that may be absent.
    pub(crate) fn maybe<T: Value>(&mut self, name: &'static str) -> Option<T> {
        let given: Option<T> = self.read(name);
        self.show(name, given.as_ref().map(T::show), given.is_none());
        given
    }

    /// A key that must be there.
    pub(crate) fn need<T: Value>(&mut self, name: &'static str) -> Option<T> {
        if !self.says(name)
            && let Some(key) = self.section.key(name)
        {
            let what = format!(
                "{}: {} is missing; allowed: {}; for example: {} = {}",
                self.section.header(),
                key.name,
                key.allowed,
                key.name,
                key.works
            );
            self.found.problems.push(Problem::missing(self.place, what));
            return None;
        }
        self.maybe(name)
    }

    /// A table within this one.
    pub(crate) fn inner(&mut self, name: &'static str, section: &'static Section) -> TableReader<'_, 'i> {
        let table = match self.entry(name) {
            Some((place, DeValue::Table(table))) => Some((table, place)),
            Some((place, other)) => {
                if let Some(key) = self.section.key(name) {
                    let wrong = Wrong::new(format!("{} is not a table", super::value::found(other)));
                    self.found.problems.push(Problem::error(place, wrong_value(self.section, key, &wrong)));
                }
                None
            }
            None => None,
        };
        let place = self.place;
        let mut inner = TableReader::new(self.text, section, self.nth, table, self.found);
        if table.is_none() {
            inner.place = place;
        }
        inner
    }

    /// Reports a problem with the value of `name` that only other keys make wrong.
    pub(crate) fn object(&mut self, name: &str, what: impl Into<String>) {
        let place = self.place_of(name);
        let what = format!("{}: {name}: {}", self.section.header(), what.into());
        self.found.problems.push(Problem::error(place, what));
    }

    /// The same, but the file can be used.
    pub(crate) fn warn(&mut self, name: &str, what: impl Into<String>) {
        let place = self.place_of(name);
        let what = format!("{}: {name}: {}", self.section.header(), what.into());
        self.found.problems.push(Problem::warning(place, what));
    }
}

fn wrong_value(section: &Section, key: &Key, wrong: &Wrong) -> String {
    let meant = wrong.meant.as_ref().map_or(";".to_owned(), |meant| format!("; did you mean {meant}?"));
    let works = wrong.meant.as_deref().unwrap_or(key.works);
    format!(
        "{}: {}: {}{meant} allowed: {}; for example: {} = {works}",
        section.header(),
        key.name,
        wrong.what,
        key.allowed,
        key.name
    )
}

/// The value is not quoted: an unknown key may well be a secret that belongs into a file of its own.
fn unknown_key(section: &Section, name: &str) -> String {
    let header = section.header();
    if let Some(advice) = secret_advice(name) {
        return format!("{header}: {name}: secrets never stand in this file; {advice}");
    }
    let names = section.keys.iter().map(|key| key.name);
    match did_you_mean(name, names.clone()) {
        Some(meant) => {
            let works = section.key(meant).map_or("", |key| key.works);
            format!(
                "{header}: {name}: there is no such key; did you mean {meant}? for example: {meant} = {works}"
            )
        }
        None => {
            let all = names.collect::<Vec<_>>().join(", ");
            format!("{header}: {name}: there is no such key; allowed: {all}")
        }
    }
}

fn secret_advice(name: &str) -> Option<&'static str> {
    match name {
        "seal_key" => Some(
            "put 32 random octets into a file of mode 0600 and name it: seal_key_file = \"/etc/waypost/seal.key\"",
        ),
        "user_key" => Some("name the file instead: user_key_file = \"/var/lib/waypost/user.key\""),
        "password" | "passwd" | "secret" | "user" | "username" | "login" => {
            Some("and Waypost needs none: users log in to their server, through it")
        }
        _ => None,
    }
}
