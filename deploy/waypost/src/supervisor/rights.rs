//! What supervisor and node give up of what they were started with. As root they could load modules, trace processes and
//! mount file systems; they need the network, and files of other users' (keys, the store). What is given up here is given
//! up for everything that they start, too.

use rustix::{
    process::{Resource, Rlimit, setpriority_process, setrlimit},
    thread::{
        CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set, set_capabilities,
        set_no_new_privs,
    },
};

/// The queue, rules, routes, transparent and raw sockets, ports below 1024; reading and making files whoever's they are.
const NEEDED: CapabilitySet = CapabilitySet::NET_ADMIN
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::FOWNER);

/// A supervisor that does not get a processor moves no rules, and a packet loop that does not get one holds clients up:
/// both go before what is merely busy. The rest of the node does not ([`as_others`]).
pub(super) fn go_first() {
    // Without the right to it, what was given must do.
    let limit = Rlimit { current: Some(NICE_LIMIT), maximum: Some(NICE_LIMIT) };
    let _kept = setrlimit(Resource::Nice, limit);
    let _kept = setpriority_process(None, NICE);
}

/// For a thread of the node which holds nobody up, and those that it starts.
pub(crate) fn as_others() {
    let _kept = setpriority_process(None, 0);
}

/// For the thread of the packet loop.
pub(crate) fn as_supervisor() {
    let _kept = setpriority_process(None, NICE);
}

const NICE: i32 = -10;
/// As setrlimit(2) counts: 20 less it.
const NICE_LIMIT: u64 = 30;

/// For the calling thread and those that it starts: before there are others.
pub(super) fn give_up() {
    if let Err(error) = set_no_new_privs(true) {
        tracing::debug!(%error, "no_new_privs");
    }
    for bit in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        if !NEEDED.contains(one) {
            // The kernel knows fewer; without CAP_SETPCAP whoever started us has seen to it, or cannot.
            let _kept = remove_capability_from_bounding_set(one);
        }
    }
    let reduced = capabilities(None).and_then(|sets| {
        let CapabilitySets { effective, permitted, inheritable } = sets;
        let reduced = CapabilitySets {
            effective: effective & NEEDED,
            permitted: permitted & NEEDED,
            inheritable: inheritable & NEEDED,
        };
        set_capabilities(None, reduced)
    });
    if let Err(error) = reduced {
        tracing::warn!(%error, "capabilities that are not needed cannot be given up");
    }
}
