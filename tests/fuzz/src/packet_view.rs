//! IP packets, against a reader that goes field by field.

use discovery_core::packet::{Protocol, View};
use std::net::{IpAddr, SocketAddr};

/// A packet from its IP header on.
pub fn run(data: &[u8]) {
    match (View::parse(data), read(data)) {
        (Ok(view), Some(plain)) => {
            assert_eq!((view.src(), view.dst()), (plain.src, plain.dst), "{data:02x?}");
            assert_eq!(view.octets(), plain.octets);
            assert_eq!(view.protocol() == Protocol::Tcp, plain.tcp.is_some());
            assert_eq!(view.datagram(), plain.datagram);
            let tcp = view.tcp().map(|tcp| Plain {
                seq: tcp.seq(),
                ack: tcp.ack(),
                flags: tcp.flags(),
                window: tcp.window(),
                options: tcp.options_octets(),
                payload: tcp.payload(),
            });
            assert_eq!(tcp, plain.tcp, "{data:02x?}");
            if let Some(tcp) = view.tcp() {
                assert!(tcp.options().count() <= 40);
                assert!(tcp.syn_facts().window_scale.is_none_or(|shift| shift <= 14));
            }
        }
        (Err(_), None) => {}
        (Ok(_), None) => panic!("read, and should not be: {data:02x?}"),
        (Err(refused), Some(_)) => panic!("{refused}: {data:02x?}"),
    }
}

struct Read<'a> {
    octets: &'a [u8],
    src: SocketAddr,
    dst: SocketAddr,
    tcp: Option<Plain<'a>>,
    datagram: Option<&'a [u8]>,
}

#[derive(Debug, PartialEq, Eq)]
struct Plain<'a> {
    seq: u32,
    ack: u32,
    flags: u8,
    window: u16,
    options: &'a [u8],
    payload: &'a [u8],
}

fn read(data: &[u8]) -> Option<Read<'_>> {
    let u16_at = |at: usize| Some(u16::from_be_bytes(data.get(at..at + 2)?.try_into().ok()?));
    let (octets, at, protocol, src, dst): (&[u8], usize, u8, IpAddr, IpAddr);
    match data.first()? >> 4 {
        4 => {
            octets = data.get(..usize::from(u16_at(2)?))?;
            at = usize::from(data[0] & 15) * 4;
            let whole = u16_at(6)? & 0x3FFF == 0;
            if at < 20 || octets.len() < at || !whole || pending(&octets[20..at]) {
                return None;
            }
            protocol = data[9];
            src = <[u8; 4]>::try_from(&octets[12..16]).ok()?.into();
            dst = <[u8; 4]>::try_from(&octets[16..20]).ok()?.into();
        }
        6 => {
            octets = data.get(..40 + usize::from(u16_at(4)?))?;
            src = <[u8; 16]>::try_from(&octets[8..24]).ok()?.into();
            dst = <[u8; 16]>::try_from(&octets[24..40]).ok()?.into();
            let (mut next, mut header, mut headers) = (data[6], 40, 0);
            while [0, 43, 60].contains(&next) {
                headers += 1;
                // A routing header with segments left leads elsewhere.
                if headers > 8 || (next == 43 && *octets.get(header + 3)? != 0) {
                    return None;
                }
                next = *octets.get(header)?;
                header += 8 * (1 + usize::from(*octets.get(header + 1)?));
            }
            (at, protocol) = (header, next);
        }
        _ => return None,
    }
    let transport = octets.get(at..)?;
    let port = |at: usize| Some(u16::from_be_bytes(transport.get(at..at + 2)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_be_bytes(transport.get(at..at + 4)?.try_into().ok()?));
    let mut datagram = None;
    let tcp = match protocol {
        6 => {
            let header = usize::from(transport.get(12)? >> 4) * 4;
            let (options, payload) = (transport.get(20..header)?, transport.get(header..)?);
            let (flags, window) = (transport[13], port(14)?);
            Some(Plain { seq: u32_at(4)?, ack: u32_at(8)?, flags, window, options, payload })
        }
        17 => {
            datagram = Some(transport.get(8..usize::from(port(4)?))?);
            None
        }
        _ => return None,
    };
    Some(Read { octets, src: (src, port(0)?).into(), dst: (dst, port(2)?).into(), tcp, datagram })
}

/// Loose or strict source route with stages to go.
fn pending(options: &[u8]) -> bool {
    let mut at = 0;
    while at < options.len() && options[at] != 0 {
        let length = options.get(at + 1).copied().unwrap_or(0);
        let pointer = options.get(at + 2).copied().unwrap_or(0xFF);
        if [131, 137].contains(&options[at]) && pointer < length {
            return true;
        }
        if options[at] != 1 && length < 2 {
            return false;
        }
        at += if options[at] == 1 { 1 } else { usize::from(length) };
    }
    false
}
