//! Reads a header block for one question: what is in the body, and are all readers sure of it?

use super::BOUNDARY_OCTETS_MAX;

/// What a body is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Leaf,
    Multipart {
        boundary: Vec<u8>,
        /// Its parts are messages unless they say otherwise (RFC 2046 §5.1.5).
        digest: bool,
    },
    /// message/rfc822 without encoding.
    Message,
}

/// Where a header block stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A message, where MIME-Version says that MIME is meant at all (RFC 2045 §4).
    Message,
    /// A part of a multipart.
    Part {
        /// Of multipart/digest.
        digest: bool,
    },
}

/// The fields of a header block, folded lines and line ends included, up to the empty line.
pub(super) fn fields(mut block: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        if block.is_empty() || block.starts_with(b"\r\n") || block.starts_with(b"\n") {
            return None;
        }
        let folded = |end: usize| matches!(block.get(end), Some(b' ' | b'\t'));
        let end = memchr::memchr_iter(b'\n', block).map(|lf| lf + 1).find(|end| !folded(*end));
        let (field, rest) = block.split_at(end.unwrap_or(block.len()));
        block = rest;
        Some(field)
    })
}

/// Every line is a field's beginning, `ftext ":"` (RFC 5322 §3.6.8, no space before the colon), or folded.
pub(super) fn is_well_formed(block: &[u8]) -> bool {
    fields(block).all(|field| {
        let name = field.iter().take_while(|octet| matches!(octet, b'!'..=b'9' | b';'..=b'~')).count();
        name > 0 && field.get(name) == Some(&b':')
    })
}

/// Has only `Content-` fields and MIME-Version (RFC 2045 §3 and §9).
pub(super) fn is_mime_only(block: &[u8]) -> bool {
    fields(block).all(|field| {
        [&b"Content-"[..], b"MIME-Version:"]
            .iter()
            .any(|start| field.get(..start.len()).is_some_and(|found| found.eq_ignore_ascii_case(start)))
    })
}

/// What the body behind this header block is; `None` if readers may differ.
pub(super) fn content(block: &[u8], place: Place) -> Option<Content> {
    let mut types = values(block, b"Content-Type");
    let content = match (types.next(), place) {
        (None, Place::Message | Place::Part { digest: false }) => Content::Leaf,
        (None, Place::Part { digest: true }) => Content::Message,
        (Some(value), place) => media_type(value, place)?,
    };
    if types.next().is_some() {
        return None;
    }
    if content == Content::Leaf {
        return Some(content);
    }
    let mut encodings = values(block, b"Content-Transfer-Encoding").map(trimmed);
    let plain = |encoding: &[u8]| {
        [&b"7bit"[..], b"8bit", b"binary"].iter().any(|plain| plain.eq_ignore_ascii_case(encoding))
    };
    if !encodings.next().is_none_or(plain) || encodings.next().is_some() {
        return None;
    }
    if place == Place::Message {
        let mut versions = values(block, b"MIME-Version").map(trimmed);
        let rest = versions.next()?.strip_prefix(b"1.0")?;
        if !matches!(rest.first(), None | Some(b' ' | b'\t' | b'(')) || versions.next().is_some() {
            return None;
        }
    }
    Some(content)
}

fn values<'a>(block: &'a [u8], name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    fields(block).filter_map(move |field| {
        let (found, value) = field.split_at_checked(name.len())?;
        if found.eq_ignore_ascii_case(name) { value.strip_prefix(b":") } else { None }
    })
}

fn media_type(value: &[u8], place: Place) -> Option<Content> {
    let parsed = || {
        let (kind, rest) = token(trimmed(value))?;
        let (subtype, rest) = token(rest.strip_prefix(b"/")?)?;
        let rest = rest.trim_ascii_start();
        (rest.is_empty() || rest.starts_with(b";")).then_some((kind, subtype, rest))
    };
    let Some((kind, subtype, parameters)) = parsed() else {
        // Not even a type. Readers agree on a leaf unless one of them could find more in it.
        let lower = value.to_ascii_lowercase();
        let more = |word| memchr::memmem::find(&lower, word).is_some();
        let leaf = !more(b"multipart") && !more(b"message") && place != Place::Part { digest: true };
        return leaf.then_some(Content::Leaf);
    };
    if kind.eq_ignore_ascii_case(b"multipart") {
        let digest = subtype.eq_ignore_ascii_case(b"digest");
        return boundary(parameters).map(|boundary| Content::Multipart { boundary, digest });
    }
    if kind.eq_ignore_ascii_case(b"message") {
        if subtype.eq_ignore_ascii_case(b"rfc822") {
            return Some(Content::Message);
        }
        // Some readers look into it as into message/rfc822 (RFC 6532 §3.7), others do not.
        if subtype.eq_ignore_ascii_case(b"global") {
            return None;
        }
    }
    Some(Content::Leaf)
}

/// The one boundary among parameters that follow RFC 2045 §5.1 to the letter: no comment, no RFC 2231 form,
/// nothing escaped.
fn boundary(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut found = None;
    while !rest.is_empty() {
        rest = rest.strip_prefix(b";")?.trim_ascii_start();
        if rest.is_empty() {
            break;
        }
        let (name, behind) = token(rest)?;
        let behind = behind.strip_prefix(b"=")?;
        let (value, behind) = match behind.strip_prefix(b"\"") {
            Some(quoted) => quoted_string(quoted)?,
            None => token(behind)?,
        };
        rest = behind.trim_ascii_start();
        if name.eq_ignore_ascii_case(b"boundary") {
            let plain = |octet: &u8| matches!(octet, b' '..=b'~') && *octet != b'\\';
            let fits = (1..=BOUNDARY_OCTETS_MAX).contains(&value.len());
            if found.is_some() || !fits || !value.iter().all(plain) || value.trim_ascii() != value {
                return None;
            }
            found = Some(value.to_vec());
        } else if name.get(..9).is_some_and(|start| start.eq_ignore_ascii_case(b"boundary*")) {
            return None;
        }
    }
    found
}

/// What stands before the closing quote, still escaped, and what behind it.
fn quoted_string(quoted: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut escaped = false;
    let end = quoted.iter().position(|octet| {
        let closes = *octet == b'"' && !escaped;
        escaped = *octet == b'\\' && !escaped;
        closes
    })?;
    let (value, rest) = quoted.split_at(end);
    Some((value, rest.strip_prefix(b"\"")?))
}

fn token(value: &[u8]) -> Option<(&[u8], &[u8])> {
    let is_token = |octet: &u8| octet.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?=".contains(octet);
    let octets = value.iter().take_while(|octet| is_token(octet)).count();
    (octets > 0).then(|| value.split_at(octets))
}

fn trimmed(value: &[u8]) -> &[u8] {
    value.trim_ascii()
}
