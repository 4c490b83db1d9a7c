//! Sequence sets against a reader that lists every number.

use imap_core::sequence_set::{RANGES_MAX, SequenceSet, SetError};

/// A set, perhaps.
pub fn run(data: &[u8]) {
    let naive = naive(data);
    let set = match SequenceSet::parse(data) {
        Ok(set) => set,
        Err(error) => {
            assert!(naive.is_none() || error == SetError::TooManyRanges, "{error}: {}", data.escape_ascii());
            return;
        }
    };
    let naive = naive.unwrap_or_else(|| panic!("read as a set: {}", data.escape_ascii()));
    assert!(!set.is_empty() && naive.len() <= RANGES_MAX);
    assert_eq!(SequenceSet::parse(set.to_string().as_bytes()).as_ref(), Ok(&set), "printed and read again");
    assert_eq!(set.has_star(), naive.iter().any(|(a, b)| a.is_none() || b.is_none()));
    for largest in [0_u32, 1, 7, 1000, u32::MAX] {
        let ranges: Vec<_> = set.resolve(largest).collect();
        for pair in ranges.windows(2) {
            assert!(u64::from(*pair[0].end()) + 1 < u64::from(*pair[1].start()), "sorted, disjoint, merged");
        }
        let interesting = naive.iter().flat_map(|&(a, b)| [a, b]).flatten();
        let interesting = interesting.chain([1, 2, 7, 8, 999, 1000, u32::MAX]).take(400);
        for number in interesting.flat_map(|n| [n.saturating_sub(1), n, n.saturating_add(1)]) {
            let expected = number > 0 && naive.iter().any(|&(a, b)| holds(a, b, number, largest));
            assert_eq!(set.contains(number, largest), expected, "{set} {number} of {largest}");
            assert_eq!(ranges.iter().any(|r| r.contains(&number)), expected, "{set} {number} of {largest}");
        }
    }
    let single = naive.len() == 1 && naive[0].0.is_some() && naive[0].0 == naive[0].1;
    assert_eq!(set.is_single_number(), single);
}

/// Whether `a:b` has `number`; none is `*`, and without a largest number a range with `*` has nothing.
fn holds(a: Option<u32>, b: Option<u32>, number: u32, largest: u32) -> bool {
    if largest == 0 && (a.is_none() || b.is_none()) {
        return false;
    }
    let (a, b) = (a.unwrap_or(largest), b.unwrap_or(largest));
    (a <= number && number <= b) || (b <= number && number <= a)
}

type Bounds = (Option<u32>, Option<u32>);

fn naive(data: &[u8]) -> Option<Vec<Bounds>> {
    let text = std::str::from_utf8(data).ok()?;
    let bound = |text: &str| match text {
        "*" => Some(None),
        _ if text.starts_with(|c: char| ('1'..='9').contains(&c))
            && text.chars().all(|c| c.is_ascii_digit()) =>
        {
            text.parse().ok().map(Some)
        }
        _ => None,
    };
    text.split(',')
        .map(|piece| match piece.split(':').collect::<Vec<_>>().as_slice() {
            [one] => Some((bound(one)?, bound(one)?)),
            [a, b] => Some((bound(a)?, bound(b)?)),
            _ => None,
        })
        .collect()
}
