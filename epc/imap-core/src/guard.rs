//! A fence around `imap-proto`, a parser of responses that knows the whole grammar and has sharp edges: it panics
//! on `INTERNALDATE NIL`, recurses until the stack is gone, and reads some responses wrongly. Only what is behind
//! this fence may call it.
//!
//! For sessions in which Waypost is the client itself and wants typed LIST and STATUS data (US 9,172,620,
//! 'synthetic transactions'). Nothing between a client and its origin goes through here: there [`crate::response`]
//! and [`crate::fetch_response`] read, which hold no more than they must and never guess. Nor are keys of stored
//! items ever made from what this gives: names in `HEADER.FIELDS` are lost in it, quoted strings keep their
//! backslashes, LSUB looks like LIST, and a size beyond 32 bits is gone. `KNOWN_DEFECTS` in the tests has the list.
//!
//! The one answer to a failure is [`Opaque`]: the line goes on verbatim, nothing is learned from it, it is counted.

use crate::mutants;
use imap_proto::Response;
use std::panic::{AssertUnwindSafe, catch_unwind};
use thiserror::Error;

/// A response without the content of its literals: each `{n}` stands as `{0}`, so that the parser asks for no
/// octets that are not there. Content never comes near it.
#[derive(Debug, Default)]
pub struct Skeleton {
    octets: Vec<u8>,
    /// Too long, or a piece had no line end.
    unfit: Option<Opaque>,
}

/// Why a line is not understood here. Not an error of the session, ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum Opaque {
    /// Longer than [`SKELETON_OCTETS_MAX`].
    #[error("its skeleton is longer than {SKELETON_OCTETS_MAX} octets")]
    TooLong,
    /// Not one whole response with literals of length 0.
    #[error("it is no whole response without literal content")]
    NoSkeleton,
    /// More than [`DEPTH_MAX`] parentheses in each other.
    #[error("parentheses nested deeper than {DEPTH_MAX}")]
    TooDeep,
    /// `INTERNALDATE NIL`, on which the parser panics.
    #[error("INTERNALDATE NIL")]
    NilInternalDate,
    /// Octets beyond ASCII right behind a `]`, on which the parser panics: it cuts one octet off the text.
    #[error("a letter of several octets behind a bracket")]
    LetterBehindCode,
    /// The parser does not know it, or leaves a rest.
    #[error("the parser does not understand it")]
    NotUnderstood,
    /// A panic in the parser that nobody has met yet.
    #[error("the parser panicked")]
    Panicked,
}

impl Opaque {
    /// One word for metrics.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::TooLong => "too-long",
            Self::NoSkeleton => "no-skeleton",
            Self::TooDeep => "too-deep",
            Self::NilInternalDate => "nil-internaldate",
            Self::LetterBehindCode => "letter-behind-code",
            Self::NotUnderstood => "not-understood",
            Self::Panicked => "panicked",
        }
    }
}

impl Skeleton {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the next piece of the response as the framer cut it; `announces` when a literal follows it.
    pub fn push(&mut self, piece: &[u8], announces: bool) {
        let body = piece.strip_suffix(b"\n").map(|p| p.strip_suffix(b"\r").unwrap_or(p));
        let body = match (body, announces) {
            (Some(body), false) => Some(body),
            (Some(body), true) => body.iter().rposition(|o| *o == b'{').and_then(|at| body.get(..at)),
            (None, _) => None,
        };
        let Some(body) = body else {
            self.unfit.get_or_insert(Opaque::NoSkeleton);
            return;
        };
        // The parser does not know `~{0}`.
        let body = if announces { body.strip_suffix(b"~").unwrap_or(body) } else { body };
        let end: &[u8] = if announces { b"{0}\r\n" } else { b"\r\n" };
        if self.octets.len() + body.len() + end.len() > SKELETON_OCTETS_MAX {
            self.unfit.get_or_insert(Opaque::TooLong);
        }
        if self.unfit.is_none() {
            self.octets.extend_from_slice(body);
            self.octets.extend_from_slice(end);
        }
    }

    /// The octets that go to the parser.
    #[must_use]
    pub fn octets(&self) -> &[u8] {
        &self.octets
    }

    /// Reads it.
    ///
    /// # Errors
    /// When nothing can be learned from it.
    pub fn parse(&self) -> Result<Response<'_>, Opaque> {
        match self.unfit {
            Some(unfit) => Err(unfit),
            None => parse(&self.octets),
        }
    }
}

/// Reads a skeleton from whatever source, if it is safe to.
///
/// # Errors
/// When nothing can be learned from it.
pub fn parse(skeleton: &[u8]) -> Result<Response<'_>, Opaque> {
    check(skeleton)?;
    // The parser keeps no state, so there is none to be left half changed.
    match catch_unwind(AssertUnwindSafe(|| Response::parse(skeleton))) {
        Ok(Ok(([], response))) => Ok(response),
        Ok(Ok(_) | Err(_)) => Err(Opaque::NotUnderstood),
        Err(_) => Err(Opaque::Panicked),
    }
}

/// Whether the parser may see these octets at all. A stack that overflows aborts the process: this comes before
/// it, in constant memory.
fn check(skeleton: &[u8]) -> Result<(), Opaque> {
    if skeleton.len() > SKELETON_OCTETS_MAX {
        return Err(Opaque::TooLong);
    }
    if !skeleton.ends_with(b"\r\n") || skeleton.contains(&0) {
        return Err(Opaque::NoSkeleton);
    }
    // It reads METADATA with several `unwrap`s and `panic!`s: names of entries, values that are no UTF-8.
    let word = skeleton.split(|o| *o == b' ').nth(1).unwrap_or_default();
    if word.eq_ignore_ascii_case(b"METADATA") {
        return Err(Opaque::NotUnderstood);
    }
    let (mut depth, mut quoted, mut at) = (0_usize, false, 0_usize);
    while let Some(&octet) = skeleton.get(at) {
        let (before, rest) = skeleton.split_at_checked(at).unwrap_or_default();
        at += 1;
        match octet {
            b'\n' if quoted || !(before.ends_with(b"{0}\r") || at == skeleton.len()) => {
                return Err(Opaque::NoSkeleton);
            }
            b'\\' if quoted => at += 1,
            b'"' => quoted = !quoted,
            b'(' if !quoted => {
                depth += 1;
                if depth > DEPTH_MAX && !mutants::on("guard-depth") {
                    return Err(Opaque::TooDeep);
                }
            }
            b')' if !quoted => depth = depth.saturating_sub(1),
            b']' if rest.get(1).is_some_and(|next| !next.is_ascii()) => return Err(Opaque::LetterBehindCode),
            b'i' | b'I' if !quoted && is_nil_date(rest) && !mutants::on("guard-nil-date") => {
                return Err(Opaque::NilInternalDate);
            }
            _ => {}
        }
    }
    Ok(())
}

fn is_nil_date(octets: &[u8]) -> bool {
    const NIL_DATE: &[u8] = b"INTERNALDATE NIL";
    octets.get(..NIL_DATE.len()).is_some_and(|start| start.eq_ignore_ascii_case(NIL_DATE))
}

/// The parser is written for lines; longer ones are lists that nobody needs typed.
pub const SKELETON_OCTETS_MAX: usize = 64 * 1024;

/// The parser recurses for each; 100 of them fit its stack, 2,000 do not. Counted outside strings.
pub const DEPTH_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    /// What is known to be wrong with imap-proto 0.17, each with a line that shows it, and what comes out here:
    /// nothing, or a reading that is wrong where the text says. A row that no longer holds is a defect mended.
    const KNOWN_DEFECTS: &[(&str, &str, Result<&str, Opaque>)] = &[
        ("panics", "* 1 FETCH (INTERNALDATE NIL)", Err(Opaque::NilInternalDate)),
        ("panics", "* 1 FETCH (UID 3 internaldate nil FLAGS ())", Err(Opaque::NilInternalDate)),
        ("panics", "* OK [UIDNEXT 5]\u{e9}t\u{e9}", Err(Opaque::LetterBehindCode)),
        // And a stack overflow: `nesting_never_reaches_the_parser`.
        ("loses field names", "* 1 FETCH (BODY[HEADER.FIELDS (\"FROM\" TO)] {0}\r\n)", Ok("Full(Header)")),
        ("loses field names", "* 1 FETCH (BODY[HEADER.FIELDS.NOT (A)]<0> {0}\r\n)", Ok("Full(Header)")),
        // 97, 92, 34, 98: the backslash is in it.
        ("keeps escapes", "* 1 FETCH (BODY[1] \"a\\\"b\")", Ok("[97, 92, 34, 98]")),
        ("takes LSUB for LIST", "* LSUB () \".\" x", Ok("List(MailboxListData")),
        (
            "leaves codes in the text",
            "a NO [AUTHENTICATIONFAILED] x",
            Ok("Some(\"[AUTHENTICATIONFAILED] x\")"),
        ),
        ("leaves codes in the text", "* OK [CLOSED] x", Ok("Some(\"[CLOSED] x\")")),
        ("leaves codes in the text", "a OK [EXPUNGEISSUED] x", Ok("Some(\"[EXPUNGEISSUED] x\")")),
        ("counts to 32 bits", "* 1 FETCH (RFC822.SIZE 5000000000)", Ok("[Unknown]")),
        ("counts to 32 bits", "* 1 FETCH (BODY[] {5000000000}", Err(Opaque::NotUnderstood)),
        ("", "* ESEARCH (TAG \"a\") UID COUNT 5 ALL 1:5", Err(Opaque::NotUnderstood)),
        ("", "* 1 FETCH (BINARY[1] {0}\r\n)", Err(Opaque::NotUnderstood)),
        ("", "* 1 FETCH (BINARY.SIZE[1] 5)", Err(Opaque::NotUnderstood)),
        ("", "* NAMESPACE ((\"\" \"/\")) NIL NIL", Err(Opaque::NotUnderstood)),
        ("", "* THREAD (1)(2)", Err(Opaque::NotUnderstood)),
        ("", "* XLIST (\\Inbox) \"/\" INBOX", Err(Opaque::NotUnderstood)),
        ("", "* METADATA INBOX (/shared/comment \"x\")", Err(Opaque::NotUnderstood)),
        ("", "* UIDBATCHES (TAG \"A1\") 1:5", Err(Opaque::NotUnderstood)),
        ("", "* STATUS INBOX (MESSAGES 1 SIZE 5)", Err(Opaque::NotUnderstood)),
        ("", "* STATUS INBOX (MAILBOXID (F1))", Err(Opaque::NotUnderstood)),
        ("", "* LIST () \"/\" INBOX (CHILDINFO (\"SUBSCRIBED\"))", Err(Opaque::NotUnderstood)),
        ("", "* SEARCH 1 2 (MODSEQ 5)", Err(Opaque::NotUnderstood)),
        ("", "* CAPABILITY IMAP4rev2 IDLE", Err(Opaque::NotUnderstood)),
        (
            "",
            "* 1 FETCH (BODY ((\"TEXT\" \"PLAIN\" NIL NIL NIL \"7BIT\" 5 1)(\"TEXT\" \"HTML\" NIL NIL NIL \"7BIT\" 5 1) \"MIXED\"))",
            Err(Opaque::NotUnderstood),
        ),
        ("", "* 1 FETCH (X-FOO ((a b) (c d)) UID 5)", Err(Opaque::NotUnderstood)),
        (
            "",
            "* 1 FETCH (BODYSTRUCTURE ((\"text\" \"plain\" NIL NIL NIL \"7bit\" 5 1) (\"text\" \"html\" NIL NIL NIL \"7bit\" 5 1) \"mixed\"))",
            Err(Opaque::NotUnderstood),
        ),
        (
            "",
            "* 1 FETCH (BODYSTRUCTURE (NIL \"mixed\" (\"boundary\" \"x\") NIL NIL NIL))",
            Err(Opaque::NotUnderstood),
        ),
    ];

    #[test]
    fn known_defects_cost_what_the_table_says() {
        for (why, line, expected) in KNOWN_DEFECTS {
            let line = format!("{line}\r\n");
            let read = parse(line.as_bytes()).map(|response| format!("{response:?}"));
            match (&read, expected) {
                (Ok(read), Ok(expected)) => {
                    assert!(read.contains(expected), "{why}: {line} is read as {read}")
                }
                (read, expected) => {
                    assert_eq!(read.as_ref().err(), expected.as_ref().err(), "{why}: {line} gives {read:?}");
                }
            }
        }
    }

    /// Each is a shape that the parser recurses over, once for each level.
    fn nested(depth: usize) -> [String; 4] {
        let part = "(\"TEXT\" \"PLAIN\" NIL NIL NIL \"7BIT\" 5 1)";
        let envelope = "(NIL NIL NIL NIL NIL NIL NIL NIL NIL NIL)";
        let message = format!("(\"MESSAGE\" \"RFC822\" NIL NIL NIL \"7BIT\" 5 {envelope} ");
        let repeat = |text: &str| text.repeat(depth);
        [
            format!("{}{part}{}", repeat("("), repeat(" \"MIXED\")")),
            format!("{}{part}{}", repeat(&message), repeat(" 3)")),
            format!("(\"A\" \"B\" NIL NIL NIL \"7BIT\" 5 NIL NIL NIL NIL {}1{})", repeat("("), repeat(")")),
            repeat("("),
        ]
        .map(|structure| format!("* 1 FETCH (BODYSTRUCTURE {structure})\r\n"))
    }

    #[test]
    fn nesting_never_reaches_the_parser() {
        for depth in [65, 100, 700] {
            for line in nested(depth) {
                assert_eq!(parse(line.as_bytes()), Err(Opaque::TooDeep), "{depth}");
            }
        }
        // What is let through is read in a small stack, and before the test's patience ends, broken or not.
        let small = std::thread::Builder::new().stack_size(1024 * 1024);
        let reading = small.spawn(|| {
            for depth in [1, 8, 16, 30, 60] {
                for line in nested(depth) {
                    for line in [line.clone(), line.replacen(" 3)", ")", 1), line.replacen(')', "", 1)] {
                        let _ = parse(line.as_bytes());
                    }
                }
            }
        });
        reading.unwrap().join().unwrap();
        assert!(parse(nested(40)[0].as_bytes()).is_ok());
        // Parentheses in a string nest nothing.
        let text = format!("* LIST () \"/\" \"{}\"\r\n", "(".repeat(1000));
        assert!(parse(text.as_bytes()).is_ok());
    }

    #[test]
    fn a_date_of_nil_never_reaches_the_parser() {
        for line in ["* 1 FETCH (INTERNALDATE NIL)\r\n", "* 1 FETCH (FLAGS () InternalDate Nil)\r\n"] {
            assert_eq!(parse(line.as_bytes()), Err(Opaque::NilInternalDate));
        }
        let text = b"* LIST () \"/\" \"INTERNALDATE NIL\"\r\n";
        assert!(parse(text).is_ok());
    }

    #[test]
    fn only_skeletons_are_read() {
        for (line, why) in [
            (&b"* OK x"[..], Opaque::NoSkeleton),
            (b"* OK x\n", Opaque::NoSkeleton),
            (b"* OK x\r\n* OK y\r\n", Opaque::NoSkeleton),
            (b"* 1 FETCH (BODY[] {4}\r\nabc\n)\r\n", Opaque::NoSkeleton),
            (b"* LIST () \"/\" \"a\r\nb\"\r\n", Opaque::NoSkeleton),
            (b"* OK \0\r\n", Opaque::NoSkeleton),
            (b"nothing\r\n", Opaque::NotUnderstood),
            (b"\r\n", Opaque::NotUnderstood),
        ] {
            assert_eq!(parse(line), Err(why), "{}", line.escape_ascii());
        }
        let long = format!("* OK {}\r\n", "x".repeat(SKELETON_OCTETS_MAX));
        assert_eq!(parse(long.as_bytes()), Err(Opaque::TooLong));
    }

    #[test]
    fn a_skeleton_has_no_content() {
        let mut skeleton = Skeleton::new();
        skeleton.push(b"* 1 FETCH (BODY[] {26000000}\r\n", true);
        skeleton.push(b" BODY[TEXT] ~{3}\r\n", true);
        skeleton.push(b" UID 7)\r\n", false);
        assert_eq!(skeleton.octets(), b"* 1 FETCH (BODY[] {0}\r\n BODY[TEXT] {0}\r\n UID 7)\r\n");
        let read = format!("{:?}", skeleton.parse().unwrap());
        assert!(read.contains("Uid(7)"), "{read}");
        let mut endless = Skeleton::new();
        for _ in 0..10_000 {
            endless.push(b" BODY[TEXT] {3}\r\n", true);
        }
        assert_eq!(endless.parse(), Err(Opaque::TooLong));
        assert!(endless.octets().len() <= SKELETON_OCTETS_MAX);
        let mut cut = Skeleton::new();
        cut.push(b"* OK", false);
        assert_eq!(cut.parse(), Err(Opaque::NoSkeleton));
    }
}
