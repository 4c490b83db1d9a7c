//! `waypost branch`: a node without a configuration file. It writes itself one in memory and runs that, so that there is
//! one way in which a node starts.

use crate::{
    ca, cli,
    config::{
        self, Config, FileUse, Surroundings,
        problem::Weight,
        value::{Encryption, Host},
    },
    exit::{Exit, Failure},
    node, run, say, trust,
};
use std::{
    fmt::Write,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
};

/// Runs it until a signal ends it.
pub(crate) fn branch(wanted: &cli::Branch) -> Result<Exit, Failure> {
    let mail = Mail::parse(&wanted.mail)?;
    let mut surroundings = Surroundings::of_process();
    if let Some(dir) = &wanted.state_dir {
        surroundings.state_dir =
            std::path::absolute(dir).map_err(|error| Failure::io(dir.display().to_string(), error))?;
    }
    let state_dir = surroundings.state_dir.clone();
    node::make_dir(&state_dir)?;
    let ca_dir = state_dir.join("ca");
    let made = if ca_dir.join("root.pem").exists() {
        false
    } else {
        ca::create(&ca_dir, std::slice::from_ref(&mail.host.0))?;
        true
    };
    let (listeners, without_right) = listeners(&wanted.listen)?;
    let text = configuration(&mail, wanted.origin_ca.as_deref(), &listeners)?;
    let loaded = config::judge(&text, &state_dir.join("branch.toml"), &surroundings, FileUse::Look);
    let errors = loaded.problems.iter().filter(|problem| problem.weight == Weight::Error);
    let errors: Vec<_> = errors.map(|problem| problem.what.clone()).collect();
    let Some(config) = loaded.usable() else {
        return Err(Failure::say(Exit::Usage, errors.join("; ")));
    };
    introduce(config, &mail, made, without_right)?;
    run::node(config, None, None)
}

/// What a person who has just started it must know.
fn introduce(config: &Config, mail: &Mail, made: bool, without_right: bool) -> Result<(), Failure> {
    say::line(format_args!(
        "Mail of {} for this office, through Waypost {}",
        mail.host.0,
        env!("CARGO_PKG_VERSION")
    ));
    if without_right {
        say::line(
            "No right to ports 993 and 143 (root or CAP_NET_BIND_SERVICE has it): listening on 1993 and 1143.",
        );
    }
    for listener in &config.listeners {
        let how = match listener.tls {
            Encryption::Implicit => "SSL/TLS",
            Encryption::StartTls => "STARTTLS",
            Encryption::Plain => "no encryption",
        };
        say::line(format_args!("  mail programs connect to {} ({how})", listener.address));
    }
    say::line(format_args!("  state is kept in {}", config.node.state_dir.display()));
    if made {
        say::line("A certificate authority was made for this server's name.");
    }
    say::text(trust::sentences(config)?);
    say::line("Ctrl-C ends it; `waypost status` in another window shows what it does.");
    Ok(())
}

/// Where the mail is.
#[derive(Debug, PartialEq, Eq)]
struct Mail {
    host: Host,
    port: u16,
    starttls: bool,
}

impl Mail {
    fn parse(url: &str) -> Result<Self, Failure> {
        let wrong = |why: &str| {
            Failure::say(
                Exit::Usage,
                format_args!("--mail {url}: {why}; for example: --mail imaps://mail.example.org"),
            )
        };
        let (starttls, rest) = match url.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("imaps") => (false, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("imap") => (true, rest),
            Some((scheme, _)) => return Err(wrong(&format!("{scheme} is neither imaps nor imap"))),
            None => return Err(wrong("it does not begin with imaps:// or imap://")),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains('@') {
            return Err(wrong("it names a user; users log in through Waypost, it needs none itself"));
        }
        if rest.contains(['/', '?', '#']) {
            return Err(wrong("there is something behind the host"));
        }
        // The colons of an IPv6 address stand in brackets.
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, Some(port)),
            Some(_) | None => (rest, None),
        };
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let Some(host) = Host::parse(host) else {
            return Err(wrong("the host is neither a DNS name nor an IP address"));
        };
        let port = match port {
            None if starttls => 143,
            None => 993,
            Some(port) => match port.parse() {
                Ok(port) if port != 0 => port,
                Ok(_) | Err(_) => return Err(wrong("the port is not a number from 1 to 65535")),
            },
        };
        Ok(Self { host, port, starttls })
    }
}

/// A listener to be, and whether it speaks TLS from the first octet.
type Wanted = (SocketAddr, bool);

/// Where to listen, and whether it is the second choice for lack of rights.
fn listeners(given: &[String]) -> Result<(Vec<Wanted>, bool), Failure> {
    let mut addresses = Vec::new();
    let mut listeners = Vec::new();
    for text in given {
        match (text.parse::<IpAddr>(), text.parse::<SocketAddr>()) {
            (Ok(address), _) => addresses.push(address),
            (_, Ok(address)) if address.port() != 0 => listeners.push((address, true)),
            _ => {
                return Err(Failure::say(
                    Exit::Usage,
                    format_args!("--listen {text}: not an IP address; for example: --listen 192.168.7.1"),
                ));
            }
        }
    }
    if given.is_empty() {
        addresses.push(Ipv4Addr::UNSPECIFIED.into());
        // A machine without IPv6 says so here.
        if TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok() {
            addresses.push(Ipv6Addr::UNSPECIFIED.into());
        }
    }
    let refused = |port: u16| {
        let error = |address: &IpAddr| TcpListener::bind((*address, port)).err();
        addresses.iter().filter_map(error).any(|error| error.kind() == io::ErrorKind::PermissionDenied)
    };
    let without_right = refused(993) || refused(143);
    let (tls, starttls) = if without_right { (1993, 1143) } else { (993, 143) };
    for address in addresses {
        listeners.push((SocketAddr::new(address, tls), true));
        listeners.push((SocketAddr::new(address, starttls), false));
    }
    Ok((listeners, without_right))
}

/// The file that it would be.
fn configuration(mail: &Mail, origin_ca: Option<&Path>, listeners: &[Wanted]) -> Result<String, Failure> {
    let mut text = String::from("version = 1\n");
    let host = &mail.host.0;
    let tls = if mail.starttls { "starttls" } else { "implicit" };
    let _ =
        write!(text, "[[server]]\nname = {host:?}\nhost = {host:?}\nport = {}\ntls = {tls:?}\n", mail.port);
    if let Some(path) = origin_ca {
        let path: PathBuf =
            std::path::absolute(path).map_err(|error| Failure::io(path.display().to_string(), error))?;
        let path = toml::Value::String(path.to_string_lossy().into_owned());
        let _ = writeln!(text, "ca = {path}");
    }
    for (address, implicit) in listeners {
        let tls = if *implicit { "implicit" } else { "starttls" };
        let _ = write!(text, "[[listener]]\naddress = \"{address}\"\ntls = {tls:?}\n");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> Option<(String, u16, bool)> {
        Mail::parse(url).ok().map(|mail| (mail.host.0, mail.port, mail.starttls))
    }

    #[test]
    fn urls_of_servers_are_read() {
        for (url, host, port, starttls) in [
            ("imaps://mail.example.org", "mail.example.org", 993, false),
            ("imaps://mail.example.org/", "mail.example.org", 993, false),
            ("IMAP://mail.example.org", "mail.example.org", 143, true),
            ("imap://mail.example.org:1143", "mail.example.org", 1143, true),
            ("imaps://192.0.2.7:994", "192.0.2.7", 994, false),
            ("imaps://[2001:db8::7]", "2001:db8::7", 993, false),
            ("imaps://[2001:db8::7]:994", "2001:db8::7", 994, false),
        ] {
            assert_eq!(parsed(url), Some((host.to_owned(), port, starttls)), "{url}");
        }
        for url in [
            "mail.example.org",
            "https://mail.example.org",
            "imaps://",
            "imaps://mia@mail.example.org",
            "imaps://mail.example.org/INBOX",
            "imaps://mail.example.org:0",
            "imaps://mail.example.org:99999",
            "imaps://mail example.org",
            "imaps://\"\n[x]",
        ] {
            let failure = Mail::parse(url).expect_err(url);
            assert_eq!(failure.exit, Exit::Usage);
            assert!(failure.to_string().contains("for example"), "{failure}");
        }
    }

    #[test]
    fn what_it_writes_for_itself_is_a_good_file() {
        let mail = Mail::parse("imap://[2001:db8::7]:1143").unwrap();
        let listeners = [
            ("0.0.0.0:993".parse().unwrap(), true),
            ("[::]:993".parse().unwrap(), true),
            ("0.0.0.0:143".parse().unwrap(), false),
        ];
        let text = configuration(&mail, Some(Path::new("/etc/\"odd\"/ca.pem")), &listeners).unwrap();
        let surroundings = config::bad_files::surroundings();
        let loaded = config::judge(&text, Path::new("/state/branch.toml"), &surroundings, FileUse::Ignore);
        let config = loaded.usable().unwrap_or_else(|| panic!("{text}\n{:#?}", loaded.problems));
        assert_eq!(config.servers.first().map(|server| server.port.0), Some(1143));
        assert_eq!(config.listeners.len(), 3);
        assert_eq!(config.tls.ca_dir.as_deref(), Some(Path::new("/state/ca")));
    }

    #[test]
    fn an_address_with_a_port_is_for_tls_alone() {
        let (listeners, _) = listeners(&["127.0.0.1:21993".to_owned()]).unwrap();
        assert_eq!(listeners, [("127.0.0.1:21993".parse().unwrap(), true)]);
        assert!(super::listeners(&["localhost".to_owned()]).is_err());
    }
}
