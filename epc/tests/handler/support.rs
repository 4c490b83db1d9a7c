//! A handler between clients and origins that are pipes in memory.

use discovery_core::id::{ServerId, UserKey, UserKeying};
use epc::handler::{Drain, Handler, Limits, NoCatalog, ServerTerms, Upgrade, Visit, metrics::Ended};
use imap_core::catalog::Catalog;
use seams::{
    BoxFuture,
    intake::{Accepted, Arrival, ClientAddr, ClientTls, OriginalDst},
    origin::{
        OpenError, OriginConnector, OriginIdentity, OriginRequest, OriginStream, StreamCaps, VerifiedBy,
    },
};
use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::watch,
    task::JoinHandle,
    time::timeout,
};

pub(crate) const GREETING: &str = "* OK [CAPABILITY IMAP4rev1] ready\r\n";

/// Hands out what the test puts in, one for each session.
#[derive(Default)]
pub(crate) struct Prepared(Mutex<VecDeque<Next>>);

enum Next {
    Stream(Box<OriginStream>),
    Fails(OpenError),
}

impl OriginConnector for Prepared {
    fn open(&self, _: OriginRequest) -> BoxFuture<'_, Result<OriginStream, OpenError>> {
        let next = self.0.lock().expect("not poisoned").pop_front();
        Box::pin(async move {
            match next {
                Some(Next::Stream(stream)) => Ok(*stream),
                Some(Next::Fails(error)) => Err(error),
                None => std::future::pending().await,
            }
        })
    }

    fn park(&self, _: &ServerId, _: u8) {}
}

/// Keys are the identity itself; one identity is a bug.
pub(crate) struct Keys;

pub(crate) const PANICS: &[u8] = b"panics";

impl UserKeying for Keys {
    fn user_key(&self, identity: &[u8]) -> UserKey {
        assert_ne!(identity, PANICS, "a bug in the middle of a session");
        let mut hash = [0; 16];
        hash.iter_mut().zip(identity).for_each(|(to, from)| *to = *from);
        UserKey { version: 1, hash }
    }
}

pub(crate) struct Office {
    pub(crate) handler: Arc<Handler>,
    pub(crate) drain: watch::Sender<Drain>,
    pub(crate) terms: Arc<ServerTerms>,
    origins: Arc<Prepared>,
}

pub(crate) fn server() -> ServerId {
    ServerId::new("mail.lab.test").expect("a name")
}

impl Office {
    pub(crate) fn new() -> Self {
        Self::with(Arc::new(NoCatalog), 10)
    }

    pub(crate) fn with(catalog: Arc<dyn Catalog>, sessions_max: usize) -> Self {
        let origins = Arc::new(Prepared::default());
        let handler =
            Handler::new(Arc::clone(&origins) as Arc<_>, catalog, Arc::new(Keys), Limits::default());
        Self {
            handler: Arc::new(handler),
            drain: watch::Sender::new(Drain::Serving),
            terms: Arc::new(ServerTerms::new(server(), sessions_max)),
            origins,
        }
    }

    /// A client and its origin, and how the session ended.
    pub(crate) fn visit(&self) -> (Talk, Talk, JoinHandle<Ended>) {
        let origin = self.prepare();
        let (client, ended) = self.arrive(ClientTls::Implicit, None);
        (client, origin, ended)
    }

    /// The far end of the next origin.
    pub(crate) fn prepare(&self) -> Talk {
        self.prepare_with(StreamCaps::default())
    }

    /// The same, made before its client came.
    pub(crate) fn prepare_parked(&self) -> Talk {
        self.prepare_with(StreamCaps { parked_age: Some(Duration::from_secs(60)), ..StreamCaps::default() })
    }

    fn prepare_with(&self, caps: StreamCaps) -> Talk {
        let (near, far) = duplex(4096);
        let stream = OriginStream {
            io: Box::new(near),
            greeting: GREETING.into(),
            peer: OriginIdentity { spki_sha256: [0; 32], verified_by: VerifiedBy::Local },
            caps,
        };
        self.origins.0.lock().expect("not poisoned").push_back(Next::Stream(Box::new(stream)));
        Talk(far)
    }

    pub(crate) fn prepare_failure(&self, error: OpenError) {
        self.origins.0.lock().expect("not poisoned").push_back(Next::Fails(error));
    }

    pub(crate) fn arrive(&self, tls: ClientTls, upgrade: Option<Upgrade>) -> (Talk, JoinHandle<Ended>) {
        let (near, far) = duplex(64 * 1024);
        let address: SocketAddr = "192.0.2.1:40000".parse().expect("an address");
        let accepted = Accepted {
            io: Box::new(near),
            client: ClientAddr(address),
            original_dst: OriginalDst(address),
            server_name: None,
            how: Arrival::Listener,
            tls,
        };
        let visit = Visit { accepted, upgrade, server: Arc::clone(&self.terms), way: None };
        let (handler, drain) = (Arc::clone(&self.handler), self.drain.subscribe());
        (Talk(far), tokio::spawn(async move { handler.serve(visit, drain).await }))
    }

    /// A client that has logged in.
    pub(crate) async fn logged_in(&self) -> (Talk, Talk, JoinHandle<Ended>) {
        let (mut client, mut origin, ended) = self.visit();
        client.hears(GREETING).await;
        client.say("a1 LOGIN mia secret\r\n").await;
        origin.hears("a1 LOGIN mia secret\r\n").await;
        origin.say("a1 OK [CAPABILITY IMAP4rev1 ESEARCH] in\r\n").await;
        client.hears("a1 OK [CAPABILITY IMAP4rev1 ESEARCH] in\r\n").await;
        (client, origin, ended)
    }
}

/// Virtual time; longer than anything waits.
const A_DAY: Duration = Duration::from_secs(24 * 3600);

/// One end, in lines.
#[derive(Debug)]
pub(crate) struct Talk(pub(crate) DuplexStream);

impl Talk {
    pub(crate) async fn say(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.expect("somebody listens");
    }

    pub(crate) async fn line(&mut self) -> String {
        let mut line = Vec::new();
        while !line.ends_with(b"\n") {
            let octet = timeout(A_DAY, self.0.read_u8()).await;
            match octet.unwrap_or_else(|_| panic!("nothing more after {:?}", String::from_utf8_lossy(&line)))
            {
                Ok(octet) => line.push(octet),
                Err(_) => break,
            }
        }
        String::from_utf8(line).expect("text")
    }

    #[track_caller]
    pub(crate) fn hears<'a>(&'a mut self, text: &'a str) -> impl Future<Output = ()> + 'a {
        let at = std::panic::Location::caller();
        async move {
            for wanted in text.split_inclusive('\n') {
                assert_eq!(self.line().await, wanted, "at {at}");
            }
        }
    }

    /// Everything to the end.
    pub(crate) async fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        timeout(A_DAY, self.0.read_to_end(&mut rest)).await.expect("an end").expect("in memory");
        String::from_utf8(rest).expect("text")
    }
}
