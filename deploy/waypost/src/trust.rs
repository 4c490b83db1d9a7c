//! What mail programs must trust, in sentences: `branch` and `check` say the same.

use crate::{
    config::{
        Config, Seal,
        value::{Encryption, Source},
    },
    exit::{Exit, Failure},
};
use epc::tls::authority::Authority;
use std::{fmt::Write, path::Path};

/// One paragraph for each kind of certificate that clients will see.
pub(crate) fn sentences(config: &Config) -> Result<String, Failure> {
    let mut out = String::new();
    let mut intercepted = config.servers.iter().filter(|server| config.terminates(server));
    let encrypted = config.listeners.iter().any(|listener| listener.tls != Encryption::Plain)
        || intercepted.any(|server| server.tls != Encryption::Plain);
    if encrypted {
        if let Some(operator) = &config.tls.operator {
            let _ = writeln!(
                out,
                "Mail programs see the certificate in {}; they must trust the authority that signed it,\nand connect by a name that stands in it.",
                operator.cert.display()
            );
        }
        if let Some(dir) = &config.tls.ca_dir {
            let otherwise = if config.tls.operator.is_some() {
                "For the servers' other names they"
            } else {
                "Mail programs"
            };
            let _ = writeln!(
                out,
                "{otherwise} must trust this authority, as one that may identify servers: install\n  {}\n  SHA-256 {}\nin each of them (compare the fingerprint), and nothing else. It can sign for these names only:\n  {}\nWho gets hold of {} can be these servers towards these\nmail programs. {} is not needed here: take it offline.",
                dir.join("root.pem").display(),
                fingerprint(dir)?,
                names(config).join(" "),
                dir.join("issuing.key").display(),
                dir.join("root.key").display(),
            );
        }
    }
    for server in config.servers.iter().filter(|server| config.terminates(server)) {
        let sees = match server.source {
            Source::Spoof => "it sees each client's own address, so no connection is kept ready for them",
            Source::Own => {
                "it sees a node's address, so connections are kept ready, and one client's wrong passwords can\nslow the others down"
            }
        };
        let _ = writeln!(out, "Intercepted clients of {} are served here; {sees}.", server.name);
    }
    if config.listeners.iter().any(|listener| listener.tls == Encryption::Plain) {
        let _ =
            writeln!(out, "A listener takes clients without TLS: passwords cross that network in the clear.");
    }
    if matches!(config.store.seal, Seal::Off) {
        let _ = writeln!(
            out,
            "Stored mail is not encrypted on this disk ({}); [store] seal_key_file turns that on.",
            config.store.path.display()
        );
    }
    Ok(out)
}

/// The root's SHA-256 in the form that mail programs show.
pub(crate) fn fingerprint(dir: &Path) -> Result<String, Failure> {
    let authority = Authority::load(dir).map_err(|error| Failure::new(Exit::Usage, error))?;
    Ok(colons(&authority.root_sha256()))
}

/// `AB:CD:…`
pub(crate) fn colons(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02X}")).collect::<Vec<_>>().join(":")
}

fn names(config: &Config) -> Vec<&str> {
    config
        .servers
        .iter()
        .flat_map(|server| std::iter::once(&server.host).chain(&server.aliases))
        .map(|host| host.0.as_str())
        .collect()
}
