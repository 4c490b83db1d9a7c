//! Cuts sections out of a whole message, or refuses.
//!
//! A cut has to be the very octets that the origin would have sent, and servers read odd mail in different ways.
//! So the index knows ranges only where every reader must agree: lines end in CRLF, no NUL, header fields that
//! are fields, and below that only strict MIME (RFC 2045, RFC 2046): each multipart with MIME-Version, one plain
//! boundary that is no prefix of another delimiter, at least one part, and its close delimiter. Everything else,
//! and all inside an embedded message, is refused: the origin must answer.
//!
//! ```text
//! octets of BODY[] ──> SectionIndexer (memory is constant) ──> SectionIndex ──> a few octets in a database row
//!                                                      cut(BODY[1.2]) ──> Range{offset, octets} | None = refuse
//! ```

mod content_type;
mod indexer;
#[cfg(test)]
mod reference;

pub use indexer::SectionIndexer;

use crate::item::{ItemClass, ItemKey, SectionClass};
use std::ops::Range;

/// Where the sections of one message lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SectionIndex {
    octets: u64,
    clean: Option<Clean>,
}

/// What is known of a message whose lines and header every reader reads alike.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Clean {
    /// Octets of the header, the empty line included.
    header: u64,
    /// The message itself, then its parts, each behind its parent; none if the structure is refused.
    parts: Vec<Part>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    /// Its index in the list; the message itself has 0.
    parent: u16,
    kind: PartKind,
    /// The header has only fields of MIME. Some servers leave all others out of `BODY[1.MIME]` (Courier), some do
    /// not (Dovecot).
    mime_only: bool,
    /// Of the header.
    start: u64,
    /// Of the body; behind the header's empty line.
    body: u64,
    end: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PartKind {
    Leaf,
    Multipart,
    /// A multipart whose close delimiter has only the CRLF that belongs to the delimiter behind it. Its parts are
    /// sure; Dovecot ends it behind that CRLF, RFC 2046 before.
    Loose,
    /// message/rfc822: servers differ in it, and about where it ends.
    Message,
    /// A part without header fields, or without the empty line behind them: servers differ.
    Odd,
}

/// How to make a section from the whole message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cut {
    /// These octets of it.
    Range {
        /// Where they begin.
        offset: u64,
        /// How many.
        octets: u64,
    },
    /// [`header_fields`] of the octets in `header`.
    HeaderFields {
        /// The message's header.
        header: Range<u64>,
        /// The names asked for.
        names: Vec<String>,
        /// All but these.
        not: bool,
    },
}

impl SectionIndex {
    /// Octets of the message.
    #[must_use]
    pub fn octets(&self) -> u64 {
        self.octets
    }

    /// How to make the section; `None` = refuse: only the origin knows what it would say.
    #[must_use]
    pub fn cut(&self, key: &ItemKey) -> Option<Cut> {
        let ItemClass::Section(class) = key.class() else { return None };
        let range =
            |start: u64, end: u64| Some(Cut::Range { offset: start, octets: end.checked_sub(start)? });
        let header = self.clean.as_ref().map(|clean| clean.header);
        match class {
            SectionClass::Whole => range(0, self.octets),
            SectionClass::Header => range(0, header?),
            // Of a multipart without a part that everyone finds, Cyrus says that there is no text.
            SectionClass::Text if self.has_structure() => range(header?, self.octets),
            SectionClass::Text => None,
            SectionClass::HeaderFields => {
                let spec = key.section_spec()?.strip_prefix("HEADER.FIELDS")?;
                let (not, names) = match spec.strip_prefix(".NOT") {
                    Some(names) => (true, names),
                    None => (false, spec),
                };
                let names =
                    names.strip_prefix(" (")?.strip_suffix(')')?.split(' ').map(str::to_owned).collect();
                Some(Cut::HeaderFields { header: 0..header?, names, not })
            }
            SectionClass::Part => {
                let part = self.part(key.section_spec()?, true)?;
                match part.kind {
                    PartKind::Leaf | PartKind::Multipart => range(part.body, part.end),
                    PartKind::Loose | PartKind::Message | PartKind::Odd => None,
                }
            }
            SectionClass::Mime => {
                let part = self
                    .part(key.section_spec()?.strip_suffix(".MIME")?, false)
                    .filter(|part| part.mime_only)?;
                match part.kind {
                    PartKind::Odd => None,
                    PartKind::Leaf | PartKind::Multipart | PartKind::Loose | PartKind::Message => {
                        range(part.start, part.body)
                    }
                }
            }
            SectionClass::Embedded => None,
        }
    }

    /// Whether every reader finds the same parts in it.
    fn has_structure(&self) -> bool {
        self.clean.as_ref().is_some_and(|clean| !clean.parts.is_empty())
    }

    /// The part with this path of numbers. `1` of a message that is no multipart is its text, though not for
    /// `MIME`: some servers give the header then, others nothing.
    fn part(&self, path: &str, text_is_one: bool) -> Option<Part> {
        let parts = &self.clean.as_ref()?.parts;
        let message = parts.first()?;
        if message.kind == PartKind::Leaf {
            return (text_is_one && path == "1").then_some(*message);
        }
        let mut at = 0_usize;
        for number in path.split('.') {
            let number: usize = number.parse().ok()?;
            let parent = u16::try_from(at).ok()?;
            let mut children =
                parts.iter().enumerate().skip(at + 1).filter(|(_, part)| part.parent == parent);
            (at, _) = children.nth(number.checked_sub(1)?)?;
        }
        parts.get(at).copied()
    }

    /// For a row of a database. All numbers are LEB128, so that an ordinary message takes some thirty octets:
    /// version 1 (one octet), octets of the message, clean (0 or 1); if clean: octets of the header, how many
    /// parts, and for each its kind (one octet: 0 leaf, 1 multipart, 2 message, 3 odd, 4 loose; + 8 if the header has fields that are not MIME's), parent, start, octets of
    /// the header, octets of the body.
    #[must_use]
    pub fn to_octets(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        put(&mut out, self.octets);
        put(&mut out, u64::from(self.clean.is_some()));
        if let Some(clean) = &self.clean {
            put(&mut out, clean.header);
            put(&mut out, clean.parts.len() as u64);
            for part in &clean.parts {
                let kind = match part.kind {
                    PartKind::Leaf => 0,
                    PartKind::Multipart => 1,
                    PartKind::Message => 2,
                    PartKind::Odd => 3,
                    PartKind::Loose => 4,
                };
                out.push(kind | if part.mime_only { 0 } else { NOT_MIME_ONLY });
                put(&mut out, u64::from(part.parent));
                put(&mut out, part.start);
                put(&mut out, part.body - part.start);
                put(&mut out, part.end - part.body);
            }
        }
        out
    }

    /// Reads what [`SectionIndex::to_octets`] wrote; `None` for another version or anything that cannot be: then
    /// index the message again.
    #[must_use]
    pub fn from_octets(mut octets: &[u8]) -> Option<Self> {
        let from = &mut octets;
        if take_octet(from)? != VERSION {
            return None;
        }
        let octets = take(from)?;
        let clean = match take(from)? {
            0 => None,
            1 => {
                let header = take(from).filter(|header| *header <= octets)?;
                let count = usize::try_from(take(from)?).ok().filter(|count| *count <= PARTS_MAX)?;
                let mut parts: Vec<Part> = Vec::with_capacity(count);
                for at in 0..count {
                    let octet = take_octet(from)?;
                    let mime_only = octet & NOT_MIME_ONLY == 0;
                    let kind = match octet & !NOT_MIME_ONLY {
                        0 => PartKind::Leaf,
                        1 => PartKind::Multipart,
                        2 => PartKind::Message,
                        3 => PartKind::Odd,
                        4 => PartKind::Loose,
                        _ => return None,
                    };
                    let parent = u16::try_from(take(from)?).ok()?;
                    let start = take(from)?;
                    let body = start.checked_add(take(from)?)?;
                    let end = body.checked_add(take(from)?)?;
                    let (first, last) = match parts.get(usize::from(parent)) {
                        _ if at == 0 => (start == 0 && body == header, end == octets && parent == 0),
                        Some(outer) => (
                            start >= outer.body,
                            end <= outer.end && matches!(outer.kind, PartKind::Multipart | PartKind::Loose),
                        ),
                        None => return None,
                    };
                    if !(first && last) {
                        return None;
                    }
                    parts.push(Part { parent, kind, mime_only, start, body, end });
                }
                Some(Clean { header, parts })
            }
            _ => return None,
        };
        from.is_empty().then_some(Self { octets, clean })
    }
}

/// `BODY[HEADER.FIELDS (names)]` of a header, or `.NOT`: the fields with these names in the message's order and
/// an empty line (RFC 9051 §6.4.5.1). Names are compared without regard to case.
#[must_use]
pub fn header_fields(header: &[u8], names: &[String], not: bool) -> Vec<u8> {
    let mut out = Vec::new();
    for field in content_type::fields(header) {
        let name = field.split(|octet| *octet == b':').next().unwrap_or_default();
        let named = names.iter().any(|wanted| wanted.as_bytes().eq_ignore_ascii_case(name));
        if named != not {
            out.extend_from_slice(field);
        }
    }
    out.extend_from_slice(b"\r\n");
    out
}

fn put(out: &mut Vec<u8>, mut n: u64) {
    loop {
        let [low, ..] = n.to_le_bytes();
        n >>= 7;
        if n == 0 {
            out.push(low & 0x7F);
            return;
        }
        out.push(low | 0x80);
    }
}

fn take(from: &mut &[u8]) -> Option<u64> {
    let mut n = 0_u64;
    for shift in (0..64).step_by(7) {
        let octet = take_octet(from)?;
        let bits = u64::from(octet & 0x7F);
        let shifted = bits << shift;
        if shifted >> shift != bits {
            return None;
        }
        n |= shifted;
        if octet < 0x80 {
            return Some(n);
        }
    }
    None
}

fn take_octet(from: &mut &[u8]) -> Option<u8> {
    let (first, rest) = from.split_first()?;
    *from = rest;
    Some(*first)
}

/// Of [`SectionIndex::to_octets`]. Raise it when a refusal is added: an old index may then cut too much.
const VERSION: u8 = 1;

/// In a part's kind octet.
const NOT_MIME_ONLY: u8 = 8;

/// A longer header block is refused: it is held in memory until its end, and no mailer writes one.
pub const HEADER_OCTETS_MAX: usize = 256 * 1024;

/// Nesting, counting the message, every part and every embedded message.
pub const DEPTH_MAX: usize = 50;

/// Parts in all, counting those of embedded messages.
pub const PARTS_MAX: usize = 1000;

/// RFC 2046 §5.1.1.
pub const BOUNDARY_OCTETS_MAX: usize = 70;

#[cfg(test)]
mod tests {
    use super::*;

    fn index(message: &str) -> SectionIndex {
        let mut indexer = SectionIndexer::new();
        indexer.push(message.as_bytes());
        indexer.finish()
    }

    /// What is cut for `spec`: the text, `None` if refused.
    fn cut<'a>(message: &'a str, spec: &str) -> Option<&'a str> {
        match index(message).cut(&ItemKey::section(spec.as_bytes()).unwrap())? {
            Cut::Range { offset, octets } => {
                let start = usize::try_from(offset).unwrap();
                Some(&message[start..start + usize::try_from(octets).unwrap()])
            }
            Cut::HeaderFields { .. } => panic!("not a range"),
        }
    }

    fn multipart(inside: &str) -> String {
        format!(
            "From: a\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=\"x\"\r\n\r\n{inside}"
        )
    }

    const LEAF: &str = "Content-Type: text/plain\r\n\r\nhello\r\n";

    #[test]
    fn a_plain_message() {
        let message = "Subject: t\r\n\r\none\r\ntwo";
        assert_eq!(cut(message, ""), Some(message));
        assert_eq!(cut(message, "HEADER"), Some("Subject: t\r\n\r\n"));
        assert_eq!(cut(message, "TEXT"), Some("one\r\ntwo"));
        assert_eq!(cut(message, "1"), Some("one\r\ntwo"));
        for refused in ["1.MIME", "1.1", "2", "1.HEADER", "1.TEXT"] {
            assert_eq!(cut(message, refused), None, "{refused}");
        }
        assert_eq!(cut("\r\nno header", "HEADER"), Some("\r\n"));
        assert_eq!(index(message).cut(&ItemKey::named(b"ENVELOPE").unwrap()), None);
    }

    #[test]
    fn parts_of_parts() {
        let inner =
            format!("Content-Type: multipart/alternative; boundary=y\r\n\r\n--y\r\n{LEAF}\r\n--y--\r\n");
        let message =
            multipart(&format!("preamble\r\n--x\r\n{LEAF}\r\n--x \t\r\n{inner}\r\n--x--\r\nepilogue"));
        assert_eq!(cut(&message, "1"), Some("hello\r\n"));
        assert_eq!(cut(&message, "1.MIME"), Some("Content-Type: text/plain\r\n\r\n"));
        assert_eq!(cut(&message, "2"), Some("--y\r\nContent-Type: text/plain\r\n\r\nhello\r\n\r\n--y--\r\n"));
        assert_eq!(cut(&message, "2.1"), Some("hello\r\n"));
        for refused in ["3", "1.1", "2.2", "2.1.1", "1.1.MIME"] {
            assert_eq!(cut(&message, refused), None, "{refused}");
        }
        assert!(index(&message).to_octets().len() < 40);
    }

    #[test]
    fn a_multipart_that_shares_its_last_crlf_gives_only_its_parts() {
        let inner =
            format!("Content-Type: multipart/alternative; boundary=y\r\n\r\n--y\r\n{LEAF}\r\n--y--\r\n");
        let message = multipart(&format!("--x\r\n{inner}--x--\r\n"));
        assert_eq!(cut(&message, "1.1"), Some("hello\r\n"));
        assert_eq!(cut(&message, "1.MIME"), Some("Content-Type: multipart/alternative; boundary=y\r\n\r\n"));
        assert_eq!(cut(&message, "1"), None);
    }

    #[test]
    fn a_part_header_with_other_fields_is_refused() {
        let part = "X-Attachment-Id: 1\r\nContent-Id: <1>\r\n\r\nhello";
        let message = multipart(&format!("--x\r\n{part}\r\n--x\r\n{LEAF}\r\n--x--\r\n"));
        assert_eq!((cut(&message, "1"), cut(&message, "1.MIME")), (Some("hello"), None));
        assert!(cut(&message, "2.MIME").is_some());
    }

    #[test]
    fn what_is_inside_a_message_is_refused() {
        let embedded = "Content-Type: message/rfc822\r\n\r\nFrom: i\r\n\r\ninner\r\n";
        let message = multipart(&format!("--x\r\n{embedded}\r\n--x\r\n{LEAF}\r\n--x--\r\n"));
        assert_eq!(cut(&message, "2"), Some("hello\r\n"));
        assert_eq!(cut(&message, "1.MIME"), Some("Content-Type: message/rfc822\r\n\r\n"));
        for refused in ["1", "1.1", "1.1.MIME", "1.HEADER", "1.TEXT"] {
            assert_eq!(cut(&message, refused), None, "{refused}");
        }
    }

    #[test]
    fn odd_parts_are_refused_and_their_neighbours_are_not() {
        for odd in ["\r\nno fields\r\n", "X: no empty line\r\n", "X: empty line shared\r\n\r\n", "\r\n"] {
            // The part's last CRLF is the delimiter's.
            let message = multipart(&format!("--x\r\n{odd}--x\r\n{LEAF}\r\n--x--\r\n"));
            assert_eq!(cut(&message, "2").map(str::len), Some(7), "{odd:?}");
            assert_eq!((cut(&message, "1"), cut(&message, "1.MIME")), (None, None), "{odd:?}");
        }
    }

    #[test]
    fn unclean_messages_are_only_whole() {
        for unclean in [
            "A: 1\r\n\r\nbare\nlf",
            "A: 1\r\n\r\nbare\rcr",
            "A: 1\r\n\r\ncr at the end\r",
            "A: 1\n\r\n\r\n",
            "A: 1\r\n\r\nnul\0",
            "A: 1\r\n",
            "A: 1\r\n ",
            "",
            "A : 1\r\n\r\n",
            "A\r\n\r\n",
            ": 1\r\n\r\n",
            " A: 1\r\n\r\n",
            "caf\u{e9}: 1\r\n\r\n",
        ] {
            assert_eq!(cut(unclean, ""), Some(unclean));
            for refused in ["HEADER", "TEXT", "1", "HEADER.FIELDS (A)"] {
                let key = ItemKey::section(refused.as_bytes()).unwrap();
                assert_eq!(index(unclean).cut(&key), None, "{refused} of {unclean:?}");
            }
        }
    }

    #[test]
    fn structure_is_refused_where_readers_may_differ() {
        let part = format!("--x\r\n{LEAF}\r\n");
        let whole = format!("{part}--x--\r\n");
        let typed =
            |content_type: &str| format!("MIME-Version: 1.0\r\nContent-Type: {content_type}\r\n\r\n{whole}");
        let long = "q".repeat(71);
        for (refused, why) in [
            (multipart("--x--\r\n"), "no part"),
            (multipart("no delimiter\r\n"), "no delimiter"),
            (multipart(&part), "not closed"),
            (multipart(whole.trim_end()), "last delimiter without CRLF"),
            (multipart(&format!("{part}--xy\r\n{whole}")), "boundary is a prefix"),
            (multipart(&format!("{part}--x {}\r\n{whole}", " ".repeat(300))), "delimiter too long"),
            (multipart(&format!("--x\r\n--x\r\n{LEAF}\r\n--x--\r\n")), "empty part"),
            (multipart(&format!("{whole}{part}")), "delimiter in the epilogue"),
            (multipart(&format!("--x\r\nodd line\r\n{LEAF}\r\n--x--\r\n")), "odd line in a part's header"),
            (multipart(&whole).replace("MIME-V", "V"), "no MIME-Version"),
            (multipart(&whole).replace("1.0", "2.0"), "other MIME-Version"),
            (multipart(&whole).replace("From: a", "Content-Type: text/plain"), "two types"),
            (multipart(&whole).replace("From: a", "Content-Transfer-Encoding: base64"), "encoded multipart"),
            (typed("multipart/mixed"), "no boundary"),
            (typed("multipart/mixed; boundary=\"\""), "empty boundary"),
            (typed("multipart/mixed; boundary=x; boundary=x"), "two boundaries"),
            (typed("multipart/mixed; boundary*0=x"), "RFC 2231"),
            (typed("multipart/mixed; (c) boundary=x"), "comment"),
            (typed("multipart/mixed; boundary=\"\\x\""), "escape"),
            (typed("multipart/mixed; boundary=x=y"), "no token"),
            (typed("multipart/mixed; boundary = x"), "spaces"),
            (
                typed(&format!("multipart/mixed; boundary={long}")).replace("--x", &format!("--{long}")),
                "long boundary",
            ),
            (typed("multipart; boundary=x"), "no subtype"),
            (typed("message/global"), "message/global"),
            (
                multipart(&whole.replacen(
                    "text/plain\r\n",
                    "message/rfc822\r\nContent-Transfer-Encoding: base64\r\n",
                    1,
                )),
                "encoded message",
            ),
            (
                multipart(&whole.replacen("text/plain", "multipart/mixed; boundary=x", 1)),
                "same boundary inside",
            ),
            (
                multipart(&whole.replacen("text/plain", "multipart/mixed; boundary=y", 1)),
                "inner one not closed",
            ),
        ] {
            assert_eq!(cut(&refused, "1"), None, "{why}");
            assert_eq!(cut(&refused, "1.MIME"), None, "{why}");
            assert_eq!(cut(&refused, "TEXT"), None, "{why}");
            assert!(cut(&refused, "HEADER").is_some(), "{why}");
        }
        assert!(cut(&multipart(&whole), "1").is_some());
        assert!(cut(&typed("Multipart/Mixed; charset=\"a;b\\\"\";\r\n\tBoundary=x;"), "1").is_some());
        assert!(cut(&typed("text/plain; name=x (1).txt"), "1").is_some());
    }

    #[test]
    fn bounds_are_kept() {
        let nested = |depth: usize| {
            let mut inside = LEAF.to_owned();
            for n in (0..depth).rev() {
                inside = format!(
                    "Content-Type: multipart/mixed; boundary=\"b{n}.\"\r\n\r\n--b{n}.\r\n{inside}\r\n--b{n}.--\r\n"
                );
            }
            format!("MIME-Version: 1.0\r\n{inside}")
        };
        assert!(cut(&nested(DEPTH_MAX - 1), "1.1.1").is_some());
        for deep in [nested(DEPTH_MAX), nested(2000)] {
            assert_eq!(cut(&deep, "1"), None);
            assert!(cut(&deep, "HEADER").is_some());
        }
        // Ten thousand, opened and never closed.
        let open = |n| format!("Content-Type: multipart/mixed; boundary=b{n}.\r\n\r\n--b{n}.\r\n");
        let bomb: String = (0..10_000).map(open).collect();
        assert_eq!(cut(&format!("MIME-Version: 1.0\r\n{bomb}"), "1"), None);
        let bomb = "MIME-Version: 1.0\r\nContent-Type: message/rfc822\r\n\r\n".repeat(10_000);
        assert_eq!(cut(&bomb, "1"), None);

        let many = |n| multipart(&format!("{}--x--\r\n", format!("--x\r\n{LEAF}\r\n").repeat(n)));
        assert!(cut(&many(PARTS_MAX - 1), "999").is_some());
        assert_eq!(cut(&many(PARTS_MAX), "1"), None);

        let header = |octets: usize| format!("A: {}\r\n\r\n", "a".repeat(octets - 7));
        assert!(cut(&header(HEADER_OCTETS_MAX), "HEADER").is_some());
        assert_eq!(cut(&header(HEADER_OCTETS_MAX + 1), "HEADER"), None);
        let huge_part = multipart(&format!("--x\r\n{}\r\n--x--\r\n", header(HEADER_OCTETS_MAX + 1)));
        assert!(cut(&huge_part, "HEADER").is_some() && cut(&huge_part, "1").is_none());
    }

    #[test]
    fn a_line_of_any_length_streams() {
        let mut indexer = SectionIndexer::new();
        indexer.push(multipart("--x\r\nA: b\r\n\r\n").as_bytes());
        for _ in 0..1000 {
            indexer.push(&[b'a'; 10_000]);
        }
        indexer.push(b"\r\n--x--\r\n");
        let part = indexer.finish().cut(&ItemKey::section(b"1").unwrap());
        assert!(matches!(part, Some(Cut::Range { octets: 10_000_000, .. })), "{part:?}");
    }

    #[test]
    fn header_lists() {
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let header = b"From: a\r\nX-A: 1\r\nSubject: long\r\n and\r\n\tlonger\r\nx-a: 2\r\nX-AB: 3\r\n\r\n";
        let list =
            |wanted: &[&str], not| String::from_utf8(header_fields(header, &names(wanted), not)).unwrap();
        assert_eq!(list(&["X-A"], false), "X-A: 1\r\nx-a: 2\r\n\r\n");
        assert_eq!(list(&["SUBJECT", "NONE"], false), "Subject: long\r\n and\r\n\tlonger\r\n\r\n");
        assert_eq!(list(&["NONE"], false), "\r\n");
        assert_eq!(list(&["X-A", "FROM"], true), "Subject: long\r\n and\r\n\tlonger\r\nX-AB: 3\r\n\r\n");
        assert_eq!(header_fields(b"\r\n", &names(&["A"]), true), b"\r\n");
        let key = ItemKey::section(b"HEADER.FIELDS.NOT (b A)").unwrap();
        let cut = index("A: 1\r\n\r\nx").cut(&key);
        assert_eq!(cut, Some(Cut::HeaderFields { header: 0..8, names: names(&["A", "B"]), not: true }));
    }

    #[test]
    fn another_version_of_a_row_is_no_row() {
        let mut row = index("A: 1\r\n\r\nx").to_octets();
        row[0] = VERSION + 1;
        assert_eq!(SectionIndex::from_octets(&row), None);
        // Nor is one whose numbers overflow.
        assert_eq!(
            SectionIndex::from_octets(&[VERSION, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2, 0]),
            None
        );
    }
}
