//! Walks the arguments of a client's command: atoms, quoted strings, literals that stand inline, groups in
//! parentheses (RFC 9051 §4). Says nothing about what they mean. Strict where a value's octets matter (two
//! readers that disagree about a user or a mailbox would mix up what belongs to whom), lenient elsewhere.

use bytes::Bytes;
use std::ops::Range;

/// A reader that only moves forward; every method that fails leaves it somewhere inside the command, and the
/// caller gives up on it.
#[derive(Clone)]
pub(crate) struct Arguments<'a> {
    octets: &'a Bytes,
    at: usize,
    /// Where the command's own line end begins.
    end: usize,
}

impl<'a> Arguments<'a> {
    /// Reads a whole command, its line end included.
    pub(crate) fn new(octets: &'a Bytes) -> Self {
        let line = octets.strip_suffix(b"\n").map_or(octets.as_ref(), |l| l.strip_suffix(b"\r").unwrap_or(l));
        Self { octets, at: 0, end: line.len() }
    }

    pub(crate) fn at(&self) -> usize {
        self.at
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.octets.get(self.at..self.end).unwrap_or_default()
    }

    pub(crate) fn is_at_end(&self) -> bool {
        self.at >= self.end
    }

    pub(crate) fn slice(&self, range: Range<usize>) -> Bytes {
        self.octets.get(range.clone()).map_or_else(Bytes::new, |_| self.octets.slice(range))
    }

    pub(crate) fn peek(&self) -> Option<u8> {
        self.rest().first().copied()
    }

    pub(crate) fn eat(&mut self, octet: u8) -> bool {
        let there = self.peek() == Some(octet);
        self.at += usize::from(there);
        there
    }

    /// Exactly one space, as the grammar wants between arguments.
    pub(crate) fn space(&mut self) -> Option<()> {
        self.eat(b' ').then_some(())
    }

    pub(crate) fn skip_spaces(&mut self) {
        while self.eat(b' ') {}
    }

    pub(crate) fn take_while(&mut self, wanted: impl Fn(u8) -> bool) -> Range<usize> {
        let from = self.at;
        self.at += self.rest().iter().take_while(|&&o| wanted(o)).count();
        from..self.at
    }

    /// Everything up to the next space or the end.
    pub(crate) fn word(&mut self) -> Range<usize> {
        self.take_while(|o| o != b' ')
    }

    /// A string's or atom's octets, unquoted. `None` also for what servers read differently: wrong escapes,
    /// characters that no atom may hold.
    pub(crate) fn astring(&mut self) -> Option<Bytes> {
        match self.peek()? {
            b'"' => self.quoted(),
            b'{' => self.literal().map(|range| self.slice(range)),
            _ => {
                let range = self.take_while(is_astring_octet);
                let ended = matches!(self.peek(), None | Some(b' ' | b')'));
                (ended && !range.is_empty()).then(|| self.slice(range))
            }
        }
    }

    fn quoted(&mut self) -> Option<Bytes> {
        let from = self.at + 1;
        let mut text = Vec::new();
        let mut plain = true;
        if !self.eat(b'"') {
            return None;
        }
        loop {
            let octet = self.peek()?;
            self.at += 1;
            match octet {
                b'"' if plain => return Some(self.slice(from..self.at - 1)),
                b'"' => return Some(Bytes::from(text)),
                b'\\' => {
                    if plain {
                        plain = false;
                        text = self.slice(from..self.at - 1).to_vec();
                    }
                    text.push(self.peek().filter(|o| matches!(o, b'"' | b'\\'))?);
                    self.at += 1;
                }
                b'\r' | b'\n' | 0 => return None,
                _ if plain => {}
                _ => text.push(octet),
            }
        }
    }

    /// `{n}` or `{n+}`, CRLF, and the n octets, all of which must be there.
    fn literal(&mut self) -> Option<Range<usize>> {
        if !self.eat(b'{') {
            return None;
        }
        let digits = self.take_while(|o| o.is_ascii_digit());
        let length: usize = std::str::from_utf8(self.octets.get(digits)?).ok()?.parse().ok()?;
        self.eat(b'+');
        (self.eat(b'}') && self.eat(b'\r') && self.eat(b'\n')).then_some(())?;
        let range = self.at..self.at.checked_add(length).filter(|&end| end <= self.end)?;
        self.at = range.end;
        Some(range)
    }

    /// Goes over a quoted string whatever its escapes are.
    fn skip_quoted(&mut self) -> Option<()> {
        self.eat(b'"').then_some(())?;
        loop {
            let octet = self.peek()?;
            self.at += 1;
            match octet {
                b'"' => return Some(()),
                b'\\' => self.at += usize::from(self.peek().is_some()),
                _ => {}
            }
        }
    }

    /// Goes over one balanced group from `open` to its `close`, with strings and literals in it.
    pub(crate) fn skip_group(&mut self, open: u8, close: u8) -> Option<Range<usize>> {
        let from = self.at;
        let mut depth = 0_usize;
        loop {
            let octet = self.peek()?;
            match octet {
                b'"' => self.skip_quoted()?,
                b'{' => self.literal().map(drop)?,
                _ => {
                    self.at += 1;
                    if octet == open {
                        depth += 1;
                    } else if octet == close {
                        depth = depth.checked_sub(1)?;
                    }
                }
            }
            if depth == 0 {
                return (self.at > from + 1).then_some(from..self.at);
            }
            if depth > DEPTH_MAX {
                return None;
            }
        }
    }

    /// Goes over one argument: a string, a literal (also `~{n}`), or an atom of any characters up to a space or
    /// a parenthesis. A group is none.
    pub(crate) fn skip_string(&mut self) -> Option<()> {
        match self.peek()? {
            b'"' => self.skip_quoted(),
            b'{' => self.literal().map(drop),
            b'~' if self.rest().starts_with(b"~{") => {
                self.at += 1;
                self.literal().map(drop)
            }
            _ => {
                let range = self.take_while(|o| !matches!(o, b' ' | b'(' | b')' | b'"' | b'{'));
                let ended = matches!(self.peek(), None | Some(b' ' | b')'));
                (ended && !range.is_empty()).then_some(())
            }
        }
    }
}

/// `ASTRING-CHAR`, and octets above 127, which old clients send unquoted and which can mean nothing else.
pub(crate) fn is_astring_octet(octet: u8) -> bool {
    octet > b' ' && octet != 0x7f && !matches!(octet, b'(' | b')' | b'{' | b'%' | b'*' | b'"' | b'\\')
}

/// Upper case of ASCII, without a copy where there is nothing to change.
pub(crate) fn upper(octets: Bytes) -> Bytes {
    if octets.iter().any(u8::is_ascii_lowercase) { octets.to_ascii_uppercase().into() } else { octets }
}

/// Groups nest three deep in any client's command (SEARCH can go further); counted, never recursed into.
pub(crate) const DEPTH_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn astring(text: &'static [u8]) -> Option<Vec<u8>> {
        Arguments::new(&Bytes::from_static(text)).astring().map(|octets| octets.to_vec())
    }

    #[test]
    fn strings_are_unquoted() {
        assert_eq!(astring(b"abc]d x\r\n").as_deref(), Some(&b"abc]d"[..]));
        assert_eq!(astring(b"\"a b\" x\r\n").as_deref(), Some(&b"a b"[..]));
        assert_eq!(astring(b"\"a\\\"b\\\\c\"\n").as_deref(), Some(&b"a\"b\\c"[..]));
        assert_eq!(astring(b"{4}\r\na\r\nb c\r\n").as_deref(), Some(&b"a\r\nb"[..]));
        assert_eq!(astring(b"{0+}\r\n\r\n").as_deref(), Some(&b""[..]));
        assert_eq!(astring(b"\"\"").as_deref(), Some(&b""[..]));
    }

    #[test]
    fn what_servers_may_read_differently_is_no_string() {
        for odd in [
            &b"\r\n"[..],
            b"a%",
            b"a{3}\r\nabc",
            b"\"a\\bc\"",
            b"\"a",
            b"{3}\nabc",
            b"{3}\r\nab\r\n",
            b"(a)",
            b"a\\b",
        ] {
            assert_eq!(astring(odd), None, "{:?}", odd.escape_ascii().to_string());
        }
        assert_eq!(astring(b"{99999999999999999999}\r\nx\r\n"), None);
    }

    #[test]
    fn groups_hide_what_looks_like_their_end() {
        let group = |text: &'static [u8]| {
            let octets = Bytes::from_static(text);
            Arguments::new(&octets).skip_group(b'(', b')').map(|range| range.len())
        };
        assert_eq!(group(b"(a (b) \")\" {1}\r\n)) x\r\n"), Some(18));
        assert_eq!(group(b"(a"), None);
        assert_eq!(group(b"x"), None);
        assert_eq!(group(&[b'('; 1000]), None);
    }
}
