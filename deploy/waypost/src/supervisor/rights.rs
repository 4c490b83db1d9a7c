//! What supervisor, netd and node give up of what they were started with. As root they could load modules, trace processes
//! and mount file systems; the first two need the network, and files of other users'. What is given up here is given up
//! for everything that they start, too. The node, which reads what strangers send, gives up the rest.

use super::user::User;
use rustix::{
    process::{
        Resource, Rlimit, Signal, getegid, geteuid, getgid, getgroups, getuid,
        set_parent_process_death_signal, setpriority_process, setrlimit,
    },
    thread::{
        CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
        remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups,
        set_thread_res_gid, set_thread_res_uid,
    },
};
use std::io;

/// The queue, rules, routes, transparent and raw sockets, ports below 1024; reading and making files whoever's they are; and
/// to take from the node what it could have got back.
const NEEDED: CapabilitySet = CapabilitySet::NET_ADMIN
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SETPCAP)
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
/// `user`: whether the node becomes somebody else.
pub(super) fn give_up(user: bool) {
    let needed = if user {
        NEEDED.union(CapabilitySet::SETUID).union(CapabilitySet::SETGID).union(CapabilitySet::KILL)
    } else {
        NEEDED
    };
    if let Err(error) = set_no_new_privs(true) {
        tracing::debug!(%error, "no_new_privs");
    }
    for bit in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        if !needed.contains(one) {
            // The kernel knows fewer; without CAP_SETPCAP whoever started us has seen to it, or cannot.
            let _kept = remove_capability_from_bounding_set(one);
        }
    }
    let reduced = capabilities(None).and_then(|sets| {
        let CapabilitySets { effective, permitted, inheritable } = sets;
        let reduced = CapabilitySets {
            effective: effective & needed,
            permitted: permitted & needed,
            inheritable: inheritable & needed,
        };
        set_capabilities(None, reduced)
    });
    if let Err(error) = reduced {
        tracing::warn!(%error, "capabilities that are not needed cannot be given up");
    }
}

/// All of them, and for good: for the node, before it has another thread, or has read anything. It ends with its parent,
/// which must still be there. `user`: whom it becomes; nobody else without one.
///
/// # Errors
/// When it would keep any, or could become somebody else again.
pub(crate) fn give_up_all(user: Option<User>) -> io::Result<()> {
    set_no_new_privs(true)?;
    // Without CAP_SETPCAP what is left in the bounding set can only be got by a file that gives it, and no file can.
    for bit in 0..u64::BITS {
        let _kept = remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit));
    }
    clear_ambient_capability_set()?;
    if let Some(user) = user {
        become_user(user)?;
    }
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    let CapabilitySets { effective, permitted, inheritable } = capabilities(None)?;
    if !(effective | permitted | inheritable).is_empty() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    // Its place in the scheduler's line, and what it leaves when it dies, are others' as well.
    setrlimit(Resource::Nice, NONE)?;
    no_core()?;
    // Of the parent's main thread, which started this process. After the rights: their change takes this back.
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// Of the calling thread, which is the only one.
fn become_user(User { uid, gid }: User) -> io::Result<()> {
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    let is = (getuid(), geteuid(), getgid(), getegid(), getgroups()?.len());
    if is == (uid, uid, gid, gid, 0) { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
}

/// What people write to each other is not left in a file when this process dies.
pub(crate) fn no_core() -> io::Result<()> {
    Ok(setrlimit(Resource::Core, NONE)?)
}

const NONE: Rlimit = Rlimit { current: Some(0), maximum: Some(0) };
