//! What the server says. UIDs have gaps, as those of a mailbox that is lived in; everybody's mail is his own.

use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{Gauge, Shared};

/// An INBOX of which every tenth UID is missing.
#[derive(Debug, Clone, Copy)]
pub struct Mailbox {
    /// Messages at the start.
    pub messages: u32,
}

impl Mailbox {
    /// The UID of a message number.
    const fn uid(number: u32) -> u32 {
        number + (number - 1) / 9
    }

    /// The message number of a UID, if there is such a message.
    const fn number(uid: u32) -> Option<u32> {
        if uid == 0 || uid.is_multiple_of(10) { None } else { Some(uid - uid / 10) }
    }

    /// The numbers of so many messages as the set of an ESEARCH response.
    fn set(messages: u32) -> String {
        let last = if messages == 0 { 0 } else { Self::uid(messages) };
        let mut set = String::new();
        for from in (1..=last).step_by(10) {
            let to = (from + 8).min(last);
            let comma = if from == 1 { "" } else { "," };
            let range = if from == to { from.to_string() } else { format!("{from}:{to}") };
            let _ = write!(set, "{comma}{range}");
        }
        set
    }
}

/// Dovecot's, COMPRESS aside.
const CAPABILITIES: &str = "IMAP4rev1 SASL-IR LOGIN-REFERRALS ID ENABLE IDLE LITERAL+ SORT SORT=DISPLAY \
    THREAD=REFERENCES THREAD=REFS THREAD=ORDEREDSUBJECT MULTIAPPEND URL-PARTIAL CATENATE UNSELECT CHILDREN NAMESPACE \
    UIDPLUS LIST-EXTENDED I18NLEVEL=1 ESEARCH ESORT SEARCHRES WITHIN CONTEXT=SEARCH LIST-STATUS BINARY MOVE \
    SNIPPET=FUZZY PREVIEW=FUZZY PREVIEW STATUS=SIZE SAVEDATE LITERAL+ SPECIAL-USE";

struct Talk<'a> {
    shared: &'a Shared,
    stream: BufReader<TlsStream<TcpStream>>,
    user: String,
    /// Messages that this connection was told of.
    told: u32,
}

/// One of the gauges of [`Counts`](super::Counts), for as long as this lives.
struct Inside<'a>(&'a Shared, fn(&mut super::Counts) -> &mut Gauge);

impl<'a> Inside<'a> {
    fn enter(shared: &'a Shared, which: fn(&mut super::Counts) -> &mut Gauge) -> Self {
        which(&mut shared.counts()).enter();
        Self(shared, which)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.1(&mut self.0.counts()).leave();
    }
}

pub(super) async fn serve(shared: &Arc<Shared>, acceptor: &TlsAcceptor, stream: TcpStream) -> io::Result<()> {
    shared.counts().starts.push(Instant::now());
    let opening = Inside::enter(shared, |counts| &mut counts.opening);
    let stranger = Inside::enter(shared, |counts| &mut counts.strangers);
    stream.set_nodelay(true)?;
    let greeter = shared.greeters.acquire().await.map_err(io::Error::other)?;
    let stream = acceptor.accept(stream).await?;
    tokio::time::sleep(shared.manner.greeting).await;
    drop(greeter);
    let mut talk = Talk { shared, stream: BufReader::new(stream), user: String::new(), told: 0 };
    // Before its last octet, or the next one may be here while this one still counts.
    drop(opening);
    talk.say(&format!("* OK [CAPABILITY {CAPABILITIES}] ready\r\n")).await?;
    talk.log_in().await?;
    drop(stranger);
    talk.obey().await
}

impl Talk<'_> {
    async fn say(&mut self, text: &str) -> io::Result<()> {
        self.stream.get_mut().write_all(text.as_bytes()).await?;
        self.stream.get_mut().flush().await
    }

    /// The next line, CRLF left out.
    async fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        if self.stream.read_until(b'\n', &mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    async fn log_in(&mut self) -> io::Result<()> {
        loop {
            let line = self.line().await?;
            let mut words = line.split(' ');
            let tag = words.next().unwrap_or_default().to_owned();
            let verb = words.next().unwrap_or_default().to_ascii_uppercase();
            match verb.as_str() {
                "LOGIN" | "AUTHENTICATE" => {
                    // Whoever he says that he is; AUTHENTICATE comes with its response.
                    line.split(' ').next_back().unwrap_or_default().clone_into(&mut self.user);
                    self.shared.counts().logins += 1;
                    return self.say(&format!("{tag} OK [CAPABILITY {CAPABILITIES}] logged in\r\n")).await;
                }
                "CAPABILITY" => {
                    self.say(&format!("* CAPABILITY {CAPABILITIES}\r\n{tag} OK listed\r\n")).await?;
                }
                "ID" => self.say(&format!("* ID NIL\r\n{tag} OK thanks\r\n")).await?,
                "LOGOUT" => return Err(io::ErrorKind::UnexpectedEof.into()),
                _ => self.say(&format!("{tag} BAD not before the login\r\n")).await?,
            }
        }
    }

    fn messages(&self) -> u32 {
        self.shared.manner.mailbox.messages + *self.shared.delivered.borrow()
    }

    async fn obey(&mut self) -> io::Result<()> {
        loop {
            let line = self.line().await?;
            let (tag, command) = line.split_once(' ').unwrap_or_default();
            let upper = command.to_ascii_uppercase();
            let words: Vec<&str> = upper.split(' ').collect();
            match words.as_slice() {
                ["SELECT" | "EXAMINE", ..] => {
                    self.told = self.messages();
                    let (messages, next) = (self.told, Mailbox::uid(self.told + 1));
                    self.say(&format!(
                        "* FLAGS (\\Answered \\Flagged \\Deleted \\Seen \\Draft)\r\n\
                         * {messages} EXISTS\r\n* 0 RECENT\r\n* OK [UIDVALIDITY 77] valid\r\n\
                         * OK [UIDNEXT {next}] next\r\n{tag} OK [READ-WRITE] opened\r\n"
                    ))
                    .await?;
                }
                ["UID", "SEARCH", ..] => {
                    let set = Mailbox::set(self.told);
                    self.say(&format!("* ESEARCH (TAG \"{tag}\") UID ALL {set}\r\n{tag} OK found\r\n"))
                        .await?;
                }
                ["UID", "FETCH", set, ..] => {
                    let mut reply = String::new();
                    for part in set.split(',') {
                        self.fetch(part, &upper, &mut reply);
                    }
                    self.say(&format!("{reply}{tag} OK fetched\r\n")).await?;
                }
                ["IDLE"] => {
                    self.shared.counts().idles += 1;
                    self.idle().await?;
                    self.say(&format!("{tag} OK idled\r\n")).await?;
                }
                ["CAPABILITY"] => {
                    self.say(&format!("* CAPABILITY {CAPABILITIES}\r\n{tag} OK listed\r\n")).await?;
                }
                ["LOGOUT"] => return self.say(&format!("* BYE out\r\n{tag} OK out\r\n")).await,
                _ => self.say(&format!("{tag} OK done\r\n")).await?,
            }
        }
    }

    async fn idle(&mut self) -> io::Result<()> {
        let _idling = Inside::enter(self.shared, |counts| &mut counts.idling);
        let mut delivered = self.shared.delivered.subscribe();
        self.say("+ idling\r\n").await?;
        loop {
            let messages = self.shared.manner.mailbox.messages + *delivered.borrow_and_update();
            if messages != self.told {
                self.told = messages;
                self.say(&format!("* {messages} EXISTS\r\n")).await?;
            }
            // What was read of a line stays in the stream's buffer only as long as no line is half read: DONE comes
            // in one piece.
            tokio::select! {
                line = self.line() => {
                    line?;
                    return Ok(());
                }
                _ = delivered.changed() => {}
            }
        }
    }

    /// What is asked of the messages between two UIDs.
    fn fetch(&mut self, part: &str, command: &str, reply: &mut String) {
        let last = Mailbox::uid(self.told);
        let uid = |text: &str| if text == "*" { last } else { text.parse().unwrap_or(last) };
        let (from, to) =
            part.split_once(':').map_or_else(|| (uid(part), uid(part)), |(a, b)| (uid(a), uid(b)));
        let whole = command.contains("BODY[]") || command.contains("BODY.PEEK[]");
        for uid in from.min(to)..=from.max(to).min(last) {
            let Some(number) = Mailbox::number(uid) else { continue };
            let _ = write!(reply, "* {number} FETCH (UID {uid}");
            if command.contains("FLAGS") {
                reply.push_str(" FLAGS (\\Seen)");
            }
            if command.contains("RFC822.SIZE") {
                let _ = write!(reply, " RFC822.SIZE {}", self.message(uid).len());
            }
            if command.contains("INTERNALDATE") {
                reply.push_str(" INTERNALDATE \"01-Jan-2024 00:00:00 +0000\"");
            }
            if command.contains("ENVELOPE") {
                let address = "((NIL NIL \"crowd\" \"lab.test\"))";
                let _ = write!(
                    reply,
                    " ENVELOPE (\"Mon, 1 Jan 2024 00:00:00 +0000\" \"message {uid}\" {address} {address} {address} \
                     {address} NIL NIL NIL \"<{uid}@lab.test>\")"
                );
            }
            if command.contains("BODYSTRUCTURE") {
                let _ = write!(
                    reply,
                    " BODYSTRUCTURE (\"text\" \"plain\" (\"charset\" \"us-ascii\") NIL NIL \"7bit\" {} {LINES} NIL NIL \
                     NIL NIL)",
                    self.message(uid).len()
                );
            }
            if whole {
                self.shared.counts().bodies += 1;
                let message = self.message(uid);
                let _ = write!(reply, " BODY[] {{{}}}\r\n{message}", message.len());
            }
            reply.push_str(")\r\n");
        }
    }

    fn message(&self, uid: u32) -> String {
        let line = format!("mail of {}, number {uid}, and more of the same in this line\r\n", self.user);
        format!("From: crowd@lab.test\r\nSubject: message {uid}\r\n\r\n{}", line.repeat(LINES))
    }
}

/// A message of 4 to 5 kB.
const LINES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tenth_uid_is_missing() {
        let uids: Vec<u32> = (1..=11).map(Mailbox::uid).collect();
        assert_eq!(uids, [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12]);
        for number in 1..=5_001 {
            assert_eq!(Mailbox::number(Mailbox::uid(number)), Some(number));
        }
        assert_eq!([Mailbox::number(0), Mailbox::number(10), Mailbox::number(20)], [None; 3]);
    }

    #[test]
    fn the_set_names_them_all_and_no_other() {
        assert_eq!(Mailbox::set(0), "");
        assert_eq!(Mailbox::set(1), "1");
        assert_eq!(Mailbox::set(9), "1:9");
        assert_eq!(Mailbox::set(20), "1:9,11:19,21:22");
        assert_eq!(Mailbox::set(19), "1:9,11:19,21");
    }
}
