//! Message numbers of a command moved from the client's view into the server's, while the two differ.
//!
//! They differ only while an EXPUNGE waits for a moment at which the client may hear it. Once nothing is under way
//! at the origin that could move its numbers again, the translation is exact.

use crate::{
    command::{Command, Kind, MsnSpans},
    sequence_set::SequenceSet,
    uid::Msn,
    views::Views,
};
use bytes::Bytes;
use std::ops::Range;

/// Why a command cannot be said in the server's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expunged;

/// The command's octets in the server's numbers.
///
/// # Errors
/// When none of its messages is left, or numbers may stand where we do not know.
pub(super) fn renumbered(command: &Command, octets: &Bytes, views: &Views) -> Result<Bytes, Expunged> {
    if let Some(criteria) = command.kind.criteria() {
        let answered_by_search = matches!(command.kind, Kind::Search { returns: false, .. });
        if !command.uid && !answered_by_search {
            // Numbers in its answer could not be told from others.
            return Err(Expunged);
        }
        let MsnSpans::Known(spans) = criteria else { return Err(Expunged) };
        // From behind, so that the spans before stay where they are.
        return spans.iter().rev().try_fold(octets.clone(), |octets, span| {
            let set = octets.get(span.clone()).and_then(|o| SequenceSet::parse(o).ok()).ok_or(Expunged)?;
            replaced(&octets, span, &set, views)
        });
    }
    let set = command.kind.set().ok_or(Expunged)?;
    replaced(octets, &set.span, set.set.as_ref().ok_or(Expunged)?, views)
}

fn replaced(
    octets: &Bytes,
    span: &Range<usize>,
    set: &SequenceSet,
    views: &Views,
) -> Result<Bytes, Expunged> {
    let largest = views.client_len();
    let mut numbers = Vec::new();
    for range in set.resolve(largest) {
        for number in range {
            if number > largest {
                break;
            }
            let slot = Msn::new(number).and_then(|msn| views.slot_of_client(msn));
            numbers.extend(slot.and_then(|slot| views.server_msn(slot)).map(Msn::get));
        }
    }
    if numbers.is_empty() {
        return Err(Expunged);
    }
    let set = SequenceSet::from_sorted(numbers).to_string();
    let (before, after) = octets.get(..span.start).zip(octets.get(span.end..)).ok_or(Expunged)?;
    Ok([before, set.as_bytes(), after].concat().into())
}

/// A SEARCH response in the client's numbers: what it does not know is left out.
pub(super) fn search_line(numbers: &[u8], views: &Views) -> Bytes {
    let mut line = String::from("* SEARCH");
    let (list, modseq) = match numbers.iter().position(|o| *o == b'(') {
        Some(at) => numbers.split_at_checked(at).unwrap_or((numbers, b"")),
        None => (numbers, &b""[..]),
    };
    for number in list.split(|o| *o == b' ').filter(|w| !w.is_empty()) {
        let number = std::str::from_utf8(number).ok().and_then(|n| n.parse().ok()).and_then(Msn::new);
        let slot = number.and_then(|msn| views.slot_of_server(msn));
        if let Some(msn) = slot.and_then(|slot| views.client_msn(slot)) {
            line.push_str(&format!(" {msn}"));
        }
    }
    let modseq = String::from_utf8_lossy(modseq.trim_ascii());
    if !modseq.is_empty() {
        line.push_str(&format!(" {modseq}"));
    }
    line.push_str("\r\n");
    line.into()
}
