//! An end that speaks and then resets: the other end hears all of it, and then the reset.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::ensure;
use lab::Ground;
use lab::ground::v4;
use socket2::{Domain, SockRef, Socket, Type};

use crate::case::Case;
use crate::path::nodes::{Nodes, Standing};
use crate::path::{STALL, ends::noise, until};

/// Little enough for a link to take it whole from one end while the other reads nothing.
const OCTETS: usize = 200_000;
/// The reader's kernel takes a small part of that.
const ROOM: usize = 8 * 1024;
/// The reset has come as far as it can.
const LATER: Duration = Duration::from_millis(300);

pub(crate) fn last_words(case: &Case) -> anyhow::Result<()> {
    let ground = Ground::row(case.prefix(), &["c", "a", "b", "s"])?;
    let server = SocketAddr::new(IpAddr::V4(v4(2, 2)), 8002);
    let listener = ground.inside("s", move || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_recv_buffer_size(ROOM)?;
        socket.bind(&server.into())?;
        socket.listen(8)?;
        std::io::Result::Ok(TcpListener::from(socket))
    })??;
    ground.warm_up("c", &[server.ip()])?;
    let mut nodes = Nodes::of(case, &ground, &["a", "b"])?;
    nodes.start(&[("a", Standing::routed()), ("b", Standing::routed())])?;
    // The server speaks, then the client does; on a fresh link nothing else is counted.
    for (nth, speaks) in ["b", "a"].into_iter().enumerate() {
        let client = ground.inside("c", move || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_recv_buffer_size(ROOM)?;
            socket.connect_timeout(&server.into(), STALL)?;
            std::io::Result::Ok(TcpStream::from(socket))
        })??;
        let (accepted, _) = listener.accept()?;
        let hears = if speaks == "b" { "a" } else { "b" };
        let (mut speaker, mut hearer) = if speaks == "b" { (accepted, client) } else { (client, accepted) };
        until("the link stands", || Ok(nodes.sent_to(speaks, hears)?.is_some()))?;
        let before = nodes.sent_to(speaks, hears)?.unwrap_or(0);
        ensure!(before == 0, "{speaks} has said {before} octets before");
        let said = noise(OCTETS);
        speaker.write_all(&said)?;
        until("its node has read everything", || {
            Ok(nodes.sent_to(speaks, hears)? == Some(u64::try_from(OCTETS)?))
        })?;
        SockRef::from(&speaker).set_linger(Some(Duration::ZERO))?;
        drop(speaker);
        thread::sleep(LATER);
        hearer.set_read_timeout(Some(STALL))?;
        let mut heard = Vec::new();
        let end = hearer.read_to_end(&mut heard).map_err(|error| error.kind());
        ensure!(heard == said, "{speaks} reset: {} of {OCTETS} octets were heard, then {end:?}", heard.len());
        ensure!(end == Err(ErrorKind::ConnectionReset), "{speaks} reset, and the other end hears {end:?}");
        let carried = nodes.count("a", "carried")?;
        ensure!(carried == nth as u64 + 1, "{carried} were carried");
        nodes.at_rest(&["a", "b"])?;
    }
    Ok(())
}
