//! `waypost check`: all that can be said about a configuration before it runs.

use crate::{
    config::{self, Config, FileUse, Server, value::Encryption},
    exit::{Exit, Failure},
    file, node, say, trust,
};
use discovery_core::value::Class;
use epc::tls::operator::OperatorCert;
use seams::{
    intake::ClientAddr,
    origin::{OpenError, OriginConnector, OriginRequest, SourcePolicy, VerifiedBy},
};
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::{Duration, Instant, SystemTime},
};
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};

/// How long each step may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Judges `path`, and with `online` asks each server.
pub(crate) fn check(path: &Path, online: bool) -> Result<Exit, Failure> {
    let loaded = file::load(path, FileUse::Look)?;
    let config = file::usable(&loaded, path)?;
    say::line(format_args!("{}: this can be used", path.display()));
    say::text(trust::sentences(config)?);
    if let Some(operator) = &config.tls.operator {
        say::line(expiry(operator)?);
    }
    if !online {
        return Ok(Exit::Fine);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("the system gives no events", error))?;
    let failed = runtime.block_on(ask_all(config))?;
    if failed == 0 {
        return Ok(Exit::Fine);
    }
    Err(Failure::say(
        Exit::Unavailable,
        format_args!("{failed} of {} servers cannot be used", config.servers.len()),
    ))
}

/// When the operator's certificate ends.
fn expiry(operator: &config::Operator) -> Result<String, Failure> {
    let shown = operator.cert.display();
    let opened = OperatorCert::open(operator.cert.clone(), operator.key.clone());
    let end = opened.map_err(|error| Failure::new(Exit::Usage, error))?.expires();
    Ok(match end.map(|end| end.duration_since(SystemTime::now())) {
        Some(Ok(left)) => format!("{shown} is good for {} days more.", left.as_secs() / 86_400),
        Some(Err(_)) => {
            format!("{shown} HAS EXPIRED: mail programs refuse it; put a new one there and send SIGHUP.")
        }
        None => format!("{shown}: when it ends cannot be read from it."),
    })
}

async fn ask_all(config: &Config) -> Result<usize, Failure> {
    let origins = node::direct(config)?;
    let mut failed = 0;
    for server in &config.servers {
        if !ask(server, &origins).await {
            failed += 1;
        }
    }
    Ok(failed)
}

/// Step by step, so that the first line that fails says where to look. Whether it can be used.
async fn ask(server: &Server, origins: &impl OriginConnector) -> bool {
    let say = |step: &str, what: &str| say::line(format_args!("{}: {step}: {what}", server.name));
    let addresses = match addresses(server).await {
        Ok(addresses) => addresses,
        Err(why) => {
            say("name", &format!("failed: {why}; check the spelling, or give addresses = [...]"));
            return false;
        }
    };
    let mut reached = false;
    for address in addresses {
        let since = Instant::now();
        match timeout(PATIENCE, TcpStream::connect(address)).await {
            Ok(Ok(_)) => {
                reached = true;
                say("tcp", &format!("{address} answers, {} ms", since.elapsed().as_millis()));
            }
            Ok(Err(error)) => say("tcp", &format!("{address} failed: {error}")),
            Err(_) => say("tcp", &format!("{address} failed: no answer within {} s", PATIENCE.as_secs())),
        }
    }
    if !reached {
        say("tcp", "no address answers; is the port right, and does a firewall let this machine through?");
        return false;
    }
    let request = OriginRequest {
        server: server.name.clone(),
        addr: None,
        client: ClientAddr(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
        source: SourcePolicy::Own,
        purpose: Class::Interactive,
        patience: PATIENCE,
    };
    match origins.open(request).await {
        Ok(origin) => {
            match origin.peer.verified_by {
                VerifiedBy::Plain => say("tls", "none, as configured"),
                VerifiedBy::Local | VerifiedBy::Peer(_) => {
                    say(
                        "tls",
                        &format!("verified; its key is sha256:{}", epc::tls::hex(&origin.peer.spki_sha256)),
                    );
                }
            }
            say("greeting", String::from_utf8_lossy(&origin.greeting).trim_end());
            let parking = server.parking;
            if parking.max > 0 && !parking.on_cyrus && epc::origin::names_cyrus(&origin.greeting) {
                say(
                    "parked",
                    "no connections are kept ready: this is Cyrus; parked_on_cyrus = true allows it",
                );
            }
            true
        }
        Err(error) => {
            say(step(&error), &format!("failed: {error}{}", advice(&error, server)));
            false
        }
    }
}

async fn addresses(server: &Server) -> Result<Vec<SocketAddr>, String> {
    if !server.addresses.is_empty() {
        return Ok(server.addresses.iter().map(|ip| SocketAddr::new(*ip, server.port.0)).collect());
    }
    match timeout(PATIENCE, lookup_host((server.host.0.as_str(), server.port.0))).await {
        Ok(Ok(found)) => {
            let mut found: Vec<_> = found.collect();
            found.dedup();
            Ok(found)
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

fn step(error: &OpenError) -> &'static str {
    match error {
        OpenError::UnknownServer(_) | OpenError::Resolve { .. } => "name",
        OpenError::Refused | OpenError::TimedOut | OpenError::Network(_) => "tcp",
        OpenError::Tls(_) | OpenError::StartTls(_) => "tls",
        OpenError::Greeting(_) | OpenError::Bye(_) => "greeting",
    }
}

fn advice(error: &OpenError, server: &Server) -> &'static str {
    match (error, server.tls) {
        (OpenError::Tls(_), Encryption::Implicit) => {
            "; a server of your own authority needs ca = \"FILE\", and a port that expects STARTTLS needs tls = \"starttls\""
        }
        (OpenError::Tls(_), Encryption::StartTls | Encryption::Plain) => {
            "; a server of your own authority needs ca = \"FILE\""
        }
        (OpenError::Greeting(_) | OpenError::TimedOut, Encryption::StartTls | Encryption::Plain) => {
            "; a port that expects TLS at once needs tls = \"implicit\""
        }
        _ => "",
    }
}
