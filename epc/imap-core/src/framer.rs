//! Cuts a stream of IMAP octets into line pieces and literals (RFC 9051 §4.3), without a copy where a line lies
//! in one input, and never holding a literal.
//!
//! Where a literal begins is where smuggling begins: if we read `{5}` as a literal and the other end does not
//! (or the other way round), five octets of mail become a command or a response. So a `{n}` at a line's end
//! is a literal only where every reader takes it for one, plain text only where no reader does, and an error
//! everywhere else: never a guess. What the words of a line mean is not known here, but for the few that decide
//! whether the line may hold a literal at all.

use bytes::{Buf, Bytes};
use std::fmt;
use thiserror::Error;
use zeroize::Zeroizing;

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Responses.
    FromServer,
    /// Commands, and lines that answer a continuation request.
    FromClient,
}

/// What came, in order. All its octets together are the input, verbatim.
#[derive(Clone, PartialEq, Eq)]
pub enum Frame {
    /// A line piece that announces a literal; its octets follow as [`Frame::Chunk`] (none if it is empty), then
    /// the line goes on with another piece.
    Literal {
        /// The piece, with its `{n}` CRLF.
        piece: Bytes,
        /// How long the literal is.
        octets: u64,
        /// `~{n}`: it may hold NUL (RFC 9051 `literal8`).
        binary: bool,
        /// `{n+}`: the client does not wait for leave to send it (RFC 7888).
        nonsync: bool,
    },
    /// Octets of the literal.
    Chunk(Bytes),
    /// The last piece of a command or response, with its line end.
    End {
        /// The piece.
        piece: Bytes,
    },
    /// A part of a server's line that is longer than [`SERVER_LINE_OCTETS_MAX`]; more may follow, then
    /// [`Frame::End`] with the rest of it. To be passed on, not to be understood.
    Overlong {
        /// The part.
        piece: Bytes,
    },
}

impl fmt::Debug for Frame {
    /// Lengths only: a piece may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Literal { piece, octets, binary, nonsync } => write!(
                f,
                "Literal({} octets announce {octets}, binary {binary}, nonsync {nonsync})",
                piece.len()
            ),
            Self::Chunk(octets) => write!(f, "Chunk({} octets)", octets.len()),
            Self::End { piece } => write!(f, "End({} octets)", piece.len()),
            Self::Overlong { piece } => write!(f, "Overlong({} octets)", piece.len()),
        }
    }
}

/// Why the stream cannot be read on; the connection is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FrameError {
    /// A client's command is longer than [`COMMAND_OCTETS_MAX`].
    #[error(
        "command longer than {COMMAND_OCTETS_MAX} octets without its literals; send long values as literals"
    )]
    LineTooLong,
    /// Something looks like a literal where readers differ on whether it is one.
    #[error("a literal cannot begin here: {0}")]
    BadLiteral(&'static str),
    /// RFC 9051 allows NUL in `literal8` content only.
    #[error("NUL in a line; only a literal8 may hold one")]
    Nul,
}

/// The state between two inputs.
pub struct Framer {
    direction: Direction,
    raw_lines: bool,
    /// The line piece received so far, when it did not come in one input.
    half: HalfLine,
    /// Octets of the current literal still to come.
    literal_left: u64,
    /// Octets of this command's or response's earlier pieces.
    earlier_octets: usize,
    /// Whether a literal may stand in the response whose first piece has been seen.
    hold: Option<MayHold>,
    /// In a line that is too long to be judged: its latest octets.
    overlong: Option<Vec<u8>>,
    /// Nothing is read after an error.
    failed: Option<FrameError>,
}

impl Framer {
    /// Reads from the start of a command or response.
    #[must_use]
    pub fn new(direction: Direction) -> Self {
        Self {
            direction,
            raw_lines: false,
            half: HalfLine::default(),
            literal_left: 0,
            earlier_octets: 0,
            hold: None,
            overlong: None,
            failed: None,
        }
    }

    /// Lines that answer a continuation request (SASL, DONE) hold no literal, whatever they end in.
    pub fn set_raw_lines(&mut self, raw: bool) {
        self.raw_lines = raw;
    }

    /// Whether the last command or response is complete and nothing of a next one has come.
    #[must_use]
    pub fn is_between_lines(&self) -> bool {
        self.half.0.is_empty() && self.literal_left == 0 && self.hold.is_none() && self.overlong.is_none()
    }

    /// Takes the next frame off the front of `input`; `None` when all of it is taken and more is needed.
    ///
    /// # Errors
    /// When the stream cannot be read on; every later call says the same again.
    pub fn next(&mut self, input: &mut Bytes) -> Result<Option<Frame>, FrameError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let result = self.take(input);
        if let Err(error) = result {
            self.failed = Some(error);
            self.half.0 = Zeroizing::default();
        }
        result
    }

    fn take(&mut self, input: &mut Bytes) -> Result<Option<Frame>, FrameError> {
        if input.is_empty() {
            return Ok(None);
        }
        if self.literal_left > 0 {
            let chunk = take_at_most(input, usize::try_from(self.literal_left).unwrap_or(usize::MAX));
            self.literal_left -= chunk.len() as u64;
            return Ok(Some(Frame::Chunk(chunk)));
        }
        if let Some(tail) = self.overlong.take() {
            return self.take_overlong(tail, input).map(Some);
        }
        let room = self.room();
        let line = match memchr::memchr(b'\n', input) {
            Some(at) => at + 1,
            None => input.len(),
        };
        let within = line.min(room);
        let seen = input.get(..within).unwrap_or_default();
        // What comes first decides, however the input is split.
        if memchr::memchr(0, seen).is_some() {
            return Err(FrameError::Nul);
        }
        if line > room {
            return match self.direction {
                Direction::FromClient => Err(FrameError::LineTooLong),
                Direction::FromServer => {
                    let piece = self.half.join(input.split_to(within), false);
                    self.overlong = Some(tail_of(&[], &piece));
                    Ok(Some(Frame::Overlong { piece }))
                }
            };
        }
        let complete = seen.last() == Some(&b'\n');
        let part = input.split_to(within);
        if !complete {
            self.half.push(&part, room + self.half.0.len());
            return Ok(None);
        }
        let piece = self.half.join(part, self.direction == Direction::FromClient);
        self.judge(piece).map(Some)
    }

    /// How many octets more the current line may have.
    fn room(&self) -> usize {
        match self.direction {
            Direction::FromClient => COMMAND_OCTETS_MAX.saturating_sub(self.earlier_octets),
            Direction::FromServer => SERVER_LINE_OCTETS_MAX,
        }
        .saturating_sub(self.half.0.len())
    }

    /// A complete line piece: does it announce a literal?
    fn judge(&mut self, piece: Bytes) -> Result<Frame, FrameError> {
        let hold = match (self.direction, self.raw_lines, self.hold) {
            (_, true, _) => MayHold::No,
            (_, false, Some(hold)) => hold,
            (Direction::FromClient, false, None) => MayHold::Yes,
            (Direction::FromServer, false, None) => server_may_hold(&piece),
        };
        let ending = if hold == MayHold::No && !crate::mutants::on("framer-literal-in-status") {
            None
        } else {
            announced(&piece, self.direction)?
        };
        let Some(literal) = ending else {
            (self.hold, self.earlier_octets) = (None, 0);
            return Ok(Frame::End { piece });
        };
        if hold == MayHold::Unclear {
            return Err(FrameError::BadLiteral("this line has no place for one"));
        }
        self.hold = Some(hold);
        self.earlier_octets += piece.len();
        self.literal_left = literal.octets;
        Ok(Frame::Literal { piece, octets: literal.octets, binary: literal.binary, nonsync: literal.nonsync })
    }

    fn take_overlong(&mut self, tail: Vec<u8>, input: &mut Bytes) -> Result<Frame, FrameError> {
        let line = memchr::memchr(b'\n', input).map(|at| at + 1);
        let within = line.unwrap_or(input.len());
        match memchr::memchr(0, input.get(..within).unwrap_or_default()) {
            Some(0) => return Err(FrameError::Nul),
            Some(before) => {
                self.overlong = Some(tail);
                return Ok(Frame::Overlong { piece: input.split_to(before) });
            }
            None => {}
        }
        let piece = input.split_to(within);
        let tail = tail_of(&tail, &piece);
        if line.is_none() {
            self.overlong = Some(tail);
            return Ok(Frame::Overlong { piece });
        }
        let cut_digits = braced(&tail).is_some_and(|b| b.inside.len() == b.before_close);
        if cut_digits || braced(&tail).is_some_and(|b| b.opened && looks_like_length(b.inside)) {
            return Err(FrameError::BadLiteral("the line before it is too long to be understood"));
        }
        (self.hold, self.earlier_octets) = (None, 0);
        Ok(Frame::End { piece })
    }
}

impl fmt::Debug for Framer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Framer({:?}, {} octets held, {} to come)",
            self.direction,
            self.half.0.len(),
            self.literal_left
        )
    }
}

/// A line piece of which the end has not come. Never leaves a copy behind: it may hold a password.
#[derive(Default)]
struct HalfLine(Zeroizing<Vec<u8>>);

impl HalfLine {
    /// Appends; `max` bounds what may ever be held.
    fn push(&mut self, part: &[u8], max: usize) {
        let needed = self.0.len() + part.len();
        if needed > self.0.capacity() {
            // Grown by hand: `Vec` would leave the old octets in freed memory. Doubling, so that a line that comes
            // octet by octet costs no more than twice its length.
            let capacity = (needed * 2).clamp(HALF_LINE_OCTETS_MIN, max.max(needed));
            let mut bigger = Zeroizing::new(Vec::with_capacity(capacity));
            bigger.extend_from_slice(&self.0);
            self.0 = bigger;
        }
        self.0.extend_from_slice(part);
    }

    /// The held octets and `rest`, which completes them.
    fn join(&mut self, rest: Bytes, secret: bool) -> Bytes {
        if self.0.is_empty() {
            return rest;
        }
        self.push(&rest, usize::MAX);
        let mut whole = std::mem::take(&mut self.0);
        if secret { Bytes::from_owner(whole) } else { std::mem::take(&mut *whole).into() }
    }
}

/// Whether a literal may stand in a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MayHold {
    /// Every client looks for one.
    Yes,
    /// The line ends in human text, which may quote what a user chose: no client looks for one.
    No,
    /// Some clients may, some may not.
    Unclear,
}

fn server_may_hold(first_piece: &[u8]) -> MayHold {
    if first_piece.starts_with(b"+") {
        return MayHold::No;
    }
    let mut words = first_piece.trim_ascii_end().split(|o| *o == b' ');
    let first = words.next().unwrap_or_default();
    let word = words.next().unwrap_or_default();
    let is_status = STATUS_WORDS.iter().any(|s| s.eq_ignore_ascii_case(word));
    if is_status {
        return MayHold::No;
    }
    let numbered = !word.is_empty() && word.iter().all(u8::is_ascii_digit);
    let word = if numbered { words.next().unwrap_or_default() } else { word };
    let plain = LITERAL_FREE_WORDS.iter().any(|s| s.eq_ignore_ascii_case(word));
    let known = word.first().is_some_and(u8::is_ascii_alphabetic);
    let odd = STATUS_WORDS.iter().any(|s| {
        word.get(..s.len()).is_some_and(|start| start.eq_ignore_ascii_case(s))
            && !word.get(s.len()).is_some_and(u8::is_ascii_alphanumeric)
    });
    if first == b"*" && known && !plain && !odd { MayHold::Yes } else { MayHold::Unclear }
}

/// What a line's end announces.
struct Announced {
    octets: u64,
    binary: bool,
    nonsync: bool,
}

/// Reads `{n}` CRLF off a piece's end; an error for whatever only looks like it.
fn announced(piece: &[u8], direction: Direction) -> Result<Option<Announced>, FrameError> {
    let Some(end) = braced(piece) else { return Ok(None) };
    if !end.opened || !looks_like_length(end.inside) {
        return Ok(None);
    }
    let bad = |why| Err(FrameError::BadLiteral(why));
    if !end.clean {
        return bad("its line must end in CR LF right after the brace");
    }
    let (digits, nonsync) = match end.inside.strip_suffix(b"+") {
        Some(digits) => (digits, true),
        None => (end.inside, false),
    };
    if nonsync && direction == Direction::FromServer {
        return bad("a server's literal has no plus sign");
    }
    if digits.is_empty() || digits.len() > LENGTH_DIGITS_MAX || !digits.iter().all(u8::is_ascii_digit) {
        return bad("its length is no number of at most 19 digits");
    }
    let octets = digits
        .iter()
        .try_fold(0_u64, |n, o| n.checked_mul(10)?.checked_add(u64::from(o.wrapping_sub(b'0'))))
        .filter(|n| i64::try_from(*n).is_ok());
    let Some(octets) = octets else { return bad("its length is beyond 63 bits") };
    let before = end.before_open;
    let (before, binary) = match before.strip_suffix(b"~") {
        Some(before) => (before, true),
        None => (before, false),
    };
    if !matches!(before.last(), Some(b' ' | b'(')) {
        return bad("a space or parenthesis must stand before it");
    }
    if has_open_quote(before) && !crate::mutants::on("framer-open-quote") {
        return bad("it stands in a quoted string");
    }
    Ok(Some(Announced { octets, binary, nonsync }))
}

/// A line's end that closes a brace.
struct Braced<'a> {
    /// What stands before `{`.
    before_open: &'a [u8],
    /// Whether there is a `{`.
    opened: bool,
    /// What looks like a length, back from `}`.
    inside: &'a [u8],
    /// Octets of the piece before `}`.
    before_close: usize,
    /// Whether exactly CR LF follows.
    clean: bool,
}

fn braced(piece: &[u8]) -> Option<Braced<'_>> {
    let trimmed = piece.trim_ascii_end();
    let body = trimmed.strip_suffix(b"}")?;
    let start = body.iter().rposition(|o| !is_of_length(*o)).map_or(0, |at| at + 1);
    let (before, inside) = body.split_at_checked(start)?;
    let opened = before.last() == Some(&b'{');
    Some(Braced {
        before_open: before.strip_suffix(b"{").unwrap_or(before),
        opened,
        inside,
        before_close: body.len(),
        clean: piece.get(trimmed.len()..) == Some(b"\r\n"),
    })
}

/// Octets that any reader might accept in a literal's length: `{3-}`, `{ 3}` and `{}` are refused, not passed.
fn is_of_length(octet: u8) -> bool {
    octet.is_ascii_digit() || matches!(octet, b'+' | b'-' | b' ' | b'\t')
}

fn looks_like_length(inside: &[u8]) -> bool {
    inside.iter().all(|o| is_of_length(*o))
}

/// Whether a quoted string that began in this piece is still open at its end. A piece never begins inside
/// one: a literal cannot stand in a quoted string.
fn has_open_quote(piece: &[u8]) -> bool {
    let mut open = false;
    let mut octets = piece.iter();
    while let Some(octet) = octets.next() {
        match octet {
            b'"' => open = !open,
            b'\\' if open => {
                octets.next();
            }
            _ => {}
        }
    }
    open
}

fn take_at_most(input: &mut Bytes, max: usize) -> Bytes {
    let n = input.remaining().min(max);
    input.split_to(n)
}

/// The last octets of a line of which `tail` and then `part` have come.
fn tail_of(tail: &[u8], part: &[u8]) -> Vec<u8> {
    let all = [tail, part.get(part.len().saturating_sub(TAIL_OCTETS)..).unwrap_or(part)].concat();
    all.get(all.len().saturating_sub(TAIL_OCTETS)..).unwrap_or_default().to_vec()
}

const STATUS_WORDS: [&[u8]; 5] = [b"OK", b"NO", b"BAD", b"BYE", b"PREAUTH"];

/// Responses whose grammar has no place for a string: a generic reader would look for a literal in them, a
/// line-wise one would not.
const LITERAL_FREE_WORDS: [&[u8]; 10] = [
    b"CAPABILITY",
    b"FLAGS",
    b"SEARCH",
    b"SORT",
    b"THREAD",
    b"ENABLED",
    b"VANISHED",
    b"EXISTS",
    b"RECENT",
    b"EXPUNGE",
];

/// A command with all its pieces: Dovecot's `imap_max_line_length`.
pub const COMMAND_OCTETS_MAX: usize = 64 * 1024;

/// A server's line that is held to be understood. Longer ones (a SEARCH of 40,000 UIDs) pass unread.
pub const SERVER_LINE_OCTETS_MAX: usize = 256 * 1024;

/// `i64::MAX` has as many; what fits is what every other implementation can count to.
const LENGTH_DIGITS_MAX: usize = 19;

/// The longest announcement is ` ~{` + 19 digits + `+}` CR LF.
const TAIL_OCTETS: usize = 64;

/// Most half lines are short.
const HALF_LINE_OCTETS_MIN: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use Direction::{FromClient, FromServer};
    use proptest::prelude::*;

    /// Frames with chunks and parts of overlong lines joined, so that how the input was split cannot show.
    #[derive(Clone, Debug, PartialEq, Eq)]
    enum Seen {
        Literal(Vec<u8>, u64, bool, bool),
        Chunk(Vec<u8>),
        End(Vec<u8>),
        Overlong(Vec<u8>),
        Error(FrameError),
    }

    fn seen(direction: Direction, raw: bool, inputs: &[&[u8]]) -> Vec<Seen> {
        let mut framer = Framer::new(direction);
        framer.set_raw_lines(raw);
        let mut all = Vec::new();
        for input in inputs {
            let mut input = Bytes::copy_from_slice(input);
            loop {
                let frame = match framer.next(&mut input) {
                    Ok(Some(frame)) => frame,
                    Ok(None) => {
                        assert!(input.is_empty(), "asked for more with input left");
                        break;
                    }
                    Err(error) => {
                        assert_eq!(framer.next(&mut input), Err(error), "an error lasts");
                        // How much of an overlong line came out before its bad end depends on the split.
                        if matches!(all.last(), Some(Seen::Overlong(_))) {
                            all.pop();
                        }
                        all.push(Seen::Error(error));
                        return all;
                    }
                };
                let next = match frame {
                    Frame::Literal { piece, octets, binary, nonsync } => {
                        Seen::Literal(piece.to_vec(), octets, binary, nonsync)
                    }
                    Frame::Chunk(octets) => Seen::Chunk(octets.to_vec()),
                    Frame::End { piece } => Seen::End(piece.to_vec()),
                    Frame::Overlong { piece } => Seen::Overlong(piece.to_vec()),
                };
                match (all.last_mut(), next) {
                    (Some(Seen::Chunk(had)), Seen::Chunk(more))
                    | (Some(Seen::Overlong(had)), Seen::Overlong(more) | Seen::End(more)) => had.extend(more),
                    (_, next) => all.push(next),
                }
            }
        }
        all
    }

    fn whole(direction: Direction, input: &[u8]) -> Vec<Seen> {
        seen(direction, false, &[input])
    }

    fn error(direction: Direction, input: &[u8]) -> Option<FrameError> {
        let all = whole(direction, input);
        for at in 1..input.len() {
            let (a, b) = input.split_at(at);
            assert_eq!(seen(direction, false, &[a, b]), all, "split at {at}");
        }
        match all.last() {
            Some(Seen::Error(error)) => Some(*error),
            _ => None,
        }
    }

    fn is_bad_literal(direction: Direction, input: &[u8]) -> bool {
        matches!(error(direction, input), Some(FrameError::BadLiteral(_)))
    }

    const SESSION: &[u8] = b"* 1 FETCH (BODY[] {5}\r\nab\r\nc BODY[TEXT] {0}\r\n UID 3)\r\na OK x {9}\r\n\
        * NO no mailbox foo{5}\r\n+ {3}\r\n* 2 EXISTS\r\n* 3 FETCH (BINARY[1] ~{3}\r\na\0b)\n* LIST () \"/\" {3}\r\na\"b\r\n";

    #[test]
    fn any_split_gives_the_same_frames() {
        let all = whole(FromServer, SESSION);
        assert_eq!(all.iter().filter(|s| matches!(s, Seen::Literal(..))).count(), 4);
        assert!(!all.iter().any(|s| matches!(s, Seen::Error(_))));
        for at in 1..SESSION.len() {
            let (a, b) = SESSION.split_at(at);
            assert_eq!(seen(FromServer, false, &[a, b]), all, "split at {at}");
        }
        for step in 1..40 {
            assert_eq!(
                seen(FromServer, false, &SESSION.chunks(step).collect::<Vec<_>>()),
                all,
                "steps of {step}"
            );
        }
    }

    #[test]
    fn a_line_and_a_literal_in_one_input_are_not_copied() {
        let input = Bytes::from_static(b"* 1 FETCH (BODY[] {4}\r\nabcd)\r\n");
        let (mut rest, mut framer, start) = (input.clone(), Framer::new(FromServer), input.as_ptr());
        let mut at = 0;
        while let Some(frame) = framer.next(&mut rest).unwrap() {
            let (Frame::Literal { piece, .. }
            | Frame::Chunk(piece)
            | Frame::End { piece }
            | Frame::Overlong { piece }) = frame;
            assert_eq!(piece.as_ptr(), start.wrapping_add(at));
            at += piece.len();
        }
        assert_eq!(at, input.len());
        assert!(framer.is_between_lines());
    }

    #[test]
    fn client_literals_of_every_form() {
        let all = whole(FromClient, b"a LOGIN {3}\r\nbob {2+}\r\npw\r\nb APPEND x (~{3+}\r\na\0b)\r\n");
        let forms: Vec<_> = all
            .iter()
            .filter_map(|s| if let Seen::Literal(_, n, b, p) = s { Some((*n, *b, *p)) } else { None })
            .collect();
        assert_eq!(forms, [(3, false, false), (2, false, true), (3, true, true)]);
        assert_eq!(
            whole(FromClient, b"a NOOP\nb NOOP\r\n"),
            [Seen::End(b"a NOOP\n".to_vec()), Seen::End(b"b NOOP\r\n".to_vec())]
        );
    }

    #[test]
    fn what_only_looks_like_a_literal_is_refused() {
        for line in [
            &b"a LOGIN \"x {3}\r\n"[..],
            b"a LOGIN {3}\n",
            b"a LOGIN {3} \r\n",
            b"a LOGIN {3}\r\r\n",
            b"a LOGIN {3-}\r\n",
            b"a LOGIN { 3}\r\n",
            b"a LOGIN {}\r\n",
            b"a LOGIN {+}\r\n",
            b"a LOGIN {3++}\r\n",
            b"a LOGIN foo{3}\r\n",
            b"a LOGIN foo~{3}\r\n",
            b"{3}\r\n",
            b"a LOGIN {3}\r\nbob{3}\r\nxyz\r\n",
            b"a APPEND x {9223372036854775808}\r\n",
            b"a APPEND x {18446744073709551616}\r\n",
            b"a APPEND x {99999999999999999999}\r\n",
            b"a APPEND x {00000000000000000001}\r\n",
        ] {
            assert!(is_bad_literal(FromClient, line), "{}", line.escape_ascii());
        }
        assert_eq!(error(FromClient, b"a APPEND x {9223372036854775807}\r\n"), None);
        assert_eq!(error(FromClient, b"a SEARCH TEXT \"\\\"{3}\"\r\nb NOOP\r\n"), None);
    }

    #[test]
    fn server_brace_in_an_open_quote_is_no_literal_and_no_text() {
        for line in [
            &b"* LIST () \"/\" \"x {5}\r\n"[..],
            b"* LIST () \"/\" \"x\\\" {5}\r\n",
            b"* 1 FETCH (ENVELOPE (NIL \"{5}\r\n",
            b"* 1 FETCH (BODY[] {2}\r\nab ENVELOPE (NIL \"a {5}\r\n",
        ] {
            assert!(is_bad_literal(FromServer, line), "{}", line.escape_ascii());
        }
    }

    #[test]
    fn server_literals_stand_only_where_every_client_reads_one() {
        for line in [
            &b"* NO x {5}\r\n"[..],
            b"* ok [X] {5}\r\n",
            b"* BYE {5}\r\n",
            b"a1 NO [CANNOT] foo {5}\r\n",
            b"+ {5}\r\n",
            b"+OK {5}\r\n",
        ] {
            assert_eq!(whole(FromServer, line), [Seen::End(line.to_vec())], "{}", line.escape_ascii());
        }
        for line in [
            &b"* 1 FETCH (BODY[] {5+}\r\n"[..],
            b"* 1 FETCH (BODY[] {5}\n",
            b"* OK[ALERT] {5}\r\n",
            b"*  OK x {5}\r\n",
            b"*LIST () {5}\r\n",
            b" * LIST () {5}\r\n",
            b"a FETCH {5}\r\n",
            b"* SEARCH 1 {5}\r\n",
            b"* 1 EXISTS {5}\r\n",
            b"* CAPABILITY {5}\r\n",
        ] {
            assert!(is_bad_literal(FromServer, line), "{}", line.escape_ascii());
        }
    }

    #[test]
    fn raw_lines_hold_no_literal() {
        let lines = b"AHg= {5}\r\nDONE\r\n";
        assert_eq!(
            seen(FromClient, true, &[lines]),
            [Seen::End(b"AHg= {5}\r\n".to_vec()), Seen::End(b"DONE\r\n".to_vec())]
        );
    }

    #[test]
    fn nul_ends_it_outside_a_literal() {
        assert_eq!(error(FromClient, b"a NO\0OP\r\n"), Some(FrameError::Nul));
        assert_eq!(error(FromServer, b"* OK \0\r\n"), Some(FrameError::Nul));
        assert_eq!(error(FromServer, b"* 1 FETCH (BODY[] {1}\r\n\0)\r\n"), None);
    }

    #[test]
    fn a_command_is_bounded_with_all_its_pieces() {
        let long = |n: usize| [b"a ".as_slice(), &vec![b'x'; n - 4], b"\r\n"].concat();
        assert_eq!(whole(FromClient, &long(COMMAND_OCTETS_MAX)).len(), 1);
        assert_eq!(whole(FromClient, &long(COMMAND_OCTETS_MAX + 1)), [Seen::Error(FrameError::LineTooLong)]);
        let endless = vec![b'x'; COMMAND_OCTETS_MAX + 1];
        let steps: Vec<&[u8]> = endless.chunks(1000).collect();
        assert_eq!(seen(FromClient, false, &steps), [Seen::Error(FrameError::LineTooLong)]);
        let pieces = b"a {1+}\r\nx ".iter().chain(b"{1+}\r\nx ".iter().cycle().take(8 * 10_000)).copied();
        let all = whole(FromClient, &pieces.collect::<Vec<_>>());
        assert_eq!(all.last(), Some(&Seen::Error(FrameError::LineTooLong)));
    }

    #[test]
    fn an_overlong_server_line_passes_unless_it_may_announce_a_literal() {
        let line = |end: &[u8]| {
            [b"* SEARCH".as_slice(), &b" 1234567".repeat(SERVER_LINE_OCTETS_MAX / 8 + 10), end].concat()
        };
        for (end, refused) in [
            (&b"\r\n"[..], false),
            (b" {5}\r\n", true),
            (b" {5}\n", true),
            (b" {5+}\r\n", true),
            (b"{123456789012345678901234567890123456789012345678901234567890123456789}\r\n", true),
            (b" {x}\r\n", false),
        ] {
            let octets = line(end);
            let all = whole(FromServer, &octets);
            assert!(all == seen(FromServer, false, &octets.chunks(1).collect::<Vec<_>>()));
            assert!(all == seen(FromServer, false, &octets.chunks(65_535).collect::<Vec<_>>()));
            let error = matches!(all.last(), Some(Seen::Error(FrameError::BadLiteral(_))));
            assert_eq!(error, refused, "{}", end.escape_ascii());
            if !refused {
                assert!(all == [Seen::Overlong(octets)]);
            }
        }
        let exact = [b"* X ".as_slice(), &vec![b'x'; SERVER_LINE_OCTETS_MAX - 6], b"\r\n"].concat();
        assert_eq!(whole(FromServer, &exact), [Seen::End(exact.clone())]);
    }

    #[test]
    fn half_a_line_is_not_between_lines() {
        let mut framer = Framer::new(FromClient);
        assert!(framer.is_between_lines());
        for (input, between) in
            [(&b"a"[..], false), (b" {2}\r\n", false), (b"x", false), (b"y", false), (b"\r\n", true)]
        {
            let mut input = Bytes::copy_from_slice(input);
            while framer.next(&mut input).unwrap().is_some() {}
            assert_eq!(framer.is_between_lines(), between);
        }
    }

    #[test]
    fn debug_shows_no_octets() {
        let frame = Frame::End { piece: Bytes::from_static(b"a LOGIN bob hunter2\r\n") };
        assert!(!format!("{frame:?}").contains("hunter2"));
    }

    /// Octets that make interesting lines more often than chance does.
    fn imapish() -> impl Strategy<Value = Vec<u8>> {
        let token = prop_oneof![
            4 => prop::sample::select(vec![
                "* ", "a ", "+ ", "1 FETCH (", "OK ", "NO ", "LIST () ", " {0}\r\n", " {2}\r\n", "{3+}\r\n", "~{1}\r\n",
                " {9}\n", "\"", "\\", "\r\n", "\n", "\r", ")", "BODY[] ", "{", "}", " ", "\0", "12",
            ])
            .prop_map(|t| t.as_bytes().to_vec()),
            1 => prop::collection::vec(any::<u8>(), 0..6),
        ];
        prop::collection::vec(token, 0..40).prop_map(|tokens| tokens.concat())
    }

    proptest! {
        #[test]
        fn any_octets_in_any_split_give_equal_frames_and_every_octet_back(
            input in imapish(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
            server in any::<bool>(),
            raw in any::<bool>(),
        ) {
            let direction = if server { FromServer } else { FromClient };
            let all = seen(direction, raw, &[&input]);
            let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(input.len() + 1)).collect();
            cuts.extend([0, input.len()]);
            cuts.sort_unstable();
            let parts: Vec<&[u8]> = cuts.windows(2).map(|w| &input[w[0]..w[1]]).collect();
            prop_assert_eq!(&seen(direction, raw, &parts), &all);
            let mut back = Vec::new();
            for seen in &all {
                match seen {
                    Seen::Literal(o, ..) | Seen::Chunk(o) | Seen::End(o) | Seen::Overlong(o) => back.extend(o),
                    Seen::Error(_) => {}
                }
            }
            prop_assert!(input.starts_with(&back));
        }
    }
}
