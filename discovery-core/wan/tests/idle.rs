//! Alone in its process: what is measured is the process.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout, reason = "tests")]

#[allow(dead_code, reason = "what it does not use, the other tests do")]
#[path = "link/support.rs"]
mod support;

use discovery_core::value::Class;
use std::{fs, time::Duration};
use support::{Two, front, holding};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::sleep,
};

/// What idle connections cost through two nodes, with the tasks that serve them at both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_idle_connections_are_cheap() {
    let (two, server) = (Two::new().await, holding().await);
    let at = front(&two, server, Class::Interactive).await;
    let mut clients = Vec::new();
    let open_some = async |clients: &mut Vec<_>, n: usize| {
        for _ in 0..n {
            let mut client = TcpStream::connect(at).await.unwrap();
            client.write_all(b"x").await.unwrap();
            assert_eq!(client.read_u8().await.unwrap(), b'x');
            clients.push(client);
        }
        sleep(Duration::from_millis(300)).await;
    };
    // What is there once is not what each costs.
    open_some(&mut clients, 200).await;
    let before = resident();
    open_some(&mut clients, 2000).await;
    let each = (resident().saturating_sub(before)) / 2000;
    println!("an idle connection: {each} octets in both nodes, the tasks of both and every socket included");
    assert!(each < 24 * 1024, "{each}");
}

fn resident() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}
