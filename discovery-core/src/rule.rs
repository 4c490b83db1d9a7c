//! What the operator wants done with a connection.

/// What a rule says. The words of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Never touched.
    Pass,
    /// Through a peer when there is one, else untouched.
    Intercept,
    /// Terminated here; the server is reached with the client's own address, without a peer.
    InterceptSingle,
    /// Silently not forwarded.
    Drop,
    /// Refused with a reset.
    Deny,
    /// Through a peer or not at all: the first SYN does not leave before a peer is known.
    DropIfNoPeer,
}

/// What the rules said about one SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ruled {
    /// What to do.
    pub action: Action,
    /// The rule's place in the file, from 1; none when no rule matched (pass).
    pub rule: Option<u16>,
}
