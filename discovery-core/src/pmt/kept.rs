//! The table as octets, for whoever keeps it over a restart. What the operator named is not among them: it comes from
//! the configuration only.
//!
//! ```text
//! octet  0        4        8
//!        'WPM' 1  count    rows
//! row    place    1  4 | 6: a server of that family   address  port, 2
//!                    5 | 7: a network of that family  address  bits, 1
//!        known    1  1 nobody | 2 option dropped | 3 asymmetric
//!                    4 | 6: a peer, whose link's address is of that family   address  port, 2  key, 8
//!        until 8 (milliseconds since 1970)  time to live 8 (milliseconds)  flaps 4
//! ```
//! Numbers are big-endian. A file is believed no more than a peer's octets: what does not fit, or goes on behind its end,
//! is no table at all. Whether the octets are those that were written, their keeper's checksum says.

use super::{Known, Place, PmtRow, Prefix};
use crate::{
    engine::Peer,
    now::UnixMillis,
    octets::{Reader, put_address, put_socket},
    probe::KeyHint,
};
use std::time::Duration;

/// The rows as octets, at most `rows_max` of them; those of the operator are left out.
#[must_use]
pub fn encode(rows: &[PmtRow], rows_max: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + rows.len().min(rows_max) * 64);
    out.extend_from_slice(MAGIC);
    let mut count = 0_u32;
    out.extend_from_slice(&count.to_be_bytes());
    for row in rows.iter().filter(|row| !matches!(row.known, Known::Static(_))).take(rows_max) {
        if put(&mut out, row).is_some() {
            count += 1;
        }
    }
    if let Some(place) = out.get_mut(4..8) {
        place.copy_from_slice(&count.to_be_bytes());
    }
    out
}

/// The rows of what [`encode`] made; none when it is anything else, or more than `rows_max`.
#[must_use]
pub fn decode(octets: &[u8], rows_max: usize) -> Option<Vec<PmtRow>> {
    let mut reader = Reader::new(octets);
    if reader.take::<4>()? != *MAGIC {
        return None;
    }
    let count = usize::try_from(reader.u32()?).ok().filter(|count| *count <= rows_max)?;
    // Not reserved: the number is only the file's word.
    let mut rows = Vec::new();
    for _ in 0..count {
        rows.push(row(&mut reader)?);
    }
    reader.is_empty().then_some(rows)
}

fn put(out: &mut Vec<u8>, row: &PmtRow) -> Option<()> {
    let until = row.until?;
    // Both in full or nothing: half a row would be read as the beginning of the next.
    let place = match row.place {
        Place::Server(server) => (if server.is_ipv4() { 4 } else { 6 }, server.ip()),
        Place::Network(network, None) => (if network.address().is_ipv4() { 5 } else { 7 }, network.address()),
        Place::Network(_, Some(_)) => return None,
    };
    out.push(place.0);
    put_address(out, place.1);
    match row.place {
        Place::Server(server) => out.extend_from_slice(&server.port().to_be_bytes()),
        Place::Network(network, _) => out.push(network.bits()),
    }
    match row.known {
        Known::NoProxy => out.push(1),
        Known::OptionDropped => out.push(2),
        Known::Asymmetric => out.push(3),
        Known::Peer(peer) | Known::Static(peer) => {
            out.push(if peer.link.is_ipv4() { 4 } else { 6 });
            put_socket(out, peer.link);
            out.extend_from_slice(&peer.key.0);
        }
    }
    out.extend_from_slice(&until.0.to_be_bytes());
    out.extend_from_slice(&u64::try_from(row.ttl.as_millis()).unwrap_or(u64::MAX).to_be_bytes());
    out.extend_from_slice(&row.flaps.to_be_bytes());
    Some(())
}

fn row(reader: &mut Reader<'_>) -> Option<PmtRow> {
    let place = match reader.u8()? {
        4 => Place::Server(reader.socket_v4()?),
        6 => Place::Server(reader.socket_v6()?),
        5 => {
            let address = reader.v4()?;
            Place::Network(Prefix::new(address, reader.u8().filter(|bits| *bits <= 32)?), None)
        }
        7 => {
            let address = reader.v6()?;
            Place::Network(Prefix::new(address, reader.u8().filter(|bits| *bits <= 128)?), None)
        }
        _ => return None,
    };
    let known = match reader.u8()? {
        1 => Known::NoProxy,
        2 => Known::OptionDropped,
        3 => Known::Asymmetric,
        4 => Known::Peer(Peer { link: reader.socket_v4()?, key: KeyHint(reader.take()?) }),
        6 => Known::Peer(Peer { link: reader.socket_v6()?, key: KeyHint(reader.take()?) }),
        _ => return None,
    };
    let until = Some(UnixMillis(i64::from_be_bytes(reader.take()?)));
    let ttl = Duration::from_millis(u64::from_be_bytes(reader.take()?));
    Some(PmtRow { place, known, until, ttl, flaps: reader.u32()? })
}

const MAGIC: &[u8; 4] = b"WPM\x01";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pmt::{Pmt, PmtConfig};
    use proptest::prelude::*;
    use std::net::{IpAddr, SocketAddr};

    fn socket() -> impl Strategy<Value = SocketAddr> {
        (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
    }

    fn rows() -> impl Strategy<Value = Vec<PmtRow>> {
        let place = prop_oneof![
            socket().prop_map(Place::Server),
            (any::<IpAddr>(), 0_u8..=128).prop_map(|(ip, bits)| Place::Network(Prefix::new(ip, bits), None)),
        ];
        let known = prop_oneof![
            Just(Known::NoProxy),
            Just(Known::OptionDropped),
            Just(Known::Asymmetric),
            (socket(), any::<[u8; 8]>())
                .prop_map(|(link, key)| Known::Peer(Peer { link, key: KeyHint(key) })),
        ];
        let row = (place, known, any::<i64>(), any::<u64>(), any::<u32>()).prop_map(
            |(place, known, until, ttl, flaps)| PmtRow {
                place,
                known,
                until: Some(UnixMillis(until)),
                ttl: Duration::from_millis(ttl),
                flaps,
            },
        );
        prop::collection::vec(row, 0..20)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(rows in rows()) {
            prop_assert_eq!(decode(&encode(&rows, 100), 100), Some(rows.clone()));
            let bounded = decode(&encode(&rows, 3), 3).unwrap();
            prop_assert_eq!(&bounded, &rows[..rows.len().min(3)]);
        }

        #[test]
        fn what_is_cut_or_goes_on_is_no_table(rows in rows(), cut in any::<prop::sample::Index>()) {
            let whole = encode(&rows, 100);
            prop_assert_eq!(decode(&whole[..cut.index(whole.len())], 100), None);
            prop_assert_eq!(decode(&[&whole[..], &[0]].concat(), 100), None);
        }

        #[test]
        fn noise_is_no_panic(noise in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&noise, 100);
            let _ = decode(&[&MAGIC[..], &noise].concat(), 100);
        }
    }

    #[test]
    fn more_rows_than_are_held_are_none_and_the_operators_stay_out() {
        let none = PmtRow {
            place: Place::Server("10.2.0.2:143".parse().unwrap()),
            known: Known::NoProxy,
            until: Some(UnixMillis(1)),
            ttl: Duration::ZERO,
            flaps: 0,
        };
        assert_eq!(decode(&encode(&[none; 4], 10), 3), None);
        let peer = Peer { link: "10.8.0.1:7782".parse().unwrap(), key: KeyHint([1; 8]) };
        let named = PmtRow { known: Known::Static(peer), until: None, ..none };
        assert_eq!(decode(&encode(&[named, none], 10), 10), Some(vec![none]));
    }

    #[expect(clippy::disallowed_methods, reason = "an arbitrary beginning; nothing depends on it")]
    #[test]
    fn a_table_outlives_its_process_and_no_longer_than_it_is_true() {
        let now = crate::now::Now { mono: std::time::Instant::now(), wall: UnixMillis(1_000_000) };
        let peer = Peer { link: "[fd08::1]:7782".parse().unwrap(), key: KeyHint([1; 8]) };
        let server = "10.2.0.2:143".parse().unwrap();
        let mut before = Pmt::new(PmtConfig::default());
        before.learn_peer(now, server, peer);
        let kept = encode(&before.rows(now), 100);
        for (after, rows) in [(59, 1), (61, 0)] {
            let wall = now.wall.plus(Duration::from_secs(after));
            let mut later = Pmt::new(PmtConfig::default());
            later.restore(crate::now::Now { wall, ..now }, &decode(&kept, 100).unwrap());
            assert_eq!(later.len(), rows, "{after} s later");
        }
    }
}
