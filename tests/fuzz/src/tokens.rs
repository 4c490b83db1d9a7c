//! Cuts a client's command into its arguments in the plainest way, for comparison (RFC 9051 §9). It gives up on
//! whatever is not to the letter.

use std::ops::Range;

/// One argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    /// Where it stands, quotes and announcement included.
    pub(crate) span: Range<usize>,
    pub(crate) kind: TokenKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TokenKind {
    Atom,
    /// A quoted string's or a literal's content.
    String(Vec<u8>),
    /// What stands between parentheses.
    List(Vec<Token>),
}

impl Token {
    /// What it says, if it is no list.
    pub(crate) fn text(&self, octets: &[u8]) -> Option<Vec<u8>> {
        match &self.kind {
            TokenKind::Atom => Some(octets[self.span.clone()].to_vec()),
            TokenKind::String(text) => Some(text.clone()),
            TokenKind::List(_) => None,
        }
    }
}

/// The arguments of a whole command, tag and name first; `None` if any of it is not to the letter: one space
/// between arguments, atoms without control characters whose brackets balance.
pub(crate) fn tokens(octets: &[u8]) -> Option<Vec<Token>> {
    let line = octets.strip_suffix(b"\n").map_or(octets, |line| line.strip_suffix(b"\r").unwrap_or(line));
    let (mut at, end) = (0, line.len());
    // Only there a bracket holds more than a letter of a name.
    let mut words = line.split(|o| *o == b' ').skip(1).take(2);
    let items = words.any(|word| word.eq_ignore_ascii_case(b"FETCH"));
    let list = list(octets, &mut at, end, 0, items)?;
    (at == end).then_some(list)
}

fn list(octets: &[u8], at: &mut usize, end: usize, depth: usize, items: bool) -> Option<Vec<Token>> {
    let mut all = Vec::new();
    if depth > 30 {
        return None;
    }
    loop {
        if *at == end || octets[*at] == b')' {
            return (all.is_empty() || octets[*at - 1] != b' ').then_some(all);
        }
        let from = *at;
        let kind = match octets[*at] {
            b'(' => {
                *at += 1;
                let inside = list(octets, at, end, depth + 1, items)?;
                if *at == end {
                    return None;
                }
                *at += 1;
                TokenKind::List(inside)
            }
            b'"' => TokenKind::String(quoted(octets, at, end)?),
            b'{' => TokenKind::String(literal(octets, at, end)?),
            _ => {
                atom(octets, at, end, items)?;
                TokenKind::Atom
            }
        };
        all.push(Token { span: from..*at, kind });
        if *at < end && octets[*at] == b' ' {
            *at += 1;
        } else if *at < end && octets[*at] != b')' {
            return None;
        }
    }
}

fn quoted(octets: &[u8], at: &mut usize, end: usize) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    *at += 1;
    while *at < end {
        let octet = octets[*at];
        *at += 1;
        match octet {
            b'"' => return Some(text),
            b'\\' if *at < end && b"\"\\".contains(&octets[*at]) => {
                text.push(octets[*at]);
                *at += 1;
            }
            b'\\' | b'\r' | b'\n' | 0 => return None,
            octet => text.push(octet),
        }
    }
    None
}

fn literal(octets: &[u8], at: &mut usize, end: usize) -> Option<Vec<u8>> {
    let close = octets[*at..end].iter().position(|&o| o == b'}')? + *at;
    let digits = octets[*at + 1..close].strip_suffix(b"+").unwrap_or(&octets[*at + 1..close]);
    if digits.is_empty() || digits.len() > 6 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count: usize = String::from_utf8_lossy(digits).parse().ok()?;
    let start = close + 3;
    if start > end || &octets[close + 1..start] != b"\r\n" || start + count > end {
        return None;
    }
    *at = start + count;
    Some(octets[start..*at].to_vec())
}

/// An atom; to an item of a FETCH a section in brackets belongs, with the strings and parentheses in it.
fn atom(octets: &[u8], at: &mut usize, end: usize, items: bool) -> Option<()> {
    let from = *at;
    while *at < end {
        match octets[*at] {
            b'[' if items => {
                *at += 1;
                loop {
                    match octets[*at..end].first()? {
                        b']' => break,
                        b'"' => drop(quoted(octets, at, end)?),
                        b'{' | b'[' | 0..=31 | 127 => return None,
                        _ => *at += 1,
                    }
                }
                *at += 1;
            }
            b' ' | b')' => break,
            b'(' | b'"' | b'{' | 0..=31 | 127 => return None,
            _ => *at += 1,
        }
    }
    (*at > from).then_some(())
}
