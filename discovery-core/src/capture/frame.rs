//! From a frame to its IP packet.

use super::{CaptureError, Captured};
use crate::rule::VlanId;
use std::time::Duration;

/// What stands before the IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Ethernet,
    Raw,
    /// Linux cooked, and where its protocol stands.
    Cooked {
        protocol_at: usize,
        octets: usize,
    },
}

impl Link {
    pub(super) fn new(number: u32, at: usize) -> Result<Self, CaptureError> {
        match number {
            1 => Ok(Self::Ethernet),
            // 12 and 14 are what systems wrote before 101 was given out.
            12 | 14 | 101 | 228 | 229 => Ok(Self::Raw),
            113 => Ok(Self::Cooked { protocol_at: 14, octets: 16 }),
            276 => Ok(Self::Cooked { protocol_at: 0, octets: 20 }),
            link => Err(CaptureError::Link { at, link }),
        }
    }

    pub(super) fn packet(self, at: Duration, frame: &[u8]) -> Captured<'_> {
        let none = Captured { at, octets: &[], vlan: None };
        match self {
            Self::Raw => Captured { octets: frame, ..none },
            Self::Cooked { protocol_at, octets } => {
                if kind(frame, protocol_at).is_some_and(is_ip) {
                    Captured { octets: frame.get(octets..).unwrap_or_default(), ..none }
                } else {
                    none
                }
            }
            Self::Ethernet => match kind(frame, 12) {
                Some(ip) if is_ip(ip) => Captured { octets: frame.get(14..).unwrap_or_default(), ..none },
                // One tag; a frame with more is never looked at.
                Some(0x8100) if kind(frame, 16).is_some_and(is_ip) => {
                    let vlan = kind(frame, 14).and_then(|tag| VlanId::new(tag & 0x0fff).ok());
                    Captured { octets: frame.get(18..).unwrap_or_default(), vlan, at }
                }
                Some(_) | None => none,
            },
        }
    }
}

fn kind(frame: &[u8], at: usize) -> Option<u16> {
    frame.get(at..)?.first_chunk::<2>().map(|octets| u16::from_be_bytes(*octets))
}

fn is_ip(ethertype: u16) -> bool {
    matches!(ethertype, 0x0800 | 0x86dd)
}
