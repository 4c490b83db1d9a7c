//! Reads IMAP in the plainest way: a whole command or response out of a buffer, words out of that. Neither shares a
//! line with what is tested.

/// Takes a whole line with its literals off the front of `buffer`; `None` while it is not complete. `asks` is given
/// the length of a literal that waits for leave to come. In text, `{5}` is no literal.
pub(crate) fn take_message(buffer: &mut Vec<u8>, client: bool, asks: &mut Option<usize>) -> Option<Vec<u8>> {
    message_end(buffer, client, asks).map(|end| buffer.drain(..end).collect())
}

/// Where the first line of `buffer` ends, its literals and what stands behind them taken in.
pub(crate) fn message_end(buffer: &[u8], client: bool, asks: &mut Option<usize>) -> Option<usize> {
    let word = buffer.split(|o| *o == b' ').nth(1).unwrap_or_default().trim_ascii();
    let is_text = !client
        && (buffer.starts_with(b"+")
            || [&b"OK"[..], b"NO", b"BAD", b"BYE"].iter().any(|w| word.eq_ignore_ascii_case(w)));
    let mut at = 0;
    loop {
        let line = line_end(&buffer[at..])?;
        let text = &buffer[at..at + line];
        at += line + 2;
        let Some(octets) = literal(text).filter(|_| !is_text) else {
            return Some(at);
        };
        if buffer.len() < at + octets {
            let waits = buffer.len() == at && !buffer.ends_with(b"+}\r\n");
            *asks = waits.then_some(octets);
            return None;
        }
        at += octets;
    }
}

/// Where the first CRLF begins.
fn line_end(octets: &[u8]) -> Option<usize> {
    let mut from = 0;
    loop {
        let at = from + octets[from..].iter().position(|o| *o == b'\r')?;
        match octets.get(at + 1) {
            Some(b'\n') => return Some(at),
            Some(_) => from = at + 1,
            None => return None,
        }
    }
}

fn literal(line: &[u8]) -> Option<usize> {
    let inside = line.strip_suffix(b"}")?;
    let open = inside.iter().rposition(|o| *o == b'{')?;
    let digits = inside[open + 1..].strip_suffix(b"+").unwrap_or(&inside[open + 1..]);
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// A value as it stands, and what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Value {
    pub(crate) raw: Vec<u8>,
    /// `None` for NIL.
    pub(crate) content: Option<Vec<u8>>,
}

/// Words of a command or a list: atoms (with brackets and what is in them), strings, groups in parentheses.
pub(crate) fn words(mut octets: &[u8]) -> Vec<Value> {
    let mut all = Vec::new();
    loop {
        while octets.starts_with(b" ") {
            octets = &octets[1..];
        }
        if octets.is_empty() || octets.starts_with(b"\r\n") || octets.starts_with(b")") {
            return all;
        }
        let (value, rest) = word(octets);
        all.push(value);
        octets = rest;
    }
}

fn word(octets: &[u8]) -> (Value, &[u8]) {
    match octets[0] {
        b'"' => {
            let (mut at, mut content) = (1, Vec::new());
            while octets[at] != b'"' {
                at += usize::from(octets[at] == b'\\');
                content.push(octets[at]);
                at += 1;
            }
            (Value { raw: octets[..=at].to_vec(), content: Some(content) }, &octets[at + 1..])
        }
        b'{' => {
            let line = octets.windows(2).position(|two| two == b"\r\n").expect("a literal's line ends");
            let count = literal(&octets[..line]).expect("a literal's length");
            let end = line + 2 + count;
            let content = octets[line + 2..end].to_vec();
            (Value { raw: octets[..end].to_vec(), content: Some(content) }, &octets[end..])
        }
        b'(' => {
            let mut rest = &octets[1..];
            loop {
                match rest[0] {
                    b')' => break,
                    b' ' => rest = &rest[1..],
                    _ => rest = word(rest).1,
                }
            }
            let end = octets.len() - rest.len() + 1;
            let raw = octets[..end].to_vec();
            (Value { content: Some(raw.clone()), raw }, &octets[end..])
        }
        _ => {
            let (mut at, mut bracket) = (0, false);
            while at < octets.len() && (bracket || !b" ()\r".contains(&octets[at])) {
                bracket = (bracket || octets[at] == b'[') && octets[at] != b']';
                at += 1;
            }
            assert!(at > 0, "no word in {}", octets.escape_ascii());
            let raw = octets[..at].to_vec();
            let content = (!raw.eq_ignore_ascii_case(b"NIL")).then(|| raw.clone());
            (Value { raw, content }, &octets[at..])
        }
    }
}

pub(crate) fn text(octets: &[u8]) -> String {
    String::from_utf8_lossy(octets).into_owned()
}

/// The numbers of a set, `*` being `largest`.
pub(crate) fn numbers(set: &str, largest: u32) -> Vec<u32> {
    let mut all = Vec::new();
    for piece in set.split(',') {
        let bound = |text: &str| if text == "*" { largest } else { text.parse().expect("a number") };
        let (a, b) =
            piece.split_once(':').map_or_else(|| (bound(piece), bound(piece)), |(a, b)| (bound(a), bound(b)));
        all.extend(a.min(b)..=a.max(b).min(a.min(b) + 5000));
    }
    all.sort_unstable();
    all.dedup();
    all
}
