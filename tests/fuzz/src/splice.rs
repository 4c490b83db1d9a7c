//! Our option into SYNs and out again: everything else stays, right or wrong as it was.

use discovery_core::{
    packet::{Kind, LONGEST_MAX, Unprobed, View, room, splice, strip},
    probe::{Codec, Probe, Query},
};

/// A packet from its IP header on, bent a little.
pub fn run(data: &[u8]) {
    spliced(data);
}

/// As [`run`]; whether there was anything to splice.
fn spliced(data: &[u8]) -> bool {
    let mut data = data.to_vec();
    bend(&mut data);
    let Ok(view) = View::parse(&data) else { return false };
    let codec = Codec::default();
    let query = codec.encode(&Probe::Query(Query));
    let query = query.octets();
    let mut out = vec![1];
    let done = splice(&view, query, LONGEST_MAX, &mut out);
    assert_eq!(room(&view, query, LONGEST_MAX), done);
    let before = view.tcp().filter(|tcp| tcp.kind() == Kind::Syn);
    let Some(before) = before else {
        assert_eq!(done, Err(Unprobed::NotSyn));
        return false;
    };
    let own = options(before.options_octets());
    let allowed = match &own {
        None => false,
        Some(own) => {
            let ours = |option: &[u8]| option[0] == query[0] && option.get(2..4) == Some(&query[2..4]);
            let signed = own.iter().any(|option| [19, 29].contains(&option[0]));
            let octets: usize = own.iter().map(|option| option.len()).sum();
            !signed && !own.iter().any(|option| ours(option)) && octets + query.len() <= 40
        }
    };
    let grown = view.octets().len() + 40 - before.options_octets().len();
    assert!(done.is_ok() == allowed || (done == Err(Unprobed::TooLong) && grown > 65_535), "{done:?}");
    if done.is_ok() {
        let after = View::parse(&out).unwrap();
        let mut expected = own.unwrap();
        expected.push(query);
        assert_eq!(options(after.tcp().unwrap().options_octets()).unwrap(), expected);
        unchanged(&view, &after);
        let mut back = Vec::new();
        assert!(strip(&after, |option| codec.owns(option), &mut back));
        let back = View::parse(&back).unwrap();
        unchanged(&view, &back);
        assert_eq!(options(back.tcp().unwrap().options_octets()), options(before.options_octets()));
    } else {
        assert!(out.is_empty());
    }
    let mut stripped = Vec::new();
    if strip(&view, |option| codec.owns(option), &mut stripped) {
        let after = View::parse(&stripped).unwrap();
        unchanged(&view, &after);
        assert!(!strip(&after, |option| codec.owns(option), &mut Vec::new()));
    } else {
        assert_eq!(stripped, view.octets());
    }
    done.is_ok()
}

/// The length that it says is the one that it has; of IPv4 it is a whole TCP segment, whose header ends within it, and a SYN unless the last octet is
/// a multiple of eight. Most mutations would be no SYN otherwise.
fn bend(data: &mut [u8]) {
    let length = |octets: usize| u16::try_from(octets).unwrap_or(u16::MAX).to_be_bytes();
    let (octets, last) = (data.len(), data.last().copied().unwrap_or(0));
    let tcp = match data.first().map(|first| first >> 4) {
        Some(4) if octets >= 40 => {
            data[2..4].copy_from_slice(&length(octets));
            data[6..10].copy_from_slice(&[0x40, 0, 63, 6]);
            data[0] = data[0].max(0x45);
            usize::from(data[0] & 15) * 4
        }
        Some(6) if octets >= 60 => {
            data[4..6].copy_from_slice(&length(octets - 40));
            40
        }
        _ => return,
    };
    if let Some(offset) = data.get_mut(tcp + 12) {
        let words = (octets - tcp) / 4;
        *offset = (*offset >> 4).clamp(5, u8::try_from(words.clamp(5, 15)).unwrap_or(15)) << 4 | *offset & 15;
    }
    if let (Some(flags), true) = (data.get_mut(tcp + 13), last % 8 != 0) {
        *flags = *flags & 0xC0 | 2;
    }
}

/// All octets but those of lengths, checksums and options; and what the checksums are wrong by.
fn unchanged(before: &View<'_>, after: &View<'_>) {
    let (a, b) = (before.octets(), after.octets());
    let (tcp_a, tcp_b) = (before.tcp().unwrap(), after.tcp().unwrap());
    assert_eq!(tcp_a.payload(), tcp_b.payload());
    let at = a.len() - tcp_a.payload().len() - tcp_a.options_octets().len() - 20;
    let v4 = a[0] >> 4 == 4;
    let lengths: &[usize] = if v4 { &[2, 3, 10, 11] } else { &[4, 5] };
    for octet in 0..at + 20 {
        let may = lengths.contains(&octet) || [at + 12, at + 16, at + 17].contains(&octet);
        assert!(may || a[octet] == b[octet], "octet {octet}");
    }
    assert_eq!(a[at + 12] & 15, b[at + 12] & 15);
    if v4 {
        assert_eq!(sum(&a[..at]), sum(&b[..at]), "IPv4 header");
    }
    let tcp = |octets: &[u8]| {
        let addresses = if v4 { &octets[12..20] } else { &octets[8..40] };
        let length = u16::try_from(octets.len() - at).unwrap().to_be_bytes();
        sum(&[addresses, &[0, 6], &length, &octets[at..]].concat())
    };
    assert_eq!(tcp(a), tcp(b), "TCP");
}

/// Ones' complement has two zeros; here they are one.
fn sum(octets: &[u8]) -> u64 {
    let word = |pair: &[u8]| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u64::from(low));
    octets.chunks(2).map(word).sum::<u64>() % 0xFFFF
}

/// Without filling; none when they cannot be read.
fn options(area: &[u8]) -> Option<Vec<&[u8]>> {
    let (mut at, mut found) = (0, Vec::new());
    while at < area.len() && area[at] != 0 {
        if area[at] == 1 {
            at += 1;
            continue;
        }
        let length = usize::from(*area.get(at + 1)?);
        found.push(area.get(at..at + length).filter(|option| option.len() >= 2)?);
        at += length;
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Mutator, corpus};

    #[test]
    fn mutations_are_spliced_often() {
        let pool = corpus("splice").unwrap().into_iter().map(|(_, octets)| octets).collect();
        let mut mutator = Mutator::new(7, pool);
        let spliced = (0..5000).filter(|_| spliced(&mutator.input())).count();
        assert!(spliced > 1500, "{spliced} of 5000");
    }
}
