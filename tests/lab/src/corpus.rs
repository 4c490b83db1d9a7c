//! Seeded mailboxes of office-like mail: half of the messages below 26 kB, one in ten above 260 kB, attachments up
//! to 10 MB. The same seed gives the same octets.
//!
//! Every message carries its owner's canary in a header and about every kibibyte of every part, so that a single
//! chunk of a body in the wrong hands shows. In base64 parts the canary starts a line, where its encoding is
//! always the same: search for both [`Canary::text`] and [`Canary::base64`].

mod awkward;
mod office;

use sha2::{Digest, Sha256};

pub use office::MessageKind;

use crate::rng::Rng;

/// What makes an owner's octets recognisable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canary {
    /// 30 hexadecimal digits.
    pub text: String,
    /// The same in base64: 40 characters without padding.
    pub base64: String,
}

impl Canary {
    /// The canary of an owner under a seed.
    #[must_use]
    pub fn of(seed: u64, owner: &str) -> Self {
        use base64::Engine as _;
        let digest = Sha256::new().chain_update(seed.to_be_bytes()).chain_update(owner).finalize();
        let text: String = digest.iter().take(15).map(|octet| format!("{octet:02x}")).collect();
        let base64 = base64::engine::general_purpose::STANDARD.encode(&text);
        Self { text, base64 }
    }

    /// Whether this owner's mail shows in these octets.
    #[must_use]
    pub fn is_in(&self, octets: &[u8]) -> bool {
        let found = |needle: &str| octets.windows(needle.len()).any(|window| window == needle.as_bytes());
        found(&self.text) || found(&self.base64)
    }
}

/// A user of the mail servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Login name, also the canary's owner.
    pub name: String,
    /// Password.
    pub password: String,
    /// Mailboxes with their number of messages; INBOX first.
    pub mailboxes: Vec<(String, Contents)>,
}

/// What a mailbox holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contents {
    /// So many office-like messages.
    Office(usize),
    /// One of each awkward message.
    Awkward,
}

/// All users and how large their mail may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corpus {
    /// Decides every octet.
    pub seed: u64,
    /// Who has mail.
    pub users: Vec<User>,
    /// No attachment is larger, before base64.
    pub attachment_octets_max: usize,
    /// The last so many messages of every INBOX are the same octets for everybody; their canary's owner is
    /// [`SHARED`].
    pub shared: usize,
}

/// The owner of the messages that everybody has.
pub const SHARED: &str = "everybody";

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// As on the wire; a few awkward ones hold bare LF.
    pub octets: Vec<u8>,
    /// Whether it has been read.
    pub seen: bool,
    /// When it arrived, in seconds since 1970.
    pub arrived: u64,
}

impl Corpus {
    /// The demo's: alice 600 messages and an archive, bob 300, carol the awkward ones, dave, erin and frank 60.
    #[must_use]
    pub fn demo(seed: u64) -> Self {
        Self::sized(seed, 600, 10 << 20)
    }

    /// The tests': a tenth of the demo's, attachments to 1 MB.
    #[must_use]
    pub fn small(seed: u64) -> Self {
        Self::sized(seed, 60, 1 << 20)
    }

    /// As the demo's, with so many messages for alice and the others in proportion.
    #[must_use]
    pub fn sized(seed: u64, messages: usize, attachment_octets_max: usize) -> Self {
        let user = |name: &str, mailboxes: &[(&str, Contents)]| User {
            name: name.to_owned(),
            password: format!("{name}-secret"),
            mailboxes: mailboxes.iter().map(|(name, contents)| ((*name).to_owned(), *contents)).collect(),
        };
        let few = Contents::Office((messages / 10).max(5));
        let users = vec![
            user("alice", &[("INBOX", Contents::Office(messages)), ("Archive", few)]),
            user("bob", &[("INBOX", Contents::Office(messages / 2))]),
            user("carol", &[("INBOX", few), ("Awkward", Contents::Awkward)]),
            user("dave", &[("INBOX", few)]),
            user("erin", &[("INBOX", few)]),
            user("frank", &[("INBOX", few)]),
        ];
        Self { seed, users, attachment_octets_max, shared: 3 }
    }

    /// The user of this name.
    #[must_use]
    pub fn user(&self, name: &str) -> Option<&User> {
        self.users.iter().find(|user| user.name == name)
    }

    /// The canary of a user.
    #[must_use]
    pub fn canary(&self, owner: &str) -> Canary {
        Canary::of(self.seed, owner)
    }

    /// A mailbox's messages, oldest first; made as they are asked for.
    pub fn messages(&self, user: &User, mailbox: &str) -> impl Iterator<Item = Message> {
        let contents = user.mailboxes.iter().find(|(name, _)| name == mailbox).map(|(_, contents)| *contents);
        let (owner, mailbox) = (user.name.clone(), mailbox.to_owned());
        let count = match contents {
            Some(Contents::Office(count)) => count,
            Some(Contents::Awkward) => awkward::COUNT,
            None => 0,
        };
        (0..count).map(move |number| {
            if contents == Some(Contents::Awkward) {
                let octets = awkward::message(number, &self.canary(&owner).text);
                return Message { octets, seen: number % 2 == 0, arrived: arrival(number) };
            }
            let shared = mailbox == "INBOX" && number + self.shared >= count;
            let (owner, number_in) = if shared { (SHARED, count - number) } else { (owner.as_str(), number) };
            let mut rng = Rng::new(self.message_seed(owner, if shared { "" } else { &mailbox }, number_in));
            let octets =
                office::message(&mut rng, &self.canary(owner), number_in, self.attachment_octets_max);
            Message { octets, seen: number % 8 != 0, arrived: arrival(number) }
        })
    }

    fn message_seed(&self, owner: &str, mailbox: &str, number: usize) -> u64 {
        let number = u64::try_from(number).unwrap_or(u64::MAX).to_be_bytes();
        let digest = Sha256::new()
            .chain_update(self.seed.to_be_bytes())
            .chain_update(owner)
            .chain_update([0])
            .chain_update(mailbox)
            .chain_update([0])
            .chain_update(number)
            .finalize();
        digest.first_chunk().map_or(0, |octets| u64::from_be_bytes(*octets))
    }
}

/// About four messages an hour from November 2023 on.
fn arrival(number: usize) -> u64 {
    1_700_000_000 + u64::try_from(number).unwrap_or(0) * 977
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inbox(corpus: &Corpus, user: &str) -> Vec<Message> {
        corpus.messages(corpus.user(user).unwrap(), "INBOX").collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_octets_and_another_seed_others() {
        let corpus = Corpus::small(7);
        assert_eq!(inbox(&corpus, "bob"), inbox(&corpus, "bob"));
        assert_ne!(inbox(&corpus, "bob"), inbox(&Corpus::small(8), "bob"));
    }

    #[test]
    fn sizes_are_those_of_an_office() {
        let mut sizes: Vec<usize> = inbox(&Corpus::demo(1), "alice").iter().map(|m| m.octets.len()).collect();
        sizes.sort_unstable();
        let (median, p90) = (sizes[sizes.len() / 2], sizes[sizes.len() * 9 / 10]);
        assert!((20_000..33_000).contains(&median), "median {median}");
        assert!((190_000..340_000).contains(&p90), "p90 {p90}");
        assert!(*sizes.last().unwrap() < 15_000_000);
    }

    #[test]
    fn every_stretch_of_two_kibibytes_tells_its_owner() {
        let corpus = Corpus::small(3);
        let canary = corpus.canary("dave");
        let messages = inbox(&corpus, "dave");
        for message in &messages[..messages.len() - corpus.shared] {
            assert!(canary.is_in(&message.octets));
            for chunk in message.octets.chunks_exact(2560) {
                assert!(canary.is_in(chunk), "no canary in {}", String::from_utf8_lossy(chunk));
            }
        }
    }

    #[test]
    fn nobody_carries_another_users_canary() {
        let corpus = Corpus::small(3);
        let bob = corpus.canary("bob");
        for owner in ["alice", "dave"] {
            assert!(inbox(&corpus, owner).iter().all(|message| !bob.is_in(&message.octets)));
        }
    }

    #[test]
    fn everybody_shares_the_last_messages() {
        let corpus = Corpus::small(3);
        let tail = |user| {
            let messages = inbox(&corpus, user);
            messages[messages.len() - corpus.shared..].iter().map(|m| m.octets.clone()).collect::<Vec<_>>()
        };
        assert_eq!(tail("alice"), tail("frank"));
        assert!(corpus.canary(SHARED).is_in(&tail("alice")[0]));
    }

    #[test]
    fn office_mail_is_canonical() {
        for message in inbox(&Corpus::small(5), "alice") {
            assert!(!message.octets.contains(&0));
            let bare = message.octets.windows(2).any(|pair| (pair[1] == b'\n') != (pair[0] == b'\r'));
            assert!(!bare, "a bare CR or LF");
            assert!(message.octets.split(|octet| *octet == b'\n').all(|line| line.len() <= 999));
        }
    }
}
