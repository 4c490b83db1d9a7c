use crate::support::{Road, Two, echo, open, pattern, summary, summing, until};
use discovery_core::value::Class;
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_break_again_and_again_lose_no_octet() {
    let road = Road::new();
    let two = Two::through(|at| {
        let road = road.clone();
        async move { road.to(at).await }
    })
    .await;
    let server = echo().await;
    let stream = two.a.open(&two.to_b, open(server, Class::Bulk)).await.unwrap();
    let octets = pattern(24 << 20, 5);
    let (mut reader, mut writer) = tokio::io::split(stream);
    let sent = octets.clone();
    let writing = tokio::spawn(async move {
        writer.write_all(&sent).await.unwrap();
        writer.shutdown().await.unwrap();
    });
    let breaking = tokio::spawn({
        let road = road.clone();
        async move {
            for _ in 0..6 {
                sleep(Duration::from_millis(150)).await;
                road.break_all();
            }
        }
    });
    let mut heard = Vec::new();
    reader.read_to_end(&mut heard).await.unwrap();
    writing.await.unwrap();
    breaking.await.unwrap();
    assert!(heard == octets, "{} of {} octets", heard.len(), octets.len());
    let counts = two.a.status()[0].counts;
    assert!(counts.resumes > 0 && counts.repeated_octets > 0, "{counts:?}");
    println!("{} resumes, {} octets sent again", counts.resumes, counts.repeated_octets);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_is_noticed_within_three_seconds_and_streams_outlive_it() {
    let road = Road::new();
    let two = Two::through(|at| {
        let road = road.clone();
        async move { road.to(at).await }
    })
    .await;
    let server = summing().await;
    two.up().await;
    let mut stream = two.a.open(&two.to_b, open(server, Class::Interactive)).await.unwrap();
    stream.write_all(b"before, ").await.unwrap();
    stream.opened().await.unwrap();
    road.silence(true);
    let begun = Instant::now();
    until("the silence is noticed", || {
        two.a.status()[0].lanes.is_empty() && two.b.status()[0].lanes.is_empty()
    })
    .await;
    let noticed = begun.elapsed();
    assert!(noticed < Duration::from_secs(3), "{noticed:?}");
    stream.write_all(b"meanwhile, ").await.unwrap();
    sleep(Duration::from_secs(1)).await;
    road.silence(false);
    stream.write_all(b"after").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, summary(b"before, meanwhile, after"));
    println!("noticed after {noticed:?}");
}
