//! What the node asks netd beside its connections: a channel of its own, a frame each way for every question.
//!
//! ```text
//! frame   0..4 octets of the rest   4..8 id   8.. JSON
//! ```
//! netd's answers may take a while and come in any order. Its questioner is untrusted: what it asks is small, and about
//! nothing but what the node may know.

use crate::api::{Explained, PathStatus};
use discovery_core::{engine, probe::KeyHint};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::HashMap,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};

/// What can be asked.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub(super) enum Question {
    /// What the packet loop knows.
    Status,
    /// What would become of a connection.
    Explain { client: SocketAddr, server: SocketAddr },
    /// What a deflector answers a proxy that said this.
    Heard { from: String, octets: Vec<u8> },
    /// A deflector's proxies, for other peers.
    Proxies,
    /// A peer, known by these keys, has told who serves as well as itself: whether that matters here.
    Told { tellers: Vec<Key>, networks: Vec<(IpAddr, u8)>, offers: Vec<Offered> },
    /// How many connections peers were promised and have not claimed yet.
    Unclaimed,
}

/// A `KeyHint`.
pub(super) type Key = [u8; 8];

/// A node that serves as well as another.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Offered {
    pub(super) link: SocketAddr,
    pub(super) key: Key,
    pub(super) rank: u8,
    /// In percent.
    pub(super) load: u8,
    pub(super) able: bool,
}

impl Offered {
    pub(super) fn peer(&self) -> engine::Peer {
        engine::Peer { link: self.link, key: KeyHint(self.key) }
    }
}

/// What the packet loop knows of what would become of a connection.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct LoopExplained {
    pub(super) explained: Explained,
    /// Of each candidate.
    pub(super) peers: Vec<(SocketAddr, Key)>,
    /// Whether a session of a mail server may end here.
    pub(super) ends_here: bool,
}

/// What is answered.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub(super) enum Answer {
    /// With the key of each candidate.
    Status(Box<PathStatus>, Vec<(SocketAddr, Key)>),
    Explained(Option<Box<LoopExplained>>),
    Say(Option<Vec<u8>>),
    /// None where nobody deflects.
    Proxies(Vec<Offered>),
    Counts(bool),
    Unclaimed(usize),
}

/// The end that asks.
pub(super) struct Questions {
    next: AtomicU32,
    ask: mpsc::Sender<Vec<u8>>,
    waiting: Arc<Mutex<Waiting>>,
}

type Waiting = HashMap<u32, oneshot::Sender<Answer>>;

impl Questions {
    /// Over this end of the channel. Inside a tokio runtime.
    pub(super) fn new(channel: OwnedFd) -> io::Result<Self> {
        let (mut reads, mut writes) = stream(channel)?.into_split();
        let (ask, mut asked) = mpsc::channel::<Vec<u8>>(ASKED_MAX);
        let waiting: Arc<Mutex<Waiting>> = Arc::default();
        let answered = Arc::clone(&waiting);
        tokio::spawn(async move {
            while let Some(frame) = asked.recv().await {
                if writes.write_all(&frame).await.is_err() {
                    return;
                }
            }
        });
        tokio::spawn(async move {
            while let Ok((id, answer)) = read::<Answer>(&mut reads, ANSWER_OCTETS_MAX).await {
                let waits = lock(&answered).remove(&id);
                if let Some(waits) = waits {
                    let _given_up = waits.send(answer);
                }
            }
            // Nobody answers any more: those who wait need not.
            lock(&answered).clear();
        });
        Ok(Self { next: AtomicU32::new(0), ask, waiting })
    }

    /// None: netd hangs, or is gone.
    pub(super) async fn ask(&self, question: &Question) -> Option<Answer> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        lock(&self.waiting).insert(id, answer);
        let done = timeout(PATIENCE, async {
            self.ask.send(frame(id, question)?).await.ok()?;
            answered.await.ok()
        });
        let done = done.await.ok().flatten();
        lock(&self.waiting).remove(&id);
        done
    }
}

/// The end that answers, until the other one is gone. Inside a tokio runtime.
pub(super) async fn answer<F>(channel: OwnedFd, answer: impl Fn(Question) -> F) -> io::Result<()>
where
    F: Future<Output = Answer> + Send + 'static,
{
    let (mut reads, writes) = stream(channel)?.into_split();
    let writes = Arc::new(tokio::sync::Mutex::new(writes));
    let places = Arc::new(Semaphore::new(ASKED_MAX));
    loop {
        let (id, question) = read::<Question>(&mut reads, QUESTION_OCTETS_MAX).await?;
        let place = Arc::clone(&places).acquire_owned().await.map_err(io::Error::other)?;
        let (writes, answered) = (Arc::clone(&writes), answer(question));
        tokio::spawn(async move {
            if let Some(frame) = frame(id, &answered.await) {
                let _gone = writes.lock().await.write_all(&frame).await;
            }
            drop(place);
        });
    }
}

fn stream(channel: OwnedFd) -> io::Result<UnixStream> {
    let channel = std::os::unix::net::UnixStream::from(channel);
    channel.set_nonblocking(true)?;
    UnixStream::from_std(channel)
}

fn frame(id: u32, what: &impl Serialize) -> Option<Vec<u8>> {
    let json = serde_json::to_vec(what).ok()?;
    let mut frame = u32::try_from(json.len().checked_add(4)?).ok()?.to_be_bytes().to_vec();
    frame.extend(id.to_be_bytes());
    frame.extend(json);
    Some(frame)
}

async fn read<T: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
    octets_max: usize,
) -> io::Result<(u32, T)> {
    let length = usize::try_from(from.read_u32().await?).unwrap_or(usize::MAX);
    let nonsense = || io::Error::from(io::ErrorKind::InvalidData);
    let json = length.checked_sub(4).filter(|json| *json <= octets_max).ok_or_else(nonsense)?;
    let id = from.read_u32().await?;
    let mut octets = vec![0; json];
    from.read_exact(&mut octets).await?;
    Ok((id, serde_json::from_slice(&octets)?))
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Longer than netd waits for its loop.
const PATIENCE: Duration = Duration::from_millis(1500);
/// At one time, and as many wait.
const ASKED_MAX: usize = 64;
/// What a proxy says has some 50 octets, written as numbers; a full list of a peer's some 15 KiB.
const QUESTION_OCTETS_MAX: usize = 64 << 10;
/// A full mapping table, and the flows that are shown.
const ANSWER_OCTETS_MAX: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        (one.into(), other.into())
    }

    #[tokio::test]
    async fn each_question_gets_its_own_answer_whichever_comes_first() {
        let (asks, answers) = pair();
        tokio::spawn(answer(answers, |question| async move {
            match question {
                Question::Status => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    Answer::Status(Box::default(), Vec::new())
                }
                Question::Explain { .. } => Answer::Explained(None),
                Question::Heard { octets, .. } => Answer::Say(Some(octets)),
                Question::Proxies | Question::Told { .. } | Question::Unclaimed => Answer::Counts(true),
            }
        }));
        let questions = Questions::new(asks).unwrap();
        let heard = Question::Heard { from: "node".to_owned(), octets: vec![1, 255] };
        let (slow, quick) = tokio::join!(questions.ask(&Question::Status), questions.ask(&heard));
        assert_eq!(slow, Some(Answer::Status(Box::default(), Vec::new())));
        assert_eq!(quick, Some(Answer::Say(Some(vec![1, 255]))));
        assert!(lock(&questions.waiting).is_empty());
    }

    #[tokio::test]
    async fn nobody_waits_for_one_that_is_gone() {
        let (asks, answers) = pair();
        let questions = Questions::new(asks).unwrap();
        drop(answers);
        assert_eq!(questions.ask(&Question::Status).await, None);
    }

    #[tokio::test]
    async fn what_is_no_question_ends_it() {
        for nonsense in [&b"\0\0\0\x03abc"[..], b"\xff\xff\xff\xff\0\0\0\x01", b"\0\0\0\x06\0\0\0\x01{}"] {
            let (asks, answers) = pair();
            let mut asks = stream(asks).unwrap();
            asks.write_all(nonsense).await.unwrap();
            let ended = answer(answers, |_| async { Answer::Explained(None) }).await;
            assert!(ended.is_err(), "{nonsense:?}");
        }
    }
}
