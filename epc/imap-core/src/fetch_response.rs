//! Reads one `* n FETCH (…)` response frame by frame as the framer cuts it, and holds only small things: the
//! content of sections streams past. What is malformed is an error value: the session then forwards the response
//! verbatim and learns nothing from it.
//!
//! ```text
//!  Items ─ name ─► Value ─ atom, string ────────────────► Items … ─ ')' ─► Done
//!                    ├─ '(' ─► Nested ─ matching ')' ───► Items
//!                    └─ {n} ─► Announced ─► Literal ────► Items (or back to Nested)
//! ```
//! Parentheses are counted, never recursed into.

use crate::{
    item::ItemKey,
    response::{Response, response},
    uid::{Msn, Uid},
};
use bytes::Bytes;
use thiserror::Error;

/// What one FETCH response said. `UID`, `FLAGS` and `MODSEQ` have fields of their own and are not in `items`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchResponse {
    /// Which message, in the server's numbering.
    pub msn: Msn,
    /// Its UID, when said.
    pub uid: Option<Uid>,
    /// Its flags, when said.
    pub flags: Option<Flags>,
    /// Its MODSEQ, when said (RFC 7162).
    pub modseq: Option<u64>,
    /// Everything else, in the server's order.
    pub items: Vec<FetchedItem>,
}

/// One data item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchedItem {
    /// What it is.
    pub key: ItemKey,
    /// How the server called it: `BODY[]<0>`, `RFC822`.
    pub label: Bytes,
    /// Where a partial begins: the number in `BODY[]<0>`.
    pub origin: Option<u32>,
    /// What it says.
    pub value: FetchedValue,
}

/// An item's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchedValue {
    /// Of an item that is no section: the server's own octets, literals within them included, as they can be
    /// repeated.
    Raw(Bytes),
    /// A section that came as a quoted string: its content.
    Quoted(Bytes),
    /// A literal, which streamed past.
    Literal {
        /// Its length.
        octets: u64,
    },
    /// `NIL`.
    Nil,
    /// Too long to hold, or missing.
    Unheld,
}

/// The flags as sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flags(Bytes);

impl Flags {
    /// Whether `flag` is among them, in any case.
    #[must_use]
    pub fn contains(&self, flag: &str) -> bool {
        self.iter().any(|f| f.eq_ignore_ascii_case(flag.as_bytes()))
    }

    /// The list with its parentheses, as sent.
    #[must_use]
    pub fn raw(&self) -> &Bytes {
        &self.0
    }

    /// The flags one by one, in the order sent.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let inside = self.0.strip_prefix(b"(").and_then(|o| o.strip_suffix(b")")).unwrap_or_default();
        inside.split(|o| *o == b' ').filter(|flag| !flag.is_empty())
    }
}

/// What a literal's octets are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LiteralOf {
    /// The content of a section.
    Section {
        /// Which.
        key: ItemKey,
        /// Where it begins, for a partial.
        origin: Option<u32>,
        /// How the server called it.
        label: Bytes,
    },
    /// A string within ENVELOPE, BODYSTRUCTURE or another item that is held: goes to
    /// [`FetchReader::literal_chunk`].
    Nested,
    /// The value of an item that nobody here knows.
    Unknown,
}

/// Why nothing is learned from a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FetchError {
    /// Not `* n FETCH (`.
    #[error("the response is no FETCH with a list of items")]
    NotFetch,
    /// The list's syntax is broken.
    #[error("the list of items cannot be read: {0}")]
    Malformed(&'static str),
    /// More than [`DEPTH_MAX`] parentheses in each other.
    #[error("parentheses nested deeper than {DEPTH_MAX}")]
    TooDeep,
    /// More than [`ITEMS_MAX`].
    #[error("more than {ITEMS_MAX} items")]
    TooManyItems,
}

/// Reads one response.
#[derive(Debug)]
pub struct FetchReader {
    read: FetchResponse,
    state: State,
    /// Names seen.
    names: usize,
    /// What the current item is for.
    field: Field,
    /// The value of the current item so far; `None` when it grew too long.
    raw: Option<Vec<u8>>,
    /// Octets held in `read.items`, all together.
    held: usize,
    depth: usize,
    failed: Option<FetchError>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Items,
    Value,
    Nested,
    Announced { octets: u64, nested: bool },
    Literal { left: u64, nested: bool },
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Uid,
    Flags,
    Modseq,
    /// The last one of `items`, a section.
    Section,
    /// The last one of `items`, kept raw.
    Fixed,
    /// The last one of `items`; of a kind that only the origin answers for.
    Other,
}

impl FetchReader {
    /// Begins with the response's first piece.
    ///
    /// # Errors
    /// When nothing can be learned from the response.
    pub fn start(first_piece: &[u8]) -> Result<Self, FetchError> {
        let Ok(Response::Fetch { msn, payload_at }) = response(first_piece) else {
            return Err(FetchError::NotFetch);
        };
        let payload = first_piece.get(payload_at..).and_then(|p| p.strip_prefix(b"("));
        let mut reader = Self {
            read: FetchResponse { msn, uid: None, flags: None, modseq: None, items: Vec::new() },
            state: State::Items,
            names: 0,
            field: Field::Other,
            raw: None,
            held: 0,
            depth: 1,
            failed: None,
        };
        reader.feed(payload.ok_or(FetchError::NotFetch)?)?;
        Ok(reader)
    }

    /// Takes the piece after a literal.
    ///
    /// # Errors
    /// When nothing can be learned from the response; every later call says the same.
    pub fn piece(&mut self, piece: &[u8]) -> Result<(), FetchError> {
        let State::Literal { left: 0, nested } = self.state else {
            return Err(self.fail(FetchError::Malformed("a piece where a literal's octets were due")));
        };
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.state = if nested { State::Nested } else { State::Items };
        self.feed(piece).map_err(|error| self.fail(error))
    }

    /// The literal that the last piece announced begins; its octets go to [`FetchReader::literal_chunk`].
    pub fn literal_begins(&mut self, octets: u64, _binary: bool) -> LiteralOf {
        match self.state {
            State::Announced { octets: announced, nested } if announced == octets => {
                self.state = State::Literal { left: octets, nested };
                if nested || self.field == Field::Fixed {
                    return LiteralOf::Nested;
                }
            }
            State::Announced { .. }
            | State::Items
            | State::Value
            | State::Nested
            | State::Literal { .. }
            | State::Done => {
                self.fail(FetchError::Malformed("a literal that no piece announced"));
                return LiteralOf::Unknown;
            }
        }
        let Some(item) = self.read.items.last_mut() else { return LiteralOf::Unknown };
        item.value = FetchedValue::Literal { octets };
        if self.field == Field::Section {
            LiteralOf::Section { key: item.key.clone(), origin: item.origin, label: item.label.clone() }
        } else {
            LiteralOf::Unknown
        }
    }

    /// Octets of the literal, of whatever kind.
    pub fn literal_chunk(&mut self, octets: &[u8]) {
        let State::Literal { left, nested } = self.state else {
            self.fail(FetchError::Malformed("octets outside a literal"));
            return;
        };
        let Some(left) = left.checked_sub(octets.len() as u64) else {
            self.fail(FetchError::Malformed("more octets than the literal has"));
            return;
        };
        self.state = State::Literal { left, nested };
        if nested {
            self.keep(octets);
        } else if self.field == Field::Fixed {
            self.keep(octets);
            if left == 0 {
                self.end_value_kept();
            }
        }
    }

    /// The UID, as soon as it was said.
    #[must_use]
    pub fn uid(&self) -> Option<Uid> {
        self.read.uid
    }

    /// The items that have begun so far.
    #[must_use]
    pub fn items(&self) -> &[FetchedItem] {
        &self.read.items
    }

    /// What the response said, after its last piece.
    ///
    /// # Errors
    /// When nothing can be learned from it.
    pub fn finish(self) -> Result<FetchResponse, FetchError> {
        match (self.failed, self.state) {
            (Some(error), _) => Err(error),
            (None, State::Done) => Ok(self.read),
            (None, _) => Err(FetchError::Malformed("the list is not closed")),
        }
    }

    fn fail(&mut self, error: FetchError) -> FetchError {
        *self.failed.get_or_insert(error)
    }

    fn feed(&mut self, piece: &[u8]) -> Result<(), FetchError> {
        let line = piece.strip_suffix(b"\n").ok_or(FetchError::Malformed("a piece without its line end"))?;
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if memchr::memchr3(0, b'\r', b'\n', line).is_some() {
            return Err(FetchError::Malformed("a control character in it"));
        }
        let mut rest = line;
        loop {
            match self.state {
                State::Items => {
                    rest = rest.trim_ascii_start();
                    match rest.first() {
                        None => return Err(FetchError::Malformed("the list is not closed")),
                        Some(b')') => {
                            self.state = State::Done;
                            rest = rest.get(1..).unwrap_or_default();
                        }
                        Some(_) => {
                            let (name, after) = split_name(rest)?;
                            self.begin_item(name)?;
                            rest = after;
                        }
                    }
                }
                State::Value => rest = self.value(rest.trim_ascii_start())?,
                State::Nested => rest = self.nested(rest)?,
                State::Announced { .. } => return Ok(()),
                State::Done if rest.trim_ascii().is_empty() => return Ok(()),
                State::Done => return Err(FetchError::Malformed("text after the list")),
                State::Literal { .. } => return Err(FetchError::Malformed("a piece within a literal")),
            }
        }
    }

    fn begin_item(&mut self, name: &[u8]) -> Result<(), FetchError> {
        self.names += 1;
        if self.names > ITEMS_MAX {
            return Err(FetchError::TooManyItems);
        }
        self.state = State::Value;
        self.raw = Some(Vec::new());
        let is = |word: &str| name.eq_ignore_ascii_case(word.as_bytes());
        if is("UID") || is("FLAGS") || is("MODSEQ") {
            self.field = match () {
                () if is("UID") => Field::Uid,
                () if is("FLAGS") => Field::Flags,
                () => Field::Modseq,
            };
            return Ok(());
        }
        let (key, origin) = key_of(name)?;
        self.field = match key.class() {
            crate::item::ItemClass::Section(_) => Field::Section,
            crate::item::ItemClass::Fixed => Field::Fixed,
            crate::item::ItemClass::Uid | crate::item::ItemClass::Dynamic => Field::Other,
        };
        let label = Bytes::copy_from_slice(name);
        self.read.items.push(FetchedItem { key, label, origin, value: FetchedValue::Unheld });
        Ok(())
    }

    /// The start of a value: all of it, or up to where a literal or a list goes on with it.
    fn value<'a>(&mut self, rest: &'a [u8]) -> Result<&'a [u8], FetchError> {
        let in_items = matches!(self.field, Field::Section | Field::Fixed | Field::Other);
        match rest.first() {
            None => Err(FetchError::Malformed("an item without a value")),
            // Some servers name an item and give nothing: the item stays unheld.
            Some(b')') if in_items => {
                self.state = State::Items;
                Ok(rest)
            }
            Some(b'(') if self.field != Field::Section => {
                self.state = State::Nested;
                Ok(rest)
            }
            Some(b'"') if in_items => {
                let (quoted, after) = split_quoted(rest)?;
                if self.field == Field::Section {
                    self.keep(&unescaped(quoted));
                } else {
                    self.keep(quoted);
                }
                self.end_value()?;
                Ok(after)
            }
            Some(_) if in_items && announced(rest).is_some() => {
                if self.field == Field::Fixed {
                    self.keep(rest);
                    self.keep(b"\r\n");
                }
                let octets = announced(rest).unwrap_or_default();
                self.state = State::Announced { octets, nested: false };
                if octets == 0 && self.field == Field::Fixed {
                    self.end_value_kept();
                }
                Ok(b"")
            }
            Some(_) => {
                let end = rest.iter().position(|o| b" ()\"".contains(o)).unwrap_or(rest.len());
                let (atom, after) = rest.split_at_checked(end).unwrap_or((rest, b""));
                let nil = in_items && atom.eq_ignore_ascii_case(b"NIL");
                if atom.is_empty() || (self.field == Field::Section && !nil) {
                    return Err(FetchError::Malformed("a value of the wrong kind"));
                }
                if let (true, Some(item)) = (nil, self.read.items.last_mut()) {
                    item.value = FetchedValue::Nil;
                    self.state = State::Items;
                } else {
                    self.keep(atom);
                    self.end_value()?;
                }
                Ok(after)
            }
        }
    }

    /// More of a list.
    fn nested<'a>(&mut self, rest: &'a [u8]) -> Result<&'a [u8], FetchError> {
        let mut at = 0;
        while let Some(octet) = rest.get(at) {
            let here = rest.get(at..).unwrap_or_default();
            match octet {
                b'"' => {
                    let (quoted, _) = split_quoted(here)?;
                    at += quoted.len();
                    continue;
                }
                b'(' if self.depth >= DEPTH_MAX => return Err(FetchError::TooDeep),
                b'(' => self.depth += 1,
                b')' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 1 {
                        let (list, after) = rest.split_at_checked(at + 1).unwrap_or((rest, b""));
                        self.keep(list);
                        self.end_value()?;
                        return Ok(after);
                    }
                }
                b'{' | b'~' => {
                    if let Some(octets) = announced(here) {
                        self.keep(rest);
                        self.keep(b"\r\n");
                        self.state = State::Announced { octets, nested: true };
                        return Ok(b"");
                    }
                }
                _ => {}
            }
            at += 1;
        }
        Err(FetchError::Malformed("a list in it is not closed"))
    }

    /// Adds to the current value, unless that grows too long.
    fn keep(&mut self, octets: &[u8]) {
        let Some(raw) = &mut self.raw else { return };
        let after = raw.len().saturating_add(octets.len());
        if after > VALUE_OCTETS_MAX || self.held.saturating_add(after) > HELD_OCTETS_MAX {
            self.raw = None;
        } else {
            raw.extend_from_slice(octets);
        }
    }

    fn end_value(&mut self) -> Result<(), FetchError> {
        self.state = State::Items;
        match self.field {
            Field::Section | Field::Fixed | Field::Other => {
                self.end_value_kept();
                return Ok(());
            }
            Field::Uid | Field::Flags | Field::Modseq => {}
        }
        let raw = self.raw.take().ok_or(FetchError::Malformed("UID, FLAGS or MODSEQ too long"))?;
        let wrong = FetchError::Malformed("UID, FLAGS or MODSEQ of the wrong kind");
        match self.field {
            Field::Uid => {
                let uid = number(&raw).and_then(|n| Uid::new(u32::try_from(n).ok()?)).ok_or(wrong)?;
                if self.read.uid.is_some_and(|had| had != uid) {
                    return Err(FetchError::Malformed("two UIDs"));
                }
                self.read.uid = Some(uid);
            }
            Field::Flags => {
                let inside = raw.strip_prefix(b"(").and_then(|r| r.strip_suffix(b")")).ok_or(wrong)?;
                if inside.iter().any(|o| b"()\"".contains(o)) {
                    return Err(wrong);
                }
                self.held += raw.len();
                self.read.flags = Some(Flags(raw.into()));
            }
            Field::Modseq => {
                let inside = raw.strip_prefix(b"(").and_then(|r| r.strip_suffix(b")")).unwrap_or(&raw);
                self.read.modseq = Some(number(inside.trim_ascii()).ok_or(wrong)?);
            }
            Field::Section | Field::Fixed | Field::Other => {}
        }
        Ok(())
    }

    /// The current value is complete: into its item with it.
    fn end_value_kept(&mut self) {
        let Some(item) = self.read.items.last_mut() else { return };
        item.value = match self.raw.take() {
            None => FetchedValue::Unheld,
            Some(raw) => {
                self.held += raw.len();
                if self.field == Field::Section {
                    FetchedValue::Quoted(raw.into())
                } else {
                    FetchedValue::Raw(raw.into())
                }
            }
        };
    }
}

/// An item's name up to its value: `BODY[HEADER.FIELDS ("A" B)]<0>`.
fn split_name(octets: &[u8]) -> Result<(&[u8], &[u8]), FetchError> {
    let mut at = 0;
    let mut bracket = false;
    while let Some(octet) = octets.get(at) {
        match octet {
            b'[' => bracket = true,
            b']' => bracket = false,
            b'"' if bracket => {
                let (quoted, _) = split_quoted(octets.get(at..).unwrap_or_default())?;
                at += quoted.len();
                continue;
            }
            b' ' | b'(' | b')' | b'"' if !bracket => break,
            _ => {}
        }
        at += 1;
    }
    if at == 0 || at > LABEL_OCTETS_MAX || bracket {
        return Err(FetchError::Malformed("a name that is none"));
    }
    octets.split_at_checked(at).ok_or(FetchError::Malformed("a name that is none"))
}

/// The key of the item that a server calls `name`, and where a partial begins.
fn key_of(name: &[u8]) -> Result<(ItemKey, Option<u32>), FetchError> {
    let no_text = FetchError::Malformed("a name that is no text");
    if !name.get(..5).is_some_and(|start| start.eq_ignore_ascii_case(b"BODY[")) {
        return Ok((ItemKey::named(name).ok_or(no_text)?, None));
    }
    let section = || {
        let close = name.iter().rposition(|o| *o == b']')?;
        let key = ItemKey::section(name.get(5..close)?)?;
        let origin = match name.get(close + 1..)? {
            b"" => None,
            partial => Some(u32::try_from(number(partial.strip_prefix(b"<")?.strip_suffix(b">")?)?).ok()?),
        };
        Some((key, origin))
    };
    match section() {
        Some(found) => Ok(found),
        // Not a section that we know: a key that cannot be taken for one.
        None => {
            let text = std::str::from_utf8(name).map_err(|_| no_text)?;
            Ok((ItemKey::from_normalised(&format!("?{text}")), None))
        }
    }
}

/// A quoted string with its quotes, and what follows.
fn split_quoted(octets: &[u8]) -> Result<(&[u8], &[u8]), FetchError> {
    let mut at = 1;
    loop {
        match octets.get(at) {
            None => return Err(FetchError::Malformed("a string is not closed")),
            Some(b'"') => break,
            Some(b'\\') => at += 2,
            Some(_) => at += 1,
        }
    }
    octets.split_at_checked(at + 1).ok_or(FetchError::Malformed("a string is not closed"))
}

/// The content of a quoted string.
fn unescaped(quoted: &[u8]) -> Vec<u8> {
    let inside = quoted.strip_prefix(b"\"").and_then(|q| q.strip_suffix(b"\"")).unwrap_or(quoted);
    let mut content = Vec::with_capacity(inside.len());
    let mut octets = inside.iter();
    while let Some(octet) = octets.next() {
        content.extend(if *octet == b'\\' { octets.next() } else { Some(octet) });
    }
    content
}

/// The length, if `octets` are `{n}` or `~{n}` and nothing else.
fn announced(octets: &[u8]) -> Option<u64> {
    let octets = octets.strip_prefix(b"~").unwrap_or(octets);
    number(octets.strip_prefix(b"{")?.strip_suffix(b"}")?)
}

fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Deeper structures come from attackers only; mail readers give up earlier.
pub const DEPTH_MAX: usize = 64;

/// A client asks for a dozen.
pub const ITEMS_MAX: usize = 256;

/// An ENVELOPE with hundreds of addresses still fits.
pub const VALUE_OCTETS_MAX: usize = 64 * 1024;

/// All held values of one response together.
const HELD_OCTETS_MAX: usize = 256 * 1024;

/// A section name with all its header fields; the key's own limit is lower.
const LABEL_OCTETS_MAX: usize = 8 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framer::{Direction, Frame, Framer};
    use proptest::prelude::*;

    type Read = (FetchResponse, Vec<(LiteralOf, Vec<u8>)>);

    /// Reads a response as the session does; sections' literals come back too.
    fn read(octets: &[u8], step: usize) -> Result<Read, FetchError> {
        let mut framer = Framer::new(Direction::FromServer);
        let mut reader: Option<FetchReader> = None;
        let mut literals: Vec<(LiteralOf, Vec<u8>)> = Vec::new();
        for part in octets.chunks(step.max(1)) {
            let mut part = Bytes::copy_from_slice(part);
            while let Some(frame) = framer.next(&mut part).map_err(|_| FetchError::NotFetch)? {
                match &frame {
                    Frame::Literal { piece, .. } | Frame::End { piece } | Frame::Overlong { piece } => {
                        match &mut reader {
                            Some(reader) => reader.piece(piece)?,
                            None => reader = Some(FetchReader::start(piece)?),
                        }
                    }
                    Frame::Chunk(octets) => {
                        literals.last_mut().unwrap().1.extend_from_slice(octets);
                        reader.as_mut().unwrap().literal_chunk(octets);
                    }
                }
                match frame {
                    Frame::Literal { octets, binary, .. } => {
                        literals.push((reader.as_mut().unwrap().literal_begins(octets, binary), Vec::new()));
                    }
                    Frame::End { .. } => return reader.take().unwrap().finish().map(|r| (r, literals)),
                    Frame::Chunk(_) | Frame::Overlong { .. } => {}
                }
            }
        }
        Err(FetchError::NotFetch)
    }

    fn items(octets: &[u8]) -> Vec<(String, FetchedValue)> {
        let all = read(octets, usize::MAX).unwrap();
        for step in 1..octets.len().min(60) {
            assert_eq!(read(octets, step).unwrap(), all, "steps of {step}");
        }
        all.0.items.into_iter().map(|i| (i.key.to_string(), i.value)).collect()
    }

    fn raw(text: &'static [u8]) -> FetchedValue {
        FetchedValue::Raw(Bytes::from_static(text))
    }

    fn malformed(octets: &[u8]) -> bool {
        matches!(read(octets, usize::MAX), Err(FetchError::Malformed(_)))
    }

    #[test]
    fn what_a_list_view_fetches() {
        let line = b"* 12 FETCH (UID 77 FLAGS (\\Seen $Forwarded) INTERNALDATE \"17-Jul-1996 02:44:25 -0700\" \
            RFC822.SIZE 4286 MODSEQ (624140003) ENVELOPE (NIL \"a \\\"b\" ((NIL NIL \"u\" {3}\r\na)b)) NIL))\r\n";
        assert_eq!(
            items(line),
            [
                ("INTERNALDATE".into(), raw(b"\"17-Jul-1996 02:44:25 -0700\"")),
                ("RFC822.SIZE".into(), raw(b"4286")),
                ("ENVELOPE".into(), raw(b"(NIL \"a \\\"b\" ((NIL NIL \"u\" {3}\r\na)b)) NIL)")),
            ]
        );
        let (fetched, literals) = read(line, usize::MAX).unwrap();
        assert_eq!((fetched.msn.get(), fetched.uid, fetched.modseq), (12, Uid::new(77), Some(624_140_003)));
        let flags = fetched.flags.unwrap();
        assert!(flags.contains("\\seen") && flags.contains("$FORWARDED") && !flags.contains("\\See"));
        assert_eq!(flags.raw().as_ref(), b"(\\Seen $Forwarded)");
        assert_eq!(literals, [(LiteralOf::Nested, b"a)b".to_vec())]);
    }

    #[test]
    fn sections_stream_with_their_labels() {
        let line = b"* 1 FETCH (BODY[header.fields (To \"from\")]<0> {4}\r\na)\r\n RFC822 {0}\r\n \
            BODY[1] \"a\\\"b\" BODY[TEXT] NIL UID 3)\r\n";
        let (fetched, literals) = read(line, usize::MAX).unwrap();
        let LiteralOf::Section { key, origin, label } = &literals[0].0 else { panic!("{literals:?}") };
        assert_eq!(key.as_str(), "BODY[HEADER.FIELDS (FROM TO)]");
        assert_eq!((*origin, label.as_ref()), (Some(0), &b"BODY[header.fields (To \"from\")]<0>"[..]));
        assert_eq!(literals[0].1, b"a)\r\n");
        assert_eq!(fetched.uid, Uid::new(3));
        assert_eq!(
            items(line).into_iter().map(|(_, v)| v).collect::<Vec<_>>(),
            [
                FetchedValue::Literal { octets: 4 },
                FetchedValue::Literal { octets: 0 },
                FetchedValue::Quoted(Bytes::from_static(b"a\"b")),
                FetchedValue::Nil,
            ]
        );
        assert_eq!(fetched.items[1].key, ItemKey::whole());
        assert_eq!(fetched.items[1].label.as_ref(), b"RFC822");
    }

    #[test]
    fn what_servers_really_send_is_read() {
        let uid = |line: &[u8]| read(line, usize::MAX).map(|r| r.0.uid.map(Uid::get));
        for line in [
            &b"* 1 FETCH (UID 5 )\r\n"[..],
            b"* 1 FETCH ( UID 5)\r\n",
            b"* 1 fetch (FLAGS ()UID 5) \r\n",
            b"* 1 FETCH (BODYSTRUCTURE ((\"a\" \"b\") (\"c\" \"d\")  \"mixed\" (\"boundary\" NIL)) UID 5)\r\n",
            b"* 1 FETCH (BODYSTRUCTURE (NIL \"mixed\" NIL) UID 5)\r\n",
            b"* 1 FETCH (INTERNALDATE NIL UID 5)\r\n",
            b"* 1 FETCH (X-FOO ((a b) (c d)) UID 5)\r\n",
            b"* 1 FETCH (X-GM-LABELS (\"\\\\Inbox\" caf\xe9 {2}\r\n)) x) UID 5)\r\n",
            b"* 1 FETCH (BODY[] {2}\r\nab UID 5)\n",
            b"* 1 FETCH (UID 5 RFC822)\r\n",
            b"* 1 FETCH (MODSEQ 7 UID 5 UID 5)\r\n",
            b"* 1 FETCH (PREVIEW {3}\r\na)b UID 5)\r\n",
            b"* 1 FETCH (BODY[1.0] {1}\r\nx UID 5)\r\n",
        ] {
            assert_eq!(uid(line), Ok(Some(5)), "{}", line.escape_ascii());
        }
    }

    #[test]
    fn a_section_that_is_none_has_no_section_key() {
        let fetched = items(b"* 1 FETCH (BODY[X] {1}\r\nx BODY[]<0.5> {1}\r\nx BINARY[1] ~{1}\r\n\0)\r\n");
        assert_eq!(
            fetched.iter().map(|i| i.0.as_str()).collect::<Vec<_>>(),
            ["?BODY[X]", "?BODY[]<0.5>", "BINARY[1]"]
        );
        for (key, _) in fetched {
            assert_eq!(ItemKey::from_normalised(&key).class(), crate::item::ItemClass::Dynamic);
        }
    }

    #[test]
    fn a_malformed_response_teaches_nothing() {
        for line in [
            &b"* 1 FETCH (UID 5\r\n"[..],
            b"* 1 FETCH (UID 5) x\r\n",
            b"* 1 FETCH (UID 0)\r\n",
            b"* 1 FETCH (UID 4294967296)\r\n",
            b"* 1 FETCH (UID 5 UID 6)\r\n",
            b"* 1 FETCH (UID)\r\n",
            b"* 1 FETCH (UID (5))\r\n",
            b"* 1 FETCH (FLAGS \\Seen)\r\n",
            b"* 1 FETCH (FLAGS ((a)))\r\n",
            b"* 1 FETCH (MODSEQ (x))\r\n",
            b"* 1 FETCH (RFC822 UID 5)\r\n",
            b"* 1 FETCH (BODY[] (a))\r\n",
            b"* 1 FETCH (BODY[\r\n",
            b"* 1 FETCH (BODY[HEADER.FIELDS ({4}\r\nFrom)] NIL)\r\n",
            b"* 1 FETCH (ENVELOPE (\"a)\r\n",
            b"* 1 FETCH (ENVELOPE (a)\r\n",
            b"* 1 FETCH (ENVELOPE (a\rb))\r\n",
            b"* 1 FETCH ((UID 5))\r\n",
            b"* 1 FETCH (\"UID\" 5)\r\n",
        ] {
            assert!(malformed(line), "{} {:?}", line.escape_ascii(), read(line, usize::MAX));
        }
        assert_eq!(read(b"* 5 EXISTS\r\n", 9), Err(FetchError::NotFetch));
    }

    #[test]
    fn ten_thousand_parentheses_are_refused_without_recursion() {
        let nest = |n: usize| {
            [b"* 1 FETCH (BODYSTRUCTURE ".as_slice(), &b"(".repeat(n), &b")".repeat(n), b" UID 5)\r\n"]
                .concat()
        };
        assert_eq!(read(&nest(10_000), usize::MAX), Err(FetchError::TooDeep));
        assert_eq!(read(&nest(DEPTH_MAX), usize::MAX), Err(FetchError::TooDeep));
        assert_eq!(read(&nest(DEPTH_MAX - 1), usize::MAX).unwrap().0.uid, Uid::new(5));
        let many = |n: usize| [b"* 1 FETCH (".as_slice(), &b"UID 5 ".repeat(n), b")\r\n"].concat();
        assert_eq!(read(&many(ITEMS_MAX + 1), usize::MAX), Err(FetchError::TooManyItems));
        assert!(read(&many(ITEMS_MAX), usize::MAX).is_ok());
    }

    #[test]
    fn long_values_are_dropped_and_the_rest_is_read() {
        let long = VALUE_OCTETS_MAX + 1;
        let text = [
            format!("* 1 FETCH (ENVELOPE ({{{long}}}\r\n").into_bytes(),
            vec![b'x'; long],
            b") BODY (small) UID 5)\r\n".to_vec(),
        ]
        .concat();
        let (fetched, _) = read(&text, 4096).unwrap();
        assert_eq!(fetched.uid, Uid::new(5));
        assert_eq!(fetched.items[0].value, FetchedValue::Unheld);
        assert_eq!(fetched.items[1].value, raw(b"(small)"));
        let sixty = format!(" BODY (\"{}\")", "x".repeat(60_000));
        let first = format!("* 1 FETCH (RFC822.SIZE 1{} BODY {{1}}\r\n", sixty.repeat(3));
        let text = [first.as_bytes(), b"x", sixty.repeat(3).as_bytes(), b" UID 5)\r\n"].concat();
        let (fetched, _) = read(&text, usize::MAX).unwrap();
        let held: usize = fetched
            .items
            .iter()
            .map(|i| if let FetchedValue::Raw(raw) = &i.value { raw.len() } else { 0 })
            .sum();
        assert!(held <= HELD_OCTETS_MAX && fetched.items.last().unwrap().value == FetchedValue::Unheld);
    }

    #[test]
    fn frames_out_of_order_are_an_error_not_a_panic() {
        let mut reader = FetchReader::start(b"* 1 FETCH (BODY[] {3}\r\n").unwrap();
        reader.literal_chunk(b"abc");
        assert!(reader.finish().is_err());
        let mut reader = FetchReader::start(b"* 1 FETCH (BODY[] {3}\r\n").unwrap();
        assert_eq!(reader.literal_begins(4, false), LiteralOf::Unknown);
        assert!(reader.piece(b")\r\n").is_err());
        let mut reader = FetchReader::start(b"* 1 FETCH (BODY[] {3}\r\n").unwrap();
        reader.literal_begins(3, false);
        reader.literal_chunk(b"abcd");
        assert!(reader.piece(b")\r\n").is_err());
        let mut reader = FetchReader::start(b"* 1 FETCH (UID 3)\r\n").unwrap();
        assert!(reader.piece(b")\r\n").is_err());
    }

    proptest! {
        #[test]
        fn any_items_in_any_split_read_alike(
            tokens in prop::collection::vec(prop::sample::select(vec![
                "UID 5", " ", "FLAGS (", "\\Seen", ")", "(", "BODY[]", "<0>", " {3}\r\nabc", "{0}\r\n", "\"", "\\", "NIL",
                "ENVELOPE ", "BODY[1.", "]", "X", " ~{2}\r\n\0)", "[", "MODSEQ (9)", "caf\u{e9}", "RFC822.SIZE 12 ",
            ]), 0..20),
            step in 1_usize..30,
        ) {
            let text = format!("* 1 FETCH ({})\r\n", tokens.concat());
            prop_assert_eq!(read(text.as_bytes(), step), read(text.as_bytes(), usize::MAX));
        }
    }
}
