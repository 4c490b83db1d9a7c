//! What passed through a relay, and how it reads: commands with their first octet and their tagged reply.

use std::fs;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::session::Reply;
use crate::wire::{self, Values};

/// Who sent octets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The mail client.
    Client,
    /// The server, or Waypost.
    Server,
}

#[derive(Debug, Clone)]
struct Chunk {
    at: Instant,
    side: Side,
    octets: Vec<u8>,
}

/// One connection's chunks in the order in which they passed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Connection {
    /// When the relay's own connection to the server stood.
    began: Option<Instant>,
    chunks: Vec<Chunk>,
}

/// All connections of a relay. Connections keep their number while chunks are taken out.
#[derive(Debug, Default)]
pub(crate) struct Recording {
    connections: Mutex<Vec<Connection>>,
    passed: Condvar,
}

impl Recording {
    pub(crate) fn begin(&self, began: Instant) -> usize {
        let mut connections = self.locked();
        connections.push(Connection { began: Some(began), ..Connection::default() });
        connections.len() - 1
    }

    pub(crate) fn note(&self, connection: usize, side: Side, octets: &[u8]) {
        let at = Instant::now();
        if let Some(connection) = self.locked().get_mut(connection) {
            connection.chunks.push(Chunk { at, side, octets: octets.to_vec() });
        }
        self.passed.notify_all();
    }

    /// A copy of all that has passed.
    pub(crate) fn connections(&self) -> Vec<Connection> {
        self.locked().clone()
    }

    /// Waits until something has passed since `since`, and then nothing for `quiet`.
    pub(crate) fn wait_quiet(
        &self,
        since: Instant,
        quiet: Duration,
        patience: Duration,
    ) -> anyhow::Result<()> {
        let begun = Instant::now();
        let mut connections = self.locked();
        loop {
            let last = connections
                .iter()
                .filter_map(|connection| connection.chunks.last())
                .map(|chunk| chunk.at)
                .max();
            let passed = last.filter(|last| *last >= since);
            if passed.is_some_and(|last| last.elapsed() >= quiet) {
                return Ok(());
            }
            if begun.elapsed() > patience {
                let what = if passed.is_some() {
                    "the client did not come to rest"
                } else {
                    "the client sent nothing"
                };
                bail!("{what} within {patience:?}");
            }
            let rest = passed.map_or(quiet, |last| quiet.saturating_sub(last.elapsed()));
            let rest = rest.max(Duration::from_millis(1));
            connections =
                self.passed.wait_timeout(connections, rest).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Writes each connection's two directions into a directory, and when which octets passed; forgets everything.
    pub(crate) fn finish(&self, directory: Option<&Path>, name: &str) -> anyhow::Result<Vec<Connection>> {
        let connections = std::mem::take(&mut *self.locked());
        if let Some(directory) = directory {
            for (nth, connection) in connections.iter().enumerate() {
                let times = directory.join(format!("{name}-{nth}.times"));
                fs::write(&times, connection.times_text())
                    .with_context(|| format!("cannot write {}", times.display()))?;
                for (side, ending) in [(Side::Client, "client"), (Side::Server, "server")] {
                    let file = directory.join(format!("{name}-{nth}.{ending}"));
                    fs::write(&file, connection.octets(side))
                        .with_context(|| format!("cannot write {}", file.display()))?;
                }
            }
        }
        Ok(connections)
    }

    fn locked(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A command of a client, as it passed.
#[derive(Debug, Clone)]
pub(crate) struct Command {
    /// The command without its tag and line end.
    pub(crate) text: String,
    /// Its way.
    pub(crate) reply: Reply,
}

impl Command {
    /// Whether it asks for what `word` names: `FETCH` also behind `UID`.
    pub(crate) fn is(&self, word: &str) -> bool {
        self.text.split(' ').take(2).any(|part| part.eq_ignore_ascii_case(word))
    }

    /// Whether it fetches what a list shows: flags, with header lines or alone.
    pub(crate) fn lists(&self) -> bool {
        self.is("FETCH") && self.text.to_ascii_uppercase().contains("FLAGS") && !self.opens()
    }

    /// Whether it fetches header lines.
    pub(crate) fn reads_headers(&self) -> bool {
        self.text.to_ascii_uppercase().contains("HEADER")
    }

    /// Whether it asked for a chunk and got all of it: another one is to come.
    pub(crate) fn asks_for_more(&self) -> bool {
        let chunk = self.text.rsplit_once('<').and_then(|(_, chunk)| chunk.split('>').next());
        let octets =
            chunk.and_then(|chunk| chunk.split_once('.')).and_then(|(_, octets)| octets.parse().ok());
        octets.is_some_and(|octets: usize| self.reply.literal_octets >= octets)
    }

    /// Whether it fetches a body or a part of one, not only header lines.
    pub(crate) fn opens(&self) -> bool {
        let upper = self.text.to_ascii_uppercase();
        self.is("FETCH")
            && upper.contains("BODY")
            && !upper.contains("HEADER")
            && !upper.contains("BODYSTRUCTURE")
    }
}

/// One connection, read.
#[derive(Debug, Default)]
pub(crate) struct Dialogue {
    /// Commands that have their tagged OK, in the order in which they were sent.
    pub(crate) commands: Vec<Command>,
    /// What the client was given.
    pub(crate) values: Values,
}

impl Connection {
    /// The same without COMPRESS (RFC 4978): each chunk with the octets that it carried.
    fn plain(&self) -> Self {
        let (mut asked, mut inflaters) = (None, None::<[flate2::Decompress; 2]>);
        let mut plain = Self::default();
        for chunk in &self.chunks {
            let mut octets = chunk.octets.clone();
            if let Some([client, server]) = &mut inflaters {
                let inflater = if chunk.side == Side::Client { client } else { server };
                octets = inflate(inflater, &octets);
            } else if chunk.side == Side::Client {
                let line = String::from_utf8_lossy(&octets).trim_end().to_owned();
                let compress = line.to_ascii_uppercase().ends_with(" COMPRESS DEFLATE");
                asked = compress.then(|| line.split(' ').next().unwrap_or_default().to_owned());
            } else if let Some(tag) = &asked {
                let granted = format!("{tag} OK");
                let line_end = octets.windows(2).position(|pair| pair == b"\r\n").map(|at| at + 2);
                if let Some(end) = line_end.filter(|_| octets.starts_with(granted.as_bytes())) {
                    let [client, mut server] = [(); 2].map(|()| flate2::Decompress::new(false));
                    let rest = inflate(&mut server, octets.get(end..).unwrap_or_default());
                    octets.truncate(end);
                    octets.extend(rest);
                    inflaters = Some([client, server]);
                }
            }
            plain.chunks.push(Chunk { octets, ..chunk.clone() });
        }
        plain
    }

    fn octets(&self, side: Side) -> Vec<u8> {
        self.chunks
            .iter()
            .filter(|chunk| chunk.side == side)
            .flat_map(|chunk| &chunk.octets)
            .copied()
            .collect()
    }

    /// A line for each chunk: seconds since the first, who sent it, octets.
    fn times_text(&self) -> String {
        let Some(first) = self.chunks.first() else { return String::new() };
        let line = |chunk: &Chunk| {
            let seconds = (chunk.at - first.at).as_secs_f64();
            let side = if chunk.side == Side::Client { "client" } else { "server" };
            format!("{seconds:.6} {side} {}\n", chunk.octets.len())
        };
        self.chunks.iter().map(line).collect()
    }

    /// When the connection to the server stood.
    pub(crate) const fn began(&self) -> Option<Instant> {
        self.began
    }

    /// First octet of the client's and last octet of the server's, for dialogues that are timed as one act.
    pub(crate) fn ends(&self) -> Option<(Instant, Instant)> {
        let first = self.chunks.iter().find(|chunk| chunk.side == Side::Client)?;
        let last = self.chunks.iter().rev().find(|chunk| chunk.side == Side::Server)?;
        Some((first.at, last.at))
    }

    /// When the octet at this offset of a side passed.
    fn times(&self, side: Side) -> Vec<(usize, Instant)> {
        let mut end = 0;
        let ours = self.chunks.iter().filter(|chunk| chunk.side == side);
        ours.map(|chunk| {
            end += chunk.octets.len();
            (end, chunk.at)
        })
        .collect()
    }

    /// Reads commands and responses. Octets of commands' literals and of SASL exchanges do not look like commands.
    pub(crate) fn read(&self) -> anyhow::Result<Dialogue> {
        self.plain().read_plain()
    }

    fn read_plain(&self) -> anyhow::Result<Dialogue> {
        let (said, heard) = (self.octets(Side::Client), self.octets(Side::Server));
        let (said_at, heard_at) = (self.times(Side::Client), self.times(Side::Server));
        let mut sent: Vec<(String, String, Instant)> = Vec::new();
        let mut at = 0;
        for line in said.split_inclusive(|octet| *octet == b'\n') {
            let start = time_of(&said_at, at);
            at += line.len();
            let text = String::from_utf8_lossy(line).trim_end().to_owned();
            let Some((tag, rest)) = text.split_once(' ') else { continue };
            if let Some(start) = start.filter(|_| line.ends_with(b"\r\n")) {
                sent.push((tag.to_owned(), rest.to_owned(), start));
            }
        }
        let mut dialogue = Dialogue::default();
        let (mut at, mut mailbox, mut literal, mut literal_octets) = (0, String::new(), None, 0);
        while let Some(response) = wire::response(heard.get(at..).unwrap_or_default()) {
            if let Some(end) = response.literal_end {
                literal = time_of(&heard_at, at + end - 1);
                literal_octets += response.literals().map(<[u8]>::len).sum::<usize>();
            }
            let end = time_of(&heard_at, at + response.end - 1);
            at += response.end;
            let line = String::from_utf8_lossy(response.line()).into_owned();
            let tag = line.split(' ').next().unwrap_or_default();
            let Some(nth) = sent.iter().position(|(sent, _, _)| sent == tag) else {
                dialogue.values.note(&mailbox, &response)?;
                continue;
            };
            let (_, text, start) = sent.remove(nth);
            if let Some(name) = selected(&text) {
                mailbox = name;
            }
            if let (Some(end), true) = (end, line.split(' ').nth(1) == Some("OK")) {
                let reply = Reply { start, literal: literal.take(), end, literal_octets };
                dialogue.commands.push(Command { text, reply });
            }
            literal_octets = 0;
        }
        Ok(dialogue)
    }
}

/// What a chunk of a deflated stream holds. A broken stream gives what it held so far: the values are then missing.
fn inflate(inflater: &mut flate2::Decompress, mut octets: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        out.reserve(1 << 16);
        let (taken, given) = (inflater.total_in(), inflater.total_out());
        let done = inflater.decompress_vec(octets, &mut out, flate2::FlushDecompress::Sync);
        let taken = usize::try_from(inflater.total_in() - taken).unwrap_or(usize::MAX);
        octets = octets.get(taken..).unwrap_or_default();
        let stuck = taken == 0 && inflater.total_out() == given;
        if done.is_err() || stuck || (octets.is_empty() && out.len() < out.capacity()) {
            return out;
        }
    }
}

fn time_of(times: &[(usize, Instant)], offset: usize) -> Option<Instant> {
    let nth = times.partition_point(|(end, _)| *end <= offset);
    times.get(nth).map(|(_, at)| *at)
}

fn selected(text: &str) -> Option<String> {
    let (word, rest) = text.split_once(' ')?;
    let selects = word.eq_ignore_ascii_case("SELECT") || word.eq_ignore_ascii_case("EXAMINE");
    let name =
        rest.strip_prefix('"').map_or_else(|| rest.split(' ').next(), |quoted| quoted.split('"').next());
    selects.then(|| name.unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(chunks: &[(Side, &[u8])]) -> Connection {
        let recording = Recording::default();
        let connection = recording.begin(Instant::now());
        for (side, octets) in chunks {
            recording.note(connection, *side, octets);
        }
        recording.connections().remove(0)
    }

    #[test]
    fn commands_are_matched_with_their_replies_across_chunks() {
        let dialogue = recorded(&[
            (Side::Server, b"* OK hello\r\n"),
            (Side::Client, b"1 select \"INBOX\"\r\n2 UID fetch 5 (UID BO"),
            (Side::Client, b"DY[])\r\n"),
            (Side::Server, b"* 9 EXISTS\r\n1 OK [READ-WRITE] done\r\n* 5 FETCH (UID 5 BODY[] {3}\r\na"),
            (Side::Server, b"bc)\r\n2 OK done\r\n"),
        ])
        .read()
        .unwrap();
        let texts: Vec<&str> = dialogue.commands.iter().map(|command| command.text.as_str()).collect();
        assert_eq!(texts, ["select \"INBOX\"", "UID fetch 5 (UID BODY[])"]);
        assert!(dialogue.commands[1].opens() && dialogue.commands[1].reply.literal.is_some());
        assert_eq!(dialogue.commands[1].reply.literal_octets, 3);
        assert!(dialogue.values.digests().contains_key("INBOX/5/BODY[]"));
    }

    #[test]
    fn a_compressed_dialogue_reads_like_a_plain_one() {
        let deflated = |text: &[u8]| {
            let mut deflater = flate2::Compress::new(flate2::Compression::fast(), false);
            let mut out = Vec::with_capacity(1_000);
            deflater.compress_vec(text, &mut out, flate2::FlushCompress::Sync).unwrap();
            out
        };
        let (asked, answered) = (
            deflated(b"2 UID fetch 5 (UID BODY[])\r\n"),
            deflated(b"* 5 FETCH (UID 5 BODY[] {3}\r\nabc)\r\n2 OK done\r\n"),
        );
        let (head, tail) = answered.split_at(answered.len() / 2);
        let granted = [b"1 OK go\r\n", head].concat();
        let dialogue = recorded(&[
            (Side::Client, b"1 COMPRESS DEFLATE\r\n"),
            (Side::Server, &granted),
            (Side::Client, &asked),
            (Side::Server, tail),
        ])
        .read()
        .unwrap();
        assert_eq!(dialogue.commands.len(), 2);
        assert_eq!(dialogue.values.digests().len(), 1);
    }

    #[test]
    fn a_refused_command_and_one_without_a_reply_are_no_acts() {
        let dialogue = recorded(&[
            (Side::Client, b"1 FETCH 1 (BODY[])\r\n2 FETCH 2 (BODY[])\r\nDONE\r\n"),
            (Side::Server, b"1 NO [SERVERBUG] no\r\n"),
        ])
        .read()
        .unwrap();
        assert!(dialogue.commands.is_empty());
    }

    #[test]
    fn a_full_chunk_is_not_the_last_one() {
        let now = Instant::now();
        let chunk = |text: &str, literal_octets| {
            let reply = Reply { start: now, literal: None, end: now, literal_octets };
            Command { text: text.to_owned(), reply }.asks_for_more()
        };
        assert!(chunk("UID fetch 7 (UID RFC822.SIZE BODY[]<0.65536>)", 65_536));
        assert!(!chunk("UID fetch 7 (UID RFC822.SIZE BODY[]<65536.65536>)", 9));
        assert!(!chunk("UID fetch 7 (UID RFC822.SIZE BODY[])", 65_536));
    }

    #[test]
    fn header_lines_are_not_an_opened_message() {
        let command = |text: &str| {
            let now = Instant::now();
            let reply = Reply { start: now, literal: None, end: now, literal_octets: 0 };
            Command { text: text.to_owned(), reply }
        };
        assert!(command("UID fetch 7 (UID RFC822.SIZE BODY[]<0.65536>)").opens());
        assert!(!command("UID fetch 1:9 (UID BODY.PEEK[HEADER.FIELDS (From)])").opens());
        assert!(!command("UID fetch 1:* (FLAGS)").opens());
    }
}
