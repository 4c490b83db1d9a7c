//! The response reader against a reader that splits into words, and what it gives back against where it stands.

use imap_core::response::{Code, Response, Status, response};

/// The first piece of a response.
pub fn run(data: &[u8]) {
    let read = response(data);
    // The framer cuts behind each LF.
    if data.iter().rev().skip(1).any(|&o| o == b'\n') {
        return;
    }
    let line: String = data.iter().map(|&o| char::from(o)).collect();
    let line = line.strip_suffix('\n').unwrap_or(&line);
    let line = line.strip_suffix('\r').unwrap_or(line);
    let words: Vec<&str> = line.split(' ').filter(|word| !word.is_empty()).collect();
    let word = |at: usize| words.get(at).map(|w| w.to_ascii_uppercase()).unwrap_or_default();
    let latin = |octets: &[u8]| octets.iter().map(|&o| char::from(o)).collect::<String>();
    let inside = |octets: &[u8]| octets.is_empty() || data.as_ptr_range().contains(&octets.as_ptr());
    let Ok(read) = read else {
        // What every client understands must be understood here.
        let plain = line.starts_with("* ") && !line.contains("  ");
        let number: Option<u32> =
            word(1).parse().ok().filter(|_| word(1).bytes().all(|o| o.is_ascii_digit()));
        let known = ["OK", "NO", "BAD", "BYE", "PREAUTH", "CAPABILITY", "FLAGS", "LIST", "SEARCH", "STATUS"];
        assert!(!(plain && known.contains(&word(1).as_str())), "{line:?}");
        assert!(
            !(plain && number.is_some_and(|n| n > 0) && ["EXISTS", "EXPUNGE"].contains(&word(2).as_str()))
        );
        assert!(!(plain && number.is_some_and(|n| n > 0) && word(2) == "FETCH" && word(3).starts_with('(')));
        return;
    };
    let statuses = |status: Status| match status {
        Status::Ok => "OK",
        Status::No => "NO",
        Status::Bad => "BAD",
        Status::Bye => "BYE",
        Status::Preauth => "PREAUTH",
    };
    let check_code = |code: Option<Code<'_>>| {
        if let Some(code) = code {
            assert!(inside(code.name) && inside(code.argument) && !code.name.is_empty());
            let name = latin(code.name);
            let mut open = line.match_indices('[').map(|(at, _)| line[at + 1..].trim_start_matches(' '));
            assert!(open.any(|behind| behind.starts_with(&name)), "{line:?} has no code {name}");
        }
    };
    let number = |n: u32, name: &str| {
        assert_eq!((word(0).as_str(), word(1).parse(), word(2).as_str()), ("*", Ok(n), name), "{line:?}");
    };
    let named = |name: &str| assert_eq!((word(0).as_str(), word(1).as_str()), ("*", name), "{line:?}");
    match read {
        Response::Continuation(text) => assert!(line.starts_with('+') && inside(text)),
        Response::Tagged { tag, status, code } => {
            assert!(
                line.starts_with(&latin(tag)) && latin(tag) == words[0] && !["*", ""].contains(&words[0])
            );
            assert!(!line.starts_with('+') && word(1) == statuses(status));
            assert!(matches!(status, Status::Ok | Status::No | Status::Bad));
            check_code(code);
        }
        Response::Status { status, code } => {
            named(statuses(status));
            check_code(code);
        }
        Response::Exists(n) => number(n, "EXISTS"),
        Response::Recent(n) => number(n, "RECENT"),
        Response::Expunge(msn) => number(msn.get(), "EXPUNGE"),
        Response::Fetch { msn, payload_at } => {
            number(msn.get(), "FETCH");
            assert_eq!(data.get(payload_at), Some(&b'('), "{line:?}");
            let before: String = latin(&data[..payload_at]).to_ascii_uppercase();
            assert!(before.trim_ascii_end().ends_with("FETCH"), "{line:?}");
        }
        Response::Vanished { earlier, uids } => {
            named("VANISHED");
            let second = word(2).trim_ascii_start().to_owned();
            let second = if words.len() == 3 { second.trim_ascii_end() } else { &second };
            assert!(inside(uids) && earlier == (second == "(EARLIER)"));
        }
        Response::Capability(list) => {
            named("CAPABILITY");
            assert!(
                inside(list)
                    && latin(list).split(' ').filter(|w| !w.is_empty()).eq(words[2..].iter().copied())
                    || line.contains(|c: char| c.is_ascii_whitespace() && c != ' '),
                "{line:?}"
            );
        }
        Response::Search(list) => (named("SEARCH"), assert!(inside(list))).0,
        Response::Sort(list) => (named("SORT"), assert!(inside(list))).0,
        Response::Esearch(list) => (named("ESEARCH"), assert!(inside(list))).0,
        Response::Enabled(list) => (named("ENABLED"), assert!(inside(list))).0,
        Response::Thread => named("THREAD"),
        Response::Flags => named("FLAGS"),
        Response::List => named("LIST"),
        Response::Lsub => named("LSUB"),
        Response::StatusData => named("STATUS"),
        Response::Namespace => named("NAMESPACE"),
        Response::Other(name) => {
            assert!(inside(name) && !name.is_empty());
            let name = latin(name).to_ascii_uppercase();
            assert!(name == word(1) || name == word(2), "{line:?}");
        }
    }
}
