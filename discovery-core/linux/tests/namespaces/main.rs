//! What moves packets, rules and sockets, in network namespaces of its own. Needs root; says 'skipped' without.
#![allow(missing_docs, reason = "a test")]

#[cfg(test)]
mod ground;
#[cfg(test)]
mod modes;
#[cfg(test)]
mod node;
#[cfg(test)]
mod pair;
#[cfg(test)]
mod queue;
#[cfg(test)]
mod rate;
#[cfg(test)]
mod rules;
#[cfg(test)]
mod sockets;
#[cfg(test)]
mod supervised;
