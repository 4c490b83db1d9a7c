//! Small pieces of an IMAP client's work that several scenarios need.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use lab::clients::{Response, Wire};
use sha2::{Digest, Sha256};

/// The UID that a FETCH response names.
pub(crate) fn uid(response: &Response) -> Option<u32> {
    let text = response.text();
    let rest = text.split_once("UID ")?.1;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// SHA-256 of each message of a mailbox, by UID; selects it.
pub(crate) fn bodies(wire: &mut Wire, mailbox: &str) -> anyhow::Result<BTreeMap<u32, Vec<u8>>> {
    wire.command(&format!("SELECT {mailbox}"))?.ok()?;
    let reply = wire.command("UID FETCH 1:* (UID BODY.PEEK[])")?.ok()?;
    let mut bodies = BTreeMap::new();
    for response in &reply.untagged {
        if let ([body], Some(uid)) = (response.literals.as_slice(), uid(response)) {
            bodies.insert(uid, Sha256::digest(body).to_vec());
        }
    }
    Ok(bodies)
}

/// Fails unless a session is given the same bodies as another was.
pub(crate) fn same_bodies(
    what: &str,
    expected: &BTreeMap<u32, Vec<u8>>,
    got: &BTreeMap<u32, Vec<u8>>,
) -> anyhow::Result<()> {
    let wrong: Vec<u32> =
        expected.keys().chain(got.keys()).filter(|uid| expected.get(uid) != got.get(uid)).copied().collect();
    ensure!(
        wrong.is_empty(),
        "{what}: {} bodies and not {}; wrong or missing: {wrong:?}",
        got.len(),
        expected.len()
    );
    Ok(())
}

/// Appends a message.
pub(crate) fn append(wire: &mut Wire, mailbox: &str, octets: &[u8]) -> anyhow::Result<()> {
    let tag = wire.begin(&format!("APPEND {mailbox} {{{}}}", octets.len()))?;
    loop {
        let line = wire.line()?;
        if line.starts_with(b"+") {
            break;
        }
        let text = String::from_utf8_lossy(&line).into_owned();
        ensure!(!text.starts_with(&tag), "APPEND: {text}");
    }
    wire.send(octets)?;
    wire.send(b"\r\n")?;
    wire.finish(&tag)?.ok().context("APPEND")?;
    Ok(())
}

/// A message that deflates badly, so that octets on the line tell whether it crossed.
pub(crate) fn noise(subject: &str, octets: usize) -> Vec<u8> {
    let mut text = format!("From: n@example.com\r\nSubject: {subject}\r\n\r\n").into_bytes();
    let mut block = Sha256::digest(subject).to_vec();
    while text.len() < octets {
        block = Sha256::digest(&block).to_vec();
        for octet in &block {
            text.push(PRINTABLE.get(usize::from(octet % 64)).copied().unwrap_or(b'.'));
        }
        text.extend_from_slice(b"\r\n");
    }
    text
}

const PRINTABLE: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// A message of words, of this size.
pub(crate) fn words(subject: &str, canary: &str, octets: usize) -> Vec<u8> {
    let mut text =
        format!("From: w@example.com\r\nSubject: {subject}\r\nX-Canary: {canary}\r\n\r\n").into_bytes();
    let mut line = 0_u64;
    while text.len() < octets {
        text.extend_from_slice(format!("{line:016} {canary} the quick brown fox\r\n").as_bytes());
        line += 1;
    }
    text
}
