//! A stored body on its way to a client: read in pieces on a thread that may block, one piece ahead of the writing.
//! A body that is still being written is followed as it grows.

use bytes::Bytes;
use discovery_core::seam::blob::{BlobReader, Length, StoreError};
use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::{Instant, Sleep, sleep},
};

/// Read at a time, and in memory at most twice: one piece that is written and one that is read.
const PIECE_OCTETS: usize = 64 * 1024;
/// How long one thread waits for a body to grow before it lets others have a turn: those who wait must not keep the
/// thread from the one they wait for.
const TURN: Duration = Duration::from_millis(250);

/// Before it is asked again whether a body has grown.
const REST: Duration = Duration::from_millis(10);

/// Why a body ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyLost {
    /// The store cannot read it any more.
    Store,
    /// It did not grow for too long, or its writer gave up.
    Stalled,
}

/// A range of a body.
pub(super) struct Body {
    reader: Arc<dyn BlobReader>,
    /// Of the next piece to read.
    at: u64,
    left: u64,
    patience: Duration,
    /// When it last grew.
    grew: Instant,
    reading: Option<JoinHandle<Result<Bytes, StoreError>>>,
    resting: Option<Pin<Box<Sleep>>>,
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({} at {})", self.left, self.at)
    }
}

impl Body {
    /// `octets` from `offset`; `patience` is how long to wait for it to grow.
    pub(super) fn new(reader: Arc<dyn BlobReader>, offset: u64, octets: u64, patience: Duration) -> Self {
        Self {
            reader,
            at: offset,
            left: octets,
            patience,
            grew: Instant::now(),
            reading: None,
            resting: None,
        }
    }

    /// The next piece; `None` when all of the range was given.
    pub(super) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyLost>>> {
        loop {
            if let Some(resting) = &mut self.resting {
                ready!(resting.as_mut().poll(cx));
                self.resting = None;
            }
            let Some(reading) = &mut self.reading else {
                if self.left == 0 {
                    return Poll::Ready(None);
                }
                self.start();
                continue;
            };
            let done = ready!(Pin::new(reading).poll(cx));
            self.reading = None;
            let piece = match done {
                Ok(Ok(piece)) => piece,
                Ok(Err(StoreError::Abandoned)) => return Poll::Ready(Some(Err(BodyLost::Stalled))),
                Ok(Err(error)) => {
                    tracing::warn!(%error, "a stored body could not be read to its end");
                    return Poll::Ready(Some(Err(BodyLost::Store)));
                }
                Err(_) => return Poll::Ready(Some(Err(BodyLost::Store))),
            };
            if piece.is_empty() {
                if self.grew.elapsed() >= self.patience {
                    return Poll::Ready(Some(Err(BodyLost::Stalled)));
                }
                self.resting = Some(Box::pin(sleep(REST)));
                continue;
            }
            self.grew = Instant::now();
            let octets = piece.len() as u64;
            self.at = self.at.saturating_add(octets);
            self.left = self.left.saturating_sub(octets);
            if self.left > 0 {
                self.start();
            }
            return Poll::Ready(Some(Ok(piece)));
        }
    }

    fn start(&mut self) {
        let reader = Arc::clone(&self.reader);
        let (at, wanted) = (self.at, usize::try_from(self.left).unwrap_or(PIECE_OCTETS).min(PIECE_OCTETS));
        self.reading = Some(spawn_blocking(move || read(reader.as_ref(), at, wanted)));
    }
}

/// What is there of `wanted` octets; nothing, when it did not grow in our turn.
fn read(reader: &dyn BlobReader, at: u64, wanted: usize) -> Result<Bytes, StoreError> {
    match reader.len() {
        Length::Growing(now) if now <= at => match reader.wait(at, TURN)? {
            Length::Growing(now) if now <= at => return Ok(Bytes::new()),
            Length::Growing(_) | Length::Known(_) => {}
        },
        Length::Growing(_) | Length::Known(_) => {}
    }
    let mut piece = vec![0; wanted];
    let n = reader.read_at(at, &mut piece)?;
    if n == 0 && matches!(reader.len(), Length::Known(_)) {
        // Shorter than it was said to be.
        return Err(StoreError::Abandoned);
    }
    piece.truncate(n);
    Ok(piece.into())
}
