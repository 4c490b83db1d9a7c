//! A whole session between a client and an origin of whom nothing can be trusted: it never panics, says nothing
//! after it has closed, writes not much more than it read, sends the origin nothing of another road, and holds the
//! same opinion however the octets are split.

use crate::Random;
use bytes::Bytes;
use discovery_core::{
    id::{ServerId, UserKey, UserKeying},
    now::{Now, UnixMillis},
};
use imap_core::{
    catalog::{CatalogOp, CatalogReply, Claim, Held, Row},
    session::{Compress, Output, Road, Session, SessionConfig},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Lines, each with `c` (from the client) or `s` (from the origin) before it; `\n` in them is CRLF on the wire.
pub fn run(data: &[u8]) {
    let start = Instant::now();
    let whole = play(data, start, None);
    assert_eq!(play(data, start, Some(1)), whole, "octet by octet: {}", data.escape_ascii());
    assert_eq!(play(data, start, Some(data.len() as u64 + 2)), whole, "in pieces: {}", data.escape_ascii());
}

/// Everybody has the same key: what matters here is not whose it is.
struct OneKey;

impl UserKeying for OneKey {
    fn user_key(&self, _: &[u8]) -> UserKey {
        UserKey { version: 1, hash: [0; 16] }
    }
}

/// What the client heard and what the origin heard.
fn play(data: &[u8], start: Instant, pieces: Option<u64>) -> (Vec<u8>, Vec<u8>) {
    let config = SessionConfig {
        number: 1,
        nonce: *b"nonce!",
        server: ServerId::new("mail.example.org").unwrap(),
        keying: Arc::new(OneKey),
        road: Road::Tls,
        compress: Compress::Off,
        cache: true,
        re_proof: Duration::from_secs(300),
        chunk_fill_max: 1 << 20,
        retain: false,
    };
    let mut random = Random::new(pieces.unwrap_or_default());
    let mut stage = Stage { session: Session::new(config), heard: Default::default(), closed: false, start };
    let greeting = b"* OK [CAPABILITY IMAP4rev1 IDLE] ready\r\n";
    stage.session.handle_greeting(stage.now(), &Bytes::from_static(greeting));
    stage.drain();
    for line in data.split(|o| *o == b'\n') {
        let Some((side, octets)) = line.split_first() else { continue };
        let octets = [octets, b"\r\n"].concat();
        let mut rest = octets.as_slice();
        while !rest.is_empty() && !stage.closed {
            let n = match pieces {
                None => rest.len(),
                Some(1) => 1,
                Some(_) => 1 + random.below(rest.len()),
            };
            let (now, later) = rest.split_at(n);
            let part = Bytes::copy_from_slice(now);
            if *side == b's' {
                stage.session.handle_server(stage.now(), part);
            } else {
                stage.session.handle_client(stage.now(), part);
            }
            rest = later;
            stage.drain();
        }
    }
    let limit = 64 * 1024 + 64 * data.len();
    assert!(stage.heard.0.len() + stage.heard.1.len() <= limit, "much ado: {}", data.escape_ascii());
    stage.heard
}

struct Stage {
    session: Session,
    heard: (Vec<u8>, Vec<u8>),
    closed: bool,
    start: Instant,
}

impl Stage {
    fn now(&self) -> Now {
        Now { mono: self.start, wall: UnixMillis(0) }
    }

    fn drain(&mut self) {
        while let Some(output) = self.session.poll_output() {
            assert!(!self.closed, "{output:?} after the end");
            match output {
                Output::ToClient(octets) => self.heard.0.extend_from_slice(&octets),
                Output::ToServer(octets) => self.heard.1.extend_from_slice(&octets),
                // A store that answers every question at once, always with the same.
                Output::Catalog(CatalogOp::Resolve { request, uids, items, .. }) => {
                    let value = || Some(Held::Inline(Bytes::from_static(b"held")));
                    let row = |&uid| Row { uid, values: items.iter().map(|_| value()).collect() };
                    let rows = uids.iter().map(row).collect();
                    self.session.handle_store(self.now(), CatalogReply::Resolved { request, rows });
                }
                Output::Catalog(CatalogOp::Claim { request, .. }) => {
                    let claim = Claim::Yours;
                    self.session.handle_store(self.now(), CatalogReply::Claimed { request, claim });
                }
                Output::Close(_) => self.closed = true,
                Output::Catalog(_) | Output::Event(_) => {}
                Output::ToClientFrom { .. }
                | Output::StartTls
                | Output::ReplaceOrigin
                | Output::CompressServer { .. }
                | Output::Retain(_) => {
                    panic!("{output:?} cannot be: nothing stored, TLS on, nothing parked, COMPRESS off")
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The store is really asked, else the target would show little.
    #[test]
    fn the_corpus_reaches_the_store() {
        let corpus = crate::corpus("session").unwrap();
        let served = corpus.iter().filter(|(_, octets)| {
            play(octets, Instant::now(), None).0.windows(4).any(|four| four == b"held")
        });
        assert!(served.count() >= 4);
    }
}
