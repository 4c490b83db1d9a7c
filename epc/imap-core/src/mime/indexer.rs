//! Reads a message as it streams by and notes where its sections lie. Holds one header block, the beginning of
//! one line and a few words per part, whatever the message's size.

use super::{
    Clean, DEPTH_MAX, HEADER_OCTETS_MAX, PARTS_MAX, Part, PartKind, SectionIndex,
    content_type::{self, Content, Place},
};
use crate::mutants;
use std::mem;

/// Indexes one message.
#[derive(Debug)]
pub struct SectionIndexer {
    octets: u64,
    /// What is not clean stays so; then octets are only counted.
    clean: bool,
    last: u8,
    /// CRs and LFs so far. Every LF follows a CR; if there are as many CRs, every CR is followed by an LF.
    crs: u64,
    lfs: u64,
    /// Octets of the message's header, once it has ended.
    header: Option<u64>,
    /// Whether lines still matter: a header is being read, or a delimiter may come.
    watching: bool,
    /// Where the line at hand begins.
    line_start: u64,
    /// The beginning of a line that is cut by the end of a push.
    line: Vec<u8>,
    line_octets: u64,
    /// The header block at hand, and where its last line begins.
    block: Vec<u8>,
    block_line: usize,
    /// The message and what is open in it; the last one is being read.
    open: Vec<Open>,
    parts: Vec<Part>,
    parts_seen: usize,
}

/// A message or part that has begun and not ended.
#[derive(Debug)]
struct Open {
    /// Its index in `parts`; none inside an embedded message, of which nothing is ever cut.
    part: Option<usize>,
    place: Place,
    start: u64,
    body: u64,
    reading: Reading,
}

#[derive(Debug)]
enum Reading {
    Header,
    Leaf,
    Multipart {
        boundary: Vec<u8>,
        digest: bool,
        parts: usize,
        /// Where the line of the close delimiter ends.
        closed: Option<u64>,
    },
    Message,
}

/// Readers may differ here: the structure is not to be trusted.
struct Refused;

impl Default for SectionIndexer {
    fn default() -> Self {
        Self::new()
    }
}

impl SectionIndexer {
    /// Before the first octet.
    #[must_use]
    pub fn new() -> Self {
        let message =
            Open { part: Some(0), place: Place::Message, start: 0, body: 0, reading: Reading::Header };
        Self {
            octets: 0,
            clean: true,
            last: 0,
            crs: 0,
            lfs: 0,
            header: None,
            watching: true,
            line_start: 0,
            line: Vec::new(),
            line_octets: 0,
            block: Vec::new(),
            block_line: 0,
            open: vec![message],
            parts: vec![Part { parent: 0, kind: PartKind::Leaf, mime_only: true, start: 0, body: 0, end: 0 }],
            parts_seen: 1,
        }
    }

    /// The next octets of the message.
    pub fn push(&mut self, octets: &[u8]) {
        if self.clean {
            self.scan(octets);
        }
        self.octets += octets.len() as u64;
    }

    /// The message has ended.
    #[must_use]
    pub fn finish(mut self) -> SectionIndex {
        if self.watching {
            // A delimiter without CRLF: Courier takes it for content.
            let is_whole = self.line_octets == self.line.len() as u64;
            if !matches!(self.delimiter(&self.line, is_whole), Ok(None)) {
                self.refuse();
            }
            if self.watching && self.end_open(0, self.octets).is_err() {
                self.refuse();
            }
        } else if let Some(message) = self.parts.first_mut() {
            // No delimiter could come, so whatever is open ends here.
            message.end = self.octets;
        }
        let header = self.header.filter(|_| self.crs == self.lfs || mutants::on("mime-bare-lf"));
        let clean = header.map(|header| Clean { header, parts: self.parts });
        SectionIndex { octets: self.octets, clean }
    }

    fn scan(&mut self, octets: &[u8]) {
        if memchr::memchr(0, octets).is_some() {
            return self.soil();
        }
        self.crs += memchr::memchr_iter(b'\r', octets).count() as u64;
        let mut start = 0;
        for lf in memchr::memchr_iter(b'\n', octets) {
            let before = if lf == 0 { Some(&self.last) } else { octets.get(lf - 1) };
            if before != Some(&b'\r') && !mutants::on("mime-bare-lf") {
                return self.soil();
            }
            self.lfs += 1;
            if self.watching {
                self.handle_line(octets.get(start..=lf).unwrap_or_default(), self.octets + lf as u64 + 1);
                if !self.clean {
                    return;
                }
            }
            start = lf + 1;
        }
        let rest = octets.get(start..).unwrap_or_default();
        if self.watching && !rest.is_empty() {
            self.keep(rest);
            self.line_octets += rest.len() as u64;
        }
        self.last = octets.last().copied().unwrap_or(self.last);
    }

    /// A line, or the end of one that was cut; `next` is where the next begins.
    fn handle_line(&mut self, octets: &[u8], next: u64) {
        let total = self.line_octets + octets.len() as u64;
        if self.line_octets == 0 && !octets.starts_with(b"--") && !self.in_header() {
            self.line_start = next;
            return;
        }
        let in_header = self.in_header();
        let mut line = mem::take(&mut self.line);
        let whole = if line.is_empty() && !in_header {
            octets.get(..LINE_OCTETS_MAX).unwrap_or(octets)
        } else {
            self.line = line;
            self.keep(octets);
            line = mem::take(&mut self.line);
            &line
        };
        if self.watching {
            let is_whole = total == whole.len() as u64;
            let content = if is_whole { whole.strip_suffix(b"\r\n").unwrap_or(whole) } else { whole };
            self.end_line(content, is_whole, next);
        }
        line.clear();
        self.line = line;
        self.line_octets = 0;
        self.line_start = next;
        self.block_line = self.block.len();
    }

    /// Keeps what may be needed of a piece of a line.
    fn keep(&mut self, piece: &[u8]) {
        let room = LINE_OCTETS_MAX - self.line.len();
        self.line.extend_from_slice(piece.get(..room).unwrap_or(piece));
        if self.in_header() {
            if self.block.len() + piece.len() > HEADER_OCTETS_MAX {
                return self.refuse();
            }
            self.block.extend_from_slice(piece);
        }
    }

    /// A line without its CRLF; `is_whole` unless it was too long to keep.
    fn end_line(&mut self, line: &[u8], is_whole: bool, next: u64) {
        let done = match self.delimiter(line, is_whole) {
            Ok(Some((at, closes))) => self.handle_delimiter(at, closes, next),
            Ok(None) if line.is_empty() && self.in_header() => self.end_header(next),
            Ok(None) => Ok(()),
            Err(refused) => Err(refused),
        };
        if done.is_err() {
            self.refuse();
        }
    }

    /// Which open multipart's delimiter the line is, and whether it closes it. A line that merely begins like a
    /// delimiter, or like two, is one to some readers.
    fn delimiter(&self, line: &[u8], is_whole: bool) -> Result<Option<(usize, bool)>, Refused> {
        let Some(line) = line.strip_prefix(b"--") else { return Ok(None) };
        let mut found = None;
        for (at, open) in self.open.iter().enumerate() {
            let Reading::Multipart { boundary, .. } = &open.reading else { continue };
            let Some(rest) = line.strip_prefix(boundary.as_slice()) else { continue };
            let (closes, rest) = rest.strip_prefix(b"--").map_or((false, rest), |rest| (true, rest));
            let exact = is_whole && rest.iter().all(|octet| matches!(octet, b' ' | b'\t'));
            if mutants::on("mime-boundary-prefix") && !exact {
                continue;
            }
            if !exact || found.is_some() {
                return Err(Refused);
            }
            found = Some((at, closes));
        }
        Ok(found)
    }

    fn handle_delimiter(&mut self, at: usize, closes: bool, next: u64) -> Result<(), Refused> {
        // The CRLF before a delimiter belongs to it (RFC 2046 §5.1.1).
        self.end_open(at + 1, self.line_start.saturating_sub(2))?;
        let Some(Open { part, reading: Reading::Multipart { digest, parts, closed, .. }, .. }) =
            self.open.last_mut()
        else {
            return Err(Refused);
        };
        if closed.is_some() || (closes && *parts == 0) {
            return Err(Refused);
        }
        if closes {
            *closed = Some(next);
            return Ok(());
        }
        *parts += 1;
        let (parent, place) = (*part, Place::Part { digest: *digest });
        self.begin(parent, place, next)
    }

    fn begin(&mut self, parent: Option<usize>, place: Place, start: u64) -> Result<(), Refused> {
        self.parts_seen += 1;
        if self.open.len() >= DEPTH_MAX || self.parts_seen > PARTS_MAX {
            return Err(Refused);
        }
        let part = match parent.map(u16::try_from) {
            Some(Ok(parent)) => {
                self.parts.push(Part {
                    parent,
                    kind: PartKind::Odd,
                    mime_only: true,
                    start,
                    body: start,
                    end: start,
                });
                Some(self.parts.len() - 1)
            }
            Some(Err(_)) => return Err(Refused),
            None => None,
        };
        self.block.clear();
        self.open.push(Open { part, place, start, body: start, reading: Reading::Header });
        Ok(())
    }

    fn end_header(&mut self, next: u64) -> Result<(), Refused> {
        let is_message = self.open.len() == 1;
        if is_message {
            self.header = Some(next);
        }
        if !content_type::is_well_formed(&self.block) {
            if is_message {
                self.soil();
            }
            return Err(Refused);
        }
        let Some(open) = self.open.last_mut() else { return Err(Refused) };
        let content = content_type::content(&self.block, open.place).ok_or(Refused)?;
        open.body = next;
        let kind = match content {
            _ if self.block == b"\r\n" && open.place != Place::Message => PartKind::Odd,
            Content::Leaf => PartKind::Leaf,
            Content::Multipart { .. } => PartKind::Multipart,
            Content::Message => PartKind::Message,
        };
        if let Some(part) = open.part.and_then(|part| self.parts.get_mut(part)) {
            (part.kind, part.body) = (kind, next);
            part.mime_only = content_type::is_mime_only(&self.block);
        }
        open.reading = match content {
            Content::Leaf => Reading::Leaf,
            Content::Multipart { boundary, digest } => {
                Reading::Multipart { boundary, digest, parts: 0, closed: None }
            }
            Content::Message => Reading::Message,
        };
        if matches!(open.reading, Reading::Message) {
            self.begin(None, Place::Message, next)?;
        }
        self.block.clear();
        let multipart = |open: &Open| matches!(open.reading, Reading::Multipart { .. });
        self.watching = self.in_header() || self.open.iter().any(multipart);
        Ok(())
    }

    /// Ends everything that is open from `from` on.
    fn end_open(&mut self, from: usize, end: u64) -> Result<(), Refused> {
        for open in self.open.drain(from..) {
            if open.start > end {
                return Err(Refused);
            }
            let odd = match open.reading {
                // The empty line is missing, or its CRLF is the delimiter's as well.
                Reading::Header => {
                    // Without the delimiter itself.
                    let block = self.block.get(..self.block_line).unwrap_or_default();
                    let leaf = content_type::content(block, open.place) == Some(Content::Leaf);
                    if !leaf || !content_type::is_well_formed(block) {
                        return Err(Refused);
                    }
                    Some(PartKind::Odd)
                }
                Reading::Leaf => (open.body > end).then_some(PartKind::Odd),
                Reading::Multipart { closed: Some(closed), .. } => (closed > end).then_some(PartKind::Loose),
                Reading::Multipart { closed: None, .. } if mutants::on("mime-unclosed") => None,
                Reading::Multipart { closed: None, .. } => return Err(Refused),
                Reading::Message => None,
            };
            match (open.part.and_then(|part| self.parts.get_mut(part)), odd) {
                (Some(part), Some(PartKind::Odd)) => {
                    (part.kind, part.body, part.end) = (PartKind::Odd, end, end)
                }
                (Some(part), odd) => (part.kind, part.end) = (odd.unwrap_or(part.kind), end),
                // Inside an embedded message nothing is worth a doubt.
                (None, Some(PartKind::Odd)) => return Err(Refused),
                (None, _) => {}
            }
        }
        Ok(())
    }

    fn in_header(&self) -> bool {
        self.open.last().is_some_and(|open| matches!(open.reading, Reading::Header))
    }

    /// Nothing below the message's header and text can be cut.
    fn refuse(&mut self) {
        self.clean &= self.header.is_some();
        self.watching = false;
        self.parts.clear();
        self.open.clear();
        self.block = Vec::new();
        self.line = Vec::new();
    }

    /// Nothing but the whole can be cut.
    fn soil(&mut self) {
        self.header = None;
        self.refuse();
    }
}

/// The longest delimiter line with a little white space behind it; a longer line that begins like one is refused.
const LINE_OCTETS_MAX: usize = 256;
