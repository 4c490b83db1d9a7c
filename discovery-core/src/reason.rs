//! Why the engine decided as it did. One closed list: the word in the log, the label of the metric, and what `explain`
//! prints.

use std::fmt;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $word:literal,)*) => {
        /// Why one packet or one connection was treated as it was.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $($(#[$doc])* $name,)*
        }

        impl Reason {
            /// Every reason there is, in the order of [`Reason::index`].
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The word that logs, metrics and `explain` show.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)*
                }
            }
        }
    };
}

reasons! {
    // What the operator wants.
    /// A rule says pass, or no rule matched.
    RulePass = "rule-pass",
    /// A rule says drop.
    RuleDrop = "rule-drop",
    /// A rule says deny.
    RuleDeny = "rule-deny",
    /// Only through a peer, says a rule, and there is none.
    NoPeer = "no-peer",
    /// Terminated here without a peer, says a rule.
    Single = "single",
    /// The operator switched interception off for now.
    Bypass = "bypass",
    // What stands in the way.
    /// Nobody is here who could carry a connection.
    AgentDown = "agent-down",
    /// A table is full: what is new is not touched.
    TableFull = "table-full",
    /// The SYN is signed (TCP-MD5, TCP-AO) or cannot be read: nobody but its ends may take part.
    Untouchable = "untouchable",
    /// There is no room for the query among the SYN's options.
    OptionsFull = "options-full",
    /// Too many early connections that nobody claimed.
    ProbeLimit = "probe-limit",
    // What the proxy mapping table knows.
    /// No other node on the path to this server.
    NoProxy = "no-proxy",
    /// What the server sends does not come back through this node.
    Asymmetric = "asymmetric",
    /// A SYN with the query does not arrive.
    OptionDropped = "option-dropped",
    /// The peer is known: no probe is needed.
    TableHit = "table-hit",
    /// The operator named the peer.
    StaticHit = "static-hit",
    /// None of the named peers can be asked now.
    StaticPeerDown = "static-peer-down",
    /// The peer that is preferred cannot be asked now: another one is.
    StandIn = "stand-in",
    /// The known peer has told of others, and one of them is asked.
    ToldHit = "told-hit",
    /// The peer did not take the connection: the next one is asked.
    NextPeer = "next-peer",
    // Probing.
    /// The query went out on the client's SYN.
    Probing = "probing",
    /// The client repeated its SYN, and the query went out again.
    ProbedAgain = "probed-again",
    /// Enough SYNs carried the query in vain: this one goes without.
    ProbesUnanswered = "probes-unanswered",
    /// The SYN came again sooner than any timer: the client refused an answer that this node did not see.
    QuickRetransmit = "quick-retransmit",
    /// The client reset an answer that this node did not see.
    ClientReset = "client-reset",
    /// Neither answer nor another SYN.
    ProbeSilent = "probe-silent",
    /// The connection goes past this node, and so do its repeated SYNs.
    Direct = "direct",
    /// A separate probe is on its way; the SYN waits.
    Held = "held",
    /// A separate probe is on its way beside the untouched SYN.
    ProbedBeside = "probed-beside",
    /// The separate probe found a peer.
    ProbePositive = "probe-positive",
    /// The separate probe found nobody.
    ProbeNegative = "probe-negative",
    /// The separate probe was not answered in time.
    ProbeTimedOut = "probe-timed-out",
    /// The known peer has not seen the SYN, or is another process by now: the SYN goes out with the query after all.
    ShownAgain = "shown-again",
    /// The same SYN through another ingress: it was here before.
    OtherIngress = "other-ingress",
    /// This node's own query came back to it.
    OwnQueryBack = "own-query-back",
    /// This node's own SYN came back to it.
    OwnSynBack = "own-syn-back",
    // Answers.
    /// A probe response that paired with its query.
    Answered = "answered",
    /// A probe response to a query that was answered before.
    SecondAnswer = "second-answer",
    /// A probe response after the connection went past.
    LateAnswer = "late-answer",
    /// A probe response that does not fit the sequence number of its query.
    BadAnswer = "bad-answer",
    /// A probe response to somebody else's query.
    StrayAnswer = "stray-answer",
    /// The server itself answered.
    ServerAnswered = "server-answered",
    /// The server reset the client's SYN.
    ServerReset = "server-reset",
    /// A packet that belongs to no connection known here.
    Stray = "stray",
    // Opening on the link, and after.
    /// The peer is being asked.
    Opening = "opening",
    /// A peer carries the connection.
    Carried = "carried",
    /// The peer does not take the connection.
    PeerRefused = "peer-refused",
    /// The link to the peer broke, or does not stand.
    PeerDown = "peer-down",
    /// The peer did not say yes or no in time.
    OpenTimedOut = "open-timed-out",
    /// The client began anew.
    Superseded = "superseded",
    /// The connection ended.
    Closed = "closed",
    // The server's side.
    /// A query was taken, and the server is being asked.
    EarlyConnect = "early-connect",
    /// The query came again while the server is being asked.
    Connecting = "connecting",
    /// The server accepted; the query is answered.
    AnsweredProbe = "answered-probe",
    /// The query came again and was answered again.
    AnsweredAgain = "answered-again",
    /// A separate probe was answered.
    AnsweredSeparate = "answered-separate",
    /// The server refused.
    ServerRefused = "server-refused",
    /// The network says that there is no way to the server.
    ServerUnreachable = "server-unreachable",
    /// The server said nothing.
    ServerSilent = "server-silent",
    /// This node could not connect for want of something of its own.
    LocalFailure = "local-failure",
    /// Nobody claimed the early connection.
    Orphan = "orphan",
    /// The client connects without its node: the early connection makes way.
    Cured = "cured",
    /// The client's own reset shows that no node of its own took the answer.
    ClientRejected = "client-rejected",
    /// The downstream node gave the connection up.
    AbortedByPeer = "aborted-by-peer",
    /// A connection between the same addresses and ports lives here.
    TupleInUse = "tuple-in-use",
    /// Own SYN, with the query.
    OwnSynProbed = "own-syn-probed",
    /// Own SYN, without the query.
    OwnSynPlain = "own-syn-plain",
    /// Own SYN, kept back: the client's own is on its way.
    OwnSynWithheld = "own-syn-withheld",
    /// A further node answered: this one is in the middle.
    Middle = "middle",
    // Connections from before.
    /// A connection from before this node is left as it is.
    ExistingLeft = "existing-left",
    /// A connection from before this node is reset at both ends.
    ExistingReset = "existing-reset",
    /// A connection from before this node is reset later: not too many at once.
    ExistingLater = "existing-later",
    /// Every packet of a connection from before this node is looked at, in order to adopt it.
    ExistingObserved = "existing-observed",
    /// A connection from before this node is terminated here, in its middle.
    ExistingAdopted = "existing-adopted",
    /// Not adopted: the peer does not adopt it. It is older, has no such rule, or does not see the connection.
    AdoptUnpaired = "adopt-unpaired",
    /// Not adopted: nobody knows by how much its windows are scaled.
    AdoptUnscaled = "adopt-unscaled",
    /// Not adopted: one of its ends is ending it.
    AdoptEnding = "adopt-ending",
    /// Not adopted: there was no moment at which everything under way was known.
    AdoptUnsteady = "adopt-unsteady",
    /// Not adopted: too much is under way.
    AdoptFull = "adopt-full",
    /// Not adopted: the system does not make its sockets.
    AdoptFailed = "adopt-failed",
    // Datagrams.
    /// The first packet of a UDP flow.
    DatagramBegins = "datagram-begins",
    /// Another packet of a UDP flow.
    DatagramGoesOn = "datagram-goes-on",
    // Claims.
    /// The peer claimed the connection.
    Claimed = "claimed",
    /// Somebody claimed it before.
    AlreadyClaimed = "already-claimed",
    /// Neither was the SYN seen here, nor may the peer ask for this server.
    NotGranted = "not-granted",
}

impl Reason {
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Its place in [`Reason::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The reason of a word, for whoever reads a label back.
    #[must_use]
    pub fn of_word(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.word() == word)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_reason_has_a_word_of_its_own() {
        let words: BTreeSet<_> = Reason::ALL.iter().map(|r| r.word()).collect();
        assert_eq!(words.len(), Reason::COUNT);
        for (n, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), n);
            assert_eq!(Reason::of_word(reason.word()), Some(*reason));
            assert!(reason.word().bytes().all(|o| o.is_ascii_lowercase() || o == b'-'), "{reason}");
        }
    }
}
