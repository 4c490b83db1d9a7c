//! What is wrong with a configuration, and where. Problems are collected, never thrown one by one: an
//! administrator wants to fix a file once.

use std::fmt;

/// A place in the file, both counted from 1; the column counts characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

impl Place {
    /// The place of the octet at `offset`; offsets behind the end are the end.
    pub(crate) fn of(text: &str, offset: usize) -> Self {
        let mut cut = offset.min(text.len());
        while !text.is_char_boundary(cut) {
            cut -= 1;
        }
        let before = text.get(..cut).unwrap_or("");
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self {
            line: before.matches('\n').count() + 1,
            column: before.get(line_start..).map_or(0, |line| line.chars().count()) + 1,
        }
    }

    /// Where a problem of the whole file is shown.
    pub(crate) const TOP: Self = Self { line: 1, column: 1 };
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weight {
    /// The file cannot be used.
    Error,
    /// It can, but the administrator should know.
    Warning,
}

/// Why; some kinds are dropped where another problem caused them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Not TOML.
    Syntax,
    /// A value, key or section.
    Content,
    /// Something that must be there is not.
    Missing,
}

/// One thing to tell the administrator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) place: Place,
    pub(crate) weight: Weight,
    pub(crate) kind: Kind,
    pub(crate) what: String,
}

impl Problem {
    pub(crate) fn error(place: Place, what: impl Into<String>) -> Self {
        Self { place, weight: Weight::Error, kind: Kind::Content, what: what.into() }
    }

    pub(crate) fn missing(place: Place, what: impl Into<String>) -> Self {
        Self { place, weight: Weight::Error, kind: Kind::Missing, what: what.into() }
    }

    pub(crate) fn warning(place: Place, what: impl Into<String>) -> Self {
        Self { place, weight: Weight::Warning, kind: Kind::Content, what: what.into() }
    }

    /// The line that is printed, in the form that editors and compilers use.
    pub(crate) fn line<'a>(&'a self, file: &'a str) -> impl fmt::Display + 'a {
        let Place { line, column } = self.place;
        let word = match self.weight {
            Weight::Error => "error",
            Weight::Warning => "warning",
        };
        format!("{file}:{line}:{column}: {word}: {}", self.what)
    }
}

/// The word of `words` that somebody who typed `typed` may have meant.
pub(crate) fn did_you_mean<'a>(typed: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let typed = typed.to_ascii_lowercase();
    words
        .into_iter()
        .map(|word| (strsim::jaro_winkler(&typed, word), word))
        .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, word)| word)
}

/// Below this a suggestion confuses more than it helps (`port` for `report` is 0.83 and helps nobody).
const LIKENESS_MIN: f64 = 0.85;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_characters_from_one() {
        let text = "a = 1\nü = \"x\"\n";
        assert_eq!(Place::of(text, 0), Place { line: 1, column: 1 });
        assert_eq!(Place::of(text, text.find('"').unwrap()), Place { line: 2, column: 5 });
        assert_eq!(Place::of(text, 7), Place { line: 2, column: 1 }, "inside a character: its start");
        assert_eq!(Place::of(text, 999), Place { line: 3, column: 1 });
    }

    #[test]
    fn only_near_words_are_suggested() {
        let words = ["implicit", "starttls", "plain"];
        assert_eq!(did_you_mean("implict", words), Some("implicit"));
        assert_eq!(did_you_mean("STARTLS", words), Some("starttls"));
        assert_eq!(did_you_mean("quic", words), None);
    }
}
