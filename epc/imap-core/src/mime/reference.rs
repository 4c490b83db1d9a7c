//! The slicer against a second reader: whole message in memory, recursive, as simple as can be, with a generator
//! of messages that are nearly right. Where one refuses, so must the other.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// What the second reader cuts: spec between the brackets to range.
fn reference(m: &[u8]) -> BTreeMap<String, (usize, usize)> {
    let mut cuts = BTreeMap::from([(String::new(), (0, m.len()))]);
    if m.contains(&0)
        || m.iter().enumerate().any(|(at, octet)| *octet == b'\n' && (at == 0 || m[at - 1] != b'\r'))
    {
        return cuts;
    }
    if m.iter().enumerate().any(|(at, octet)| *octet == b'\r' && m.get(at + 1) != Some(&b'\n')) {
        return cuts;
    }
    let Some(header) = header_end(m, 0, m.len()) else { return cuts };
    if !well_formed(&m[..header]) {
        return cuts;
    }
    cuts.insert("HEADER".into(), (0, header));
    let mut reader = Reader { m, cuts: BTreeMap::new(), parts: 0 };
    if reader.read((0, m.len()), Some(""), 0, "text/plain", true, None).is_ok() {
        cuts.insert("TEXT".into(), (header, m.len()));
        cuts.append(&mut reader.cuts);
    }
    cuts
}

struct Bad;

struct Reader<'a> {
    m: &'a [u8],
    cuts: BTreeMap<String, (usize, usize)>,
    parts: usize,
}

impl<'a> Reader<'a> {
    /// `path` is none inside an embedded message; `behind` is the delimiter line that ends this range.
    fn read(
        &mut self,
        (start, end): (usize, usize),
        path: Option<&str>,
        depth: usize,
        default: &str,
        message: bool,
        behind: Option<&'a [u8]>,
    ) -> Result<(), Bad> {
        self.parts += 1;
        if depth >= 50 || self.parts > 1000 {
            return Err(Bad);
        }
        let Some(body) = header_end(self.m, start, end) else {
            // Readable for its siblings' sake, and never cut.
            let header = &self.m[start..(end + 2).min(self.m.len())];
            return match (content(header, default, message)?, path, well_formed(header)) {
                ((kind, _), Some(_), true) if kind == "leaf" => Ok(()),
                _ => Err(Bad),
            };
        };
        let header = &self.m[start..body];
        if !well_formed(header) {
            return Err(Bad);
        }
        let (kind, boundary) = content(header, default, message)?;
        let odd = header == b"\r\n" && !message;
        match path {
            Some("") if kind == "leaf" => {
                self.cuts.insert("1".into(), (body, end));
            }
            Some(path) if !path.is_empty() && !odd => {
                let mime = |line: &String| {
                    let line = line.to_ascii_lowercase();
                    line.starts_with(['\t', ' '])
                        || line.starts_with("content-")
                        || line.starts_with("mime-version:")
                };
                if lines(header).iter().all(mime) {
                    self.cuts.insert(format!("{path}.MIME"), (start, body));
                }
                if kind != "message" {
                    self.cuts.insert(path.into(), (body, end));
                }
            }
            _ => {}
        }
        match kind.as_str() {
            "leaf" => Ok(()),
            "message" => self.read((body, end), None, depth + 1, "text/plain", true, behind),
            _ => self.multipart((body, end), path, depth, &boundary, kind == "digest", behind),
        }
    }

    fn multipart(
        &mut self,
        (body, end): (usize, usize),
        path: Option<&str>,
        depth: usize,
        boundary: &str,
        digest: bool,
        behind: Option<&'a [u8]>,
    ) -> Result<(), Bad> {
        let dashes = format!("--{boundary}");
        // The delimiter of an outer multipart must not look like one of ours.
        if behind.is_some_and(|behind| behind.starts_with(dashes.as_bytes())) {
            return Err(Bad);
        }
        let mut delimiters = Vec::new();
        let mut at = body;
        while at < end {
            let next = self.m[at..end].iter().position(|octet| *octet == b'\n').map_or(end, |lf| at + lf + 1);
            let line = &self.m[at..next];
            if line.starts_with(dashes.as_bytes()) {
                // In the message the line has its CRLF even where this range has lost it.
                let octets = line.len() + if next == end && end < self.m.len() { 2 } else { 0 };
                let rest = String::from_utf8_lossy(&line[dashes.len()..]).into_owned();
                let rest = rest.strip_suffix("\r\n").unwrap_or(&rest);
                let closes = rest.starts_with("--");
                if octets > 256 || !rest[if closes { 2 } else { 0 }..].chars().all(|c| c == ' ' || c == '\t')
                {
                    return Err(Bad);
                }
                if next == self.m.len() && !line.ends_with(b"\r\n") {
                    return Err(Bad);
                }
                delimiters.push((at, next, closes));
            }
            at = next;
        }
        let Some(((_, _, true), parts)) = delimiters.split_last() else { return Err(Bad) };
        if parts.is_empty() || parts.iter().any(|(_, _, closes)| *closes) {
            return Err(Bad);
        }
        // The close delimiter's CRLF is the next delimiter's as well.
        if !self.m[body..end].ends_with(b"\r\n") && delimiters.last().unwrap().1 == end && end < self.m.len()
        {
            self.cuts.remove(path.unwrap_or_default());
        }
        for (n, pair) in delimiters.windows(2).enumerate() {
            let (start, end) = (pair[0].1, pair[1].0 - 2);
            if start > end {
                return Err(Bad);
            }
            let path = path.map(|path| format!("{path}{}{}", if path.is_empty() { "" } else { "." }, n + 1));
            let default = if digest { "message/rfc822" } else { "text/plain" };
            let behind = Some(&self.m[pair[1].0..]);
            self.read((start, end), path.as_deref(), depth + 1, default, false, behind)?;
        }
        Ok(())
    }
}

fn header_end(m: &[u8], start: usize, end: usize) -> Option<usize> {
    let range = &m[start..end];
    if range.starts_with(b"\r\n") {
        return Some(start + 2);
    }
    range.windows(4).position(|four| four == b"\r\n\r\n").map(|at| start + at + 4)
}

fn lines(header: &[u8]) -> Vec<String> {
    let text: String = header.iter().map(|octet| char::from(*octet)).collect();
    text.split_inclusive("\r\n").take_while(|line| *line != "\r\n").map(str::to_owned).collect()
}

fn well_formed(header: &[u8]) -> bool {
    header.len() <= 256 * 1024
        && lines(header).iter().enumerate().all(|(n, line)| {
            let name = line.split(':').next().unwrap();
            let fold = line.starts_with([' ', '\t']) && n > 0;
            fold || (line.contains(':') && !name.is_empty() && name.chars().all(|c| ('!'..='~').contains(&c)))
        })
}

/// Kind (leaf, message, multipart, digest) and boundary.
fn content(header: &[u8], default: &str, message: bool) -> Result<(String, String), Bad> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in lines(header) {
        if line.starts_with([' ', '\t']) {
            found.values_mut().for_each(|values| {
                if let Some(last) = values.last_mut().filter(|last| last.starts_with('>')) {
                    last.push_str(&line);
                }
            });
        } else {
            // '>' marks the field that a folded line belongs to.
            for value in found.values_mut().flatten() {
                *value = value.replacen('>', "<", 1);
            }
            let (name, value) = line.split_once(':').unwrap_or((&line, ""));
            found.entry(name.to_ascii_lowercase()).or_default().push(format!(">{value}"));
        }
    }
    let values = |name: &str| -> Vec<String> {
        found
            .get(name)
            .map(|values| values.iter().map(|v| v[1..].trim().to_owned()).collect())
            .unwrap_or_default()
    };
    let types = values("content-type");
    if types.len() > 1 {
        return Err(Bad);
    }
    let value = types.first().cloned().unwrap_or(default.to_owned());
    let lower = value.to_ascii_lowercase();
    let main = lower.split(';').next().unwrap().trim_end();
    let is_token = |s: &str| {
        !s.is_empty() && s.chars().all(|c| ('!'..='~').contains(&c) && !"()<>@,;:\\\"/[]?=".contains(c))
    };
    let kind = match main.split_once('/') {
        Some((main, sub)) if is_token(main) && is_token(sub) => match (main, sub) {
            ("multipart", "digest") => "digest",
            ("multipart", _) => "multipart",
            ("message", "rfc822") => "message",
            ("message", "global") => return Err(Bad),
            _ => return Ok(("leaf".into(), String::new())),
        },
        _ if default == "message/rfc822" || lower.contains("multipart") || lower.contains("message") => {
            return Err(Bad);
        }
        _ => return Ok(("leaf".into(), String::new())),
    };
    let encodings = values("content-transfer-encoding");
    if encodings.len() > 1
        || encodings.iter().any(|e| !["7bit", "8bit", "binary"].contains(&e.to_ascii_lowercase().as_str()))
    {
        return Err(Bad);
    }
    if message {
        let versions = values("mime-version");
        let [version] = versions.as_slice() else { return Err(Bad) };
        if version != "1.0"
            && !version.starts_with("1.0 ")
            && !version.starts_with("1.0(")
            && !version.starts_with("1.0\t")
        {
            return Err(Bad);
        }
    }
    if kind == "message" {
        return Ok((kind.into(), String::new()));
    }
    // Characters one by one.
    let mut boundaries = Vec::new();
    let mut rest: Vec<char> = value.chars().skip_while(|c| *c != ';').collect();
    while !rest.is_empty() {
        if rest.remove(0) != ';' {
            return Err(Bad);
        }
        while rest.first().is_some_and(|c| c.is_ascii_whitespace()) {
            rest.remove(0);
        }
        if rest.is_empty() {
            break;
        }
        let equals = rest.iter().position(|c| *c == '=').ok_or(Bad)?;
        let name: String = rest.drain(..=equals).take(equals).collect::<String>().to_ascii_lowercase();
        if !is_token(&name) || name.starts_with("boundary*") {
            return Err(Bad);
        }
        let mut value = String::new();
        if rest.first() == Some(&'"') {
            rest.remove(0);
            loop {
                match if rest.is_empty() { return Err(Bad) } else { rest.remove(0) } {
                    '"' => break,
                    '\\' if rest.is_empty() => return Err(Bad),
                    '\\' => value.extend(['\\', rest.remove(0)]),
                    other => value.push(other),
                }
            }
        } else {
            while rest.first().is_some_and(|c| is_token(&c.to_string())) {
                value.push(rest.remove(0));
            }
            if value.is_empty() {
                return Err(Bad);
            }
        }
        while rest.first().is_some_and(|c| c.is_ascii_whitespace()) {
            rest.remove(0);
        }
        if name == "boundary" {
            boundaries.push(value);
        }
    }
    let [boundary] = boundaries.as_slice() else { return Err(Bad) };
    let plain = boundary.chars().all(|c| (' '..='~').contains(&c) && c != '\\');
    if !plain || boundary.is_empty() || boundary.len() > 70 || boundary.trim() != boundary {
        return Err(Bad);
    }
    Ok((kind.into(), boundary.clone()))
}

/// Makes messages out of a list of choices: mostly right, now and then wrong in a way that some mailer is.
struct Generator<'a> {
    choices: std::slice::Iter<'a, u8>,
}

impl Generator<'_> {
    fn pick(&mut self, n: u8) -> u8 {
        self.choices.next().map_or(0, |choice| choice % n)
    }

    /// Once in `n`; never when the choices are used up.
    fn rarely(&mut self, n: u8) -> bool {
        self.pick(n) == n - 1
    }

    fn boundary(&mut self) -> String {
        match self.pick(72) {
            18 => "x".into(),
            19 => "xy".into(),
            20 => "a b".into(),
            21 => "q".repeat(usize::from(69 + self.pick(3))),
            22 => "x--".into(),
            23 => "=_b1_1".into(),
            n => format!("=_b{n}_{}", self.pick(200)),
        }
    }

    fn message(&mut self, depth: u8) -> String {
        let mut out = String::from("From: a@b\r\nSubject: t\r\n");
        if !self.rarely(30) {
            out += ["MIME-Version: 1.0\r\n", "Mime-Version:1.0 (x)\r\n", "MIME-Version: 2\r\n"]
                [usize::from(self.pick(29) / 14)];
        }
        match self.pick(60) {
            24 => out += "Subject : spaced\r\n",
            25 => out += "X-A: 1\r\nx-a: 2\r\n folded\r\n\tmore\r\nX-AB: 3\r\n",
            26 => out += "no field\r\n",
            27 => out += "X: caf\u{e9}\r\n",
            28 => out = format!(" fold\r\n{out}"),
            _ => {}
        }
        out + &self.entity(depth)
    }

    fn entity(&mut self, depth: u8) -> String {
        let odd = |this: &mut Self, out: &mut String| match this.pick(120) {
            45..=49 => *out += "X-Attachment-Id: 1\r\n",
            50 => *out += "Content-Type: text/plain\r\n",
            51 => *out += "Content-Transfer-Encoding: base64\r\n",
            52 => *out += "Content-Transfer-Encoding: 8BIT\r\n",
            53 => *out += "Content-Disposition: inline;\r\n\tfilename=\"a b\"\r\n",
            54 => *out += "odd line\r\n",
            _ => {}
        };
        let mut out = String::new();
        odd(self, &mut out);
        let kind = match (depth, self.pick(24)) {
            (0, n) => n % 12,
            (1..=4, n @ (0..=7 | 12)) => n,
            (_, n) => [0, 1, 4, 0, 1][usize::from(n % 5)],
        };
        match kind {
            0 => out += "Content-Type: text/plain; charset=utf-8; name=\"x (1).txt\"\r\n",
            1 => out += "content-type: application/pdf; name=no quotes.pdf\r\n",
            2 => {
                out += [
                    "Content-Type: text\r\n",
                    "Content-Type:\r\n",
                    "Content-Type: multipart\r\n",
                    "Content-Type: message/global\r\n",
                ][usize::from(self.pick(10) / 3)]
            }
            3 if !self.rarely(3) => return out + "\r\n" + &self.text(),
            3 | 4 => {}
            5..=6 => {
                out += "Content-Type: Message/RFC822\r\n";
                if self.rarely(60) {
                    out += "Content-Transfer-Encoding: base64\r\n";
                }
                return out + "\r\n" + &self.message(depth + 1);
            }
            _ => return out + &self.multipart(depth),
        }
        if !self.rarely(60) {
            out += "\r\n";
        }
        out + &self.text()
    }

    fn multipart(&mut self, depth: u8) -> String {
        let boundary = self.boundary();
        let sub = ["mixed", "alternative", "digest", "MIXED"][usize::from(self.pick(4))];
        let mut out = match self.pick(80) {
            24 => format!("Content-Type: multipart/{sub}; boundary*0={boundary}\r\n\r\n"),
            25 => format!("Content-Type: multipart/{sub}; (c) boundary=\"{boundary}\"\r\n\r\n"),
            26 => format!("Content-Type: multipart/{sub}; boundary={boundary}\r\n\r\n"),
            27 => format!("Content-Type: multipart/{sub}\r\n\r\n"),
            28 => format!("Content-Type: multipart/{sub}; boundary=\"{boundary}\"; boundary=\"x\"\r\n\r\n"),
            23 => format!("Content-Type: multipart/{sub}; boundary=\"{boundary}\" ;\r\n\r\n"),
            22 => format!("Content-Type: multipart/{sub}; boundary=\"{boundary}\\\"\"\r\n\r\n"),
            _ => format!(
                "Content-Type: multipart/{sub};\r\n\ttype=\"a \\\" b\"; BOUNDARY=\"{boundary}\"\r\n\r\n"
            ),
        };
        if self.rarely(3) {
            out += &self.text();
            out += "\r\n";
        }
        for _ in 0..[1, 2, 1, 3, 2, 1, 2, 4, 1, 2, 3, 1, 2, 1, 1, 0][usize::from(self.pick(16))] {
            let blanks =
                [" ", "\t", "  \t ", "z", " z"].get(usize::from(self.pick(100))).copied().unwrap_or_default();
            out += &format!("--{boundary}{blanks}\r\n");
            if !self.rarely(60) {
                out += &self.entity(depth + 1);
            }
            if !self.rarely(60) {
                out += "\r\n";
            }
        }
        if !self.rarely(60) {
            out += &format!("--{boundary}--");
        }
        if !self.rarely(6) {
            out += "\r\n";
        }
        if self.rarely(4) {
            out += &self.text();
        }
        out
    }

    fn text(&mut self) -> String {
        let n = self.pick(24);
        let line = match n {
            16 => "--x\r\n",
            17 => "--=_b1_1--\r\n",
            18 => "-- \r\nsignature\r\n",
            19 => "\r\n",
            20 => "long ",
            21 => "",
            22 => "--",
            _ => "hello\r\nworld\r\n",
        };
        line.repeat(if n == 20 { 100 } else { usize::from(self.pick(3)) })
    }
}

fn generated(choices: &[u8]) -> Vec<u8> {
    let mut generator = Generator { choices: choices.iter() };
    let mut message = generator.message(0).into_bytes();
    // Damage to the octets, in one message of eight.
    for _ in 0..generator.pick(8) / 6 {
        let at = usize::from(generator.pick(255)) * message.len() / 255;
        match generator.pick(5) {
            0 => message.truncate(at),
            1 => message.insert(at, b"\r\n\0- :"[usize::from(generator.pick(6))]),
            2 => drop(message.drain(at..(at + usize::from(generator.pick(30))).min(message.len()))),
            3 => message.splice(at..at, b"\r\n--x\r\n".iter().copied()).for_each(drop),
            _ => message.splice(at..at, message[..at].to_vec()).for_each(drop),
        }
    }
    message
}

fn index(message: &[u8], piece: usize) -> SectionIndex {
    let mut indexer = SectionIndexer::new();
    message.chunks(piece.max(1)).for_each(|piece| indexer.push(piece));
    indexer.finish()
}

/// Everything the index would cut, of what can be asked around these paths.
fn all_cuts<'a>(
    index: &SectionIndex,
    around: impl Iterator<Item = &'a String>,
) -> BTreeMap<String, (usize, usize)> {
    let mut paths: Vec<String> = vec!["".into(), "1.".into(), "2.".into(), "1.1.".into(), "1.2.".into()];
    let around: Vec<_> = around.collect();
    paths.extend(
        around.iter().map(|spec| spec.trim_end_matches("MIME").trim_end_matches('.').to_owned() + "."),
    );
    let numbers = |path: &String| -> Vec<_> { (1..=4).map(|n| format!("{path}{n}")).collect() };
    let mut specs = vec![String::new(), "HEADER".into(), "TEXT".into(), "1.HEADER".into(), "1.TEXT".into()];
    specs.extend(paths.iter().flat_map(numbers).flat_map(|path| [path.clone(), path + ".MIME"]));
    specs.extend(around.into_iter().cloned());
    let cut = |spec: &String| {
        let key = ItemKey::section(spec.as_bytes())?;
        match index.cut(&key)? {
            Cut::Range { offset, octets } => {
                let start = usize::try_from(offset).unwrap();
                Some((spec.clone(), (start, start + usize::try_from(octets).unwrap())))
            }
            Cut::HeaderFields { .. } => panic!("{spec}"),
        }
    };
    specs.iter().filter_map(cut).collect()
}

fn compare(message: &[u8], piece: usize) -> BTreeMap<String, (usize, usize)> {
    let index = index(message, piece);
    let expected = reference(message);
    let cuts = all_cuts(&index, expected.keys());
    assert_eq!(cuts, expected, "{}", String::from_utf8_lossy(message));
    // Nothing is cut elsewhere either.
    let parts = index.clean.iter().flat_map(|clean| clean.parts.iter().skip(1));
    let headers = parts.filter(|part| part.kind != PartKind::Odd && part.mime_only).count();
    assert_eq!(headers, cuts.keys().filter(|spec| spec.ends_with("MIME")).count());
    assert_eq!(index.octets(), message.len() as u64);
    assert_eq!(SectionIndex::from_octets(&index.to_octets()).as_ref(), Some(&index));
    let fields = ItemKey::section(b"HEADER.FIELDS (A)").unwrap();
    assert_eq!(index.cut(&fields).is_some(), cuts.contains_key("HEADER"));
    cuts
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn slices_never_differ_from_a_second_reader(choices in prop::collection::vec(any::<u8>(), 0..120), piece in 1_usize..400) {
        compare(&generated(&choices), piece);
    }

    #[test]
    fn any_split_gives_the_same_index(choices in prop::collection::vec(any::<u8>(), 0..80), cuts in prop::collection::vec(0_usize..2000, 0..20)) {
        let message = generated(&choices);
        let mut indexer = SectionIndexer::new();
        let mut at = 0;
        let mut cuts = cuts;
        cuts.sort_unstable();
        for cut in cuts {
            let cut = cut.clamp(at, message.len().max(at));
            indexer.push(&message[at..cut]);
            at = cut;
        }
        indexer.push(&message[at..]);
        prop_assert_eq!(indexer.finish(), index(&message, usize::MAX));
    }

    #[test]
    fn any_octets_are_read(octets in prop::collection::vec(prop::sample::select(b"\r\n-x:; \0a=\"/".to_vec()), 0..300), piece in 1_usize..40) {
        compare(&octets, piece);
        let mut message = b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n".to_vec();
        message.extend_from_slice(&octets);
        message.extend_from_slice(b"\r\n--x--\r\n");
        compare(&message, piece);
    }

    #[test]
    fn any_row_is_read(octets in prop::collection::vec(any::<u8>(), 0..60), choices in prop::collection::vec(any::<u8>(), 0..60), at in any::<usize>()) {
        let _ = SectionIndex::from_octets(&octets);
        let mut row = index(&generated(&choices), usize::MAX).to_octets();
        let at = at % row.len();
        row[at] = octets.first().copied().unwrap_or_default();
        if let Some(index) = SectionIndex::from_octets(&row) {
            for (_, end) in all_cuts(&index, std::iter::empty()).into_values() {
                prop_assert!(end as u64 <= index.octets());
            }
            prop_assert!(SectionIndex::from_octets(&row[..row.len() - 1]).is_none());
        }
    }
}

#[test]
fn slices_never_differ_in_a_seeded_corpus() {
    let mut seed = 0x5EED_u64;
    let (mut structured, mut sections) = (0, 0);
    for n in 0..20_000 {
        let choices: Vec<u8> = (0..200)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                seed.to_be_bytes()[0]
            })
            .collect();
        let cuts = compare(&generated(&choices), 1 + n % 300);
        structured += usize::from(cuts.contains_key("1.MIME") || cuts.contains_key("2.MIME"));
        sections += cuts.len();
    }
    println!("slices: {sections} sections of 20000 messages equal, {structured} messages with parts");
    assert!(structured > 2000, "the corpus is too odd to test anything: {structured}");
}
