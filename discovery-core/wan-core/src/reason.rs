//! Why a stream or a link ended. One closed enum: the octet on the wire, the word in the log, the label of the metric.

use std::fmt;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal $word:literal,)+) => {
        /// Why a stream was refused or ended, or why a link says goodbye.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Reason {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// Its octet on the wire.
            #[must_use]
            pub const fn code(self) -> u8 {
                match self { $(Self::$name => $code,)+ }
            }

            /// The inverse of [`Reason::code`]; a code of a newer minor version is [`Reason::Unknown`].
            #[must_use]
            pub const fn from_code(code: u8) -> Self {
                match code { $($code => Self::$name,)+ _ => Self::Unknown }
            }

            /// One word for logs and labels.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)+ }
            }
        }
    };
}

reasons! {
    /// A reason that this version does not know.
    Unknown = 0 "unknown",
    /// Whoever used the stream gave it up.
    Cancelled = 1 "cancelled",
    /// The connection behind the stream was reset.
    ConnectionReset = 2 "connection-reset",
    /// The server refused the connection.
    ServerRefused = 3 "server-refused",
    /// The server, or the way to it, is unreachable.
    ServerUnreachable = 4 "server-unreachable",
    /// The server did not answer in time.
    ServerTimedOut = 5 "server-timed-out",
    /// The server's TLS or certificate is not what it should be.
    ServerTls = 6 "server-tls",
    /// The server is not configured here.
    UnknownServer = 7 "unknown-server",
    /// No connection of this name waits here: its SYN was not seen, or too long ago. It may be shown.
    UnknownFlow = 8 "unknown-flow",
    /// The peer may not open this.
    NotGranted = 9 "not-granted",
    /// Too many streams.
    Busy = 10 "busy",
    /// This node does not do what was asked for.
    Unsupported = 11 "unsupported",
    /// The node is about to end.
    ShuttingDown = 12 "shutting-down",
    /// There is no link to the peer.
    NoLink = 13 "no-link",
    /// The link was away for longer than streams are kept.
    LinkLost = 14 "link-lost",
    /// The peer's process is another one; what the old one held is gone.
    PeerRestarted = 15 "peer-restarted",
    /// The peer no longer knows the stream.
    PeerForgot = 16 "peer-forgot",
    /// The peer broke the rules of the link.
    Violation = 17 "violation",
    /// The peer is no longer trusted.
    Revoked = 18 "revoked",
    /// The peer's certificate is of a trusted authority, and its key is not the pinned one.
    WrongPin = 19 "wrong-pin",
    /// Another node answers than was expected.
    WrongNode = 20 "wrong-node",
    /// The certificate names no node.
    NoIdentity = 21 "no-identity",
    /// The peer is not one of those that are configured here.
    UnknownPeer = 22 "unknown-peer",
    /// The peer speaks an older version.
    OlderVersion = 23 "older-version",
    /// The peer speaks a newer version.
    NewerVersion = 24 "newer-version",
    /// A connection for this lane is there already.
    Duplicate = 25 "duplicate",
    /// A newer connection took this one's place.
    Replaced = 26 "replaced",
    /// Nothing was heard for too long.
    Silent = 27 "silent",
    /// This node would speak to itself.
    Itself = 28 "itself",
    /// No TLS: no certificate of a trusted authority, or no TLS 1.3.
    Tls = 29 "tls",
    /// Nobody listens at the peer's address.
    PeerRefused = 30 "peer-refused",
    /// The peer's address cannot be reached.
    PeerUnreachable = 31 "peer-unreachable",
    /// The peer's address does not answer.
    PeerTimedOut = 32 "peer-timed-out",
    /// The connection was closed by the other side.
    Closed = 33 "closed",
    /// This one connection is not carried here: it goes past, or somebody has it.
    OtherWay = 34 "other-way",
}

impl Reason {
    /// Said by a peer, it means that there is no link any more, and that the same will be said to the next attempt.
    #[must_use]
    pub fn is_final(self) -> bool {
        [Self::Violation, Self::Revoked, Self::WrongPin, Self::WrongNode, Self::NoIdentity, Self::UnknownPeer]
            .contains(&self)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl std::error::Error for Reason {}

/// What a peer did against the rules: its link is closed, and says so. Each is a bug or an attack, never bad luck.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Violation {
    /// A number in more octets than it needs.
    #[error("overlong number")]
    Overlong,
    /// A frame longer than any may be.
    #[error("frame too long")]
    FrameTooLong,
    /// A frame ends before its fields do, or after them.
    #[error("frame of a wrong length")]
    WrongLength,
    /// A value that no field can have.
    #[error("value out of range")]
    BadValue,
    /// A type that may not be ignored.
    #[error("unknown frame type")]
    UnknownType,
    /// An encoding of data that was not agreed on.
    #[error("unknown encoding")]
    UnknownEncoding,
    /// A frame that belongs on another connection.
    #[error("wrong lane")]
    WrongLane,
    /// A name of the wrong side: the peer opened in our name, or answered its own.
    #[error("wrong side")]
    WrongSide,
    /// A name was used again.
    #[error("stream opened twice")]
    StreamReuse,
    /// A frame for a stream that was never opened, or data for one that has ended.
    #[error("unknown stream")]
    UnknownStream,
    /// An answer to a stream that has been answered.
    #[error("stream answered twice")]
    AnsweredTwice,
    /// More streams than may be.
    #[error("too many streams")]
    StreamsMax,
    /// Data that does not begin where the last ended.
    #[error("out of order")]
    OutOfOrder,
    /// More than the stream's credit.
    #[error("beyond the stream's credit")]
    StreamCredit,
    /// More than the lane's credit.
    #[error("beyond the lane's credit")]
    LaneCredit,
    /// Data behind the end, or another end.
    #[error("data behind the end")]
    BehindEnd,
    /// Acknowledged what was never sent, or took an acknowledgement back.
    #[error("acknowledges what was not sent")]
    AckOutOfRange,
    /// Stream frames before the peer told how far it came, or told it twice.
    #[error("resumed out of turn")]
    ResumeOutOfTurn,
    /// More requests than are answered in time.
    #[error("flood")]
    Flood,
}

impl Violation {
    /// One word for labels.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Overlong => "overlong",
            Self::FrameTooLong => "frame-too-long",
            Self::WrongLength => "wrong-length",
            Self::BadValue => "bad-value",
            Self::UnknownType => "unknown-type",
            Self::UnknownEncoding => "unknown-encoding",
            Self::WrongLane => "wrong-lane",
            Self::WrongSide => "wrong-side",
            Self::StreamReuse => "stream-reuse",
            Self::UnknownStream => "unknown-stream",
            Self::AnsweredTwice => "answered-twice",
            Self::StreamsMax => "streams-max",
            Self::OutOfOrder => "out-of-order",
            Self::StreamCredit => "stream-credit",
            Self::LaneCredit => "lane-credit",
            Self::BehindEnd => "behind-end",
            Self::AckOutOfRange => "ack-out-of-range",
            Self::ResumeOutOfTurn => "resume-out-of-turn",
            Self::Flood => "flood",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_reason_has_one_octet_and_one_word() {
        let (mut codes, mut words) = (BTreeSet::new(), BTreeSet::new());
        for reason in Reason::ALL {
            assert_eq!(Reason::from_code(reason.code()), *reason);
            assert!(codes.insert(reason.code()) && words.insert(reason.word()), "{reason}");
        }
        assert_eq!(Reason::from_code(250), Reason::Unknown);
    }
}
