//! The framer against a reader that goes octet by octet over the whole input: the same frames in whatever way the
//! input is split, the input back in their octets, and the same decision on each `{n}` at a line's end.

use crate::Random;
use bytes::Bytes;
use imap_core::framer::{Direction, Frame, FrameError, Framer};

/// Octets from a client, as commands and as lines that hold no literals.
pub fn run_client(data: &[u8]) {
    check(Direction::FromClient, false, data);
    check(Direction::FromClient, true, data);
}

/// Octets from a server.
pub fn run_server(data: &[u8]) {
    check(Direction::FromServer, false, data);
}

/// What came, with chunks joined, so that the split of the input cannot show.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Literal { piece: Vec<u8>, octets: u64, binary: bool, nonsync: bool },
    Chunk(Vec<u8>),
    End(Vec<u8>),
    Overlong(Vec<u8>),
    Error(Fault),
}

#[derive(Debug, PartialEq, Eq)]
enum Fault {
    BadLiteral,
    Nul,
    TooLong,
}

fn check(direction: Direction, raw: bool, data: &[u8]) {
    let whole = framed(direction, raw, &[data]);
    let slow = data.len() <= SLOW_OCTETS_MAX;
    if slow {
        assert_eq!(whole, slowly(direction, raw, data), "{direction:?} raw={raw} {}", data.escape_ascii());
    }
    let mut back: Vec<u8> = Vec::new();
    for seen in &whole {
        match seen {
            Seen::Literal { piece: o, .. } | Seen::Chunk(o) | Seen::End(o) | Seen::Overlong(o) => {
                back.extend(o)
            }
            Seen::Error(_) => {}
        }
    }
    let held = data.strip_prefix(back.as_slice()).expect("the frames are the input");
    let failed = matches!(whole.last(), Some(Seen::Error(_)));
    assert!(failed || !held.contains(&b'\n'), "a complete line is held");
    let same = |parts: &[&[u8]]| {
        assert_eq!(framed(direction, raw, parts), whole, "{direction:?} split in {} parts", parts.len());
    };
    same(&data.chunks(1).collect::<Vec<_>>());
    let mut random = Random::new(data.len() as u64);
    for at in 1..data.len() {
        if data.len() <= 128 || at.is_multiple_of(data.len() / 64 + 1) {
            let (a, b) = data.split_at(at);
            same(&[a, b]);
        }
    }
    for _ in 0..4 {
        let mut cuts: Vec<usize> = (0..random.below(8)).map(|_| random.below(data.len() + 1)).collect();
        cuts.extend([0, data.len()]);
        cuts.sort_unstable();
        same(&cuts.windows(2).map(|w| &data[w[0]..w[1]]).collect::<Vec<_>>());
    }
}

fn framed(direction: Direction, raw: bool, inputs: &[&[u8]]) -> Vec<Seen> {
    let mut framer = Framer::new(direction);
    framer.set_raw_lines(raw);
    let mut all: Vec<Seen> = Vec::new();
    for input in inputs {
        let mut input = Bytes::copy_from_slice(input);
        loop {
            let next = match framer.next(&mut input) {
                Ok(None) => break,
                Ok(Some(Frame::Literal { piece, octets, binary, nonsync })) => {
                    Seen::Literal { piece: piece.to_vec(), octets, binary, nonsync }
                }
                Ok(Some(Frame::Chunk(octets))) => Seen::Chunk(octets.to_vec()),
                Ok(Some(Frame::End { piece })) => Seen::End(piece.to_vec()),
                Ok(Some(Frame::Overlong { piece })) => Seen::Overlong(piece.to_vec()),
                Err(error) => {
                    assert_eq!(framer.next(&mut input), Err(error), "an error lasts");
                    // How much of an overlong line came out before its bad end depends on the split.
                    if matches!(all.last(), Some(Seen::Overlong(_))) {
                        all.pop();
                    }
                    all.push(Seen::Error(match error {
                        FrameError::BadLiteral(_) => Fault::BadLiteral,
                        FrameError::Nul => Fault::Nul,
                        _ => Fault::TooLong,
                    }));
                    return all;
                }
            };
            match (all.last_mut(), next) {
                (Some(Seen::Chunk(had)), Seen::Chunk(more))
                | (Some(Seen::Overlong(had)), Seen::Overlong(more) | Seen::End(more)) => had.extend(more),
                (_, next) => all.push(next),
            }
        }
        assert!(input.is_empty(), "asked for more with input left");
    }
    all
}

/// What a line's end says to a reader who looks for a literal.
enum Ending {
    Text,
    Literal { octets: u64, binary: bool, nonsync: bool },
    Doubtful,
}

fn slowly(direction: Direction, raw: bool, data: &[u8]) -> Vec<Seen> {
    let mut all = Vec::new();
    let mut line: Vec<u8> = Vec::new();
    // What the first line of this response or command says about literals; none between two of them.
    let mut place: Option<Place> = None;
    let mut at = 0;
    while at < data.len() {
        let octet = data[at];
        at += 1;
        if octet == 0 {
            all.push(Seen::Error(Fault::Nul));
            return all;
        }
        line.push(octet);
        if octet != b'\n' {
            continue;
        }
        let here = *place.get_or_insert_with(|| match direction {
            Direction::FromClient if raw => Place::Text,
            Direction::FromClient => Place::Data,
            Direction::FromServer => server_place(&line),
        });
        match (here, ending(&line, direction == Direction::FromClient)) {
            (Place::Text, _) | (_, Ending::Text) => {
                all.push(Seen::End(std::mem::take(&mut line)));
                place = None;
            }
            (Place::Data, Ending::Literal { octets, binary, nonsync }) => {
                all.push(Seen::Literal { piece: std::mem::take(&mut line), octets, binary, nonsync });
                let end =
                    usize::try_from(octets).map_or(data.len(), |n| at.saturating_add(n)).min(data.len());
                if end > at {
                    all.push(Seen::Chunk(data[at..end].to_vec()));
                }
                at = end;
            }
            (_, Ending::Literal { .. } | Ending::Doubtful) => {
                all.push(Seen::Error(Fault::BadLiteral));
                return all;
            }
        }
    }
    all
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Human text, or a line of SASL: a `{5}` in it is text to everybody.
    Text,
    /// Data, in which everybody looks for literals.
    Data,
    /// Neither for sure.
    Odd,
}

/// Reads a server's first line as characters.
fn server_place(line: &[u8]) -> Place {
    let line: String = line.iter().map(|&o| char::from(o)).collect();
    let line = line.trim_end_matches(|c: char| c.is_ascii_whitespace());
    if line.starts_with('+') {
        return Place::Text;
    }
    let words: Vec<&str> = line.split(' ').collect();
    let word = |at: usize| words.get(at).copied().unwrap_or("").to_ascii_uppercase();
    let statuses = ["OK", "NO", "BAD", "BYE", "PREAUTH"];
    if statuses.contains(&word(1).as_str()) {
        return Place::Text;
    }
    let is_number = !word(1).is_empty() && word(1).chars().all(|c| c.is_ascii_digit());
    let name = if is_number { word(2) } else { word(1) };
    let numbers_and_atoms = [
        "CAPABILITY",
        "FLAGS",
        "SEARCH",
        "SORT",
        "THREAD",
        "ENABLED",
        "VANISHED",
        "EXISTS",
        "RECENT",
        "EXPUNGE",
    ];
    // `OK[ALERT]` is a status to a reader that does not need the space.
    let almost_status = statuses.iter().any(|s| {
        name.strip_prefix(s).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphanumeric()))
    });
    let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic());
    if word(0) == "*" && is_name && !almost_status && !numbers_and_atoms.contains(&name.as_str()) {
        Place::Data
    } else {
        Place::Odd
    }
}

/// Goes over the line once, forwards, and remembers the last brace and the quotes before it.
fn ending(line: &[u8], client: bool) -> Ending {
    let end = line.iter().rposition(|o| !o.is_ascii_whitespace()).map_or(0, |at| at + 1);
    let (text, line_end) = line.split_at(end);
    if text.last() != Some(&b'}') {
        return Ending::Text;
    }
    let (mut quoted, mut escaped, mut open) = (false, false, None);
    for (at, &octet) in text.iter().enumerate() {
        if octet == b'{' {
            open = Some((at, quoted));
        }
        match octet {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ => {}
        }
    }
    let Some((open, open_in_quotes)) = open else { return Ending::Text };
    let inside = &text[open + 1..text.len() - 1];
    if inside.iter().any(|o| !b"0123456789+- \t".contains(o)) {
        return Ending::Text;
    }
    // From here on somebody may read a literal; only the exact form is one to all.
    let inside = String::from_utf8_lossy(inside);
    let nonsync = inside.ends_with('+') && client;
    let digits = if nonsync { &inside[..inside.len() - 1] } else { &inside };
    let number = (1..=19).contains(&digits.len()) && digits.chars().all(|c| c.is_ascii_digit());
    let octets = digits.parse::<i64>().ok().filter(|_| number).and_then(|n| u64::try_from(n).ok());
    let binary = open > 0 && text[open - 1] == b'~';
    let before = if binary { open - 1 } else { open };
    let separated = before > 0 && b" (".contains(&text[before - 1]);
    match octets {
        Some(octets) if line_end == b"\r\n" && separated && !open_in_quotes => {
            Ending::Literal { octets, binary, nonsync }
        }
        _ => Ending::Doubtful,
    }
}

/// The slow reader knows no bound on a line.
const SLOW_OCTETS_MAX: usize = 60 * 1024;
