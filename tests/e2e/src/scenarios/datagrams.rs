//! Datagrams on the path: flows of them are ruled on, passed and counted; and the answer to a probe where options do not
//! come through.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use lab::{Lab, Place};
use serde_json::Value;

use super::pair::{Client, ECHO, Nodes, STALL, echo_server};
use crate::case::Case;

const OPEN: u16 = 5300;
const DROPPED: u16 = 5301;
const DENIED: u16 = 5302;

/// A server that gives every datagram back, and says whom it sees.
fn udp_server(lab: &Lab) -> anyhow::Result<()> {
    for ip in [Place::Server.v4(), Place::Server.v6()] {
        for port in [OPEN, DROPPED, DENIED] {
            let socket = lab.inside(Place::Server, move || UdpSocket::bind((ip, port)))??;
            thread::spawn(move || {
                let mut room = [0; 2048];
                while let Ok((_, from)) = socket.recv_from(&mut room) {
                    drop(socket.send_to(from.to_string().as_bytes(), from));
                }
            });
        }
    }
    Ok(())
}

fn udp_client(lab: &Lab, ip: IpAddr, port: u16) -> anyhow::Result<UdpSocket> {
    let socket = lab.inside(Place::Client, move || {
        let any: SocketAddr = if ip.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
        let socket = UdpSocket::bind(any)?;
        socket.connect((ip, port))?;
        Ok::<_, std::io::Error>(socket)
    })??;
    Ok(socket)
}

/// Whether a datagram came back, and from whom the server saw it.
fn asks(socket: &UdpSocket, patience: Duration) -> std::io::Result<String> {
    socket.set_read_timeout(Some(patience))?;
    socket.send(b"who am I?")?;
    let mut room = [0; 128];
    let octets = loop {
        match socket.recv(&mut room) {
            // As a receive with a limit in time may be, whatever the signal.
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            received => break received?,
        }
    };
    Ok(String::from_utf8_lossy(room.get(..octets).unwrap_or_default()).into_owned())
}

fn udp(nodes: &Nodes<'_>) -> anyhow::Result<(u64, u64)> {
    let status = nodes.status(Place::Branch)?;
    let n = |key| status.get("datagrams").and_then(|udp| udp.get(key)).and_then(Value::as_u64);
    Ok((n("flows").context("no flows in the status")?, n("datagrams").context("no datagrams")?))
}

/// UDP flows pass and are counted; a rule drops one kind of them and refuses another; without the rules all pass.
pub(crate) fn counted(case: &Case) -> anyhow::Result<()> {
    let lab = case.lab()?;
    udp_server(&lab)?;
    let mut nodes = Nodes::of(case, &lab)?;
    let rules = format!(
        "[[rule]]\naction = \"drop\"\nprotocol = \"udp\"\nports = [{DROPPED}]\n\
         [[rule]]\naction = \"deny\"\nprotocol = \"udp\"\nports = [{DENIED}]\n\
         [[rule]]\naction = \"intercept\"\nports = [{ECHO}]\n"
    );
    let short = Duration::from_millis(400);
    for ip in [Place::Server.v4(), Place::Server.v6()] {
        nodes.start_with(Place::Branch, "", &rules)?;
        nodes.node(Place::Branch)?.watch.announce("bypass");
        let (open, dropped, denied) =
            (udp_client(&lab, ip, OPEN)?, udp_client(&lab, ip, DROPPED)?, udp_client(&lab, ip, DENIED)?);
        let own = open.local_addr()?.to_string();
        for _ in 0..10 {
            ensure!(asks(&open, STALL)? == own, "the server sees another client than {own}");
        }
        // Ten there and ten back, of one flow; the queue has seen the first one.
        ensure!(udp(&nodes)? == (1, 20), "{ip}: {:?}", udp(&nodes)?);
        ensure!(nodes.count(Place::Branch, "datagram-begins")? == 1, "{ip}: flows begun");
        ensure!(nodes.count(Place::Branch, "datagram-goes-on")? == 0, "{ip}: more than the first was queued");
        for _ in 0..2 {
            let silence = asks(&dropped, short).err().map(|error| error.kind());
            ensure!(silence == Some(std::io::ErrorKind::WouldBlock), "{ip}: a dropped flow: {silence:?}");
        }
        let refused = asks(&denied, STALL).err().map(|error| error.kind());
        ensure!(refused == Some(std::io::ErrorKind::ConnectionRefused), "{ip}: a denied flow: {refused:?}");
        ensure!(nodes.count(Place::Branch, "rule-drop")? == 2, "{ip}: not every datagram was dropped");
        ensure!(nodes.count(Place::Branch, "rule-deny")? == 1, "{ip}: a denied flow");
        // Without the rule the same flow passes.
        let bypass = |on: &str| nodes.bypass(Place::Branch, on);
        bypass("on")?;
        ensure!(asks(&dropped, STALL)? == dropped.local_addr()?.to_string(), "{ip}: bypassed");
        bypass("off")?;
        let silence = asks(&dropped, short).err().map(|error| error.kind());
        ensure!(silence == Some(std::io::ErrorKind::WouldBlock), "{ip}: no longer bypassed: {silence:?}");
        // A table that begins anew after the bypass.
        ensure!(asks(&open, STALL)? == own);
        drop((open, dropped, denied));
        nodes.node(Place::Branch)?.signal(libc::SIGTERM)?;
        nodes.node(Place::Branch)?.wait(STALL)?;
    }
    Ok(())
}

/// A firewall in the centre takes options out of every SYN-ACK: the first connection goes direct, and from then on
/// datagrams answer. Without them no peer is found and everything flows.
pub(crate) fn answered(case: &Case) -> anyhow::Result<()> {
    let lab = case.lab()?;
    echo_server(&lab)?;
    let mut nodes = Nodes::of(case, &lab)?;
    let rules = format!("[[rule]]\naction = \"intercept\"\nports = [{ECHO}]\n");
    strip(&lab)?;
    for (answer, found) in [("option", false), ("auto", true), ("datagram", true)] {
        nodes.start_with(Place::Centre, &format!("answer = {answer:?}"), &rules)?;
        nodes.start_with(Place::Branch, "", &rules)?;
        for ip in [Place::Server.v4(), Place::Server.v6()] {
            for round in 0..3 {
                let mut client = Client::connect(&lab, ip)?;
                client.sees_the_truth(ip)?;
                client.echoes(b"there and back")?;
                if round > 0 {
                    ensure!(
                        client.connected < Duration::from_millis(2500),
                        "{answer}: {:?}",
                        client.connected
                    );
                }
                client.ends()?;
            }
        }
        let carried = nodes.count(Place::Branch, "carried")?;
        let rejected = nodes.count(Place::Centre, "client-rejected")?;
        match (answer, found) {
            ("option", _) => ensure!(carried == 0 && rejected > 0, "{answer}: {carried} carried"),
            // Of each family the first connection showed that the option is lost.
            ("auto", _) => {
                ensure!(carried >= 2 && rejected >= 1, "{answer}: {carried} carried, {rejected} rejected")
            }
            (_, _) => {
                ensure!(carried >= 4 && rejected == 0, "{answer}: {carried} carried, {rejected} rejected")
            }
        }
        for place in [Place::Branch, Place::Centre] {
            nodes.node(place)?.signal(libc::SIGTERM)?;
            nodes.node(place)?.wait(STALL)?;
        }
    }
    Ok(())
}

/// Takes the probe's option out of SYN-ACKs, where the client's network begins.
fn strip(lab: &Lab) -> anyhow::Result<()> {
    for tool in ["iptables-nft", "ip6tables-nft"] {
        let mut command = lab.command(Place::Centre, tool);
        command.args(["-t", "mangle", "-A", "POSTROUTING", "-p", "tcp", "--tcp-flags", "SYN,ACK", "SYN,ACK"]);
        command.args(["-j", "TCPOPTSTRIP", "--strip-options", "253"]);
        let output = command.output()?;
        ensure!(output.status.success(), "{tool}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
