//! Asks a running node through its admin socket.

use crate::{
    api::Trouble,
    cli::RunningNode,
    config::{FileUse, Surroundings},
    exit::{Exit, Failure},
    file,
    supervisor::desk::{self, Question},
};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, StatusCode, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use std::{
    io::{self, Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{net::UnixStream, time::timeout};

/// A node answers in milliseconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// Tools of the system that move rules may wait for each other.
const PATIENCE_RULES: Duration = Duration::from_secs(35);
/// The new executable is tried, the old node makes room, and a new one starts.
const PATIENCE_UPGRADE: Duration = Duration::from_secs(240);
/// Far more than it says.
const SUPERVISOR_OCTETS_MAX: u64 = 64 << 10;
/// Of a node whose supervisor has answered: it answers in milliseconds, or hangs.
const PATIENCE_SUPERVISED: Duration = Duration::from_secs(2);
/// Of one that hangs, as its supervisor has seen.
const PATIENCE_HANGING: Duration = Duration::from_millis(200);
/// A large store on a slow disk takes its time.
const PATIENCE_DOING: Duration = Duration::from_secs(24 * 3600);
/// Far more than ten thousand sessions need.
const ANSWER_OCTETS_MAX: usize = 64 << 20;

/// How to ask.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Method {
    /// For an answer.
    Get,
    /// For something to be done.
    Post,
}

/// The answer to `GET path`, as it came and as a value.
pub(crate) fn get<T: DeserializeOwned>(node: &RunningNode, path: &str) -> Result<(Bytes, T), Failure> {
    let socket = socket(node)?;
    match ask(&socket, Method::Get, path, PATIENCE)? {
        Asked::Answer(octets, value) => Ok((octets, value)),
        Asked::Late => Err(late(&socket)),
        Asked::Nobody => Err(Failure::say(
            Exit::Unavailable,
            format_args!("no node answers at {}; is it running?", socket.display()),
        )),
    }
}

/// The same of a node that has a supervisor: `None` when it does not answer. `answers`: whether it should.
pub(crate) fn get_supervised<T: DeserializeOwned>(
    node: &RunningNode,
    path: &str,
    answers: bool,
) -> Result<Option<(Bytes, T)>, Failure> {
    let patience = if answers { PATIENCE_SUPERVISED } else { PATIENCE_HANGING };
    match ask(&socket(node)?, Method::Get, path, patience) {
        Ok(Asked::Answer(octets, value)) => Ok(Some((octets, value))),
        Ok(Asked::Nobody | Asked::Late) => Ok(None),
        // It ended while it was asked, which is its supervisor's to tell.
        Err(failure) if failure.cause::<hyper::Error>().is_some() => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// The same, or `None` when no node runs.
pub(crate) fn if_running<T: DeserializeOwned>(
    node: &RunningNode,
    method: Method,
    path: &str,
) -> Result<Option<(Bytes, T)>, Failure> {
    let patience = match method {
        Method::Get => PATIENCE,
        Method::Post => PATIENCE_DOING,
    };
    let socket = socket(node)?;
    match ask(&socket, method, path, patience)? {
        Asked::Answer(octets, value) => Ok(Some((octets, value))),
        Asked::Nobody => Ok(None),
        Asked::Late => Err(late(&socket)),
    }
}

/// What came of asking.
enum Asked<T> {
    Answer(Bytes, T),
    /// Nobody is there.
    Nobody,
    /// Nothing came for so long.
    Late,
}

fn late(socket: &Path) -> Failure {
    Failure::say(Exit::Unavailable, format_args!("the node at {} does not answer", socket.display()))
}

fn ask<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    patience: Duration,
) -> Result<Asked<T>, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("the system gives no events", error))?;
    let asked = runtime.block_on(async { timeout(patience, request(socket, method, path)).await });
    let Ok(asked) = asked else { return Ok(Asked::Late) };
    let Some((status, octets)) = asked? else { return Ok(Asked::Nobody) };
    if status != StatusCode::OK {
        let why = serde_json::from_slice::<Trouble>(&octets).map_or_else(|_| status.to_string(), |t| t.error);
        return Err(Failure::say(Exit::Unavailable, why));
    }
    let value = serde_json::from_slice(&octets).map_err(|error| {
        Failure::say(
            Exit::Unavailable,
            format_args!("the node at {} is of another version: {error}", socket.display()),
        )
    })?;
    Ok(Asked::Answer(octets, value))
}

/// What the supervisor of a node on the path answers, or `None` when there is none.
pub(crate) fn supervisor<T: DeserializeOwned>(
    node: &RunningNode,
    question: Question,
) -> Result<Option<T>, Failure> {
    let socket = desk::beside(&socket(node)?);
    let failed = |error: io::Error| {
        Failure::io(
            format!("the supervisor's socket {}; [admin] mode and group say who may", socket.display()),
            error,
        )
    };
    let mut stream = match std::os::unix::net::UnixStream::connect(&socket) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(failed(error)),
    };
    let patience = if question == Question::Upgrade { PATIENCE_UPGRADE } else { PATIENCE_RULES };
    stream.set_read_timeout(Some(patience)).map_err(failed)?;
    stream.write_all(format!("{}\n", question.line()).as_bytes()).map_err(failed)?;
    let mut answer = Vec::new();
    stream.take(SUPERVISOR_OCTETS_MAX).read_to_end(&mut answer).map_err(failed)?;
    if answer.is_empty() {
        let what = format_args!("the supervisor at {} was gone before it answered", socket.display());
        return Err(Failure::say(Exit::Unavailable, what));
    }
    if let Ok(trouble) = serde_json::from_slice::<Trouble>(&answer) {
        return Err(Failure::say(Exit::Unavailable, trouble.error));
    }
    let value = serde_json::from_slice(&answer).map_err(|error| {
        let what = format_args!("the supervisor at {} is of another version: {error}", socket.display());
        Failure::say(Exit::Unavailable, what)
    })?;
    Ok(Some(value))
}

/// Text as a value in a query.
pub(crate) fn quoted(text: &str) -> String {
    let quote = |octet: u8| match octet {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(octet).to_string(),
        octet => format!("%{octet:02X}"),
    };
    text.bytes().map(quote).collect()
}

/// `None` when nobody is there.
async fn request(socket: &Path, method: Method, path: &str) -> Result<Option<(StatusCode, Bytes)>, Failure> {
    let stream = match UnixStream::connect(socket).await {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => {
            let what = format!("the admin socket {}; [admin] mode and group say who may", socket.display());
            return Err(Failure::io(what, error));
        }
    };
    let failed = |error: hyper::Error| Failure::new(Exit::Unavailable, error);
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let connection = tokio::spawn(connection);
    let method = match method {
        Method::Get => hyper::Method::GET,
        Method::Post => hyper::Method::POST,
    };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "waypost")
        .body(Empty::<Bytes>::new())
        .map_err(|error| Failure::new(Exit::Bug, error))?;
    let answer = sender.send_request(request).await.map_err(failed)?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_OCTETS_MAX).collect().await;
    connection.abort();
    let body = body.map_err(|error| Failure::say(Exit::Unavailable, error))?;
    Ok(Some((status, body.to_bytes())))
}

fn socket(node: &RunningNode) -> Result<PathBuf, Failure> {
    if let Some(socket) = &node.socket {
        return Ok(socket.clone());
    }
    if let Some(path) = &node.config {
        let loaded = file::read(path, FileUse::Ignore)?;
        return Ok(file::usable(&loaded, path)?.admin.socket.clone());
    }
    let surroundings = Surroundings::of_process();
    let own = surroundings.runtime_dir.unwrap_or(surroundings.state_dir).join("admin.sock");
    let service = PathBuf::from(SERVICE);
    Ok(if !own.exists() && service.exists() { service } else { own })
}

/// Where the systemd unit's node has it.
const SERVICE: &str = "/run/waypost/admin.sock";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_node_that_hangs_or_is_gone_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("admin.sock");
        let node = RunningNode { socket: Some(socket.clone()), config: None, json: false };
        let ask =
            || get_supervised::<u8>(&node, "/status", false).map(|answer| answer.map(|(_, value)| value));
        assert_eq!(ask().unwrap(), None, "no socket");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert_eq!(ask().unwrap(), None, "it hangs");
        drop(listener);
        assert_eq!(ask().unwrap(), None, "nobody listens");
        for (body, answer) in [("7", Some(7)), ("{}", None)] {
            std::fs::remove_file(&socket).unwrap();
            let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
            let answers = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let _asked = stream.read(&mut [0; 1024]).unwrap();
                write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
            });
            let asked = get_supervised::<u8>(&node, "/status", true);
            answers.join().unwrap();
            match answer {
                Some(_) => assert_eq!(asked.unwrap().map(|(_, value)| value), answer),
                None => assert!(asked.unwrap_err().to_string().contains("of another version")),
            }
        }
    }

    #[test]
    fn a_supervisor_that_dies_while_it_is_asked_is_not_of_another_version() {
        let dir = tempfile::tempdir().unwrap();
        let node = RunningNode { socket: Some(dir.path().join("admin.sock")), config: None, json: false };
        for (said, why) in [("", "gone before it answered"), ("{", "of another version")] {
            let socket = desk::beside(&dir.path().join("admin.sock"));
            let _none = std::fs::remove_file(&socket);
            let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
            let dies = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let _asked = stream.read(&mut [0; 64]).unwrap();
                write!(stream, "{said}").unwrap();
            });
            let failure = supervisor::<u8>(&node, Question::Upgrade).unwrap_err().to_string();
            dies.join().unwrap();
            assert!(failure.contains(why), "{failure}");
        }
    }

    #[test]
    fn a_name_in_a_query_is_quoted() {
        assert_eq!(quoted("mia+x&y=ü@example.org"), "mia%2Bx%26y%3D%C3%BC%40example.org");
    }
}
