//! What a server can do, and what of it we let a client see (RFC 9051 §7.2.2). A client uses whatever is offered,
//! so a capability that would take the conversation out of our reading, or that belongs to the other road's
//! encryption, must not be shown. Everything else is the origin's own list in its own order and spelling.

use bytes::Bytes;

/// A server's capabilities.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(Vec<Bytes>);

impl Capabilities {
    /// Reads `IMAP4rev1 IDLE …`, with or without the word CAPABILITY before it; at most [`CAPABILITIES_MAX`].
    #[must_use]
    pub fn from_list(list: &[u8]) -> Self {
        let words = words(list).enumerate();
        let names = words.filter(|(n, word)| *n > 0 || !word.eq_ignore_ascii_case(b"CAPABILITY"));
        Self(names.map(|(_, word)| word.to_ascii_uppercase().into()).take(CAPABILITIES_MAX).collect())
    }

    /// Whether `name` is in the list, in any case: `IDLE`, `COMPRESS=DEFLATE`, `AUTH=PLAIN`.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|own| own.eq_ignore_ascii_case(name.as_bytes()))
    }

    /// Whether nothing was said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// How the client reached us; the origin's own road does not matter to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientRoad {
    /// Its octets are encrypted.
    pub tls_now: bool,
    /// We would answer its STARTTLS.
    pub starttls_offered: bool,
}

/// The capabilities of `list` (without the word CAPABILITY) that the client may see.
#[must_use]
pub fn filter(list: &[u8], road: ClientRoad) -> Vec<u8> {
    let scram_plus = words(list)
        .filter_map(mechanism)
        .any(|m| starts_with(m, b"SCRAM-") && m.to_ascii_uppercase().ends_with(b"-PLUS"));
    let must_encrypt = !road.tls_now && road.starttls_offered;
    let kept = words(list).filter(|word| match mechanism(word) {
        Some(mechanism) => !must_encrypt && passes_mechanism(mechanism, scram_plus),
        None => passes(word),
    });
    let added = [&b"STARTTLS"[..], b"LOGINDISABLED"].into_iter().filter(|_| must_encrypt);
    kept.chain(added).collect::<Vec<_>>().join(&b' ')
}

/// A whole line of the server with the capabilities in it filtered: `* CAPABILITY …`, or `[CAPABILITY …]` in a
/// status of any kind. `None` for a line that holds none.
#[must_use]
pub fn filter_line(line: &[u8], road: ClientRoad) -> Option<Vec<u8>> {
    let end = line.strip_suffix(b"\n").map_or(line, |l| l.strip_suffix(b"\r").unwrap_or(l)).len();
    let (body, line_end) = line.split_at_checked(end)?;
    let (first, rest) = next_word(body);
    let (second, rest) = next_word(rest);
    let (list, list_octets) = if first == b"*" && second.eq_ignore_ascii_case(b"CAPABILITY") {
        (rest, rest.len())
    } else {
        let statuses = [&b"OK"[..], b"NO", b"BAD", b"PREAUTH", b"BYE"];
        statuses.iter().any(|s| second.eq_ignore_ascii_case(s)).then_some(())?;
        let rest = rest.trim_ascii_start();
        let code = rest.get(CODE.len()..).filter(|_| starts_with(rest, CODE))?;
        // `[CAPABILITYX` is another code.
        matches!(code.first(), None | Some(b' ' | b']')).then_some(())?;
        // Without `]` the code takes all of the line: hiding too much is better than too little.
        (code, code.iter().position(|&o| o == b']').unwrap_or(code.len()))
    };
    let (list, after) = list.split_at_checked(list_octets)?;
    let before = body.get(..body.len().checked_sub(list.len() + after.len())?)?;
    Some([before, b" ", &filter(list, road), after, line_end].concat())
}

/// Whether a capability that is no AUTH= may be seen.
fn passes(word: &[u8]) -> bool {
    let word = word.to_ascii_uppercase();
    match &*word {
        // The origin's road, not the client's.
        b"STARTTLS" | b"LOGINDISABLED" => false,
        // They change what untagged data means, or who it is meant for, in ways that our two views do not follow.
        b"NOTIFY" | b"UIDONLY" | b"UNAUTHENTICATE" | b"MULTISEARCH" => false,
        // Compressed octets cannot be read on the way; each road compresses for itself.
        word => !word.starts_with(b"COMPRESS=") && !word.starts_with(b"CONTEXT="),
    }
}

/// Whether AUTH= with this mechanism may be seen.
fn passes_mechanism(mechanism: &[u8], scram_plus: bool) -> bool {
    let mechanism = mechanism.to_ascii_uppercase();
    let bound_to_the_road = mechanism.ends_with(b"-PLUS") || mechanism == b"EXTERNAL";
    // A client that can bind channels says `y` when it sees no -PLUS, and a server that has one must then refuse
    // (RFC 5802 §6): it takes the pair for the work of somebody in between.
    let refused = scram_plus && mechanism.starts_with(b"SCRAM-");
    // What follows such a login may be wrapped, and we could not read on. Mechanisms that nobody knows stay: the
    // session gives up reading when one of them succeeds.
    let layered = matches!(
        &*mechanism,
        b"GSSAPI" | b"GSS-SPNEGO" | b"NTLM" | b"DIGEST-MD5" | b"KERBEROS_V4" | b"KERBEROS_V5"
    );
    !bound_to_the_road && !refused && !layered
}

fn mechanism(word: &[u8]) -> Option<&[u8]> {
    word.get(5..).filter(|_| starts_with(word, b"AUTH="))
}

fn words(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|o| matches!(o, b' ' | b'\t' | b'\r' | b'\n')).filter(|word| !word.is_empty())
}

/// The next word and what follows it, its space included.
fn next_word(octets: &[u8]) -> (&[u8], &[u8]) {
    let octets = octets.trim_ascii_start();
    let end = octets.iter().position(|&o| o == b' ').unwrap_or(octets.len());
    octets.split_at_checked(end).unwrap_or((octets, b""))
}

fn starts_with(octets: &[u8], prefix: &[u8]) -> bool {
    octets.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

/// How the response code begins.
const CODE: &[u8] = b"[CAPABILITY";

/// The longest known lists have about 60.
pub const CAPABILITIES_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TLS: ClientRoad = ClientRoad { tls_now: true, starttls_offered: false };
    const MUST: ClientRoad = ClientRoad { tls_now: false, starttls_offered: true };
    const PLAIN: ClientRoad = ClientRoad { tls_now: false, starttls_offered: false };

    fn filtered(list: &str, road: ClientRoad) -> String {
        String::from_utf8(filter(list.as_bytes(), road)).unwrap()
    }

    fn line(line: &str, road: ClientRoad) -> Option<String> {
        filter_line(line.as_bytes(), road).map(|l| String::from_utf8(l).unwrap())
    }

    #[test]
    fn a_list_is_known_in_any_case() {
        let list = Capabilities::from_list(b"CAPABILITY IMAP4rev1 Idle COMPRESS=deflate\r\n");
        assert!(list.has("IDLE") && list.has("compress=DEFLATE") && list.has("imap4REV1"));
        assert!(!list.has("CAPABILITY") && !list.has("COMPRESS") && !list.has("QRESYNC"));
        assert!(Capabilities::from_list(b" ").is_empty());
    }

    #[test]
    fn what_we_could_not_follow_is_hidden() {
        for (list, seen) in [
            (
                "IMAP4rev1 SASL-IR LOGIN-REFERRALS ID ENABLE IDLE LITERAL+ AUTH=PLAIN AUTH=LOGIN",
                "IMAP4rev1 SASL-IR LOGIN-REFERRALS ID ENABLE IDLE LITERAL+ AUTH=PLAIN AUTH=LOGIN",
            ),
            ("IMAP4rev1 COMPRESS=DEFLATE Condstore NOTIFY CONTEXT=SEARCH", "IMAP4rev1 Condstore"),
            ("IMAP4rev2 UIDONLY UNAUTHENTICATE MULTISEARCH QRESYNC", "IMAP4rev2 QRESYNC"),
            ("STARTTLS LOGINDISABLED IMAP4rev1", "IMAP4rev1"),
            ("AUTH=EXTERNAL auth=gssapi AUTH=NTLM AUTH=DIGEST-MD5 AUTH=CRAM-MD5", "AUTH=CRAM-MD5"),
            (
                "AUTH=SCRAM-SHA-1 AUTH=SCRAM-SHA-256 AUTH=XOAUTH2",
                "AUTH=SCRAM-SHA-1 AUTH=SCRAM-SHA-256 AUTH=XOAUTH2",
            ),
            ("AUTH=SCRAM-SHA-1 AUTH=scram-sha-256-plus AUTH=PLAIN AUTH=GS2-KRB5-PLUS", "AUTH=PLAIN"),
            ("  IMAP4rev1   UIDPLUS ", "IMAP4rev1 UIDPLUS"),
            ("", ""),
        ] {
            assert_eq!(filtered(list, TLS), seen);
            assert_eq!(filtered(list, PLAIN), seen);
        }
    }

    #[test]
    fn a_plain_road_that_can_be_encrypted_must_be() {
        assert_eq!(
            filtered("IMAP4rev1 AUTH=PLAIN auth=CRAM-MD5 SASL-IR STARTTLS", MUST),
            "IMAP4rev1 SASL-IR STARTTLS LOGINDISABLED"
        );
    }

    #[test]
    fn lists_are_found_in_all_three_places() {
        for (given, seen) in [
            ("* CAPABILITY IMAP4rev1 NOTIFY IDLE\r\n", Some("* CAPABILITY IMAP4rev1 IDLE\r\n")),
            ("* capability IMAP4rev1 COMPRESS=DEFLATE\r\n", Some("* capability IMAP4rev1\r\n")),
            (
                "* OK [CAPABILITY IMAP4rev1 STARTTLS AUTH=PLAIN] Dovecot (Debian) ready.\r\n",
                Some("* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] Dovecot (Debian) ready.\r\n"),
            ),
            ("* PREAUTH [CAPABILITY NOTIFY IDLE] hi\r\n", Some("* PREAUTH [CAPABILITY IDLE] hi\r\n")),
            ("a1 OK [Capability X NOTIFY] Logged in\r\n", Some("a1 OK [Capability X] Logged in\r\n")),
            ("a1 NO [CAPABILITY X] no\n", Some("a1 NO [CAPABILITY X] no\n")),
            ("* OK [CAPABILITY X NOTIFY\r\n", Some("* OK [CAPABILITY X\r\n")),
            ("* OK [CAPABILITYX NOTIFY] x\r\n", None),
            ("* OK [ALERT] NOTIFY\r\n", None),
            ("* OK Still here [CAPABILITY NOTIFY]\r\n", None),
            ("* 1 FETCH (BODY[] \"[CAPABILITY NOTIFY]\")\r\n", None),
            ("* LIST () \"/\" CAPABILITY\r\n", None),
            ("a1 CAPABILITY NOTIFY\r\n", None),
            ("* ENABLED NOTIFY\r\n", None),
            ("+ OK [\r\n", None),
            ("", None),
        ] {
            assert_eq!(line(given, TLS).as_deref(), seen, "{given}");
        }
        assert_eq!(
            line("* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] hi\r\n", MUST).as_deref(),
            Some("* OK [CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED] hi\r\n")
        );
    }

    proptest! {
        #[test]
        fn filtering_twice_changes_nothing(
            list in "((AUTH=)?(PLAIN|SCRAM-SHA-1(-PLUS)?|IDLE|NOTIFY|STARTTLS|compress=x|CONTEXT=SORT) {0,2}){0,9}",
            road in prop_oneof![Just(TLS), Just(MUST), Just(PLAIN)],
        ) {
            let once = filter(list.as_bytes(), road);
            prop_assert_eq!(filter(&once, road), once.clone());
            let seen = Capabilities::from_list(&once);
            prop_assert!(!seen.has("NOTIFY") && !seen.has("COMPRESS=X"));
            prop_assert_eq!(seen.has("STARTTLS"), road == MUST);
        }

        #[test]
        fn any_line_is_safe(octets in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = filter_line(&octets, MUST);
            let _ = filter_line(&[&b"* OK [CAPABILITY "[..], &octets].concat(), MUST);
        }
    }
}
