//! The capability filter against a list of what must never be seen: none of it survives, in whatever line it
//! came, and everything else stays as the server wrote it, in its order.

use imap_core::capability::{Capabilities, ClientRoad, filter, filter_line};

/// A list of capabilities, or a line with one in it.
pub fn run(data: &[u8]) {
    for (tls_now, starttls_offered) in [(true, false), (true, true), (false, true), (false, false)] {
        let road = ClientRoad { tls_now, starttls_offered };
        check_list(data, road);
        check_line(data, road);
    }
    let known = Capabilities::from_list(data);
    // Octets beyond ASCII cannot be looked up as text.
    for word in words(data).iter().skip(1).take(100).filter(|word| word.is_ascii()) {
        assert!(known.has(word), "{word} is not among {known:?}");
    }
}

/// As characters, so that octets of any kind compare.
fn words(list: &[u8]) -> Vec<String> {
    let text: String = list.iter().map(|&o| char::from(o)).collect();
    let is_space = |c: char| matches!(c, ' ' | '\t' | '\r' | '\n');
    text.split(is_space).filter(|w| !w.is_empty()).map(str::to_owned).collect()
}

fn is_forbidden(word: &str, plus: bool) -> bool {
    let word = word.to_ascii_uppercase();
    if let Some(mechanism) = word.strip_prefix("AUTH=") {
        return mechanism.ends_with("-PLUS")
            || (plus && mechanism.starts_with("SCRAM-"))
            || ["EXTERNAL", "GSSAPI", "GSS-SPNEGO", "NTLM", "DIGEST-MD5", "KERBEROS_V4", "KERBEROS_V5"]
                .contains(&mechanism);
    }
    ["STARTTLS", "LOGINDISABLED", "NOTIFY", "UIDONLY", "UNAUTHENTICATE", "MULTISEARCH"]
        .contains(&word.as_str())
        || word.starts_with("COMPRESS=")
        || word.starts_with("CONTEXT=")
}

fn check_list(data: &[u8], road: ClientRoad) {
    let before = words(data);
    let mut after = words(&filter(data, road));
    let is_plus = |word: &String| {
        let word = word.to_ascii_uppercase();
        word.starts_with("AUTH=SCRAM-") && word.ends_with("-PLUS")
    };
    let plus = before.iter().any(is_plus);
    let must_encrypt = road.starttls_offered && !road.tls_now;
    if must_encrypt {
        assert!(after.ends_with(&["STARTTLS".to_owned(), "LOGINDISABLED".to_owned()]));
        after.truncate(after.len() - 2);
        assert!(!after.iter().any(|word| word.to_ascii_uppercase().starts_with("AUTH=")));
    }
    for word in &after {
        assert!(!is_forbidden(word, plus), "{word} is shown");
    }
    // What is left out is forbidden, and the rest stands in its order.
    let mut shown = after.iter().peekable();
    for word in &before {
        if shown.peek() == Some(&word) {
            shown.next();
        } else {
            let auth = must_encrypt && word.to_ascii_uppercase().starts_with("AUTH=");
            assert!(auth || is_forbidden(word, plus), "{word} is gone");
        }
    }
    assert_eq!(shown.next(), None, "something came out that was not in");
}

fn check_line(data: &[u8], road: ClientRoad) {
    // A line is what the framer cuts: one line end, behind everything.
    if data.iter().rev().skip(1).any(|&o| o == b'\n') {
        return;
    }
    let Some(filtered) = filter_line(data, road) else {
        // No list may pass unfiltered in a line that every client understands.
        let text: String = data.iter().map(|&o| char::from(o).to_ascii_uppercase()).collect();
        assert!(!text.starts_with("* CAPABILITY "), "{text:?}");
        assert!(
            !text.starts_with("* OK [CAPABILITY ") && !text.starts_with("* PREAUTH [CAPABILITY "),
            "{text:?}"
        );
        let tagged = text.split_once(' ').is_some_and(|(tag, rest)| {
            let is_tag = !tag.is_empty() && tag.chars().all(|c| c.is_ascii_alphanumeric());
            is_tag && rest.starts_with("OK [CAPABILITY ")
        });
        assert!(!tagged, "{text:?}");
        return;
    };
    for line_end in [&b"\r\n"[..], b"\n"] {
        assert_eq!(data.ends_with(line_end), filtered.ends_with(line_end), "the line end stays");
    }
    let shown = words(&filtered);
    let list =
        shown.iter().position(|w| w.to_ascii_uppercase().ends_with("CAPABILITY")).map_or(0, |at| at + 1);
    let own = ["STARTTLS", "LOGINDISABLED"];
    let must_encrypt = road.starttls_offered && !road.tls_now;
    for word in shown[list.min(shown.len())..].iter().take_while(|word| !word.contains(']')) {
        let ours = must_encrypt && own.contains(&word.as_str());
        assert!(ours || !is_forbidden(word, false), "{word} is shown in {}", filtered.escape_ascii());
    }
    // Filtering what is filtered changes nothing.
    if road.tls_now {
        assert_eq!(filter_line(&filtered, road).as_ref(), Some(&filtered), "{}", data.escape_ascii());
    }
}
