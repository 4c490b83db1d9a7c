//! Whether a writer that comes back is the one whose addresses are stored here. A writer issues an address once, as
//! long as its store is its own and only grows older: one that was copied to another machine, or put back from a
//! backup, issues addresses again that stand for other octets here.

use crate::mutants;

/// What a writer says of its store when it connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Its store's id.
    pub writer: [u8; 16],
    /// How often that store was opened; kept on its disk before it issues an address.
    pub epoch: u64,
    /// Random, new each time.
    pub boot: [u8; 16],
}

/// What a mark means after the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meeting {
    /// Never seen.
    New,
    /// The same process.
    Same,
    /// A later process on the same store.
    Later,
    /// Another store: nothing of the old one is asked for again.
    Another,
    /// A copy, or a store that was put back: its addresses have been issued before, perhaps for other octets.
    Repeated,
}

/// Compares a mark with the last one of this peer.
pub fn judge(last: Option<Mark>, said: Mark) -> Meeting {
    let Some(last) = last else { return Meeting::New };
    match said.epoch.cmp(&last.epoch) {
        _ if last.writer != said.writer => Meeting::Another,
        std::cmp::Ordering::Greater => Meeting::Later,
        std::cmp::Ordering::Equal if last.boot == said.boot => Meeting::Same,
        _ if mutants::on("pss-rollback-believed") => Meeting::Later,
        std::cmp::Ordering::Equal | std::cmp::Ordering::Less => Meeting::Repeated,
    }
}

impl Meeting {
    /// Whether what is stored under the peer's addresses is still what the peer means by them.
    pub fn continues(self) -> bool {
        match self {
            Self::Same | Self::Later => true,
            Self::New | Self::Another | Self::Repeated => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copied_or_rolled_back_writer_is_noticed() {
        let mark = |writer, epoch, boot| Mark { writer: [writer; 16], epoch, boot: [boot; 16] };
        let last = mark(1, 5, 9);
        for (last, said, meeting) in [
            (None, last, Meeting::New),
            (Some(last), last, Meeting::Same),
            (Some(last), mark(1, 6, 8), Meeting::Later),
            (Some(last), mark(1, 60, 8), Meeting::Later),
            (Some(last), mark(1, 5, 8), Meeting::Repeated),
            (Some(last), mark(1, 4, 8), Meeting::Repeated),
            (Some(last), mark(1, 4, 9), Meeting::Repeated),
            (Some(last), mark(2, 5, 9), Meeting::Another),
            (Some(last), mark(2, 1, 1), Meeting::Another),
        ] {
            assert_eq!(judge(last, said), meeting, "{said:?}");
        }
    }
}
