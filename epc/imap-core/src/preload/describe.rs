//! A message in a few words, read from what the origin says of it: how long it is, when it came, what of it is text,
//! and what it has in common with others.
//!
//! Used only to guess what will be wanted. What cannot be read is left out, and the guess is worse for it.

use super::describing_fields;
use crate::{arguments::Arguments, item::ItemKey};
use bytes::Bytes;
use discovery_core::now::UnixMillis;

/// See the module's documentation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// RFC822.SIZE: servers may estimate.
    pub octets: u64,
    /// INTERNALDATE.
    pub arrived: UnixMillis,
    /// Whether it had `\Seen`.
    pub seen: bool,
    /// Its leaves of type text that are no attachments, as many as are read first.
    pub text: Vec<Part>,
    /// What it has in common with others.
    pub kindred: Kindred,
}

/// A part of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its section.
    pub key: ItemKey,
    /// Its length as it is sent.
    pub octets: u64,
}

/// What messages have in common, in words; whoever keeps it hashes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Kindred {
    /// Which kind of mail.
    pub class: MailClass,
    /// The list's `List-Id`, else the sender's address; lower case.
    pub source: Option<Bytes>,
    /// Message-ID of the first message of its thread.
    pub thread: Option<Bytes>,
}

/// Kinds of mail that a header tells apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MailClass {
    /// From the domain of one of its recipients.
    Colleague,
    /// From elsewhere.
    #[default]
    Outsider,
    /// Of a list to which one can write (`List-Post`).
    List,
    /// Of a list to which one cannot.
    Newsletter,
    /// `Auto-Submitted`.
    Machine,
}

impl Description {
    /// From items as the store or a FETCH response gives them: [`describing_items`](super::describing_items), in any
    /// order. `None` without a size, for then nothing can be decided.
    #[must_use]
    pub fn of(items: &[(ItemKey, Bytes)], seen: bool) -> Option<Self> {
        let item = |name: &str| items.iter().find(|(key, _)| key.as_str() == name).map(|(_, octets)| octets);
        let octets = std::str::from_utf8(item("RFC822.SIZE")?).ok()?.trim().parse().ok()?;
        let envelope = item("ENVELOPE").and_then(envelope).unwrap_or_default();
        let fields = item(describing_fields().as_str()).map_or_else(Vec::new, |block| fields(block));
        Some(Self {
            octets,
            arrived: item("INTERNALDATE").and_then(|date| internal_date(date)).unwrap_or_default(),
            seen,
            text: item("BODYSTRUCTURE").and_then(text_parts).unwrap_or_default(),
            kindred: kindred(envelope, &fields),
        })
    }

    /// Octets of what is shown first: header and text; never more than all.
    #[must_use]
    pub fn main_octets(&self) -> u64 {
        if self.text.is_empty() {
            return self.octets;
        }
        let text = self.text.iter().fold(HEADER_OCTETS, |sum, part| sum.saturating_add(part.octets));
        text.min(self.octets)
    }
}

/// What is taken of ENVELOPE.
#[derive(Debug, Default)]
struct Envelope {
    from: Option<Bytes>,
    /// Domains of To and Cc.
    domains: Vec<Bytes>,
    in_reply_to: Option<Bytes>,
    message_id: Option<Bytes>,
}

fn kindred(envelope: Envelope, fields: &[(Bytes, Bytes)]) -> Kindred {
    let field = |name: &[u8]| fields.iter().find(|(named, _)| *named == name).map(|(_, value)| value.clone());
    let (list, post) = (field(b"list-id"), field(b"list-post"));
    let domain = envelope.from.as_ref().and_then(|from| from.split(|o| *o == b'@').next_back());
    let own = domain.is_some_and(|domain| envelope.domains.iter().any(|other| *other == domain));
    let machine = field(b"auto-submitted").is_some_and(|said| !said.eq_ignore_ascii_case(b"no"));
    let class = if post.is_some_and(|post| !post.eq_ignore_ascii_case(b"no")) {
        MailClass::List
    } else if list.is_some() || field(b"list-unsubscribe").is_some() {
        MailClass::Newsletter
    } else if machine {
        MailClass::Machine
    } else if own {
        MailClass::Colleague
    } else {
        MailClass::Outsider
    };
    let first = field(b"references").and_then(|ids| first_id(&ids));
    let thread = first.or_else(|| first_id(&envelope.in_reply_to?)).or(envelope.message_id);
    Kindred { class, source: list.map(|id| id.to_ascii_lowercase().into()).or(envelope.from), thread }
}

/// The first `<…>` of a field.
fn first_id(ids: &Bytes) -> Option<Bytes> {
    let from = ids.iter().position(|o| *o == b'<')?;
    let to = ids.iter().skip(from).position(|o| *o == b'>')? + from;
    Some(ids.slice(from..=to))
}

/// Header fields by name in lower case, folded lines joined.
fn fields(block: &[u8]) -> Vec<(Bytes, Bytes)> {
    let mut out: Vec<(Bytes, Vec<u8>)> = Vec::new();
    for line in block.split(|o| *o == b'\n').take(FIELD_LINES_MAX) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.first().is_some_and(|o| matches!(o, b' ' | b'\t')) {
            if let Some((_, value)) = out.last_mut() {
                value.extend_from_slice(line);
            }
        } else if let Some(at) = line.iter().position(|o| *o == b':') {
            let (name, value) = line.split_at(at);
            out.push((name.to_ascii_lowercase().into(), value.get(1..).unwrap_or_default().to_vec()));
        }
    }
    out.into_iter().map(|(name, value)| (name, Bytes::copy_from_slice(value.trim_ascii()))).collect()
}

/// `(date subject from sender reply-to to cc bcc in-reply-to message-id)`.
fn envelope(octets: &Bytes) -> Option<Envelope> {
    let mut args = Arguments::new(octets);
    args.eat(b'(').then_some(())?;
    skip(&mut args)?;
    skip(&mut args)?;
    let from = addresses(&mut args)?.into_iter().next();
    skip(&mut args)?;
    skip(&mut args)?;
    let recipients = [addresses(&mut args)?, addresses(&mut args)?].concat();
    skip(&mut args)?;
    let in_reply_to = nstring(&mut args)?;
    let message_id = nstring(&mut args)?;
    let domain = |address: Bytes| {
        let at = address.iter().rposition(|o| *o == b'@')?;
        Some(address.slice(at + 1..))
    };
    let domains = recipients.into_iter().filter_map(domain).collect();
    Some(Envelope { from, domains, in_reply_to, message_id })
}

/// `NIL`, or `((name adl mailbox host) …)`: the addresses in lower case, groups left out.
fn addresses(args: &mut Arguments<'_>) -> Option<Vec<Bytes>> {
    let mut out = Vec::new();
    if args.peek() != Some(b'(') {
        skip(args)?;
        return Some(out);
    }
    args.eat(b'(');
    args.skip_spaces();
    while args.eat(b'(') {
        skip(args)?;
        skip(args)?;
        let (mailbox, host) = (nstring(args)?, nstring(args)?);
        args.eat(b')').then_some(())?;
        args.skip_spaces();
        if let (Some(mailbox), Some(host), true) = (mailbox, host, out.len() < ADDRESSES_MAX) {
            out.push([&mailbox[..], b"@", &host].concat().to_ascii_lowercase().into());
        }
    }
    args.eat(b')').then_some(())?;
    args.skip_spaces();
    Some(out)
}

/// The leaves of type text, down to [`DEPTH_MAX`].
fn text_parts(octets: &Bytes) -> Option<Vec<Part>> {
    let mut args = Arguments::new(octets);
    let mut out = Vec::new();
    body(&mut args, "", 0, &mut out)?;
    Some(out)
}

fn body(args: &mut Arguments<'_>, path: &str, depth: usize, out: &mut Vec<Part>) -> Option<()> {
    if depth > DEPTH_MAX {
        return None;
    }
    args.eat(b'(').then_some(())?;
    args.skip_spaces();
    if args.peek() == Some(b'(') {
        let mut nth = 0_u32;
        while args.peek() == Some(b'(') {
            nth += 1;
            let dot = if path.is_empty() { "" } else { "." };
            body(args, &format!("{path}{dot}{nth}"), depth + 1, out)?;
            args.skip_spaces();
        }
        while !args.eat(b')') {
            skip(args)?;
        }
        return Some(());
    }
    let kind = nstring(args)?;
    // Subtype, parameters, id, description, encoding.
    for _ in 0..5 {
        skip(args)?;
    }
    let octets = nstring(args)?.and_then(|n| std::str::from_utf8(&n).ok()?.parse().ok());
    let mut attached = false;
    while !args.eat(b')') {
        let said = skip(args)?;
        let disposition: &[u8] = b"(\"attachment\"";
        attached |= said.get(..disposition.len()).is_some_and(|said| said.eq_ignore_ascii_case(disposition));
    }
    let is_text = kind.is_some_and(|kind| kind.eq_ignore_ascii_case(b"text"));
    if let (true, false, Some(octets), true) = (is_text, attached, octets, out.len() < TEXT_PARTS_MAX) {
        let section = if path.is_empty() { "1" } else { path };
        out.push(Part { key: ItemKey::section(section.as_bytes())?, octets });
    }
    Some(())
}

/// One value of whatever kind, and the space behind it.
fn skip(args: &mut Arguments<'_>) -> Option<Bytes> {
    let from = args.at();
    match args.peek()? {
        b'(' if args.rest().starts_with(b"()") => {
            args.eat(b'(');
            args.eat(b')');
        }
        b'(' => {
            args.skip_group(b'(', b')')?;
        }
        _ => args.skip_string()?,
    }
    let said = args.slice(from..args.at());
    args.skip_spaces();
    Some(said)
}

/// A string, an atom, or NIL, and the space behind it.
fn nstring(args: &mut Arguments<'_>) -> Option<Option<Bytes>> {
    let quoted = matches!(args.peek()?, b'"' | b'{');
    let said = args.astring()?;
    args.skip_spaces();
    Some((quoted || !said.eq_ignore_ascii_case(b"NIL")).then_some(said))
}

/// `"17-Jul-1996 02:44:25 -0700"`, the day perhaps with a space in front.
fn internal_date(octets: &[u8]) -> Option<UnixMillis> {
    let text = std::str::from_utf8(octets).ok()?.trim().trim_matches('"').trim_start();
    let mut words = text.split_ascii_whitespace();
    let (date, time, zone) = (words.next()?, words.next()?, words.next()?);
    let mut date = date.split('-');
    let day: i64 = date.next()?.parse().ok()?;
    let month = date.next()?;
    let month = MONTHS.iter().position(|name| name.eq_ignore_ascii_case(month))?;
    let year: i64 = date.next()?.parse().ok()?;
    let mut time = time.split(':').map(|n| n.parse::<i64>().ok());
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    let offset: i64 = zone.parse().ok()?;
    let bounds = [(day, 1..=31), (year, 1900..=9999), (hour, 0..=23), (minute, 0..=59), (second, 0..=60)];
    if bounds.iter().any(|(n, within)| !within.contains(n)) || !(-2400..=2400).contains(&offset) {
        return None;
    }
    let offset = offset / 100 * 60 + offset % 100;
    let days = days_since_1970(year, i64::try_from(month).ok()? + 1, day);
    Some(UnixMillis((((days * 24 + hour) * 60 + minute - offset) * 60 + second) * 1000))
}

/// In the Gregorian calendar; March is the first month, so that the leap day is the last of a year.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468
}

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
/// A header, about.
const HEADER_OCTETS: u64 = 4096;
/// Of one field list; a longer one is odd.
const FIELD_LINES_MAX: usize = 500;
const ADDRESSES_MAX: usize = 64;
const TEXT_PARTS_MAX: usize = 4;
const DEPTH_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn description(envelope: &'static str, structure: &'static str, header: &'static str) -> Description {
        let key = ItemKey::from_normalised;
        let items = [
            (key("RFC822.SIZE"), Bytes::from_static(b"90000")),
            (key("INTERNALDATE"), Bytes::from_static(b"\"17-Jul-1996 02:44:25 -0700\"")),
            (key("ENVELOPE"), Bytes::from_static(envelope.as_bytes())),
            (key("BODYSTRUCTURE"), Bytes::from_static(structure.as_bytes())),
            (describing_fields(), Bytes::from_static(header.as_bytes())),
        ];
        Description::of(&items, true).unwrap()
    }

    const ENVELOPE: &str = "(\"Wed, 17 Jul 1996 02:23:25 -0700\" {7}\r\nMinutes ((\"T (G)\" NIL \"Gray\" \"CAC.edu\")) \
        NIL NIL ((NIL NIL \"imap\" \"cac.edu\")(NIL NIL \"you\" \"x.test\")) NIL NIL \"<q@x>\" \"<B27397@cac.edu>\")";
    const PLAIN: &str =
        "(\"TEXT\" \"PLAIN\" (\"CHARSET\" \"US-ASCII\") NIL NIL \"7BIT\" 3028 92 NIL NIL NIL NIL)";
    const MIXED: &str = "(((\"text\" \"plain\" NIL NIL NIL \"8bit\" 10 1)(\"text\" \"html\" NIL NIL NIL \"8bit\" 20 1) \
        \"alternative\" (\"boundary\" \"x\") NIL NIL)(\"text\" \"csv\" NIL NIL NIL \"base64\" 900 3 NIL \
        (\"Attachment\" (\"filename\" \"a)b.csv\")) NIL)(\"application\" \"pdf\" () NIL NIL \"base64\" 80000) \"mixed\")";

    #[test]
    fn a_message_is_described_by_what_the_origin_says() {
        let said = description(ENVELOPE, MIXED, "References: <first@x>\r\n <second@x>\r\n\r\n");
        assert_eq!((said.octets, said.seen, said.arrived), (90_000, true, UnixMillis(837_596_665_000)));
        let text: Vec<_> = said.text.iter().map(|part| (part.key.as_str(), part.octets)).collect();
        assert_eq!(text, [("BODY[1.1]", 10), ("BODY[1.2]", 20)]);
        assert_eq!(said.main_octets(), HEADER_OCTETS + 30);
        assert_eq!(said.kindred.class, MailClass::Colleague);
        assert_eq!(said.kindred.source.as_deref(), Some(&b"gray@cac.edu"[..]));
        assert_eq!(said.kindred.thread.as_deref(), Some(&b"<first@x>"[..]));
        let single = description(ENVELOPE, PLAIN, "");
        assert_eq!(single.text.first().map(|part| part.key.as_str()), Some("BODY[1]"));
        assert_eq!(single.kindred.thread.as_deref(), Some(&b"<q@x>"[..]));
    }

    #[test]
    fn classes_row_by_row() {
        for (header, class, source) in [
            ("", MailClass::Colleague, "gray@cac.edu"),
            ("Auto-Submitted: no\r\n", MailClass::Colleague, "gray@cac.edu"),
            ("Auto-Submitted: auto-generated\r\n", MailClass::Machine, "gray@cac.edu"),
            ("List-Id: Sale <Sale.X>\r\nList-Post: NO\r\n", MailClass::Newsletter, "sale <sale.x>"),
            ("List-Unsubscribe: <https://x>\r\n", MailClass::Newsletter, "gray@cac.edu"),
            ("LIST-ID: <a>\r\nlist-post: <mailto:a@x>\r\n", MailClass::List, "<a>"),
        ] {
            let said = description(ENVELOPE, PLAIN, header);
            assert_eq!(
                (said.kindred.class, said.kindred.source.as_deref()),
                (class, Some(source.as_bytes())),
                "{header:?}"
            );
        }
    }

    #[test]
    fn what_cannot_be_read_is_left_out() {
        let said = description("(NIL NIL", "(((((", ": x\r\n y");
        assert_eq!((said.octets, said.main_octets(), said.kindred), (90_000, 90_000, Kindred::default()));
        assert_eq!(Description::of(&[], false), None);
        let deep: &'static str = Box::leak("(".repeat(5000).into_boxed_str());
        assert!(description(deep, deep, "").text.is_empty());
    }

    #[test]
    fn dates_row_by_row() {
        for (text, at) in [
            ("\"01-Jan-1970 00:00:00 +0000\"", Some(0)),
            ("\" 1-Mar-2024 00:00:00 +0100\"", Some(1_709_247_600_000)),
            ("\"29-Feb-2000 12:00:00 -0130\"", Some(951_831_000_000)),
            ("\"32-Jan-1970 00:00:00 +0000\"", None),
            ("\"1-Jan-1970 9223372036854775807:00:00 +0000\"", None),
            ("\"1-Jan-1970 00:00:00 +9223372036854775807\"", None),
            ("NIL", None),
            ("\"1-Jan-999999999999 00:00:00 +0000\"", None),
        ] {
            assert_eq!(internal_date(text.as_bytes()).map(|at| at.0), at, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_octets_harm(text in "[()\"{}\\\\ NIL0-9a-z\r\n<>@:]{0,200}") {
            let octets = Bytes::from(text.into_bytes());
            drop((envelope(&octets), text_parts(&octets), fields(&octets), internal_date(&octets)));
        }
    }
}
