//! Whom a client logs in as, read from the SASL messages that pass (RFC 4422, RFC 9051 §6.2.2). Only the name is
//! kept; passwords, proofs and tokens are wiped from memory as soon as the name is out of them. Nothing here
//! judges a login: the origin does, and the name means nothing before it has said OK.
//!
//! A name that is not certain is [`Identity::Unknown`], and such a session has no cache: taking one user for
//! another is the one mistake that must not happen.

use base64::{Engine, engine::general_purpose::STANDARD};
use std::fmt;
use zeroize::Zeroizing;

/// What a client's SASL message says about who it is.
#[derive(Clone, PartialEq, Eq)]
pub enum Identity {
    /// The authentication identity, octet for octet; with another authorization identity, that one, NUL, and the
    /// authentication identity, which is a user of its own to us.
    Known(Zeroizing<Vec<u8>>),
    /// Nothing in this message; another one said it or may say it.
    NotYet,
    /// Not to be known, or not exactly.
    Unknown,
}

/// Reads one message of the client.
///
/// `client_message_base64` is the initial response or a continuation line without its line end; `=` and nothing
/// stand for the empty message. `step` counts the client's messages from 0, an initial response included. The
/// mechanism's name has no case. When two messages of one exchange both give [`Identity::Known`], they must
/// agree.
#[must_use]
pub fn identity(mechanism: &[u8], client_message_base64: &[u8], step: usize) -> Identity {
    let mechanism = mechanism.to_ascii_uppercase();
    let read: fn(&[u8]) -> Option<Zeroizing<Vec<u8>>> = match &*mechanism {
        b"PLAIN" => plain,
        b"LOGIN" => whole,
        b"XOAUTH2" => xoauth2,
        b"OAUTHBEARER" => oauthbearer,
        b"CRAM-MD5" => cram_md5,
        scram if scram.starts_with(b"SCRAM-") => scram_first,
        _ => return Identity::Unknown,
    };
    // In each of these the first message names the user; later ones carry proofs or acknowledge errors.
    if step > 0 {
        return Identity::NotYet;
    }
    let known = decode(client_message_base64).and_then(|message| read(&message));
    known.filter(|name| !name.is_empty()).map_or(Identity::Unknown, Identity::Known)
}

/// Whether what follows a successful login may be wrapped by the mechanism (RFC 4422 §3.7), so that nobody in
/// between can read on. True also for mechanisms that we do not know.
#[must_use]
pub fn may_have_security_layer(mechanism: &[u8]) -> bool {
    let mechanism = mechanism.to_ascii_uppercase();
    let without = [
        &b"PLAIN"[..],
        b"LOGIN",
        b"XOAUTH2",
        b"OAUTHBEARER",
        b"XOAUTH",
        b"CRAM-MD5",
        b"EXTERNAL",
        b"ANONYMOUS",
    ];
    !without.contains(&&*mechanism) && !mechanism.starts_with(b"SCRAM-")
}

fn decode(base64: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    if base64.is_empty() || base64 == b"=" || base64.len() > MESSAGE_OCTETS_MAX {
        return None;
    }
    // Room for all of it at once: a buffer that grew would leave an unwiped copy behind.
    let mut message = Zeroizing::new(vec![0; base64.len()]);
    let length = STANDARD.decode_slice(base64, &mut message).ok()?;
    message.truncate(length);
    Some(message)
}

/// RFC 4616: `authzid NUL authcid NUL passwd`.
fn plain(message: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut parts = message.split(|&o| o == 0);
    let (authzid, authcid, _password) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    both(authzid, authcid)
}

/// The LOGIN mechanism's first message is the name.
fn whole(message: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    both(b"", message)
}

/// `user=NAME ^A auth=Bearer TOKEN ^A ^A`.
fn xoauth2(message: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (user, rest) = split_at_octet(message.strip_prefix(b"user=")?, 1)?;
    rest.starts_with(b"auth=").then_some(())?;
    both(b"", user)
}

/// RFC 7628: `n,a=NAME,^A key=value ^A … ^A`. Without `a=` the name is in the token, where only the origin looks.
fn oauthbearer(message: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (authzid, rest) = gs2_header(message)?;
    rest.starts_with(&[1]).then_some(())?;
    both(b"", &authzid?)
}

/// RFC 2195: `NAME digest`; the name may hold spaces, the digest does not.
fn cram_md5(message: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let space = message.iter().rposition(|&o| o == b' ')?;
    let (user, digest) = (message.get(..space)?, message.get(space + 1..)?);
    let sound = digest.len() == 32 && digest.iter().all(u8::is_ascii_hexdigit);
    sound.then(|| both(b"", user))?
}

/// RFC 5802 §7, `client-first-message`: `n,[a=NAME],n=NAME,r=NONCE…`.
fn scram_first(message: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (authzid, bare) = gs2_header(message)?;
    // `m=` would be an extension that must be understood.
    let (user, rest) = split_at_octet(bare.strip_prefix(b"n=")?, b',')?;
    rest.starts_with(b"r=").then_some(())?;
    let authcid = sasl_name(user)?;
    both(authzid.as_ref().map_or(&b""[..], |a| a.as_slice()), &authcid)
}

type Gs2Header<'a> = (Option<Zeroizing<Vec<u8>>>, &'a [u8]);

/// RFC 5801 `gs2-header`: channel binding flag, authorization identity, and what follows.
fn gs2_header(message: &[u8]) -> Option<Gs2Header<'_>> {
    let (flag, rest) = split_at_octet(message, b',')?;
    (flag == b"n" || flag == b"y" || flag.starts_with(b"p=")).then_some(())?;
    let (authzid, rest) = split_at_octet(rest, b',')?;
    let authzid = match authzid {
        b"" => None,
        named => Some(sasl_name(named.strip_prefix(b"a=")?)?),
    };
    Some((authzid, rest))
}

/// RFC 5802 `saslname`: `,` is `=2C` and `=` is `=3D`; no other `=` stands in it.
fn sasl_name(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut name = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut rest = text;
    while let Some((&octet, after)) = rest.split_first() {
        let (octet, after) = match octet {
            b'=' if after.starts_with(b"2C") => (b',', after.get(2..)?),
            b'=' if after.starts_with(b"3D") => (b'=', after.get(2..)?),
            b'=' | b',' => return None,
            _ => (octet, after),
        };
        name.push(octet);
        rest = after;
    }
    Some(name)
}

/// One name out of two. A NUL in a name would make two users look like one.
fn both(authzid: &[u8], authcid: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    if authcid.is_empty() || authzid.contains(&0) || authcid.contains(&0) {
        return None;
    }
    Some(Zeroizing::new(if authzid.is_empty() || authzid == authcid {
        authcid.to_vec()
    } else {
        [authzid, b"\0", authcid].concat()
    }))
}

fn split_at_octet(octets: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let position = octets.iter().position(|&o| o == at)?;
    Some((octets.get(..position)?, octets.get(position + 1..)?))
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Known(_) => "Known(…)",
            Self::NotYet => "NotYet",
            Self::Unknown => "Unknown",
        })
    }
}

/// Tokens of large directories reach a few KiB; beyond this the session goes on without a name.
pub const MESSAGE_OCTETS_MAX: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn known(mechanism: &str, message: &[u8]) -> Option<String> {
        match identity(mechanism.as_bytes(), STANDARD.encode(message).as_bytes(), 0) {
            Identity::Known(name) => Some(String::from_utf8(name.to_vec()).unwrap()),
            Identity::NotYet => Some("NotYet".to_owned()),
            Identity::Unknown => None,
        }
    }

    #[test]
    fn names_are_read_from_first_messages() {
        for (mechanism, message, name) in [
            ("PLAIN", &b"\0alice\0pw"[..], "alice"),
            ("plain", b"alice\0alice\0pw", "alice"),
            ("PLAIN", b"bob\0admin\0pw", "bob\0admin"),
            ("LOGIN", b"alice@example.com", "alice@example.com"),
            ("XOAUTH2", b"user=a@b\x01auth=Bearer x\x01\x01", "a@b"),
            ("OAUTHBEARER", b"n,a=a@b,\x01host=h\x01auth=Bearer x\x01\x01", "a@b"),
            ("SCRAM-SHA-256", b"n,,n=us=2Cer=3D,r=abc", "us,er="),
            ("SCRAM-SHA-1", b"y,a=bob,n=admin,r=abc", "bob\0admin"),
            ("SCRAM-SHA-1-PLUS", b"p=tls-unique,a=bob,n=bob,r=abc", "bob"),
            ("CRAM-MD5", b"tim b b913a602c7eda7a495b4e6e7334d3890", "tim b"),
        ] {
            assert_eq!(known(mechanism, message).as_deref(), Some(name), "{mechanism}");
        }
    }

    #[test]
    fn what_is_not_certain_is_unknown() {
        for (mechanism, message) in [
            ("PLAIN", &b"alice\0pw"[..]),
            ("PLAIN", b"\0\0pw"),
            ("PLAIN", b"\0alice\0p\0w"),
            ("PLAIN", b""),
            ("LOGIN", b"ali\0ce"),
            ("XOAUTH2", b"user=a@b"),
            ("XOAUTH2", b"User=a\x01auth=Bearer x\x01\x01"),
            ("XOAUTH2", b"user=\x01auth=Bearer x\x01\x01"),
            ("OAUTHBEARER", b"n,,\x01auth=Bearer x\x01\x01"),
            ("OAUTHBEARER", b"n,a=a=20b,\x01auth=Bearer x\x01\x01"),
            ("SCRAM-SHA-256", b"n,,m=x,n=user,r=abc"),
            ("SCRAM-SHA-256", b"n,,n=us=2cer,r=abc"),
            ("SCRAM-SHA-256", b"n,,n=,r=abc"),
            ("SCRAM-SHA-256", b"n,user,n=user,r=abc"),
            ("SCRAM-SHA-256", b"x,,n=user,r=abc"),
            ("CRAM-MD5", b"tim"),
            ("CRAM-MD5", b"tim pw"),
            ("EXTERNAL", b"alice"),
            ("GSSAPI", b"alice"),
            ("DIGEST-MD5", b"username=\"alice\""),
            ("ANONYMOUS", b"alice"),
        ] {
            assert_eq!(known(mechanism, message), None, "{mechanism} {}", message.escape_ascii());
        }
    }

    #[test]
    fn base64_is_read_strictly() {
        for odd in
            [&b"="[..], b"", b"*", b"AGFsaWNlAHB3=", b"AGFs aWNlAHB3", b"AGFsaWNlAHB3\r\n", b"YR==", b"AGE"]
        {
            assert_eq!(identity(b"LOGIN", odd, 0), Identity::Unknown, "{}", odd.escape_ascii());
        }
        assert_eq!(identity(b"LOGIN", &[b'A'; MESSAGE_OCTETS_MAX + 4], 0), Identity::Unknown);
    }

    #[test]
    fn later_messages_say_nothing() {
        for mechanism in [&b"PLAIN"[..], b"LOGIN", b"XOAUTH2", b"OAUTHBEARER", b"SCRAM-SHA-1", b"CRAM-MD5"] {
            assert_eq!(identity(mechanism, b"cHc=", 1), Identity::NotYet);
        }
        assert_eq!(identity(b"GSSAPI", b"cHc=", 1), Identity::Unknown);
    }

    #[test]
    fn debug_output_holds_no_name() {
        assert_eq!(format!("{:?}", identity(b"LOGIN", b"Ym9i", 0)), "Known(…)");
    }

    #[test]
    fn layers_are_suspected_where_they_are_not_excluded() {
        for layered in ["GSSAPI", "gss-spnego", "DIGEST-MD5", "NTLM", "KERBEROS_V4", "X-NEW"] {
            assert!(may_have_security_layer(layered.as_bytes()), "{layered}");
        }
        for bare in ["plain", "LOGIN", "XOAUTH2", "OAUTHBEARER", "SCRAM-SHA-256", "CRAM-MD5", "EXTERNAL"] {
            assert!(!may_have_security_layer(bare.as_bytes()), "{bare}");
        }
    }

    proptest! {
        #[test]
        fn any_message_is_safe(octets in proptest::collection::vec(any::<u8>(), 0..80), pick in 0usize..6) {
            let mechanisms = [&b"PLAIN"[..], b"LOGIN", b"XOAUTH2", b"OAUTHBEARER", b"SCRAM-SHA-1", b"CRAM-MD5"];
            let _ = identity(mechanisms[pick], &octets, 0);
            let _ = identity(mechanisms[pick], STANDARD.encode(&octets).as_bytes(), 0);
        }

        #[test]
        fn two_plain_users_never_look_alike(
            a in "[a-c]{0,2}", b in "[a-c]{1,2}", c in "[a-c]{0,2}", d in "[a-c]{1,2}",
        ) {
            let user = |z: &str, c: &str| known("PLAIN", format!("{z}\0{c}\0pw").as_bytes());
            let same = |z: &str, c: &str| if z.is_empty() { c.to_owned() } else { z.to_owned() };
            let equal = (same(&a, &b), &b) == (same(&c, &d), &d);
            prop_assert_eq!(user(&a, &b) == user(&c, &d), equal);
        }
    }
}
