use crate::support::{Ca, Dialler, echo, id, links, listen, open, settings, until};
use discovery_core::{seam::sink::Nowhere, value::Class};
use std::{
    io,
    os::fd::BorrowedFd,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wan::{AllGranted, Links, Peer, PeerSpec, TcpFacts};
use wan_core::{Lane, pace::Sample};

/// A line of a megabyte a second with a long queue, whatever is sent.
#[derive(Default)]
struct Slow(Mutex<Vec<u64>>);

impl TcpFacts for Slow {
    fn sample(&self, _: BorrowedFd<'_>) -> io::Result<Sample> {
        Ok(Sample {
            srtt: Duration::from_millis(30),
            min_rtt: Duration::from_millis(2),
            delivered: 1_000_000,
            app_limited: false,
            busy: true,
        })
    }

    fn set_pace(&self, _: BorrowedFd<'_>, octets: u64) -> io::Result<()> {
        self.0.lock().unwrap().push(octets);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lanes_for_bulk_are_paced_by_what_the_kernel_tells_and_a_persons_is_not() {
    let ca = Ca::new();
    let at = listen(&links(&settings(&ca, ca.identity(&["b"])))).await;
    let mut own = settings(&ca, ca.identity(&["a"]));
    own.peers.known.insert(id("b"), PeerSpec { addresses: vec![at], ..PeerSpec::default() });
    let facts = Arc::new(Slow::default());
    let (nowhere, kernel): (_, Arc<dyn TcpFacts>) = (Arc::new(Nowhere), facts.clone());
    let a = Links::new(&own, Arc::new(Dialler), Arc::new(AllGranted), nowhere.clone(), nowhere, Some(kernel))
        .unwrap();
    let paced = |lane| a.status()[0].lanes.iter().any(|at| at.lane == lane && at.pace.is_some());
    until("both are paced", || paced(Lane::Bulk) && paced(Lane::Background)).await;
    assert!(!paced(Lane::Interactive));
    until("and slower with each round trip of too long a queue", || {
        let set = facts.0.lock().unwrap();
        set.contains(&900_000) && set.iter().any(|rate| *rate < 700_000)
    })
    .await;
    let mut stream = a.open(&Peer::Node(id("b")), open(echo().await, Class::Bulk)).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'x');
}
