//! The FETCH reader, fed by the framer, against a strict reader that has the whole response in memory. Where the
//! strict one understands, both must say the same. Where it does not, the reader must still say the same however
//! the octets are cut, and nothing of what streamed past may be in what it says.

use bytes::Bytes;
use imap_core::{
    fetch_response::{FetchReader, FetchResponse, FetchedValue, LiteralOf},
    framer::{Direction, Frame, Framer},
    item::{ItemClass, ItemKey},
};

/// One response, from `* n FETCH (` to its line end.
pub fn run(data: &[u8]) {
    let Some(whole) = read(&[data], None) else { return };
    for parts in [data.chunks(1).collect::<Vec<_>>(), data.chunks(7).collect()] {
        assert_eq!(read(&parts, None).as_ref(), Some(&whole), "{}", data.escape_ascii());
    }
    // The octets of a section are not looked at: others in their place change nothing.
    assert_eq!(read(&[data], Some(b')')).as_ref(), Some(&whole), "{}", data.escape_ascii());
    match (strictly(data), whole) {
        (Some(expected), Ok(found)) => assert_eq!(seen(&found), expected, "{}", data.escape_ascii()),
        (Some(_), Err(error)) => panic!("{error}: {}", data.escape_ascii()),
        (None, Ok(found)) => check_alone(data, &found),
        (None, Err(_)) => {}
    }
}

/// What the reader says; `None` if the framer gives no whole response.
fn read(parts: &[&[u8]], instead: Option<u8>) -> Option<Result<FetchResponse, String>> {
    let mut framer = Framer::new(Direction::FromServer);
    let mut reader: Option<Result<FetchReader, String>> = None;
    let mut streams = false;
    for part in parts {
        let mut input = Bytes::copy_from_slice(part);
        while let Some(frame) = framer.next(&mut input).ok()? {
            match frame {
                Frame::Literal { piece, octets, binary, .. } => {
                    step(&mut reader, &piece);
                    if let Some(Ok(reader)) = &mut reader {
                        streams = match reader.literal_begins(octets, binary) {
                            LiteralOf::Section { .. } | LiteralOf::Unknown => true,
                            LiteralOf::Nested => false,
                        };
                    }
                }
                Frame::Chunk(octets) => {
                    let octets = match instead.filter(|_| streams) {
                        Some(instead) => vec![instead; octets.len()].into(),
                        None => octets,
                    };
                    if let Some(Ok(reader)) = &mut reader {
                        reader.literal_chunk(&octets);
                    }
                }
                Frame::End { piece } => {
                    step(&mut reader, &piece);
                    let said = reader?.and_then(|reader| reader.finish().map_err(|e| e.to_string()));
                    return Some(said);
                }
                Frame::Overlong { .. } => return None,
            }
        }
    }
    None
}

fn step(reader: &mut Option<Result<FetchReader, String>>, piece: &[u8]) {
    match reader {
        None => *reader = Some(FetchReader::start(piece).map_err(|error| error.to_string())),
        Some(Ok(running)) => {
            if let Err(error) = running.piece(piece) {
                *reader = Some(Err(error.to_string()));
            }
        }
        Some(Err(_)) => {}
    }
}

fn check_alone(data: &[u8], found: &FetchResponse) {
    let text = |octets: &[u8]| data.windows(octets.len().max(1)).any(|w| w == octets) || octets.is_empty();
    for item in &found.items {
        assert!(text(&item.label));
        match &item.value {
            // Repeated to a client as they are, so they must have stood in the response.
            FetchedValue::Raw(raw) => assert!(text(raw) || !data.ends_with(b"\r\n"), "{:?}", item.label),
            FetchedValue::Quoted(quoted) => assert!(quoted.len() <= data.len()),
            FetchedValue::Literal { octets } => assert!(*octets <= data.len() as u64),
            FetchedValue::Nil | FetchedValue::Unheld => {}
        }
    }
    if let Some(flags) = &found.flags {
        assert!(text(flags.raw()));
    }
}

/// A response in plain values, for comparison.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    msn: u32,
    uid: Option<u32>,
    flags: Option<Vec<u8>>,
    modseq: Option<u64>,
    items: Vec<(Vec<u8>, Value)>,
}

#[derive(Debug, PartialEq, Eq)]
enum Value {
    Raw(Vec<u8>),
    Quoted(Vec<u8>),
    Literal(usize),
    Nil,
}

fn seen(found: &FetchResponse) -> Seen {
    let value = |value: &FetchedValue| match value {
        FetchedValue::Raw(raw) => Value::Raw(raw.to_vec()),
        FetchedValue::Quoted(content) => Value::Quoted(content.to_vec()),
        FetchedValue::Literal { octets } => Value::Literal(usize::try_from(*octets).unwrap()),
        FetchedValue::Nil => Value::Nil,
        FetchedValue::Unheld => panic!("a small value was not held"),
    };
    Seen {
        msn: found.msn.get(),
        uid: found.uid.map(|uid| uid.get()),
        flags: found.flags.as_ref().map(|flags| flags.raw().to_vec()),
        modseq: found.modseq,
        items: found.items.iter().map(|item| (item.label.to_vec(), value(&item.value))).collect(),
    }
}

fn strictly(data: &[u8]) -> Option<Seen> {
    let mut at = Cursor { data, at: 0 };
    at.eat(b"* ")?;
    let msn: u32 = at.number()?.try_into().ok()?;
    at.eat(b" FETCH (")?;
    let mut seen = Seen { msn, uid: None, flags: None, modseq: None, items: Vec::new() };
    for n in 0..200 {
        if n > 0 && at.eat(b")").is_some() {
            at.eat(b"\r\n")?;
            return (at.at == data.len() && msn > 0).then_some(seen);
        }
        if n > 0 {
            at.eat(b" ")?;
        }
        let name = at.name()?;
        at.eat(b" ")?;
        match name.to_ascii_uppercase().as_slice() {
            b"UID" => {
                let uid = u32::try_from(at.number()?).ok().filter(|&uid| uid > 0)?;
                if seen.uid.is_some_and(|had| had != uid) {
                    return None;
                }
                seen.uid = Some(uid);
            }
            b"MODSEQ" => {
                at.eat(b"(")?;
                seen.modseq = Some(at.number()?);
                at.eat(b")")?;
            }
            b"FLAGS" => {
                let from = at.at;
                at.eat(b"(")?;
                let close = data[at.at..].iter().position(|&o| o == b')')? + at.at;
                let inside = &data[at.at..close];
                if inside.iter().any(|o| b"()\"{}~\r\n\0".contains(o)) {
                    return None;
                }
                at.at = close + 1;
                seen.flags = Some(data[from..at.at].to_vec());
            }
            _ => {
                let text = std::str::from_utf8(name).ok()?;
                let key = match text.get(..5).filter(|start| start.eq_ignore_ascii_case("BODY[")) {
                    Some(_) => ItemKey::section(&text.as_bytes()[5..text.rfind(']')?]),
                    None => ItemKey::named(name),
                };
                let class = key.map_or(ItemClass::Dynamic, |key| key.class());
                seen.items.push((name.to_vec(), at.value(class)?));
            }
        }
    }
    None
}

struct Cursor<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn eat(&mut self, text: &[u8]) -> Option<()> {
        self.data[self.at..].starts_with(text).then(|| self.at += text.len())
    }

    fn number(&mut self) -> Option<u64> {
        let digits = self.data[self.at..].iter().take_while(|o| o.is_ascii_digit()).count();
        let text = std::str::from_utf8(&self.data[self.at..self.at + digits]).ok()?;
        self.at += digits;
        text.parse().ok()
    }

    /// Letters, digits, dots and dashes, perhaps a section in brackets and a partial's beginning.
    fn name(&mut self) -> Option<&'a [u8]> {
        let from = self.at;
        let plain = |o: &u8| o.is_ascii_alphanumeric() || b".-".contains(o);
        self.at += self.data[self.at..].iter().take_while(|o| plain(o)).count();
        if self.at == from {
            return None;
        }
        if self.eat(b"[").is_some() {
            let close = self.data[self.at..].iter().position(|&o| o == b']')? + self.at;
            if self.data[self.at..close].iter().any(|&o| o == b'"' || o == b'[' || o < b' ') {
                return None;
            }
            self.at = close + 1;
            if self.eat(b"<").is_some() {
                u32::try_from(self.number()?).ok()?;
                self.eat(b">")?;
            }
        }
        Some(&self.data[from..self.at])
    }

    fn value(&mut self, class: ItemClass) -> Option<Value> {
        let section = matches!(class, ItemClass::Section(_));
        let from = self.at;
        match self.data.get(self.at)? {
            b'"' => {
                let content = self.quoted()?;
                Some(if section {
                    Value::Quoted(content)
                } else {
                    Value::Raw(self.data[from..self.at].to_vec())
                })
            }
            b'{' => {
                let octets = self.literal()?;
                Some(match class {
                    ItemClass::Fixed => Value::Raw(self.data[from..self.at].to_vec()),
                    ItemClass::Section(_) | ItemClass::Uid | ItemClass::Dynamic => Value::Literal(octets),
                })
            }
            b'(' if !section => {
                self.list(0)?;
                Some(Value::Raw(self.data[from..self.at].to_vec()))
            }
            _ => {
                let atom = self.atom()?;
                let nil = atom.eq_ignore_ascii_case(b"NIL");
                (nil || !section).then(|| if nil { Value::Nil } else { Value::Raw(atom.to_vec()) })
            }
        }
    }

    fn atom(&mut self) -> Option<&'a [u8]> {
        let from = self.at;
        let plain = |o: &u8| o.is_ascii_graphic() && !b"()\"{}~".contains(o);
        self.at += self.data[self.at..].iter().take_while(|o| plain(o)).count();
        (self.at > from).then(|| &self.data[from..self.at])
    }

    fn quoted(&mut self) -> Option<Vec<u8>> {
        self.eat(b"\"")?;
        let mut content = Vec::new();
        loop {
            let octet = *self.data.get(self.at)?;
            self.at += 1;
            match octet {
                b'"' => return Some(content),
                b'\\' => {
                    content.push(*self.data.get(self.at).filter(|o| b"\\\"".contains(o))?);
                    self.at += 1;
                }
                b'\r' | b'\n' | 0 => return None,
                octet => content.push(octet),
            }
        }
    }

    fn literal(&mut self) -> Option<usize> {
        self.eat(b"{")?;
        let octets = usize::try_from(self.number()?).ok()?;
        self.eat(b"}\r\n")?;
        self.at = self.at.checked_add(octets).filter(|&end| end < self.data.len())?;
        Some(octets)
    }

    /// A list of values, one space between them or none after a list.
    fn list(&mut self, depth: usize) -> Option<()> {
        self.eat(b"(")?;
        if depth > 60 {
            return None;
        }
        loop {
            match self.data.get(self.at)? {
                b')' => {
                    self.at += 1;
                    return Some(());
                }
                b' ' => self.at += 1,
                b'(' => self.list(depth + 1)?,
                b'"' => drop(self.quoted()?),
                b'{' => drop(self.literal()?),
                _ => drop(self.atom()?),
            }
        }
    }
}
