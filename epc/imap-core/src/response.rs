//! Says what kind of response a server's line is, from its first piece and without a copy (RFC 9051 §7). Only as
//! much is read as the session decides by; the line itself is forwarded as it came.

use crate::uid::Msn;
use thiserror::Error;

/// The condition that a status response reports (RFC 9051 §7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Ok,
    /// Refused.
    No,
    /// Not understood.
    Bad,
    /// The server hangs up.
    Bye,
    /// A greeting: authenticated by other means.
    Preauth,
}

/// A response code: `[UIDVALIDITY 3]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code<'a> {
    /// `UIDVALIDITY`, in whatever case the server writes it.
    pub name: &'a [u8],
    /// `3`; empty when there is none.
    pub argument: &'a [u8],
}

/// A response, as far as its first piece tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response<'a> {
    /// `+ text`.
    Continuation(&'a [u8]),
    /// A command's end.
    Tagged {
        /// Which command's.
        tag: &'a [u8],
        /// OK, NO or BAD.
        status: Status,
        /// With what code.
        code: Option<Code<'a>>,
    },
    /// `* OK`, `* NO`, `* BAD`, `* BYE`, `* PREAUTH`.
    Status {
        /// Which.
        status: Status,
        /// With what code.
        code: Option<Code<'a>>,
    },
    /// How many messages there are.
    Exists(u32),
    /// How many are recent.
    Recent(u32),
    /// One is gone.
    Expunge(Msn),
    /// Data of a message.
    Fetch {
        /// Whose, in the server's numbering.
        msn: Msn,
        /// Where in the piece `(…` begins.
        payload_at: usize,
    },
    /// These are gone (RFC 7162).
    Vanished {
        /// The answer to a question about the past.
        earlier: bool,
        /// The UID set.
        uids: &'a [u8],
    },
    /// The capabilities' list.
    Capability(&'a [u8]),
    /// What follows SEARCH: numbers, perhaps `(MODSEQ n)`.
    Search(&'a [u8]),
    /// What follows SORT, likewise.
    Sort(&'a [u8]),
    /// `THREAD`.
    Thread,
    /// What follows ESEARCH, up to the first literal.
    Esearch(&'a [u8]),
    /// `FLAGS`.
    Flags,
    /// `LIST`.
    List,
    /// `LSUB`.
    Lsub,
    /// `STATUS` with a mailbox's figures.
    StatusData,
    /// What follows ENABLED.
    Enabled(&'a [u8]),
    /// `NAMESPACE`.
    Namespace,
    /// Any other untagged response, by its word; for `* 5 FOO` that is `FOO`.
    Other(&'a [u8]),
}

/// Why a line is no response. It is still the client's to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ResponseError {
    /// It begins like none.
    #[error("the line is neither tagged with OK, NO or BAD, nor begins with '*' or '+'")]
    NotAResponse,
    /// A number is missing, zero where none may be, or beyond 32 bits.
    #[error("a number in it is missing or out of range")]
    BadNumber,
    /// A FETCH without its parenthesis.
    #[error("FETCH without a list of items")]
    NoItems,
}

/// Reads the first piece of a response, line end included or not.
///
/// # Errors
/// When nothing can be learned from the line.
pub fn response(piece: &[u8]) -> Result<Response<'_>, ResponseError> {
    let line = line_of(piece);
    if let Some(text) = line.strip_prefix(b"+") {
        return Ok(Response::Continuation(text.strip_prefix(b" ").unwrap_or(text)));
    }
    let (first, rest) = word(line);
    if first == b"*" {
        return untagged(piece, rest);
    }
    // A line that begins with a space has no tag.
    let (condition, rest) = word(rest);
    let known = status(condition).filter(|s| matches!(s, Status::Ok | Status::No | Status::Bad));
    match known {
        Some(status) if !first.is_empty() && line.first() != Some(&b' ') => {
            Ok(Response::Tagged { tag: first, status, code: code(rest) })
        }
        _ => Err(ResponseError::NotAResponse),
    }
}

fn untagged<'a>(piece: &'a [u8], rest: &'a [u8]) -> Result<Response<'a>, ResponseError> {
    let (name, rest) = word(rest);
    if name.is_empty() {
        return Err(ResponseError::NotAResponse);
    }
    if let Some(status) = status(name) {
        return Ok(Response::Status { status, code: code(rest) });
    }
    if name.first().is_some_and(u8::is_ascii_digit) {
        return numbered(piece, name, rest);
    }
    // Words of a list are separated by one space; what a server puts around the list is nobody's business.
    let list = rest.trim_ascii();
    let is = |word: &str| name.eq_ignore_ascii_case(word.as_bytes());
    Ok(match () {
        () if is("CAPABILITY") => Response::Capability(list),
        () if is("SEARCH") => Response::Search(list),
        () if is("SORT") => Response::Sort(list),
        () if is("ESEARCH") => Response::Esearch(list),
        () if is("VANISHED") => {
            let (first, after) = word(list);
            let earlier = first.eq_ignore_ascii_case(b"(EARLIER)");
            Response::Vanished { earlier, uids: if earlier { after.trim_ascii() } else { list } }
        }
        () if is("THREAD") => Response::Thread,
        () if is("FLAGS") => Response::Flags,
        () if is("LIST") => Response::List,
        () if is("LSUB") => Response::Lsub,
        () if is("STATUS") => Response::StatusData,
        () if is("ENABLED") => Response::Enabled(list),
        () if is("NAMESPACE") => Response::Namespace,
        () => Response::Other(name),
    })
}

fn numbered<'a>(piece: &'a [u8], number: &[u8], rest: &'a [u8]) -> Result<Response<'a>, ResponseError> {
    let (name, rest) = word(rest);
    let is = |word: &str| name.eq_ignore_ascii_case(word.as_bytes());
    let number = number_of(number);
    let msn = number.and_then(Msn::new).ok_or(ResponseError::BadNumber);
    Ok(match () {
        () if is("EXISTS") => Response::Exists(number.ok_or(ResponseError::BadNumber)?),
        () if is("RECENT") => Response::Recent(number.ok_or(ResponseError::BadNumber)?),
        () if is("EXPUNGE") => Response::Expunge(msn?),
        () if is("FETCH") => {
            let payload = rest.trim_ascii_start();
            if payload.first() != Some(&b'(') {
                return Err(ResponseError::NoItems);
            }
            // `payload` runs to the line's end, so its place follows from its length.
            Response::Fetch { msn: msn?, payload_at: line_of(piece).len().saturating_sub(payload.len()) }
        }
        () if name.is_empty() => return Err(ResponseError::NotAResponse),
        () => Response::Other(name),
    })
}

/// The code at the start of a status response's text.
fn code(text: &[u8]) -> Option<Code<'_>> {
    let inside = text.trim_ascii_start().strip_prefix(b"[")?;
    // A bracket in a string does not close it (`[BADCHARSET ("a]b")]`); where the quotes do not match, any does.
    let close = closing_bracket(inside).or_else(|| inside.iter().position(|o| *o == b']'))?;
    let (name, argument) = word(inside.get(..close)?);
    (!name.is_empty()).then_some(Code { name, argument: argument.trim_ascii() })
}

fn closing_bracket(octets: &[u8]) -> Option<usize> {
    let mut quoted = false;
    let mut escaped = false;
    for (at, octet) in octets.iter().enumerate() {
        match octet {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b']' if !quoted => return Some(at),
            _ => {}
        }
    }
    None
}

fn status(word: &[u8]) -> Option<Status> {
    let is = |name: &str| word.eq_ignore_ascii_case(name.as_bytes());
    Some(match () {
        () if is("OK") => Status::Ok,
        () if is("NO") => Status::No,
        () if is("BAD") => Status::Bad,
        () if is("BYE") => Status::Bye,
        () if is("PREAUTH") => Status::Preauth,
        () => return None,
    })
}

/// The piece without its line end.
fn line_of(piece: &[u8]) -> &[u8] {
    let line = piece.strip_suffix(b"\n").unwrap_or(piece);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// The next word and what follows it; more than one space counts as one.
fn word(octets: &[u8]) -> (&[u8], &[u8]) {
    let start = octets.iter().position(|o| *o != b' ').unwrap_or(octets.len());
    let octets = octets.get(start..).unwrap_or_default();
    let end = memchr::memchr(b' ', octets).unwrap_or(octets.len());
    octets.split_at_checked(end).unwrap_or((octets, b""))
}

fn number_of(digits: &[u8]) -> Option<u32> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn msn(n: u32) -> Msn {
        Msn::new(n).unwrap()
    }

    fn code_of(line: &[u8]) -> Option<(&[u8], &[u8])> {
        let Ok(Response::Status { code, .. } | Response::Tagged { code, .. }) = response(line) else {
            panic!("no status: {}", line.escape_ascii())
        };
        code.map(|c| (c.name, c.argument))
    }

    #[test]
    fn every_kind_is_told_apart_in_any_case() {
        for (line, expected) in [
            (&b"+ idling\r\n"[..], Response::Continuation(b"idling")),
            (b"+ \r\n", Response::Continuation(b"")),
            (b"+\r\n", Response::Continuation(b"")),
            (b"+OK\n", Response::Continuation(b"OK")),
            (b"a1 OK\r\n", Response::Tagged { tag: b"a1", status: Status::Ok, code: None }),
            (b"a1 no sorry [x]\r\n", Response::Tagged { tag: b"a1", status: Status::No, code: None }),
            (b"* BYE\r\n", Response::Status { status: Status::Bye, code: None }),
            (b"* PREAUTH hi\r\n", Response::Status { status: Status::Preauth, code: None }),
            (b"* 23 EXISTS\r\n", Response::Exists(23)),
            (b"* 0 recent \r\n", Response::Recent(0)),
            (b"*  7 Expunge\r\n", Response::Expunge(msn(7))),
            (b"* 12 FETCH (UID 5)\r\n", Response::Fetch { msn: msn(12), payload_at: 11 }),
            (b"* 12 fetch  (BODY[] {5}\r\n", Response::Fetch { msn: msn(12), payload_at: 12 }),
            (b"* VANISHED (EARLIER) 41,43:116\r\n", Response::Vanished { earlier: true, uids: b"41,43:116" }),
            (b"* vanished 41\r\n", Response::Vanished { earlier: false, uids: b"41" }),
            (b"* CAPABILITY IMAP4rev1 IDLE \r\n", Response::Capability(b"IMAP4rev1 IDLE")),
            (b"* SEARCH\r\n", Response::Search(b"")),
            (b"* SEARCH 1 2 (MODSEQ 5)\r\n", Response::Search(b"1 2 (MODSEQ 5)")),
            (b"* SORT 3 1\r\n", Response::Sort(b"3 1")),
            (b"* THREAD (1)(2)\r\n", Response::Thread),
            (b"* ESEARCH (TAG \"a\") UID COUNT 5\r\n", Response::Esearch(b"(TAG \"a\") UID COUNT 5")),
            (b"* FLAGS (\\Seen)\r\n", Response::Flags),
            (b"* LIST () \"/\" {5}\r\n", Response::List),
            (b"* LSUB () \".\" x\r\n", Response::Lsub),
            (b"* STATUS INBOX (MESSAGES 1)\r\n", Response::StatusData),
            (b"* ENABLED\r\n", Response::Enabled(b"")),
            (b"* ENABLED CONDSTORE QRESYNC\r\n", Response::Enabled(b"CONDSTORE QRESYNC")),
            (b"* NAMESPACE ((\"\" \"/\")) NIL NIL\r\n", Response::Namespace),
            (b"* QUOTA \"\" (STORAGE 1 2)\r\n", Response::Other(b"QUOTA")),
            (b"* 5 FOO bar\r\n", Response::Other(b"FOO")),
        ] {
            assert_eq!(response(line), Ok(expected), "{}", line.escape_ascii());
        }
    }

    #[test]
    fn codes_with_and_without_arguments() {
        for (line, expected) in [
            (&b"* OK [UIDVALIDITY 3] ok\r\n"[..], Some((&b"UIDVALIDITY"[..], &b"3"[..]))),
            (b"a OK [READ-ONLY] done\r\n", Some((b"READ-ONLY", b""))),
            (b"a OK [COPYUID 5 7:9,11 1:4] done\r\n", Some((b"COPYUID", b"5 7:9,11 1:4"))),
            (b"* OK [PERMANENTFLAGS (\\Seen \\*)]\r\n", Some((b"PERMANENTFLAGS", b"(\\Seen \\*)"))),
            (b"a NO [BADCHARSET (\"a]b\")] x\r\n", Some((b"BADCHARSET", b"(\"a]b\")"))),
            (b"a NO [ODD \"x] y\r\n", Some((b"ODD", b"\"x"))),
            (b"* OK [] x\r\n", None),
            (b"* OK [UIDVALIDITY 3\r\n", None),
            (b"* OK text [UIDVALIDITY 3]\r\n", None),
        ] {
            assert_eq!(code_of(line), expected, "{}", line.escape_ascii());
        }
    }

    #[test]
    fn numbers_are_bounded() {
        for line in [
            &b"* 4294967296 EXISTS\r\n"[..],
            b"* 0 EXPUNGE\r\n",
            b"* 0 FETCH (UID 5)\r\n",
            b"* 99999999999999999999 FETCH (UID 5)\r\n",
            b"* 5x EXISTS\r\n",
        ] {
            assert_eq!(response(line), Err(ResponseError::BadNumber), "{}", line.escape_ascii());
        }
        assert_eq!(response(b"* 4294967295 EXISTS\r\n"), Ok(Response::Exists(u32::MAX)));
    }

    #[test]
    fn what_is_no_response_is_said_to_be_none() {
        for line in [
            &b"\r\n"[..],
            b"*\r\n",
            b"* \r\n",
            b"* 5\r\n",
            b"a1\r\n",
            b"a1 BYE\r\n",
            b" OK x\r\n",
            b"a FETCH (\r\n",
        ] {
            assert_eq!(response(line), Err(ResponseError::NotAResponse), "{}", line.escape_ascii());
        }
        assert_eq!(response(b"* 5 FETCH\r\n"), Err(ResponseError::NoItems));
        assert_eq!(response(b"* 5 FETCH UID 3\r\n"), Err(ResponseError::NoItems));
    }

    proptest! {
        #[test]
        fn any_octets_are_answered(head in "(\\* |\\+ |a )?(OK|NO|[0-9]{0,12})? ?(FETCH|EXISTS|\\[|SEARCH)?",
                                   tail in prop::collection::vec(any::<u8>(), 0..40)) {
            let piece = [head.as_bytes(), &tail].concat();
            if let Ok(Response::Fetch { payload_at, .. }) = response(&piece) {
                prop_assert_eq!(piece.get(payload_at), Some(&b'('));
            }
        }
    }
}
