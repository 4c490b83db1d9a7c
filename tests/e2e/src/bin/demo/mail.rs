//! Which messages a journey uses.

use lab::corpus::Corpus;

/// A message of a mailbox, as it was put there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mail {
    /// Its UID: the mailbox was filled in order, and is looked at before it is used.
    pub(crate) uid: u32,
    /// Its length.
    pub(crate) octets: usize,
    /// Whether it has been read.
    pub(crate) seen: bool,
    /// Whether its second part is an attachment.
    pub(crate) attachment: bool,
}

/// All messages of a mailbox.
pub(crate) fn of(corpus: &Corpus, user: &lab::corpus::User, mailbox: &str) -> Vec<Mail> {
    let messages = corpus.messages(user, mailbox).zip(1u32..);
    messages
        .map(|(message, uid)| Mail {
            uid,
            octets: message.octets.len(),
            seen: message.seen,
            attachment: message.octets.windows(ATTACHMENT.len()).any(|window| window == ATTACHMENT),
        })
        .collect()
}

const ATTACHMENT: &[u8] = b"Content-Disposition: attachment";

/// So many of them, spread evenly.
pub(crate) fn spread(from: &[Mail], count: usize) -> Vec<Mail> {
    let count = count.min(from.len());
    (0..count).filter_map(|nth| from.get(nth * from.len() / count.max(1)).copied()).collect()
}

/// What Thunderbird opens in one piece.
pub(crate) const WHOLE_OCTETS_MAX: usize = 96 << 10;
