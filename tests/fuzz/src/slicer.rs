//! The slicer against four careless readers of MIME: what it cuts, all of them must cut alike; where they differ,
//! it must refuse. It may refuse more. And its index survives its own encoding, and any split of the message.

use imap_core::{
    item::ItemKey,
    mime::{Cut, SectionIndex, SectionIndexer, header_fields},
};
use std::{collections::BTreeMap, ops::Range};

/// A message; also read as an index that a disk gave back.
pub fn run(data: &[u8]) {
    let index = indexed(&[data]);
    assert_eq!(index, indexed(&data.chunks(1).collect::<Vec<_>>()), "octet by octet");
    assert_eq!(index, indexed(&data.chunks(13).collect::<Vec<_>>()), "in thirteens");
    assert_eq!(SectionIndex::from_octets(&index.to_octets()).as_ref(), Some(&index), "written and read");
    assert_eq!(index.octets(), data.len() as u64);
    let cut = |spec: &str| index.cut(&ItemKey::section(spec.as_bytes()).expect("a section"));
    assert_eq!(cut(""), Some(Cut::Range { offset: 0, octets: data.len() as u64 }));
    let careless =
        |prefix, last, closed| Careless { message: data, prefix, last, closed, cuts: BTreeMap::new() };
    let readers = [
        careless(false, false, false).read(),
        careless(true, false, false).read(),
        careless(false, true, false).read(),
        careless(false, false, true).read(),
    ];
    let mut specs: Vec<String> = readers.iter().flat_map(|cuts| cuts.keys().cloned()).collect();
    specs.extend(
        ["1.1.1", "2.MIME", "3", "9", "1.HEADER", "1.TEXT", "1.MIME", "HEADER", "TEXT"].map(str::to_owned),
    );
    specs.sort();
    specs.dedup();
    for spec in specs.iter().take(300) {
        let Some(Cut::Range { offset, octets }) = cut(spec) else { continue };
        let ours = usize::try_from(offset).unwrap()..usize::try_from(offset + octets).unwrap();
        for reader in &readers {
            assert_eq!(reader.get(spec), Some(&ours), "{spec} of {}", data.escape_ascii());
        }
    }
    if let Some(Cut::HeaderFields { header, names, not }) = cut("HEADER.FIELDS.NOT (SUBJECT X-A)") {
        let header = &data[usize::try_from(header.start).unwrap()..usize::try_from(header.end).unwrap()];
        assert!(not && names == ["SUBJECT", "X-A"]);
        let without = header_fields(header, &names, true);
        let with = header_fields(header, &names, false);
        assert_eq!(without, fields(header, &names, true));
        assert_eq!(with, fields(header, &names, false));
        assert_eq!(without.len() + with.len(), header.len() + 2, "each field is in one of them");
    }
    if let Some(foreign) = SectionIndex::from_octets(data) {
        for spec in ["", "HEADER", "TEXT", "1", "1.1", "2.MIME"] {
            let cut = foreign.cut(&ItemKey::section(spec.as_bytes()).expect("a section"));
            if let Some(Cut::Range { offset, octets }) = cut {
                assert!(offset.checked_add(octets).is_some_and(|end| end <= foreign.octets()), "{spec}");
            }
        }
    }
}

fn indexed(parts: &[&[u8]]) -> SectionIndex {
    let mut indexer = SectionIndexer::new();
    for part in parts {
        indexer.push(part);
    }
    indexer.finish()
}

/// Fields by names, line by line.
fn fields(header: &[u8], names: &[String], not: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let mut taking = false;
    for line in header.split_inclusive(|&o| o == b'\n') {
        if line == b"\r\n" {
            break;
        }
        if !line.starts_with(b" ") && !line.starts_with(b"\t") {
            let name =
                String::from_utf8_lossy(line.split(|&o| o == b':').next().unwrap()).to_ascii_uppercase();
            taking = names.contains(&name) != not;
        }
        if taking {
            out.extend_from_slice(line);
        }
    }
    out.extend_from_slice(b"\r\n");
    out
}

/// A reader that understands whatever it can.
struct Careless<'a> {
    message: &'a [u8],
    /// Takes a line for a delimiter that merely begins like one.
    prefix: bool,
    /// Takes the last boundary that it finds, not the first.
    last: bool,
    /// Gives no part of a multipart that does not end.
    closed: bool,
    cuts: BTreeMap<String, Range<usize>>,
}

impl Careless<'_> {
    fn read(mut self) -> BTreeMap<String, Range<usize>> {
        let all = 0..self.message.len();
        let body = self.body(&all);
        self.cuts.insert("HEADER".into(), 0..body);
        self.cuts.insert("TEXT".into(), body..all.end);
        if self.boundary(&(0..body)).is_some() {
            self.parts(&(0..all.end), body, "", 0);
        } else {
            self.cuts.insert("1".into(), body..all.end);
        }
        self.cuts
    }

    /// Where the body of the entity begins.
    fn body(&self, entity: &Range<usize>) -> usize {
        let octets = &self.message[entity.clone()];
        if octets.starts_with(b"\r\n") {
            return entity.start + 2;
        }
        octets.windows(4).position(|w| w == b"\r\n\r\n").map_or(entity.end, |at| entity.start + at + 4)
    }

    fn boundary(&self, header: &Range<usize>) -> Option<String> {
        let header: String = self.message[header.clone()].iter().map(|&o| char::from(o)).collect();
        let unfolded = header.replace("\r\n ", " ").replace("\r\n\t", " ");
        let mut types =
            unfolded.split("\r\n").filter(|line| line.to_ascii_lowercase().starts_with("content-type:"));
        let value = if self.last { types.last() } else { types.next() }?;
        let lower = value.to_ascii_lowercase();
        if !lower["content-type:".len()..].trim_start().starts_with("multipart/") {
            return None;
        }
        let is_name = |at: &usize| lower[..*at].ends_with([';', ' ', '\t']);
        let mut found = lower.match_indices("boundary=").map(|(at, _)| at).filter(is_name);
        let at = if self.last { found.last() } else { found.next() }? + "boundary=".len();
        let rest = &value[at..];
        let boundary = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split('"').next(),
            None => rest.split([';', ' ', '\t']).next(),
        };
        boundary.map(str::to_owned)
    }

    fn parts(&mut self, entity: &Range<usize>, body: usize, path: &str, depth: usize) {
        let Some(boundary) = self.boundary(&(entity.start..body)).filter(|_| depth < 60) else { return };
        let dashes = format!("--{boundary}")
            .chars()
            .filter_map(|c| u8::try_from(u32::from(c)).ok())
            .collect::<Vec<u8>>();
        let (mut at, mut number, mut begun) = (body, 0, None);
        while at < entity.end {
            let line = &self.message[at..entity.end];
            let octets = line.iter().position(|&o| o == b'\n').map_or(line.len(), |lf| lf + 1);
            let line = line[..octets].trim_ascii_end();
            let rest = line.strip_prefix(dashes.as_slice());
            if let Some(rest) = rest.filter(|rest| self.prefix || rest.is_empty() || *rest == b"--") {
                if let Some(start) = begun.take() {
                    self.part(start..at.saturating_sub(2).max(start), &format!("{path}{number}"), depth);
                }
                if rest.starts_with(b"--") {
                    return;
                }
                number += 1;
                begun = Some(at + octets);
            }
            at += octets;
        }
        if self.closed {
            self.cuts.retain(|spec, _| !(spec.starts_with(path) && spec.starts_with(char::is_numeric)));
        } else if let Some(start) = begun {
            self.part(start.min(entity.end)..entity.end, &format!("{path}{number}"), depth);
        }
    }

    fn part(&mut self, entity: Range<usize>, path: &str, depth: usize) {
        let body = self.body(&entity);
        self.cuts.insert(format!("{path}.MIME"), entity.start..body);
        self.cuts.insert(path.to_owned(), body..entity.end);
        self.parts(&entity, body, &format!("{path}."), depth + 1);
    }
}
