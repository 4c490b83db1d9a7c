//! The command parser against a plain tokenizer (`tokens`): the same tag, user, mailbox, set, items. And
//! without it: what it says stands in the input, and a span can be exchanged without moving anything else, which
//! is what a session does when it writes a client's numbers as UIDs.

use crate::tokens::{Token, TokenKind, tokens};
use bytes::Bytes;
use imap_core::{
    command::{Command, CommandFault, Fetch, Kind, MsnSpans, SetRef, parse},
    sequence_set::SequenceSet,
};
use std::ops::Range;

/// One command, line end and literals included.
pub fn run(data: &[u8]) {
    let octets = Bytes::copy_from_slice(data);
    let parsed = parse(&octets);
    let tokens = tokens(data);
    let command = match parsed {
        Ok(command) => command,
        Err(error) => {
            if let Some(tag) = &error.tag {
                assert!(data.starts_with(tag) && error.fault == CommandFault::NoName);
            }
            let sound =
                tokens.as_ref().is_some_and(|t| t.len() > 1 && is_tag(data, t) && is_name(data, &t[1]));
            assert!(!sound, "{error:?} for {}", data.escape_ascii());
            return;
        }
    };
    assert!(data.starts_with(&command.tag) && !command.tag.is_empty());
    assert_eq!(command.verb, command.verb.to_ascii_uppercase());
    check_spans(data, &command);
    if let Some(tokens) = tokens
        && is_tag(data, &tokens)
    {
        compare(data, &command, &tokens);
    }
}

fn is_tag(data: &[u8], tokens: &[Token]) -> bool {
    // A bracket in a tag groups nothing.
    let odd = |o: &u8| matches!(o, b'+' | b'%' | b'*' | b'\\' | b'{' | b'[');
    tokens.first().is_some_and(|t| t.kind == TokenKind::Atom && !data[t.span.clone()].iter().any(odd))
}

fn is_name(data: &[u8], token: &Token) -> bool {
    token.kind == TokenKind::Atom && data[token.span.clone()].iter().all(u8::is_ascii_alphabetic)
}

fn check_spans(data: &[u8], command: &Command) {
    match &command.kind {
        Kind::Fetch(fetch) => {
            check_set(data, command, &fetch.set);
            check_fetch(data, fetch);
        }
        Kind::Store { set } | Kind::Copy { set } | Kind::Move { set } => check_set(data, command, set),
        Kind::Search { criteria, .. } | Kind::Sort { criteria } | Kind::Thread { criteria } => {
            if let MsnSpans::Known(spans) = criteria {
                check_criteria(data, command, spans);
            }
        }
        _ => {}
    }
}

fn check_set(data: &[u8], command: &Command, set: &SetRef) {
    let text = &data[set.span.clone()];
    match &set.set {
        Some(set) => assert_eq!(SequenceSet::parse(text).as_ref(), Ok(set)),
        None => assert_eq!(text, b"$"),
    }
    // Another set in its place is another set, and nothing else changes.
    let changed = spliced(data, std::slice::from_ref(&set.span), b"7,9:*");
    let again = parse(&changed).unwrap();
    assert_eq!((&again.tag, again.uid, &again.verb), (&command.tag, command.uid, &command.verb));
    let (found, before_items, items) = match (&again.kind, &command.kind) {
        (Kind::Fetch(again), Kind::Fetch(fetch)) => (&again.set, Some(&fetch.items), Some(&again.items)),
        (Kind::Store { set }, Kind::Store { .. })
        | (Kind::Copy { set }, Kind::Copy { .. })
        | (Kind::Move { set }, Kind::Move { .. }) => (set, None, None),
        (again, before) => panic!("{before:?} became {again:?}"),
    };
    assert_eq!(before_items, items);
    assert_eq!(found.set, Some(SequenceSet::parse(b"7,9:*").unwrap()));
    assert_eq!(found.span, set.span.start..set.span.start + 5);
}

fn check_criteria(data: &[u8], command: &Command, spans: &[Range<usize>]) {
    let mut end = 0;
    for span in spans {
        assert!(span.start >= end && !span.is_empty());
        end = span.end;
        SequenceSet::parse(&data[span.clone()]).expect("a span is a set");
    }
    let changed = spliced(data, spans, b"2:3");
    let again = parse(&changed).unwrap();
    let found = match &again.kind {
        Kind::Search { criteria, .. } | Kind::Sort { criteria } | Kind::Thread { criteria } => criteria,
        other => panic!("a search became {other:?}"),
    };
    assert_eq!(again.verb, command.verb);
    let MsnSpans::Known(found) = found else { panic!("known numbers became unknown") };
    assert_eq!(found.len(), spans.len());
    assert!(found.iter().all(|span| changed[span.clone()] == *b"2:3"));
}

fn spliced(data: &[u8], spans: &[Range<usize>], with: &[u8]) -> Bytes {
    let mut out = Vec::new();
    let mut at = 0;
    for span in spans {
        out.extend_from_slice(&data[at..span.start]);
        out.extend_from_slice(with);
        at = span.end;
    }
    out.extend_from_slice(&data[at..]);
    out.into()
}

fn check_fetch(data: &[u8], fetch: &Fetch) {
    assert!(fetch.set.span.end < fetch.items_span.start && fetch.items_span.end <= data.len());
    let items = &data[fetch.items_span.clone()];
    assert_eq!(items.starts_with(b"("), items.ends_with(b")") && items.starts_with(b"("));
    assert!(!fetch.items.is_empty());
    assert!(!fetch.macro_used || !items.starts_with(b"("), "a macro stands alone");
    if let Some(changed) = &fetch.changed {
        let text = &data[changed.clone()];
        assert!(changed.start > fetch.items_span.end && text.starts_with(b"(") && text.ends_with(b")"));
        assert!(text.to_ascii_uppercase().windows(12).any(|w| w == b"CHANGEDSINCE"));
    }
    for item in &fetch.items {
        // What is echoed names the same thing when it is asked.
        if !item.key.as_str().starts_with('?') {
            let asked = [b"a FETCH 1 (", &*item.label, b")\r\n"].concat();
            match parse(&asked.into()).map(|again| again.kind) {
                Ok(Kind::Fetch(again)) => {
                    let [found] = again.items.as_slice() else { panic!("{:?} is several items", item.label) };
                    assert_eq!((&found.key, &found.label), (&item.key, &item.label));
                }
                other => panic!("{:?} asked again is {other:?}", item.label),
            }
        }
        assert!(item.partial.is_none_or(|(_, count)| count > 0));
    }
}

fn compare(data: &[u8], command: &Command, all: &[Token]) {
    assert_eq!(*command.tag, data[all[0].span.clone()]);
    if all.len() < 2 {
        return;
    }
    let upper = |at: usize| all.get(at).and_then(|t| t.text(data)).map(|t| t.to_ascii_uppercase());
    let uid = is_name(data, &all[1]) && upper(1).as_deref() == Some(b"UID") && all.len() > 2;
    assert_eq!(command.uid, uid, "{}", data.escape_ascii());
    let verb_at = 1 + usize::from(uid);
    if !is_name(data, &all[verb_at]) {
        return;
    }
    assert_eq!(Some(command.verb.to_vec()), upper(verb_at));
    let arguments = &all[verb_at + 1..];
    let said = |at: usize| arguments.get(at).and_then(|t| t.text(data));
    // Atoms with these are no ASTRINGs: the parser leaves such a command to the origin.
    let sound = |at: usize| {
        arguments.get(at).is_some_and(|t| match t.kind {
            TokenKind::Atom => !data[t.span.clone()].iter().any(|o| b"%*\\{".contains(o)),
            TokenKind::String(_) => true,
            TokenKind::List(_) => false,
        })
    };
    let mailbox =
        |at: usize| said(at).map(|m| if m.eq_ignore_ascii_case(b"INBOX") { b"INBOX".to_vec() } else { m });
    let named =
        |name: &Bytes, at: usize| assert_eq!(Some(name.to_vec()), mailbox(at), "{}", data.escape_ascii());
    let must_be_read = |read: bool| assert!(read, "{command:?} was not read: {}", data.escape_ascii());
    match (&*command.verb, &command.kind) {
        (b"LOGIN", Kind::Login { user }) => {
            assert_eq!((Some(user.to_vec()), arguments.len()), (said(0), 2));
        }
        (b"LOGIN", _) => must_be_read(uid || arguments.len() != 2 || !sound(0) || !sound(1)),
        (b"SELECT" | b"EXAMINE", Kind::Select { mailbox, examine, .. }) => {
            named(mailbox, 0);
            assert_eq!(*examine, *command.verb == *b"EXAMINE");
        }
        (b"SELECT" | b"EXAMINE" | b"CREATE" | b"DELETE", Kind::Other) if !uid && arguments.len() == 1 => {
            must_be_read(!sound(0) || said(0).is_some_and(|m| m.is_empty()));
        }
        (
            _,
            Kind::Create { mailbox }
            | Kind::Delete { mailbox }
            | Kind::Append { mailbox }
            | Kind::Status { mailbox },
        ) => {
            named(mailbox, 0);
        }
        (_, Kind::Rename { from, to }) => {
            named(from, 0);
            named(to, 1);
        }
        (_, Kind::Store { set } | Kind::Copy { set } | Kind::Move { set }) => {
            assert_eq!(set.span, arguments[0].span, "{}", data.escape_ascii());
        }
        (_, Kind::Fetch(fetch)) => compare_fetch(data, fetch, arguments),
        (b"FETCH", _) => must_be_read(!is_plain_fetch(data, arguments)),
        (b"NOOP" | b"IDLE" | b"LOGOUT" | b"CAPABILITY" | b"STARTTLS", kind) if !uid => {
            must_be_read(*kind == Kind::Other || arguments.is_empty());
            must_be_read(*kind != Kind::Other || !arguments.is_empty() || data.ends_with(b" \r\n"));
        }
        _ => {}
    }
}

/// A FETCH of a set and of names that everybody knows, which must never go unread.
fn is_plain_fetch(data: &[u8], arguments: &[Token]) -> bool {
    let [set, items] = arguments else { return false };
    let known = |token: &Token| {
        let names: [&[u8]; 7] =
            [b"UID", b"FLAGS", b"ENVELOPE", b"BODYSTRUCTURE", b"RFC822.SIZE", b"BODY[]", b"BODY.PEEK[]"];
        token.kind == TokenKind::Atom
            && names.iter().any(|n| n.eq_ignore_ascii_case(&data[token.span.clone()]))
    };
    let sound = match &items.kind {
        TokenKind::Atom => known(items),
        TokenKind::String(_) => false,
        TokenKind::List(items) => !items.is_empty() && items.len() < 200 && items.iter().all(known),
    };
    set.kind == TokenKind::Atom && SequenceSet::parse(&data[set.span.clone()]).is_ok() && sound
}

fn compare_fetch(data: &[u8], fetch: &Fetch, arguments: &[Token]) {
    // Where a name that nobody knows ends is anybody's guess.
    if fetch.items.iter().any(|item| item.key.as_str().starts_with('?')) {
        return;
    }
    assert_eq!(fetch.set.span, arguments[0].span);
    assert_eq!(fetch.items_span, arguments[1].span);
    assert_eq!(fetch.changed, arguments.get(2).map(|t| t.span.clone()));
    if fetch.macro_used {
        return;
    }
    let atoms: Vec<&Token> = match &arguments[1].kind {
        // A list behind an item is its argument (`PREVIEW (LAZY)`).
        TokenKind::List(items) => items.iter().filter(|t| t.kind == TokenKind::Atom).collect(),
        TokenKind::Atom => vec![&arguments[1]],
        TokenKind::String(_) => panic!("a string is an item"),
    };
    assert_eq!(atoms.len(), fetch.items.len(), "{}", data.escape_ascii());
    for (token, item) in atoms.iter().zip(&fetch.items) {
        let text = String::from_utf8_lossy(&data[token.span.clone()]).into_owned();
        let (name, section) = text.split_at(text.find('[').unwrap_or(text.len()));
        let (section, partial) = section.split_at(section.rfind(']').map_or(0, |at| at + 1));
        let name = name.to_ascii_uppercase();
        // Only sections have a `.PEEK`; elsewhere it is a name like any other.
        let plain = if section.is_empty() { &name } else { name.strip_suffix(".PEEK").unwrap_or(&name) };
        let (keyword, fields) = section.split_at(section.find('(').unwrap_or(section.len()));
        let label = format!("{plain}{}{fields}", keyword.to_ascii_uppercase());
        assert_eq!(String::from_utf8_lossy(&item.label), label);
        let sets_seen = match plain {
            "BODY" | "BINARY" => !section.is_empty() && !name.ends_with(".PEEK"),
            "RFC822" | "RFC822.TEXT" => true,
            _ => false,
        };
        // `BODY` without a section is the structure and sets nothing.
        assert_eq!(item.peek, !sets_seen, "{text}");
        let octets =
            partial.strip_prefix('<').and_then(|p| p.strip_suffix('>')).and_then(|p| p.split_once('.'));
        let octets = octets.map(|(first, count)| (first.parse().unwrap(), count.parse().unwrap()));
        assert_eq!(item.partial, octets, "{text}");
    }
}
