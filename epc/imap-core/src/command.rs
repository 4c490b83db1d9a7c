//! What a client asks (RFC 9051 §6 and the extensions that change what a session must know). Commands go to the
//! origin as the client wrote them; this reads just enough to know which of them move the state, name messages
//! by number, or ask for what a store may hold.
//!
//! Everything not understood is [`Kind::Other`] and not an error: the origin judges it. A session should treat
//! an `Other` whose verb it knows with care: a `SELECT` that this file could not read may still succeed, and an
//! unread `FETCH` or `STORE` without `UID` names messages by numbers of the client's view.

use crate::{
    arguments::{Arguments, is_astring_octet, upper},
    item::{ItemClass, ItemKey},
    search_criteria,
    sequence_set::SequenceSet,
};
use bytes::Bytes;
use std::{fmt, ops::Range};

pub use crate::search_criteria::MsnSpans;

/// One command of a client.
#[derive(Clone, PartialEq, Eq)]
pub struct Command {
    /// As the client wrote it.
    pub tag: Bytes,
    /// Whether `UID ` stood before the verb.
    pub uid: bool,
    /// The command's name in upper case, without `UID`.
    pub verb: Bytes,
    /// What it asks.
    pub kind: Kind,
}

/// What a command asks. Names are unquoted; a mailbox `inbox` in any case is `INBOX`.
#[derive(Clone, PartialEq, Eq)]
pub enum Kind {
    /// `CAPABILITY`.
    Capability,
    /// `NOOP`.
    Noop,
    /// `ID` with whatever it tells.
    Id,
    /// `STARTTLS`.
    StartTls,
    /// `LOGOUT`.
    Logout,
    /// `LOGIN`; the password is not kept.
    Login {
        /// Who wants in.
        user: Bytes,
    },
    /// `AUTHENTICATE`.
    Authenticate {
        /// In upper case.
        mechanism: Bytes,
        /// The initial response as sent: base64, or `=` for an empty one (RFC 4959).
        initial: Option<Bytes>,
    },
    /// `SELECT` or `EXAMINE`.
    Select {
        /// Which.
        mailbox: Bytes,
        /// `EXAMINE`.
        examine: bool,
        /// With `(CONDSTORE)`.
        condstore: bool,
        /// With `(QRESYNC …)`.
        qresync: bool,
    },
    /// `CLOSE`.
    Close,
    /// `UNSELECT`.
    Unselect,
    /// `CHECK`.
    Check,
    /// `EXPUNGE` without `UID`.
    Expunge,
    /// `CREATE`.
    Create {
        /// Which.
        mailbox: Bytes,
    },
    /// `DELETE`.
    Delete {
        /// Which.
        mailbox: Bytes,
    },
    /// `RENAME`.
    Rename {
        /// The old name.
        from: Bytes,
        /// The new name.
        to: Bytes,
    },
    /// `APPEND`.
    Append {
        /// Where to.
        mailbox: Bytes,
    },
    /// `STATUS`.
    Status {
        /// Of which.
        mailbox: Bytes,
    },
    /// `FETCH`, `UID FETCH`.
    Fetch(Fetch),
    /// `STORE`, `UID STORE`.
    Store {
        /// Of which messages.
        set: SetRef,
    },
    /// `COPY`, `UID COPY`.
    Copy {
        /// Which messages.
        set: SetRef,
    },
    /// `MOVE`, `UID MOVE`.
    Move {
        /// Which messages.
        set: SetRef,
    },
    /// `SEARCH`, `UID SEARCH`. Sets among the criteria are MSNs in both.
    Search {
        /// Where MSNs stand.
        criteria: MsnSpans,
        /// With `RETURN (…)`: answered by ESEARCH.
        returns: bool,
    },
    /// `SORT`, `UID SORT`.
    Sort {
        /// Where MSNs stand.
        criteria: MsnSpans,
    },
    /// `THREAD`, `UID THREAD`.
    Thread {
        /// Where MSNs stand.
        criteria: MsnSpans,
    },
    /// `IDLE`.
    Idle,
    /// `ENABLE`.
    Enable {
        /// Which extensions, in upper case.
        names: Vec<Bytes>,
    },
    /// `COMPRESS`.
    Compress,
    /// `NOTIFY`.
    Notify,
    /// `UID EXPUNGE`.
    UidExpunge,
    /// Anything else; see the module's text.
    Other,
}

impl Kind {
    /// The messages that it names by a set of its own, criteria aside.
    #[must_use]
    pub fn set(&self) -> Option<&SetRef> {
        if let Self::Fetch(fetch) = self {
            return Some(&fetch.set);
        }
        if let Self::Store { set } | Self::Copy { set } | Self::Move { set } = self {
            Some(set)
        } else {
            None
        }
    }

    /// Where numbers stand in its search criteria.
    #[must_use]
    pub fn criteria(&self) -> Option<&MsnSpans> {
        if let Self::Search { criteria, .. } | Self::Sort { criteria } | Self::Thread { criteria } = self {
            Some(criteria)
        } else {
            None
        }
    }
}

/// A set of messages and where the client wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetRef {
    /// `None` for `$`, the result of an earlier SEARCH (RFC 5182).
    pub set: Option<SequenceSet>,
    /// Where it stands in the command's octets.
    pub span: Range<usize>,
}

/// A FETCH in which every item has a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// Of which messages.
    pub set: SetRef,
    /// What is asked, in the client's order, macros expanded; at most [`FETCH_ITEMS_MAX`].
    pub items: Vec<FetchItem>,
    /// Where a `(CHANGEDSINCE …)` stands, its parentheses included.
    pub changed: Option<Range<usize>>,
    /// Whether the client wrote `ALL`, `FAST` or `FULL`.
    pub macro_used: bool,
    /// Where the items stand, their parentheses included.
    pub items_span: Range<usize>,
}

/// One data item of a FETCH.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchItem {
    /// Under which it is kept. What is not understood has a key that no store answers for.
    pub key: ItemKey,
    /// How a reply names it: without `.PEEK` and without the partial, keywords in upper case, header field
    /// names as the client wrote them (some clients compare them with their request).
    pub label: Bytes,
    /// Fetching it does not set \Seen.
    pub peek: bool,
    /// First octet and octet count of `<first.count>`.
    pub partial: Option<(u32, u32)>,
}

/// The octets are no command that any server accepts; the client gets BAD and the origin does not see them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandError {
    /// The tag, where one could be read.
    pub tag: Option<Bytes>,
    /// What is wrong.
    pub fault: CommandFault,
}

/// What is wrong with a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CommandFault {
    /// Nothing stands in the line.
    Empty,
    /// The line does not begin with a tag, or the tag has characters that RFC 9051 forbids in it.
    Tag,
    /// A tag alone.
    NoName,
}

/// Reads a command.
///
/// `octets` hold it whole, line end and literals included; of commands that carry a message (APPEND) the octets
/// up to the first literal's `{n}` and its line end are enough.
///
/// # Errors
/// When there is no tag that a reply could carry, or no command name.
pub fn parse(octets: &Bytes) -> Result<Command, CommandError> {
    let mut input = Arguments::new(octets);
    if input.is_at_end() {
        return Err(CommandError { tag: None, fault: CommandFault::Empty });
    }
    let tag = input.take_while(is_tag_octet);
    if tag.is_empty() || !matches!(input.peek(), None | Some(b' ')) {
        return Err(CommandError { tag: None, fault: CommandFault::Tag });
    }
    let tag = input.slice(tag);
    // One space is right; servers that accept more must not make us miss a command that they obey.
    input.skip_spaces();
    let mut verb = name(&mut input);
    let uid = *verb == *b"UID" && !input.is_at_end();
    if uid {
        input.skip_spaces();
        verb = name(&mut input);
    }
    if verb.is_empty() {
        return Err(CommandError { tag: Some(tag), fault: CommandFault::NoName });
    }
    let kind = if uid { uid_kind(&verb, input) } else { kind(&verb, input) };
    Ok(Command { tag, uid, verb, kind: kind.unwrap_or(Kind::Other) })
}

fn name(input: &mut Arguments<'_>) -> Bytes {
    let range = input.word();
    upper(input.slice(range))
}

/// RFC 9051 `tag`, and octets above 127: a server may know what it does with them.
fn is_tag_octet(octet: u8) -> bool {
    octet != b'+' && is_astring_octet(octet)
}

fn uid_kind(verb: &[u8], input: Arguments<'_>) -> Option<Kind> {
    match verb {
        b"EXPUNGE" => Some(Kind::UidExpunge),
        b"FETCH" | b"STORE" | b"COPY" | b"MOVE" | b"SEARCH" | b"SORT" | b"THREAD" => kind(verb, input),
        _ => None,
    }
}

/// `None` where the arguments are not what the command wants.
fn kind(verb: &[u8], mut input: Arguments<'_>) -> Option<Kind> {
    let bare = input.rest().iter().all(|&o| o == b' ');
    Some(match verb {
        // Answered on the spot, so only in their exact form; the origin should say BAD to others.
        b"CAPABILITY" if bare => Kind::Capability,
        b"NOOP" if bare => Kind::Noop,
        b"STARTTLS" if bare => Kind::StartTls,
        b"LOGOUT" if bare => Kind::Logout,
        b"IDLE" if bare => Kind::Idle,
        // Judged by the origin, so in any form: what it accepts has happened.
        b"CLOSE" => Kind::Close,
        b"UNSELECT" => Kind::Unselect,
        b"CHECK" => Kind::Check,
        b"EXPUNGE" => Kind::Expunge,
        b"ID" => Kind::Id,
        b"COMPRESS" => Kind::Compress,
        b"NOTIFY" => Kind::Notify,
        b"LOGIN" => login(input)?,
        b"AUTHENTICATE" => authenticate(input)?,
        b"SELECT" | b"EXAMINE" => select(verb == b"EXAMINE", input)?,
        b"CREATE" => Kind::Create { mailbox: mailbox_argument(&mut input)? },
        b"DELETE" => Kind::Delete { mailbox: mailbox_argument(&mut input).filter(|_| input.is_at_end())? },
        b"RENAME" => {
            let (from, to) = (mailbox_argument(&mut input)?, mailbox_argument(&mut input)?);
            Kind::Rename { from, to }
        }
        b"APPEND" => Kind::Append { mailbox: mailbox_argument(&mut input).filter(|_| !input.is_at_end())? },
        b"STATUS" => Kind::Status { mailbox: mailbox_argument(&mut input)? },
        b"FETCH" => Kind::Fetch(fetch(input)?),
        b"STORE" => Kind::Store { set: set_argument(&mut input)? },
        b"COPY" => Kind::Copy { set: set_argument(&mut input)? },
        b"MOVE" => Kind::Move { set: set_argument(&mut input)? },
        b"SEARCH" => {
            let (criteria, returns) = search_criteria::search(input);
            Kind::Search { criteria, returns }
        }
        b"SORT" => Kind::Sort { criteria: search_criteria::sort(input) },
        b"THREAD" => Kind::Thread { criteria: search_criteria::thread(input) },
        b"ENABLE" => Kind::Enable { names: enable(input)? },
        _ => return None,
    })
}

/// The user decides whose mail the session may see: read exactly or not at all.
fn login(mut input: Arguments<'_>) -> Option<Kind> {
    input.space()?;
    let user = input.astring()?;
    input.space()?;
    input.astring()?;
    input.is_at_end().then_some(Kind::Login { user })
}

fn authenticate(mut input: Arguments<'_>) -> Option<Kind> {
    input.space()?;
    let mechanism = input.word();
    let mechanism = upper(input.slice(mechanism));
    let initial = input.space().map(|()| {
        let range = input.word();
        input.slice(range)
    });
    let sound = !mechanism.is_empty() && initial.as_ref().is_none_or(|i| !i.is_empty()) && input.is_at_end();
    sound.then_some(Kind::Authenticate { mechanism, initial })
}

fn select(examine: bool, mut input: Arguments<'_>) -> Option<Kind> {
    let mailbox = mailbox_argument(&mut input)?;
    let (mut condstore, mut qresync) = (false, false);
    if !input.is_at_end() {
        input.space()?;
        if !input.eat(b'(') {
            return None;
        }
        loop {
            match input.peek()? {
                b' ' => input.skip_spaces(),
                b'(' => input.skip_group(b'(', b')').map(drop)?,
                b')' => break,
                _ => {
                    let word = input.take_while(|o| !matches!(o, b' ' | b'(' | b')'));
                    let word = input.slice(word);
                    condstore |= word.eq_ignore_ascii_case(b"CONDSTORE");
                    qresync |= word.eq_ignore_ascii_case(b"QRESYNC");
                }
            }
        }
    }
    Some(Kind::Select { mailbox, examine, condstore, qresync })
}

fn enable(mut input: Arguments<'_>) -> Option<Vec<Bytes>> {
    let mut names = Vec::new();
    while !input.is_at_end() {
        input.space()?;
        let name = name(&mut input);
        if name.is_empty() || names.len() == ENABLE_NAMES_MAX {
            return None;
        }
        names.push(name);
    }
    (!names.is_empty()).then_some(names)
}

/// A space and a mailbox name, with nothing glued to it.
fn mailbox_argument(input: &mut Arguments<'_>) -> Option<Bytes> {
    input.space()?;
    let name = input.astring().filter(|name| !name.is_empty())?;
    matches!(input.peek(), None | Some(b' ')).then(|| mailbox_name(name))
}

/// RFC 9051 §5.1: INBOX is the one name that has no case.
fn mailbox_name(name: Bytes) -> Bytes {
    if name.eq_ignore_ascii_case(b"INBOX") { Bytes::from_static(b"INBOX") } else { name }
}

/// A space, a set, and at least a space behind it.
fn set_argument(input: &mut Arguments<'_>) -> Option<SetRef> {
    input.space()?;
    let span = input.word();
    let octets = input.slice(span.clone());
    let set = if *octets == *b"$" { None } else { Some(SequenceSet::parse(&octets).ok()?) };
    (!input.is_at_end()).then_some(SetRef { set, span })
}

fn fetch(mut input: Arguments<'_>) -> Option<Fetch> {
    let set = set_argument(&mut input)?;
    input.space()?;
    let from = input.at();
    let mut items = Vec::new();
    let mut macro_used = false;
    if input.eat(b'(') {
        loop {
            input.skip_spaces();
            if input.eat(b')') {
                break;
            }
            if items.len() == FETCH_ITEMS_MAX {
                return None;
            }
            items.push(item(&mut input, true)?);
        }
    } else if let Some(expanded) = fetch_macro(&mut input) {
        items = expanded;
        macro_used = true;
    } else {
        items.push(item(&mut input, false)?);
    }
    let items_span = from..input.at();
    let changed = if input.is_at_end() { None } else { Some(changed_since(&mut input)?) };
    (!items.is_empty() && input.is_at_end()).then_some(Fetch { set, items, changed, macro_used, items_span })
}

/// RFC 9051 §6.4.5: a macro stands alone, never in a list.
fn fetch_macro(input: &mut Arguments<'_>) -> Option<Vec<FetchItem>> {
    let mut ahead = input.clone();
    let names: &[&'static [u8]] = match &*name(&mut ahead) {
        b"FAST" => &[b"FLAGS", b"INTERNALDATE", b"RFC822.SIZE"],
        b"ALL" => &[b"FLAGS", b"INTERNALDATE", b"RFC822.SIZE", b"ENVELOPE"],
        b"FULL" => &[b"FLAGS", b"INTERNALDATE", b"RFC822.SIZE", b"ENVELOPE", b"BODY"],
        _ => return None,
    };
    *input = ahead;
    names.iter().map(|&name| FetchItem::plain(Bytes::from_static(name))).collect()
}

/// ` (CHANGEDSINCE n)` or ` (CHANGEDSINCE n VANISHED)` (RFC 7162 §3.1.4.1) and nothing else: other modifiers
/// change which messages are meant.
fn changed_since(input: &mut Arguments<'_>) -> Option<Range<usize>> {
    input.space()?;
    let from = input.at();
    input.eat(b'(').then_some(())?;
    let inside = input.take_while(|o| o != b')');
    let inside = input.slice(inside).to_ascii_uppercase();
    input.eat(b')').then_some(())?;
    let mut words = inside.split(|&o| o == b' ');
    let (mut since, mut sound) = (false, true);
    while let Some(word) = words.next() {
        match word {
            b"CHANGEDSINCE" => {
                since = true;
                sound &= words.next().is_some_and(|n| !n.is_empty() && n.iter().all(u8::is_ascii_digit));
            }
            b"VANISHED" => {}
            _ => sound = false,
        }
    }
    (since && sound).then(|| from..input.at())
}

fn item(input: &mut Arguments<'_>, listed: bool) -> Option<FetchItem> {
    let from = input.at();
    let name = input.take_while(|o| is_astring_octet(o) && !matches!(o, b'[' | b']' | b'<'));
    let name = upper(input.slice(name));
    if name.is_empty() {
        return None;
    }
    let section = if input.peek() == Some(b'[') { Some(input.skip_group(b'[', b']')?) } else { None };
    let after_section = input.at();
    if input.peek() == Some(b'<') {
        input.take_while(|o| !matches!(o, b' ' | b'>' | b')'));
        input.eat(b'>').then_some(())?;
    }
    let partial = input.slice(after_section..input.at());
    let found = match section {
        Some(section) => section_item(input, &name, section, &partial),
        None if partial.is_empty() => FetchItem::plain(name.clone()),
        None => None,
    };
    let found = match found {
        Some(found) => found,
        None => unread_item(&name, input.slice(from..input.at()))?,
    };
    // Extensions give items arguments (`PREVIEW (LAZY)`); what we know has none.
    let mut ahead = input.clone();
    if listed && ahead.eat(b' ') && ahead.peek() == Some(b'(') {
        if found.key.class() != ItemClass::Dynamic {
            return None;
        }
        ahead.skip_group(b'(', b')')?;
        *input = ahead;
    }
    matches!(input.peek(), None | Some(b' ' | b')')).then_some(found)
}

/// `BODY[…]`, `BODY.PEEK[…]` and the BINARY family; `None` for what is not wholly understood.
fn section_item(
    input: &Arguments<'_>,
    name: &Bytes,
    section: Range<usize>,
    partial: &[u8],
) -> Option<FetchItem> {
    let bracketed = input.slice(section.clone());
    let partial = if partial.is_empty() { None } else { Some(parse_partial(partial)?) };
    let (echoed, peek): (&[u8], bool) = match &**name {
        b"BODY" => (b"BODY", false),
        b"BODY.PEEK" => (b"BODY", true),
        b"BINARY" => (b"BINARY", false),
        b"BINARY.PEEK" => (b"BINARY", true),
        b"BINARY.SIZE" => (b"BINARY.SIZE", true),
        _ => return None,
    };
    let label = label(echoed, &bracketed);
    let key = if echoed == b"BODY" {
        ItemKey::section(bracketed.get(1..bracketed.len().checked_sub(1)?)?)?
    } else {
        ItemKey::named(&label)?
    };
    Some(FetchItem { key, label, peek, partial })
}

/// The name and the section, keywords in upper case, what stands in parentheses as the client wrote it.
fn label(name: &[u8], bracketed: &[u8]) -> Bytes {
    let keywords = bracketed.iter().position(|&o| o == b'(').unwrap_or(bracketed.len());
    let (keywords, fields) = bracketed.split_at_checked(keywords).unwrap_or((bracketed, b""));
    [name, &keywords.to_ascii_uppercase(), fields].concat().into()
}

fn parse_partial(text: &[u8]) -> Option<(u32, u32)> {
    let inside = std::str::from_utf8(text).ok()?.strip_prefix('<')?.strip_suffix('>')?;
    let (first, count) = inside.split_once('.')?;
    let number = |text: &str| text.bytes().all(|o| o.is_ascii_digit()).then(|| text.parse().ok())?;
    Some((number(first)?, number(count).filter(|&n| n != 0)?))
}

/// An item whose end is clear and whose meaning is not: a key that begins like none we know, so that nothing is
/// ever kept or served under it.
fn unread_item(name: &[u8], text: Bytes) -> Option<FetchItem> {
    let key = ItemKey::named(&[b"?", &*text].concat())?;
    let peek = !matches!(name, b"BODY" | b"BINARY");
    Some(FetchItem { key, label: text, peek, partial: None })
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tag = self.tag.escape_ascii();
        let uid = if self.uid { "UID " } else { "" };
        write!(f, "{tag} {uid}{} {:?}", self.verb.escape_ascii(), self.kind)
    }
}

/// Says neither users, mailboxes nor secrets: they must not reach a log.
impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fetch(fetch) => fetch.fmt(f),
            Self::Store { set } | Self::Copy { set } | Self::Move { set } => set.fmt(f),
            Self::Search { criteria, returns } => write!(f, "Search({criteria:?}, returns: {returns})"),
            Self::Sort { criteria } | Self::Thread { criteria } => criteria.fmt(f),
            Self::Other => f.write_str("Other"),
            Self::Capability
            | Self::Noop
            | Self::Id
            | Self::StartTls
            | Self::Logout
            | Self::Login { .. }
            | Self::Authenticate { .. }
            | Self::Select { .. }
            | Self::Close
            | Self::Unselect
            | Self::Check
            | Self::Expunge
            | Self::Create { .. }
            | Self::Delete { .. }
            | Self::Rename { .. }
            | Self::Append { .. }
            | Self::Status { .. }
            | Self::Idle
            | Self::Enable { .. }
            | Self::Compress
            | Self::Notify
            | Self::UidExpunge => f.write_str("understood"),
        }
    }
}

impl FetchItem {
    /// An item without section, named in upper case.
    fn plain(name: Bytes) -> Option<Self> {
        let peek = !matches!(&*name, b"RFC822" | b"RFC822.TEXT");
        Some(Self { key: ItemKey::named(&name)?, label: name, peek, partial: None })
    }
}

impl CommandError {
    /// What to tell the client.
    #[must_use]
    pub fn text(&self) -> &'static str {
        match self.fault {
            CommandFault::Empty => "Empty line: send a tag and a command",
            CommandFault::Tag => "Invalid tag: send a tag of letters and digits, then a command",
            CommandFault::NoName => "Missing command: send a command name after the tag",
        }
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl std::error::Error for CommandError {}

/// Clients ask for a dozen; a list beyond this goes to the origin unread.
pub const FETCH_ITEMS_MAX: usize = 256;

/// There are fewer extensions than this.
const ENABLE_NAMES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn command(text: &'static [u8]) -> Command {
        parse(&Bytes::from_static(text)).unwrap()
    }

    fn fetch_of(text: &'static [u8]) -> Fetch {
        let Kind::Fetch(fetch) = command(text).kind else { panic!("{}", text.escape_ascii()) };
        fetch
    }

    /// Key, label, peek and partial of each item.
    fn items(text: &'static [u8]) -> Vec<String> {
        let item = |i: FetchItem| {
            let partial = i.partial.map(|(first, count)| format!(" {first}+{count}")).unwrap_or_default();
            format!("{} {}{}{partial}", i.key, i.label.escape_ascii(), if i.peek { " peek" } else { "" })
        };
        fetch_of(text).items.into_iter().map(item).collect()
    }

    #[test]
    fn commands_without_arguments() {
        assert_eq!(command(b"a1 capability\r\n").kind, Kind::Capability);
        assert_eq!(command(b"1 NOOP\r\n").kind, Kind::Noop);
        assert_eq!(command(b"A.1]-x noop \n").kind, Kind::Noop);
        assert_eq!(command(b"a  LOGOUT\r\n").kind, Kind::Logout);
        assert_eq!(command(b"a STARTTLS\r\n").kind, Kind::StartTls);
        assert_eq!(command(b"a IDLE\r\n").kind, Kind::Idle);
        assert_eq!(command(b"a EXPUNGE\r\n").kind, Kind::Expunge);
        assert_eq!(command(b"a CLOSE now\r\n").kind, Kind::Close);
        assert_eq!(command(b"a UNSELECT\r\n").kind, Kind::Unselect);
        assert_eq!(command(b"a CHECK\r\n").kind, Kind::Check);
        assert_eq!(command(b"a ID NIL\r\n").kind, Kind::Id);
        assert_eq!(command(b"a ID (\"name\" \"Thunderbird\" \"version\" \"1\")\r\n").kind, Kind::Id);
        assert_eq!(command(b"a COMPRESS DEFLATE\r\n").kind, Kind::Compress);
        assert_eq!(command(b"a NOTIFY SET (SELECTED (MessageNew (UID)))\r\n").kind, Kind::Notify);
    }

    #[test]
    fn what_is_answered_on_the_spot_must_be_exact() {
        for text in [&b"a NOOP x\r\n"[..], b"a LOGOUT now\r\n", b"a IDLE {1}\r\nx\r\n", b"a CAPABILITY 1\r\n"]
        {
            assert_eq!(parse(&Bytes::from_static(text)).unwrap().kind, Kind::Other);
        }
    }

    #[test]
    fn login_is_read_exactly_or_not_at_all() {
        for (text, expected) in [
            (&b"a LOGIN bob pw\r\n"[..], &b"bob"[..]),
            (b"a login \"bob@example.com\" \"p w\"\r\n", b"bob@example.com"),
            (b"a LOGIN {3}\r\nbob {2}\r\npw\r\n", b"bob"),
            (b"a LOGIN {3+}\r\nb b \"\"\r\n", b"b b"),
            (b"a LOGIN \"a\\\"b\\\\\" \"b\\\"c\"\r\n", b"a\"b\\"),
            (b"a LOGIN b\xc3\xb6b pw\r\n", b"b\xc3\xb6b"),
        ] {
            assert_eq!(command(text).kind, Kind::Login { user: Bytes::from_static(expected) });
        }
        for text in [
            &b"a LOGIN bob\r\n"[..],
            b"a LOGIN bob pw x\r\n",
            b"a LOGIN  bob pw\r\n",
            b"a LOGIN \"b\\ob\" pw\r\n",
            b"a LOGIN bob p{w\r\n",
            b"a LOGIN bob* pw\r\n",
            b"a LOGIN \"bob\"alice pw\r\n",
            b"a LOGIN {3}\nbob pw\r\n",
            b"a LOGIN \"b\0b\" pw\r\n",
        ] {
            assert_eq!(command(text).kind, Kind::Other, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn authenticate_keeps_the_initial_response_as_sent() {
        let auth = |mechanism, initial: Option<&'static [u8]>| Kind::Authenticate {
            mechanism: Bytes::from_static(mechanism),
            initial: initial.map(Bytes::from_static),
        };
        assert_eq!(command(b"a AUTHENTICATE PLAIN\r\n").kind, auth(b"PLAIN", None));
        assert_eq!(
            command(b"2 authenticate plain AGFsaWNlAHB3\r\n").kind,
            auth(b"PLAIN", Some(b"AGFsaWNlAHB3"))
        );
        assert_eq!(command(b"a AUTHENTICATE EXTERNAL =\r\n").kind, auth(b"EXTERNAL", Some(b"=")));
        assert_eq!(command(b"a AUTHENTICATE XOAUTH2 dXNlcj0=\r\n").kind, auth(b"XOAUTH2", Some(b"dXNlcj0=")));
        assert_eq!(command(b"a AUTHENTICATE\r\n").kind, Kind::Other);
        assert_eq!(command(b"a AUTHENTICATE PLAIN a b\r\n").kind, Kind::Other);
        assert_eq!(command(b"a AUTHENTICATE PLAIN \r\n").kind, Kind::Other);
    }

    #[test]
    fn select_knows_its_parameters() {
        let select = |mailbox, examine, condstore, qresync| Kind::Select {
            mailbox: Bytes::from_static(mailbox),
            examine,
            condstore,
            qresync,
        };
        assert_eq!(command(b"a select \"INBOX\"\r\n").kind, select(b"INBOX", false, false, false));
        assert_eq!(command(b"a EXAMINE inbox\r\n").kind, select(b"INBOX", true, false, false));
        assert_eq!(command(b"a SELECT {5+}\r\nInbox\r\n").kind, select(b"INBOX", false, false, false));
        assert_eq!(command(b"a SELECT inbox/x (CONDSTORE)\r\n").kind, select(b"inbox/x", false, true, false));
        assert_eq!(command(b"a SELECT \"a b\" (condstore)\r\n").kind, select(b"a b", false, true, false));
        assert_eq!(
            command(b"a SELECT \"INBOX\" (QRESYNC (1 2 1:5 (1:2 3:4)))\r\n").kind,
            select(b"INBOX", false, false, true)
        );
        assert_eq!(command(b"a SELECT x (NEW)\r\n").kind, select(b"x", false, false, false));
        for text in [
            &b"a SELECT\r\n"[..],
            b"a SELECT \"\"\r\n",
            b"a SELECT a b\r\n",
            b"a SELECT a*\r\n",
            b"a SELECT x (\r\n",
        ] {
            assert_eq!(command(text).kind, Kind::Other, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn mailbox_commands() {
        let name = Bytes::from_static;
        assert_eq!(command(b"a CREATE x (USE (\\Sent))\r\n").kind, Kind::Create { mailbox: name(b"x") });
        assert_eq!(command(b"a DELETE \"a&AOk-\"\r\n").kind, Kind::Delete { mailbox: name(b"a&AOk-") });
        assert_eq!(
            command(b"a RENAME INBOX \"o ld\"\r\n").kind,
            Kind::Rename { from: name(b"INBOX"), to: name(b"o ld") }
        );
        assert_eq!(
            command(b"a STATUS INBOX (MESSAGES UNSEEN SIZE HIGHESTMODSEQ)\r\n").kind,
            Kind::Status { mailbox: name(b"INBOX") }
        );
        assert_eq!(
            command(b"a APPEND Sent (\\Seen) \"17-Jul-1996 02:44:25 -0700\" {5}\r\n").kind,
            Kind::Append { mailbox: name(b"Sent") }
        );
        assert_eq!(command(b"a APPEND {4+}\r\nSent {5+}\r\n").kind, Kind::Append { mailbox: name(b"Sent") });
        assert_eq!(command(b"a APPEND a CATENATE (TEXT {1+}\r\n").kind, Kind::Append { mailbox: name(b"a") });
        assert_eq!(command(b"a APPEND {4}\r\n").kind, Kind::Other);
        assert_eq!(command(b"a DELETE x y\r\n").kind, Kind::Other);
        assert_eq!(
            command(b"a ENABLE condstore UTF8=ACCEPT\r\n").kind,
            Kind::Enable { names: vec![name(b"CONDSTORE"), name(b"UTF8=ACCEPT")] }
        );
    }

    #[test]
    fn commands_with_sets_say_where_the_set_stands() {
        let text = b"a1 UID STORE 1:3,7 +FLAGS.SILENT (\\Seen $Foo)\r\n";
        let read = command(text);
        assert!(read.uid && *read.verb == *b"STORE" && *read.tag == *b"a1");
        let Kind::Store { set } = read.kind else { panic!() };
        assert_eq!(&text[set.span], b"1:3,7");
        assert_eq!(set.set.unwrap().to_string(), "1:3,7");
        assert!(matches!(
            command(b"a STORE 1 (UNCHANGEDSINCE 5) FLAGS (\\Seen)\r\n").kind,
            Kind::Store { .. }
        ));
        assert!(matches!(
            command(b"a COPY 2:4 MEETING\r\n").kind,
            Kind::Copy { set: SetRef { set: Some(_), .. } }
        ));
        assert!(matches!(command(b"a UID MOVE $ x\r\n").kind, Kind::Move { set: SetRef { set: None, .. } }));
        assert_eq!(command(b"a UID EXPUNGE 1\r\n").kind, Kind::UidExpunge);
        assert_eq!(command(b"a STORE 1,,2 FLAGS ()\r\n").kind, Kind::Other);
        assert_eq!(command(b"a STORE 1\r\n").kind, Kind::Other);
    }

    #[test]
    fn searches() {
        let spans = |text: &'static [u8]| {
            let Kind::Search { criteria: MsnSpans::Known(spans), returns } = command(text).kind else {
                panic!("{}", text.escape_ascii())
            };
            (spans.into_iter().map(|s| text[s].to_vec()).collect::<Vec<_>>(), returns)
        };
        assert_eq!(spans(b"a UID SEARCH RETURN (ALL COUNT) UNSEEN\r\n"), (vec![], true));
        assert_eq!(spans(b"a UID SEARCH 1:* NOT DELETED\r\n"), (vec![b"1:*".to_vec()], false));
        assert_eq!(spans(b"a UID SEARCH MODSEQ 5 ALL\r\n"), (vec![], false));
        assert_eq!(spans(b"a SEARCH X-GM-RAW \"x\"\r\n"), (vec![], false));
        let unknown = MsnSpans::Unknown;
        assert_eq!(command(b"a SEARCH XNEW 1\r\n").kind, Kind::Search { criteria: unknown, returns: false });
        let none = || MsnSpans::Known(vec![]);
        assert_eq!(command(b"a UID SORT (REVERSE DATE) UTF-8 ALL\r\n").kind, Kind::Sort { criteria: none() });
        assert_eq!(command(b"a UID THREAD REFERENCES UTF-8 ALL\r\n").kind, Kind::Thread { criteria: none() });
    }

    /// What clients send when they list a mailbox and when they open a message.
    #[test]
    fn fetches_of_real_clients() {
        assert_eq!(items(b"7 UID fetch 1:* (FLAGS)\r\n"), ["FLAGS FLAGS peek"]);
        // Thunderbird: list, open, chunks, snippet.
        assert_eq!(
            items(b"8 UID fetch 1:600 (UID RFC822.SIZE FLAGS BODY.PEEK[HEADER.FIELDS (From To Cc Message-ID)])\r\n"),
            [
                "UID UID peek",
                "RFC822.SIZE RFC822.SIZE peek",
                "FLAGS FLAGS peek",
                "BODY[HEADER.FIELDS (CC FROM MESSAGE-ID TO)] BODY[HEADER.FIELDS (From To Cc Message-ID)] peek",
            ]
        );
        assert_eq!(
            items(b"9 UID fetch 235 (UID RFC822.SIZE BODY[])\r\n"),
            ["UID UID peek", "RFC822.SIZE RFC822.SIZE peek", "BODY[] BODY[]"]
        );
        assert_eq!(
            items(b"9 UID fetch 235 (UID RFC822.SIZE BODY[]<65536.73728>)\r\n").last().unwrap(),
            "BODY[] BODY[] 65536+73728"
        );
        assert_eq!(
            items(b"9 UID fetch 5,7 (UID BODY.PEEK[HEADER.FIELDS (Content-Type Content-Transfer-Encoding)] BODY.PEEK[TEXT]<0.2048>)\r\n")[2],
            "BODY[TEXT] BODY[TEXT] peek 0+2048"
        );
        // Outlook.
        assert_eq!(items(b"k4 UID FETCH 1:* (UID)\r\n"), ["UID UID peek"]);
        assert_eq!(
            items(b"k5 UID FETCH 4 (UID FLAGS RFC822.SIZE BODY.PEEK[HEADER] INTERNALDATE)\r\n")[3..],
            ["BODY[HEADER] BODY[HEADER] peek", "INTERNALDATE INTERNALDATE peek"]
        );
        assert_eq!(items(b"k6 UID FETCH 4 (UID BODY.PEEK[])\r\n")[1], "BODY[] BODY[] peek");
        // Apple Mail.
        assert_eq!(
            items(b"6.7 FETCH 1:3 (INTERNALDATE UID RFC822.SIZE FLAGS BODY.PEEK[HEADER.FIELDS (date subject x-uniform-type-identifier)] MODSEQ)\r\n")[4..],
            [
                "BODY[HEADER.FIELDS (DATE SUBJECT X-UNIFORM-TYPE-IDENTIFIER)] BODY[HEADER.FIELDS (date subject x-uniform-type-identifier)] peek",
                "MODSEQ MODSEQ peek"
            ]
        );
        assert_eq!(items(b"6.8 UID FETCH 9 (BODYSTRUCTURE BODY.PEEK[])\r\n").len(), 2);
        // K-9, mutt, mbsync, Roundcube, curl.
        assert_eq!(items(b"1 UID FETCH 3 (BODY.PEEK[]<0.32768>)\r\n"), ["BODY[] BODY[] peek 0+32768"]);
        assert_eq!(items(b"1 UID FETCH 3 (UID BODY.PEEK[1.2])\r\n")[1], "BODY[1.2] BODY[1.2] peek");
        assert_eq!(
            items(b"a5 FETCH 1:4 (UID FLAGS INTERNALDATE RFC822.SIZE BODY.PEEK[HEADER.FIELDS (DATE FROM SENDER)])\r\n").len(),
            5
        );
        assert_eq!(items(b"a6 UID FETCH 4 BODY.PEEK[]\r\n"), ["BODY[] BODY[] peek"]);
        assert_eq!(
            items(b"5 UID FETCH 1:9 (UID FLAGS BODY.PEEK[HEADER.FIELDS (X-TUID)])\r\n")[2],
            "BODY[HEADER.FIELDS (X-TUID)] BODY[HEADER.FIELDS (X-TUID)] peek"
        );
        assert_eq!(
            items(b"A7 UID FETCH 9 (UID BODYSTRUCTURE BODY.PEEK[2.MIME] BODY.PEEK[1.1.HEADER])\r\n")[2..],
            ["BODY[2.MIME] BODY[2.MIME] peek", "BODY[1.1.HEADER] BODY[1.1.HEADER] peek"]
        );
        assert_eq!(items(b"A003 FETCH 1 BODY[TEXT]\r\n"), ["BODY[TEXT] BODY[TEXT]"]);
        // Gmail.
        assert_eq!(items(b"a UID FETCH 1 (X-GM-MSGID X-GM-LABELS UID)\r\n").len(), 3);
    }

    #[test]
    fn items_of_old_and_of_extensions() {
        assert_eq!(items(b"a FETCH 1 RFC822\r\n"), ["BODY[] RFC822"]);
        assert_eq!(items(b"a FETCH 1 RFC822.TEXT\r\n"), ["BODY[TEXT] RFC822.TEXT"]);
        assert_eq!(
            items(b"a1 FETCH 1 (BODY[HEADER.FIELDS (From \"To\")] RFC822.HEADER RFC822.PEEK)\r\n"),
            [
                "BODY[HEADER.FIELDS (FROM TO)] BODY[HEADER.FIELDS (From \\\"To\\\")]",
                "BODY[HEADER] RFC822.HEADER peek",
                "RFC822.PEEK RFC822.PEEK peek"
            ]
        );
        assert_eq!(
            items(b"a1 FETCH 1 (body.peek[1.2.header.fields.not (X)]<5.6>)\r\n"),
            ["BODY[1.2.HEADER.FIELDS.NOT (X)] BODY[1.2.HEADER.FIELDS.NOT (X)] peek 5+6"]
        );
        assert_eq!(
            items(b"a FETCH 1 (BINARY.PEEK[1]<0.5> BINARY[2] BINARY.SIZE[3])\r\n"),
            ["BINARY[1] BINARY[1] peek 0+5", "BINARY[2] BINARY[2]", "BINARY.SIZE[3] BINARY.SIZE[3] peek"]
        );
        assert_eq!(items(b"a1 FETCH 1 (PREVIEW (LAZY) UID)\r\n"), ["PREVIEW PREVIEW peek", "UID UID peek"]);
        assert_eq!(items(b"a1 FETCH 1 (EMAILID THREADID SAVEDATE)\r\n").len(), 3);
    }

    #[test]
    fn sections_that_are_not_understood_are_never_kept() {
        for text in [
            &b"a FETCH 1 BODY[X]\r\n"[..],
            b"a FETCH 1 BODY[HEADER.FIELDS ({4}\r\nFrom)]\r\n",
            b"a FETCH 1 BODY[]<5>\r\n",
            b"a FETCH 1 BODY[]<0.0>\r\n",
            b"a FETCH 1 BODY[]<0.5000000000>\r\n",
            b"a FETCH 1 BODY[HEADER.FIELDS (From]To)]\r\n",
            b"a FETCH 1 BODY[0]\r\n",
        ] {
            let Kind::Fetch(fetch) = command(text).kind else { continue };
            for item in fetch.items {
                assert_eq!(item.key.class(), ItemClass::Dynamic, "{}", text.escape_ascii());
            }
        }
        assert_eq!(command(b"a FETCH 1 BODY[HEADER.FIELDS (From]To)]\r\n").kind, Kind::Other);
    }

    #[test]
    fn macros_expand() {
        let full = fetch_of(b"a FETCH 1:2 full\r\n");
        let labels: Vec<_> =
            full.items.iter().map(|i| String::from_utf8(i.label.to_vec()).unwrap()).collect();
        assert!(full.macro_used);
        assert_eq!(labels, ["FLAGS", "INTERNALDATE", "RFC822.SIZE", "ENVELOPE", "BODY"]);
        assert_eq!(fetch_of(b"a FETCH 1 ALL\r\n").items.len(), 4);
        assert_eq!(fetch_of(b"a FETCH 1 fast\r\n").items.len(), 3);
        assert!(!fetch_of(b"a FETCH 1 FLAGS\r\n").macro_used);
    }

    #[test]
    fn modifiers_have_their_place() {
        let text = b"a1 UID FETCH 1:* (FLAGS) (CHANGEDSINCE 5 VANISHED)\r\n";
        let fetch = fetch_of(text);
        assert_eq!(&text[fetch.changed.unwrap()], b"(CHANGEDSINCE 5 VANISHED)");
        assert_eq!(&text[fetch.items_span], b"(FLAGS)");
        assert_eq!(&text[fetch.set.span], b"1:*");
        assert_eq!(fetch_of(b"a UID FETCH $ (FLAGS)\r\n").set.set, None);
        for text in [
            &b"a FETCH 1 (FLAGS) (PARTIAL 1:5)\r\n"[..],
            b"a FETCH 1 (FLAGS) (CHANGEDSINCE)\r\n",
            b"a FETCH 1 (FLAGS) x\r\n",
            b"a FETCH 1 (FLAGS\r\n",
            b"a FETCH 1 ()\r\n",
            b"a FETCH 1\r\n",
            b"a FETCH 1 (UID(FLAGS))\r\n",
            b"a FETCH 1 (UID (FLAGS))\r\n",
            b"a FETCH 1 BODY[\r\n",
            b"a FETCH 1 BODY[]<0.1\r\n",
            b"a FETCH x FLAGS\r\n",
        ] {
            assert_eq!(command(text).kind, Kind::Other, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn items_are_bounded() {
        let list = |n: usize| Bytes::from(format!("a FETCH 1 ({})\r\n", vec!["UID"; n].join(" ")));
        assert!(matches!(parse(&list(FETCH_ITEMS_MAX)).unwrap().kind, Kind::Fetch(_)));
        assert_eq!(parse(&list(FETCH_ITEMS_MAX + 1)).unwrap().kind, Kind::Other);
    }

    #[test]
    fn the_origin_judges_what_we_do_not_know() {
        for text in [
            &b"a1 LIST (SUBSCRIBED) \"\" \"*\" RETURN (SPECIAL-USE STATUS (MESSAGES))\r\n"[..],
            b"a1 list \"\" \"%\" return (special-use)\r\n",
            b"a1 XLIST \"\" \"*\"\r\n",
            b"a1 GETACL INBOX\r\n",
            b"a1 MYRIGHTS INBOX\r\n",
            b"a1 GETQUOTAROOT INBOX\r\n",
            b"a1 NAMESPACE\r\n",
            b"a1 UNAUTHENTICATE\r\n",
            b"a1 GENURLAUTH x INTERNAL\r\n",
            b"a1 RESETKEY\r\n",
            b"a1 REPLACE 4 Drafts {1+}\r\nx\r\n",
            b"a1 GETMETADATA \"\" /shared/comment\r\n",
            b"a1 LANGUAGE de\r\n",
            b"a1 UID BATCHES 5\r\n",
            b"a1 UID\r\n",
            b"DONE \r\n",
            b"a1 lsub \"\" \"*\"\r\n",
            b"a1 SUBSCRIBE x\r\n",
            b"a1 \xff\r\n",
        ] {
            let read = parse(&Bytes::from_static(text));
            match read {
                Ok(read) => assert_eq!(read.kind, Kind::Other, "{}", text.escape_ascii()),
                Err(error) => assert_eq!(error.fault, CommandFault::NoName),
            }
        }
    }

    #[test]
    fn only_what_no_server_accepts_is_an_error() {
        let fault = |text: &'static [u8]| parse(&Bytes::from_static(text)).unwrap_err();
        for text in [&b"\r\n"[..], b"\n", b""] {
            assert_eq!(fault(text), CommandError { tag: None, fault: CommandFault::Empty });
        }
        for text in [
            &b" a NOOP\r\n"[..],
            b"+ NOOP\r\n",
            b"a\0 NOOP\r\n",
            b"a% NOOP\r\n",
            b"\"a\" NOOP\r\n",
            b"a\tNOOP\r\n",
        ] {
            assert_eq!(fault(text), CommandError { tag: None, fault: CommandFault::Tag });
        }
        assert_eq!(fault(b"a1\r\n"), CommandError { tag: Some("a1".into()), fault: CommandFault::NoName });
    }

    #[test]
    fn debug_output_holds_no_secret() {
        let shown = format!("{:?}", command(b"a LOGIN bob hunter2\r\n"));
        assert!(!shown.contains("bob") && !shown.contains("hunter2"), "{shown}");
        let shown = format!("{:?}", command(b"a AUTHENTICATE PLAIN AGFsaWNlAHB3\r\n"));
        assert!(!shown.contains("AGFs"), "{shown}");
    }

    proptest! {
        #[test]
        fn foreign_octets_never_panic_and_spans_stay_inside(
            verb in "(UID )?(FETCH|SEARCH|STORE|LOGIN|SELECT|SORT|THREAD|APPEND|RENAME) ",
            rest in "[a-z0-9:*,()\\[\\]<>{}\"\\\\ .$+~%\r\n-]{0,60}",
        ) {
            let octets = Bytes::from(format!("a {verb}{rest}\r\n"));
            if let Ok(command) = parse(&octets) {
                let mut spans = Vec::new();
                if let Kind::Fetch(f) = &command.kind {
                    spans.extend([f.set.span.clone(), f.items_span.clone()]);
                    spans.extend(f.changed.clone());
                }
                if let Kind::Store { set } | Kind::Copy { set } | Kind::Move { set } = &command.kind {
                    spans.push(set.span.clone());
                }
                if let Kind::Search { criteria: MsnSpans::Known(found), .. }
                | Kind::Sort { criteria: MsnSpans::Known(found) }
                | Kind::Thread { criteria: MsnSpans::Known(found) } = &command.kind
                {
                    spans.extend_from_slice(found);
                }
                prop_assert!(spans.into_iter().all(|s| octets.get(s).is_some()));
            }
        }

        #[test]
        fn any_octets_at_all(octets in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&octets.into());
        }
    }
}
