//! Where message sequence numbers stand in the criteria of SEARCH, SORT and THREAD (RFC 9051 §6.4.4, RFC 5256).
//! A client writes them in its own view; before such a command goes on, somebody must know them all. A search
//! key that is not in the table makes them all unknown: its argument might look like a set and not be one.

use crate::{
    arguments::{Arguments, DEPTH_MAX},
    sequence_set::SequenceSet,
};
use std::ops::Range;

/// What is known about message sequence numbers in search criteria.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MsnSpans {
    /// Each set of MSNs, as ranges of the command's octets in their order; none when empty.
    Known(Vec<Range<usize>>),
    /// There may be any number of them anywhere.
    Unknown,
}

/// After `SEARCH`: whether there is a RETURN, and the criteria.
pub(crate) fn search(mut input: Arguments<'_>) -> (MsnSpans, bool) {
    input.skip_spaces();
    let returns = keyword(&mut input, b"RETURN");
    if returns {
        input.skip_spaces();
        if input.skip_group(b'(', b')').is_none() {
            return (MsnSpans::Unknown, returns);
        }
        input.skip_spaces();
    }
    if keyword(&mut input, b"CHARSET") {
        input.skip_spaces();
        if input.skip_string().is_none() {
            return (MsnSpans::Unknown, returns);
        }
    }
    (criteria(input), returns)
}

/// After `SORT`: `[RETURN (…)] (keys) charset criteria`.
pub(crate) fn sort(mut input: Arguments<'_>) -> MsnSpans {
    input.skip_spaces();
    if keyword(&mut input, b"RETURN") {
        input.skip_spaces();
        if input.skip_group(b'(', b')').is_none() {
            return MsnSpans::Unknown;
        }
        input.skip_spaces();
    }
    if input.skip_group(b'(', b')').is_none() {
        return MsnSpans::Unknown;
    }
    charset_and_criteria(input)
}

/// After `THREAD`: `algorithm charset criteria`.
pub(crate) fn thread(mut input: Arguments<'_>) -> MsnSpans {
    input.skip_spaces();
    if input.skip_string().is_none() {
        return MsnSpans::Unknown;
    }
    charset_and_criteria(input)
}

fn charset_and_criteria(mut input: Arguments<'_>) -> MsnSpans {
    input.skip_spaces();
    if input.skip_string().is_none() {
        return MsnSpans::Unknown;
    }
    criteria(input)
}

fn criteria(input: Arguments<'_>) -> MsnSpans {
    spans(input).map_or(MsnSpans::Unknown, MsnSpans::Known)
}

/// NOT, OR and parentheses change what is found and not where numbers stand, so they are gone over flat.
fn spans(mut input: Arguments<'_>) -> Option<Vec<Range<usize>>> {
    let mut found = Vec::new();
    let mut keys = 0_usize;
    let mut depth = 0_usize;
    loop {
        match input.peek() {
            None => return (depth == 0 && keys > 0).then_some(found),
            Some(b' ') => drop(input.eat(b' ')),
            Some(b'(') => {
                input.eat(b'(');
                depth = Some(depth + 1).filter(|&d| d <= DEPTH_MAX)?;
            }
            Some(b')') => {
                input.eat(b')');
                depth = depth.checked_sub(1)?;
            }
            Some(first) => {
                let span = input.take_while(|o| !matches!(o, b' ' | b'(' | b')' | b'"' | b'{'));
                matches!(input.peek(), None | Some(b' ' | b')')).then_some(())?;
                let word = input.slice(span.clone());
                if first == b'*' || first.is_ascii_digit() {
                    SequenceSet::parse(&word).ok()?;
                    found.push(span);
                } else if *word != *b"$" {
                    arguments_of(&word.to_ascii_uppercase(), &mut input)?;
                }
                keys = Some(keys + 1).filter(|&k| k <= KEYS_MAX)?;
            }
        }
    }
}

/// Goes over what belongs to a search key; `None` for a key that we do not know.
fn arguments_of(key: &[u8], input: &mut Arguments<'_>) -> Option<()> {
    let count = match key {
        b"ALL" | b"ANSWERED" | b"DELETED" | b"DRAFT" | b"FLAGGED" | b"NEW" | b"OLD" | b"RECENT" | b"SEEN"
        | b"UNANSWERED" | b"UNDELETED" | b"UNDRAFT" | b"UNFLAGGED" | b"UNSEEN" | b"SAVEDATESUPPORTED" => 0,
        // Each is followed by whole keys, which are met next: NOT key, OR key key, FUZZY key (RFC 6203).
        b"NOT" | b"OR" | b"FUZZY" => 0,
        b"BCC" | b"BEFORE" | b"BODY" | b"CC" | b"FROM" | b"KEYWORD" | b"LARGER" | b"ON" | b"SENTBEFORE"
        | b"SENTON" | b"SENTSINCE" | b"SINCE" | b"SMALLER" | b"SUBJECT" | b"TEXT" | b"TO" | b"UID"
        | b"UNKEYWORD" => 1,
        // WITHIN (RFC 5032), SAVEDATE (RFC 8514), OBJECTID (RFC 8474), FILTERS (RFC 5466), Gmail's own.
        b"OLDER" | b"YOUNGER" | b"SAVEDBEFORE" | b"SAVEDON" | b"SAVEDSINCE" | b"EMAILID" | b"THREADID"
        | b"FILTER" | b"X-GM-RAW" | b"X-GM-MSGID" | b"X-GM-THRID" => 1,
        b"X-GM-LABELS" => {
            input.space()?;
            return match input.peek()? {
                b'(' => input.skip_group(b'(', b')').map(drop),
                _ => input.skip_string(),
            };
        }
        b"HEADER" => 2,
        // RFC 7162 §3.1.5: `MODSEQ 5` or `MODSEQ "/flags/\\Seen" all 5`.
        b"MODSEQ" => {
            if input.rest().starts_with(b" \"") {
                3
            } else {
                1
            }
        }
        _ => return None,
    };
    for _ in 0..count {
        input.space()?;
        input.skip_string()?;
    }
    Some(())
}

/// Goes over `word` if it stands next, in any case, and ends there.
fn keyword(input: &mut Arguments<'_>, word: &[u8]) -> bool {
    let mut ahead = input.clone();
    let range = ahead.take_while(|o| o.is_ascii_alphabetic());
    let there = ahead.slice(range).eq_ignore_ascii_case(word) && matches!(ahead.peek(), Some(b' ' | b'('));
    if there {
        *input = ahead;
    }
    there
}

/// Far more than any search folder or filter has; the spans are kept as long as the command runs.
const KEYS_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    type Outcome = Option<Vec<String>>;

    fn texts(octets: &Bytes, spans: MsnSpans) -> Outcome {
        match spans {
            MsnSpans::Known(spans) => {
                Some(spans.into_iter().map(|s| String::from_utf8(octets[s].to_vec()).unwrap()).collect())
            }
            MsnSpans::Unknown => None,
        }
    }

    fn found(text: &'static str) -> Outcome {
        let octets = Bytes::from_static(text.as_bytes());
        texts(&octets, search(Arguments::new(&octets)).0)
    }

    fn none() -> Outcome {
        Some(Vec::new())
    }

    #[test]
    fn sets_are_found_wherever_they_stand() {
        let known = |sets: &[&str]| Some(sets.iter().map(|&s| s.to_owned()).collect::<Vec<_>>());
        assert_eq!(found(" 1:* NOT DELETED\r\n"), known(&["1:*"]));
        assert_eq!(found(" NOT (OR 1,3 (UNSEEN *)) 5\r\n"), known(&["1,3", "*", "5"]));
        assert_eq!(found(" RETURN (MIN COUNT) CHARSET UTF-8 OR FROM 7 2:4 $\r\n"), known(&["2:4"]));
        assert_eq!(found(" FUZZY SUBJECT \"1:5\" 9\r\n"), known(&["9"]));
        assert_eq!(found(" TEXT {5}\r\n1:5 x 8\r\n"), known(&["8"]));
    }

    #[test]
    fn arguments_are_no_sets() {
        for text in [
            " UID 1:5\r\n",
            " LARGER 5 SMALLER 9\r\n",
            " MODSEQ 5 ALL\r\n",
            " MODSEQ \"/flags/\\\\draft\" all 620162338\r\n",
            " HEADER 1 2\r\n",
            " header X-Foo \"\" unseen\r\n",
            " X-GM-RAW \"has:attachment 5\" X-GM-LABELS (1 2) X-GM-MSGID 127877\r\n",
            " OLDER 3600 YOUNGER 7 SAVEDSINCE 1-Feb-2026 EMAILID M1 THREADID 5\r\n",
            " KEYWORD $Forwarded UNKEYWORD \\5\r\n",
            " (((UNSEEN)))\r\n",
            " BODY {1+}\r\n) ALL\r\n",
        ] {
            assert_eq!(found(text), none(), "{text}");
        }
    }

    #[test]
    fn what_is_not_known_makes_everything_unknown() {
        for text in [
            "\r\n",
            " X-NEW 1:5\r\n",
            " INTHREAD REFS 1\r\n",
            " 1 (ALL\r\n",
            " 1 ALL)\r\n",
            " 1:x\r\n",
            " FROM\r\n",
            " \"ALL\"\r\n",
            " TEXT {9}\r\nshort\r\n",
            " RETURN ALL 1\r\n",
            " 1\"\r\n",
            " CHARSET\r\n",
        ] {
            assert_eq!(found(text), None, "{text}");
        }
        let deep = Bytes::from([&b" "[..], &[b'('; 100], b"1", &[b')'; 100]].concat());
        assert_eq!(search(Arguments::new(&deep)).0, MsnSpans::Unknown);
    }

    #[test]
    fn sort_and_thread_have_their_own_beginnings() {
        let octets = Bytes::from_static(b" (REVERSE DATE) UTF-8 2:4 UNSEEN\r\n");
        assert_eq!(texts(&octets, sort(Arguments::new(&octets))), Some(vec!["2:4".to_owned()]));
        let octets = Bytes::from_static(b" RETURN (PARTIAL 1:5) (ARRIVAL) \"UTF-8\" ALL\r\n");
        assert_eq!(texts(&octets, sort(Arguments::new(&octets))), none());
        let octets = Bytes::from_static(b" REFERENCES UTF-8 SINCE 5-Mar-2000 7\r\n");
        assert_eq!(texts(&octets, thread(Arguments::new(&octets))), Some(vec!["7".to_owned()]));
        let octets = Bytes::from_static(b" DATE UTF-8 1\r\n");
        assert_eq!(sort(Arguments::new(&octets)), MsnSpans::Unknown);
    }
}
