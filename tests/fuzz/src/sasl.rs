//! Identities out of SASL messages, against a reader with its own base64: a name that is known is the one that
//! stands in the message, and of two readings that differ neither is taken.

use imap_core::sasl::{Identity, identity, may_have_security_layer};

/// A mechanism, a space, and a client's first message in base64.
pub fn run(data: &[u8]) {
    let space = data.iter().position(|&o| o == b' ').unwrap_or(data.len());
    let (mechanism, message) = data.split_at(space);
    let message = message.get(1..).unwrap_or_default();
    let found = identity(mechanism, message, 0);
    let upper: String = mechanism.iter().map(|&o| char::from(o).to_ascii_uppercase()).collect();
    let expected = decode(message).and_then(|octets| name(&upper, &octets));
    match (found, expected) {
        (Identity::Known(found), Some(expected)) => assert_eq!(*found, expected, "{}", data.escape_ascii()),
        (Identity::Known(found), None) => {
            panic!("{} is taken from {}", found.escape_ascii(), data.escape_ascii())
        }
        (found, Some(expected)) => {
            panic!("{found:?}, not {}: {}", expected.escape_ascii(), data.escape_ascii())
        }
        (Identity::NotYet | Identity::Unknown, None) => {}
    }
    for step in [1, 2, 9] {
        let later = identity(mechanism, message, step);
        assert!(!matches!(later, Identity::Known(_)), "a later message names nobody");
    }
    assert!(!format!("{:?}", identity(mechanism, message, 0)).contains(&upper) || upper.len() < 9);
    let plain = ["PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER", "CRAM-MD5", "XOAUTH", "EXTERNAL", "ANONYMOUS"];
    let open = plain.contains(&upper.as_str()) || upper.starts_with("SCRAM-");
    assert_eq!(may_have_security_layer(mechanism), !open);
}

/// Strict base64 by bits: padded, no spare bits set.
fn decode(message: &[u8]) -> Option<Vec<u8>> {
    if message.is_empty() || !message.len().is_multiple_of(4) || message.len() > 16 * 1024 {
        return None;
    }
    let padding = message.iter().rev().take_while(|&&o| o == b'=').count();
    if padding > 2 {
        return None;
    }
    let mut bits: Vec<bool> = Vec::new();
    for octet in &message[..message.len() - padding] {
        let value = match octet {
            b'A'..=b'Z' => octet - b'A',
            b'a'..=b'z' => octet - b'a' + 26,
            b'0'..=b'9' => octet - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits.extend((0..6).rev().map(|bit| value >> bit & 1 == 1));
    }
    let whole = bits.len() / 8 * 8;
    if bits[whole..].iter().any(|bit| *bit) {
        return None;
    }
    Some(
        bits[..whole].chunks(8).map(|octet| octet.iter().fold(0, |o, bit| o << 1 | u8::from(*bit))).collect(),
    )
}

fn name(mechanism: &str, message: &[u8]) -> Option<Vec<u8>> {
    let text: Vec<char> = message.iter().map(|&o| char::from(o)).collect();
    let text: String = text.into_iter().collect();
    let (authzid, authcid) = match mechanism {
        "PLAIN" => {
            let [authzid, authcid, _] = text.split('\0').collect::<Vec<_>>()[..] else { return None };
            (authzid.to_owned(), authcid.to_owned())
        }
        "LOGIN" => (String::new(), text),
        "XOAUTH2" => {
            let (user, rest) = text.strip_prefix("user=")?.split_once('\x01')?;
            (String::new(), rest.starts_with("auth=").then(|| user.to_owned())?)
        }
        "OAUTHBEARER" => {
            let (authzid, rest) = gs2(&text)?;
            (String::new(), rest.starts_with('\x01').then_some(authzid)?)
        }
        "CRAM-MD5" => {
            let (user, digest) = text.rsplit_once(' ')?;
            let sound = digest.chars().count() == 32 && digest.chars().all(|c| c.is_ascii_hexdigit());
            (String::new(), sound.then(|| user.to_owned())?)
        }
        _ if mechanism.starts_with("SCRAM-") => {
            let (authzid, rest) = gs2(&text)?;
            let (user, rest) = rest.strip_prefix("n=")?.split_once(',')?;
            (authzid, rest.starts_with("r=").then(|| unescaped(user))??)
        }
        _ => return None,
    };
    if authcid.is_empty() || authcid.contains('\0') || authzid.contains('\0') {
        return None;
    }
    let both =
        if authzid.is_empty() || authzid == authcid { authcid } else { format!("{authzid}\0{authcid}") };
    Some(both.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect())
}

fn gs2(text: &str) -> Option<(String, &str)> {
    let (flag, rest) = text.split_once(',')?;
    let (authzid, rest) = rest.split_once(',')?;
    let flag_known = flag == "n" || flag == "y" || flag.starts_with("p=");
    let authzid = if authzid.is_empty() { String::new() } else { unescaped(authzid.strip_prefix("a=")?)? };
    flag_known.then_some((authzid, rest))
}

fn unescaped(name: &str) -> Option<String> {
    let bare = name.replace("=2C", "").replace("=3D", "");
    // Replacing must not make an escape out of two halves.
    let escapes = name.matches('=').count() == name.matches("=2C").count() + name.matches("=3D").count();
    (escapes && !bare.contains(',')).then(|| name.replace("=2C", ",").replace("=3D", "="))
}
