//! What a server said, read by code that shares nothing with Waypost: responses, FETCH items, digests of values.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};

/// One response of a server: lines and literals by turns, a line first and last.
#[derive(Debug)]
pub(crate) struct Response<'a> {
    pub(crate) pieces: Vec<&'a [u8]>,
    /// Octets of the stream that it takes.
    pub(crate) end: usize,
    /// Where its last literal ends, if it has one.
    pub(crate) literal_end: Option<usize>,
}

impl Response<'_> {
    /// Its first line, with the line's end.
    pub(crate) fn line(&self) -> &[u8] {
        self.pieces.first().copied().unwrap_or_default()
    }

    /// Its literals.
    pub(crate) fn literals(&self) -> impl Iterator<Item = &[u8]> {
        self.pieces.iter().skip(1).step_by(2).copied()
    }
}

/// The response at the start of a stream, or `None` while octets of it are missing.
pub(crate) fn response(stream: &[u8]) -> Option<Response<'_>> {
    let (mut pieces, mut at, mut literal_end) = (Vec::new(), 0, None);
    let may_hold_literals = stream.starts_with(b"* ");
    loop {
        let rest = stream.get(at..)?;
        let length = rest.windows(2).position(|pair| pair == b"\r\n")? + 2;
        let line = rest.get(..length)?;
        pieces.push(line);
        at += length;
        let Some(octets) = may_hold_literals.then(|| announced(line)).flatten() else {
            return Some(Response { pieces, end: at, literal_end });
        };
        let end = at.checked_add(octets)?;
        pieces.push(stream.get(at..end)?);
        (at, literal_end) = (end, Some(end));
    }
}

/// The length that a line's end announces: `{5}` or `~{5}`.
fn announced(line: &[u8]) -> Option<usize> {
    let inner = line.strip_suffix(b"}\r\n")?;
    let open = inner.iter().rposition(|octet| *octet == b'{')?;
    let digits = inner.get(open + 1..)?;
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Every value that a client was given, by `mailbox/uid/label`, and the last flags.
#[derive(Debug, Default, Clone)]
pub(crate) struct Values {
    whole: BTreeMap<String, String>,
    /// Parts of a value, by the offset they were asked from.
    parts: BTreeMap<String, BTreeMap<u64, Vec<u8>>>,
    flags: BTreeMap<String, String>,
    conflicts: Vec<String>,
    /// UIDs by mailbox and message sequence number, as far as the server has told them.
    uids: BTreeMap<(String, u32), String>,
}

/// What a server may change between two sessions without the message being another.
const VOLATILE: [&str; 3] = ["UID", "MODSEQ", "FLAGS"];

impl Values {
    /// Takes a response's values; anything but a FETCH has none.
    pub(crate) fn note(&mut self, mailbox: &str, response: &Response<'_>) -> anyhow::Result<()> {
        let Some((number, at)) = head(response.line(), b" FETCH ") else {
            if let Some((gone, _)) = head(response.line(), b" EXPUNGE") {
                self.expunge(mailbox, gone);
            }
            return Ok(());
        };
        let items = Reader { pieces: &response.pieces, piece: 0, at }.items()?;
        let place = (mailbox.to_owned(), number);
        if let Some((_, uid)) = items.iter().find(|(label, _)| label == "UID") {
            self.uids.insert(place.clone(), String::from_utf8_lossy(uid).into_owned());
        }
        let uid = self.uids.get(&place).cloned().unwrap_or_else(|| format!("msn{number}"));
        for (label, value) in &items {
            if label == "FLAGS" {
                let text = String::from_utf8_lossy(value).into_owned();
                let mut flags: Vec<&str> = text.trim_matches(['(', ')']).split_whitespace().collect();
                flags.retain(|flag| *flag != "\\Recent");
                flags.sort_unstable();
                self.flags.insert(format!("{mailbox}/{uid}"), flags.join(" "));
            }
            if VOLATILE.contains(&label.as_str()) {
                continue;
            }
            if let Some((base, offset)) = partial(label) {
                let parts = self.parts.entry(format!("{mailbox}/{uid}/{base}<>")).or_default();
                let longer = parts.get(&offset).is_none_or(|known| known.len() < value.len());
                if longer {
                    parts.insert(offset, value.clone());
                }
                continue;
            }
            let key = format!("{mailbox}/{uid}/{label}");
            let digest = hex(&Sha256::digest(value));
            if *self.whole.entry(key.clone()).or_insert_with(|| digest.clone()) != digest {
                self.conflicts.push(key);
            }
        }
        Ok(())
    }

    fn expunge(&mut self, mailbox: &str, gone: u32) {
        let numbered = std::mem::take(&mut self.uids).into_iter();
        self.uids = numbered
            .filter(|((name, number), _)| name != mailbox || *number != gone)
            .map(|((name, number), uid)| {
                let number = if name == mailbox && number > gone { number - 1 } else { number };
                ((name, number), uid)
            })
            .collect();
    }

    /// Hands out what was noted and starts anew, still knowing which number is which message.
    pub(crate) fn take(&mut self) -> Self {
        let uids = self.uids.clone();
        std::mem::replace(self, Self { uids, ..Self::default() })
    }

    /// A digest for each value. Parts that join from the first octet on count as the value that they make up,
    /// however the client cut it.
    pub(crate) fn digests(&self) -> BTreeMap<String, String> {
        let mut digests = self.whole.clone();
        for (key, parts) in &self.parts {
            let (mut hash, mut reached, mut broken) = (Sha256::new(), 0u64, false);
            for (offset, octets) in parts {
                let length = u64::try_from(octets.len()).unwrap_or(u64::MAX);
                broken |= *offset > reached;
                let known = usize::try_from(reached.saturating_sub(*offset)).unwrap_or(usize::MAX);
                hash.update(octets.get(known..).unwrap_or_default());
                reached = reached.max(offset.saturating_add(length));
            }
            let key = if broken { format!("{key} with gaps") } else { key.clone() };
            digests.insert(key, hex(&hash.finalize()));
        }
        digests
    }

    /// Takes a value that came by another way than a FETCH.
    pub(crate) fn insert(&mut self, key: String, digest: String) {
        self.whole.insert(key, digest);
    }

    /// Those whose key counts; flags are left out.
    pub(crate) fn only(mut self, counts: &dyn Fn(&str) -> bool) -> Self {
        self.whole.retain(|key, _| counts(key));
        self.parts.retain(|key, _| counts(key));
        self.conflicts.retain(|key| counts(key));
        self.flags.clear();
        self
    }

    /// The last flags seen, by `mailbox/uid`.
    pub(crate) const fn flags(&self) -> &BTreeMap<String, String> {
        &self.flags
    }

    /// Values that changed within one session: always a fault.
    pub(crate) fn conflicts(&self) -> &[String] {
        &self.conflicts
    }

    /// Takes another session's values in.
    pub(crate) fn merge(&mut self, other: Self) {
        for (key, digest) in other.whole {
            if *self.whole.entry(key.clone()).or_insert_with(|| digest.clone()) != digest {
                self.conflicts.push(key);
            }
        }
        for (key, parts) in other.parts {
            let known = self.parts.entry(key).or_default();
            for (offset, octets) in parts {
                if known.get(&offset).is_none_or(|have| have.len() < octets.len()) {
                    known.insert(offset, octets);
                }
            }
        }
        self.flags.extend(other.flags);
        self.conflicts.extend(other.conflicts);
    }
}

/// The message sequence number of a `* n WORD` line, and where the rest begins.
fn head(line: &[u8], word: &[u8]) -> Option<(u32, usize)> {
    let rest = line.strip_prefix(b"* ")?;
    let digits = rest.iter().take_while(|octet| octet.is_ascii_digit()).count();
    let number = std::str::from_utf8(rest.get(..digits)?).ok()?.parse().ok()?;
    let found = rest.get(digits..digits + word.len())?;
    found.eq_ignore_ascii_case(word).then_some((number, 2 + digits + word.len()))
}

/// `BODY[1]<65536>` is 65536 octets into `BODY[1]`.
fn partial(label: &str) -> Option<(&str, u64)> {
    let (base, offset) = label.strip_suffix('>')?.rsplit_once('<')?;
    Some((base, offset.parse().ok()?))
}

/// Splits a FETCH response into labels and values. A string's value is its content, quoted or literal; any other
/// value is its octets, with each string inside replaced by its length and content.
struct Reader<'a> {
    pieces: &'a [&'a [u8]],
    piece: usize,
    at: usize,
}

impl Reader<'_> {
    fn items(mut self) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
        let mut items = Vec::new();
        self.expect(b'(')?;
        loop {
            self.skip_spaces();
            if self.peek() == Some(b')') {
                return Ok(items);
            }
            let label = self.label()?;
            self.skip_spaces();
            items.push((label, self.value()?));
        }
    }

    fn line(&self) -> &[u8] {
        self.pieces.get(self.piece).copied().unwrap_or_default()
    }

    fn peek(&self) -> Option<u8> {
        self.line().get(self.at).copied()
    }

    fn expect(&mut self, octet: u8) -> anyhow::Result<()> {
        self.skip_spaces();
        if self.peek() != Some(octet) {
            bail!("no {:?} where it must stand in {}", char::from(octet), self.excerpt());
        }
        self.at += 1;
        Ok(())
    }

    fn skip_spaces(&mut self) {
        while self.peek() == Some(b' ') {
            self.at += 1;
        }
    }

    fn excerpt(&self) -> String {
        let from = self.at.saturating_sub(40);
        let part = self.line().get(from..).unwrap_or_default();
        String::from_utf8_lossy(part.get(..80.min(part.len())).unwrap_or_default()).into_owned()
    }

    fn label(&mut self) -> anyhow::Result<String> {
        let (start, mut depth) = (self.at, 0usize);
        while let Some(octet) = self.peek() {
            match octet {
                b'[' => depth += 1,
                b']' => depth = depth.saturating_sub(1),
                b' ' | b'\r' if depth == 0 => break,
                _ => {}
            }
            self.at += 1;
        }
        let text = self.line().get(start..self.at).unwrap_or_default();
        if text.is_empty() {
            bail!("no item's label in {}", self.excerpt());
        }
        Ok(String::from_utf8_lossy(text).to_ascii_uppercase())
    }

    fn value(&mut self) -> anyhow::Result<Vec<u8>> {
        match self.peek() {
            Some(b'"') => self.quoted(),
            Some(b'{' | b'~') => self.literal(),
            Some(b'(') => self.list(),
            _ => {
                let start = self.at;
                while self.peek().is_some_and(|octet| !matches!(octet, b' ' | b')' | b'\r')) {
                    self.at += 1;
                }
                let text = self.line().get(start..self.at).unwrap_or_default().to_vec();
                if text.is_empty() {
                    bail!("no value in {}", self.excerpt());
                }
                Ok(text)
            }
        }
    }

    fn quoted(&mut self) -> anyhow::Result<Vec<u8>> {
        let mut out = Vec::new();
        self.at += 1;
        loop {
            let octet = self.peek().with_context(|| format!("an open quoted string: {}", self.excerpt()))?;
            self.at += 1;
            match octet {
                b'"' => return Ok(out),
                b'\\' => {
                    out.extend(self.peek());
                    self.at += 1;
                }
                _ => out.push(octet),
            }
        }
    }

    fn literal(&mut self) -> anyhow::Result<Vec<u8>> {
        let octets = self.pieces.get(self.piece + 1).context("a literal that is not there")?.to_vec();
        (self.piece, self.at) = (self.piece + 2, 0);
        Ok(octets)
    }

    /// Iterative: a server may nest as deep as it likes.
    fn list(&mut self) -> anyhow::Result<Vec<u8>> {
        let (mut out, mut depth) = (Vec::new(), 0usize);
        loop {
            let octet = self.peek().with_context(|| format!("an open list: {}", self.excerpt()))?;
            match octet {
                b'(' => depth += 1,
                b')' => depth -= 1,
                b'"' | b'{' => {
                    let content = if octet == b'"' { self.quoted()? } else { self.literal()? };
                    out.extend(format!("s{}:", content.len()).into_bytes());
                    out.extend(content);
                    continue;
                }
                b'\r' => bail!("an open list: {}", self.excerpt()),
                _ => {}
            }
            out.push(octet);
            self.at += 1;
            if depth == 0 {
                return Ok(out);
            }
        }
    }
}

/// Hexadecimal digits.
pub(crate) fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(stream: &[u8]) -> Values {
        let (mut values, mut at) = (Values::default(), 0);
        while let Some(response) = response(&stream[at..]) {
            values.note("INBOX", &response).unwrap();
            at += response.end;
        }
        assert_eq!(at, stream.len());
        values
    }

    #[test]
    fn a_literal_that_looks_like_a_tagged_line_stays_a_literal() {
        let stream = b"* 1 FETCH (UID 7 BODY[] {14}\r\na1 OK done\r\n.. FLAGS (\\Seen))\r\na1 OK done\r\n";
        let first = response(stream).unwrap();
        assert_eq!(first.end, stream.len() - 12);
        let values = noted(stream);
        assert_eq!(values.flags()["INBOX/7"], "\\Seen");
        assert_eq!(values.digests()["INBOX/7/BODY[]"], hex(&Sha256::digest(b"a1 OK done\r\n..")));
    }

    #[test]
    fn quoted_and_literal_strings_with_the_same_content_have_the_same_digest() {
        let quoted = noted(b"* 1 FETCH (UID 7 BODY[1] \"a\\\"b\" ENVELOPE (\"x\" NIL))\r\n");
        let literal = noted(b"* 1 FETCH (UID 7 BODY[1] {3}\r\na\"b ENVELOPE ({1}\r\nx NIL))\r\n");
        assert_eq!(quoted.digests(), literal.digests());
    }

    #[test]
    fn chunks_cut_differently_are_the_same_value_and_a_flipped_octet_is_another() {
        let two = noted(b"* 1 FETCH (UID 7 BODY[]<0> \"abc\")\r\n* 1 FETCH (UID 7 BODY[]<3> \"def\")\r\n");
        let other = noted(b"* 1 FETCH (UID 7 BODY[]<0> \"abcd\")\r\n* 1 FETCH (UID 7 BODY[]<4> \"ef\")\r\n");
        assert_eq!(two.digests(), other.digests());
        let flipped =
            noted(b"* 1 FETCH (UID 7 BODY[]<0> \"abcd\")\r\n* 1 FETCH (UID 7 BODY[]<4> \"eg\")\r\n");
        assert_ne!(two.digests(), flipped.digests());
    }

    #[test]
    fn a_value_that_changes_within_a_session_is_a_conflict() {
        let values = noted(b"* 1 FETCH (UID 7 BODY[] \"abc\")\r\n* 1 FETCH (UID 7 BODY[] \"abd\")\r\n");
        assert_eq!(values.conflicts(), ["INBOX/7/BODY[]"]);
    }

    #[test]
    fn flags_without_a_uid_belong_to_the_message_with_that_number() {
        let values = noted(
            b"* 1 FETCH (UID 7 FLAGS ())\r\n* 2 FETCH (UID 9 FLAGS ())\r\n* 1 EXPUNGE\r\n\
              * 1 FETCH (FLAGS (\\Seen \\Recent))\r\n",
        );
        assert_eq!(values.flags()["INBOX/9"], "\\Seen");
        assert_eq!(values.flags().len(), 2);
    }

    #[test]
    fn a_cut_response_is_not_read() {
        assert!(response(b"* 1 FETCH (BODY[] {5}\r\nab").is_none());
        assert!(response(b"* OK hal").is_none());
        assert!(response(b"a1 NO x{5}\r\n").is_some());
    }
}
