//! Our option out of a segment: of a SYN-ACK before it goes on to somebody who did not ask, of a SYN before our own
//! stack gets it.

use super::{
    Item, View,
    options::{NOP, TcpOption},
    rewrite::{Area, with_options},
};

/// The segment without the options that `ours` names, in `out`, which is emptied first. False when it has none: then
/// `out` is the packet as it came.
///
/// Behind an option that cannot be read everything stays where it is, and ours before it become filling: moved forwards,
/// it might be read after all, together with the filling behind it.
pub fn strip(view: &View<'_>, ours: impl Fn(&TcpOption<'_>) -> bool, out: &mut Vec<u8>) -> bool {
    out.clear();
    let Some(tcp) = view.tcp() else {
        out.extend_from_slice(view.octets());
        return false;
    };
    let readable = !tcp.options().any(|item| item == Item::Malformed);
    let (mut area, mut rest, mut found) = (Area::new(), tcp.options_octets(), false);
    for item in tcp.options() {
        let octets = match item {
            Item::Nop => 1,
            // Filling is put there anew.
            Item::End => break,
            Item::Malformed => rest.len(),
            Item::Option(option) => option.octets.len(),
        };
        let Some((this, behind)) = rest.split_at_checked(octets) else { break };
        rest = behind;
        match item {
            Item::Option(option) if ours(&option) => {
                found = true;
                if !readable {
                    area.fill(NOP, this.len());
                }
            }
            Item::Option(_) | Item::Nop | Item::Malformed | Item::End => {
                area.push(this);
            }
        }
    }
    if found && with_options(view, &tcp, area.words(), out) {
        return true;
    }
    out.clear();
    out.extend_from_slice(view.octets());
    false
}
