//! Our option into a SYN that passes.
//!
//! The maximum segment size that the SYN announces needs no lowering: it bounds what the other side sends later, and
//! those segments carry no option of ours. RFC 6691 §2 has a sender count the options it puts in itself. Only the SYN
//! grows, by the option, and a SYN without data is far from any MTU; one with data (RFC 7413) is measured against
//! `octets_max`.

use crate::mutants;

use super::{
    Item, Kind, View,
    rewrite::{Area, with_options},
    view::Tcp,
};

/// Why a SYN leaves without our option.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Unprobed {
    /// No TCP SYN.
    #[error("no SYN")]
    NotSyn,
    /// Signed (kind 19, RFC 2385) or authenticated (kind 29, RFC 5925): one altered octet, and it is thrown away.
    #[error("signed with TCP-MD5 or TCP-AO")]
    Signed,
    /// An option that cannot be read; nobody would read ours behind it.
    #[error("options that cannot be read")]
    Malformed,
    /// It carries one of ours already.
    #[error("carries a probe already")]
    Present,
    /// No room, without the filling too.
    #[error("no room among its options")]
    Full,
    /// It would be longer than the caller, or a length field, allows.
    #[error("would be too long")]
    TooLong,
}

impl Unprobed {
    /// As a log and a metric's label say it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::NotSyn => "not-syn",
            Self::Signed => "signed",
            Self::Malformed => "malformed",
            Self::Present => "present",
            Self::Full => "full",
            Self::TooLong => "too-long",
        }
    }
}

/// As [`splice`], without doing it.
///
/// # Errors
/// [`Unprobed`]: let it pass as it is.
pub fn room(view: &View<'_>, option: &[u8], octets_max: usize) -> Result<(), Unprobed> {
    plan(view, option, octets_max).map(|_| ())
}

/// The SYN with `option` (whole, kind and length first) behind its own options, in `out`, which is emptied first.
///
/// Its own options stay as they are and in their order. Only when there is no room otherwise is filling taken out
/// from between them. `octets_max` bounds the whole packet: the MTU of the way out where it is known, else
/// [`LONGEST_MAX`].
///
/// # Errors
/// [`Unprobed`]: let it pass as it is.
pub fn splice(view: &View<'_>, option: &[u8], octets_max: usize, out: &mut Vec<u8>) -> Result<(), Unprobed> {
    out.clear();
    let (tcp, area) = plan(view, option, octets_max)?;
    if with_options(view, &tcp, area.words(), out) { Ok(()) } else { Err(Unprobed::TooLong) }
}

fn plan<'a>(view: &View<'a>, option: &[u8], octets_max: usize) -> Result<(Tcp<'a>, Area), Unprobed> {
    let Some(tcp) = view.tcp().filter(|tcp| tcp.kind() == Kind::Syn) else { return Err(Unprobed::NotSyn) };
    // What stands before the end of the list, with filling and without.
    let (mut meant, mut squeezed) = (0, Area::new());
    for item in tcp.options() {
        match item {
            Item::Nop => meant += 1,
            Item::End => break,
            Item::Malformed => return Err(Unprobed::Malformed),
            Item::Option(found) if SIGNED.contains(&found.kind) && !mutants::on("splice-signed") => {
                return Err(Unprobed::Signed);
            }
            Item::Option(found) if found.same_experiment(option) => return Err(Unprobed::Present),
            Item::Option(found) => {
                meant += found.octets.len();
                squeezed.push(found.octets);
            }
        }
    }
    let mut area = Area::new();
    area.push(tcp.options_octets().get(..meant).unwrap_or_default());
    if !area.push(option) {
        area = squeezed;
        if !area.push(option) {
            return Err(Unprobed::Full);
        }
    }
    let octets = view.octets().len() - tcp.options_octets().len() + area.words().len();
    if octets > octets_max.min(LONGEST_MAX) {
        return Err(Unprobed::TooLong);
    }
    Ok((tcp, area))
}

/// The longest packet that the IP headers can tell of.
pub const LONGEST_MAX: usize = 65_535;
/// TCP-MD5 and TCP-AO.
const SIGNED: [u8; 2] = [19, 29];
