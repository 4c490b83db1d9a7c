//! Where numbers stand in a search, against a tokenizer and a list of search keys with their arguments: a number
//! that is missed would be searched for under another message's name.

use crate::tokens::{Token, TokenKind, tokens};
use bytes::Bytes;
use imap_core::{
    command::{Kind, MsnSpans, parse},
    sequence_set::SequenceSet,
};
use std::ops::Range;

/// The criteria of a SEARCH, without its line end.
pub fn run(data: &[u8]) {
    let line = [b"a SEARCH ", data, b"\r\n"].concat();
    let octets = Bytes::from(line);
    crate::command::run(&octets);
    let Ok(command) = parse(&octets) else { return };
    let Kind::Search { criteria, returns } = command.kind else { panic!("SEARCH is {command:?}") };
    let Some(tokens) = tokens(&octets) else { return };
    let mut keys = tokens.get(2..).unwrap_or_default();
    let named = |token: &Token, name: &str| {
        token.kind == TokenKind::Atom && octets[token.span.clone()].eq_ignore_ascii_case(name.as_bytes())
    };
    let is_return = keys.len() > 1 && named(&keys[0], "RETURN") && matches!(keys[1].kind, TokenKind::List(_));
    assert!(is_return == returns || !is_return, "{}", octets.escape_ascii());
    if is_return {
        keys = &keys[2..];
    }
    if keys.len() > 1 && named(&keys[0], "CHARSET") {
        keys = &keys[2..];
    }
    let MsnSpans::Known(spans) = criteria else { return };
    let mut expected = Vec::new();
    // Where we are sure of every key, the spans are exactly the sets.
    if collect(&octets, keys, &mut expected).is_some() {
        assert_eq!(spans, expected, "{}", octets.escape_ascii());
    }
}

/// The sets among these keys; `None` for a key that is not in the list.
fn collect(octets: &Bytes, keys: &[Token], found: &mut Vec<Range<usize>>) -> Option<()> {
    let mut keys = keys.iter();
    while let Some(key) = keys.next() {
        match &key.kind {
            TokenKind::List(inside) => collect(octets, inside, found)?,
            TokenKind::String(_) => return None,
            TokenKind::Atom => {
                let text = String::from_utf8_lossy(&octets[key.span.clone()]).to_ascii_uppercase();
                let arguments = match text.as_str() {
                    "$" | "ALL" | "ANSWERED" | "DELETED" | "DRAFT" | "FLAGGED" | "NEW" | "OLD" | "RECENT"
                    | "SEEN" | "UNANSWERED" | "UNDELETED" | "UNDRAFT" | "UNFLAGGED" | "UNSEEN" | "NOT"
                    | "OR" => 0,
                    "BCC" | "BEFORE" | "BODY" | "CC" | "FROM" | "KEYWORD" | "LARGER" | "ON"
                    | "SENTBEFORE" | "SENTON" | "SENTSINCE" | "SINCE" | "SMALLER" | "SUBJECT" | "TEXT"
                    | "TO" | "UID" | "UNKEYWORD" => 1,
                    "HEADER" => 2,
                    _ if SequenceSet::parse(text.as_bytes()).is_ok() => {
                        found.push(key.span.clone());
                        0
                    }
                    _ => return None,
                };
                for _ in 0..arguments {
                    if matches!(keys.next()?.kind, TokenKind::List(_)) {
                        return None;
                    }
                }
            }
        }
    }
    Some(())
}
