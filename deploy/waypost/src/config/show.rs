//! `config show`: every value in force, as a file that reads back to the same configuration.

use super::{Loaded, keys::VERSION};
use std::fmt::Write;

/// Writes it; defaults are marked, `changed` leaves them out. Secrets cannot appear: the file only names files.
pub(crate) fn show(loaded: &Loaded, changed: bool) -> String {
    let mut out = format!("{} = {}\n", VERSION.name, VERSION.works);
    let mut current = None;
    for shown in &loaded.shown {
        if changed && shown.default {
            continue;
        }
        // A table within a section follows it, and the keys after it would fall into it.
        let inner = shown.header.contains('.');
        let here = (shown.header.clone(), shown.nth);
        if !inner && current.as_ref() != Some(&here) {
            let _ = writeln!(out, "\n{}", shown.header);
            current = Some(here);
        }
        let mark = if shown.default { "  # default" } else { "" };
        let key = match shown.header.trim_matches(['[', ']']).split_once('.') {
            Some((_, table)) => format!("{table}.{}", shown.key),
            None => shown.key.to_owned(),
        };
        let _ = match &shown.value {
            Some(value) => writeln!(out, "{key} = {value}{mark}"),
            None if changed => Ok(()),
            None => writeln!(out, "# {key} is not set"),
        };
    }
    out
}
