//! Clients by the thousand: they speak plain IMAP over TLS and read answers to their tagged line.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use lab::{Lab, Place};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Where clients go, and how.
#[derive(Debug, Clone)]
pub struct Clients {
    /// The address that they connect to.
    pub to: SocketAddr,
    /// The name that the certificate must bear.
    pub name: &'static str,
    /// Whom they trust.
    pub tls: Arc<ClientConfig>,
    /// How many come from one address of the loopback network; 0: all from the place's own address. A listener has
    /// its bound for one address.
    pub per_address: usize,
}

/// A client that is connected and greeted.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<TlsStream<TcpStream>>,
    number: u32,
    line: Vec<u8>,
}

/// How long a mail program waits before it tries again, at least.
const AGAIN: Duration = Duration::from_secs(1);

impl Clients {
    /// Runs a future in a place of the lab, on a thread of its own: what it connects, it connects from there.
    ///
    /// # Errors
    /// When the place is gone.
    pub fn run<F>(
        lab: &Lab,
        place: Place,
        work: impl FnOnce() -> F + Send + 'static,
    ) -> anyhow::Result<F::Output>
    where
        F: Future,
        F::Output: Send + 'static,
    {
        lab.inside(place, move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            io::Result::Ok(tokio::task::LocalSet::new().block_on(&runtime, work()))
        })?
        .map_err(Into::into)
    }

    /// Connects the `nth` of them and waits for its greeting.
    ///
    /// # Errors
    /// When the connection fails; `ConnectionRefused` when it is greeted with anything but OK.
    pub async fn connect(&self, nth: usize) -> io::Result<Client> {
        let socket = TcpSocket::new_v4()?;
        if let Some(group) = nth.checked_div(self.per_address) {
            let group = u8::try_from(group).map_err(io::Error::other)?;
            socket.bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 1, 1, group.saturating_add(1))), 0))?;
        }
        let stream = socket.connect(self.to).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(self.name).map_err(io::Error::other)?;
        let stream = TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream).await?;
        let mut client = Client { stream: BufReader::new(stream), number: 0, line: Vec::new() };
        client.read_line().await?;
        if !client.line.starts_with(b"* OK") {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        Ok(client)
    }
}

impl Client {
    /// Connects the `nth` of them, as often as it takes, and logs in. How often it was turned away.
    ///
    /// # Errors
    /// When anything but a BYE is in its way.
    pub async fn insist(clients: &Clients, nth: usize) -> io::Result<(Self, usize)> {
        let mut turned_away = 0;
        let mut client = loop {
            match clients.connect(nth).await {
                Ok(client) => break client,
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => turned_away += 1,
                Err(error) => return Err(error),
            }
            tokio::time::sleep(AGAIN).await;
        };
        client.command(&format!("LOGIN user{nth} secret")).await?;
        Ok((client, turned_away))
    }

    /// Says a command and reads to its tagged OK.
    ///
    /// # Errors
    /// When anything else comes.
    pub async fn command(&mut self, text: &str) -> io::Result<()> {
        self.number += 1;
        let tag = format!("c{} ", self.number);
        self.stream.get_mut().write_all(format!("{tag}{text}\r\n").as_bytes()).await?;
        self.stream.get_mut().flush().await?;
        loop {
            self.read_line().await?;
            if let Some(status) = self.line.strip_prefix(tag.as_bytes()) {
                let said = || io::Error::other(format!("{text}: {}", String::from_utf8_lossy(status)));
                return if status.starts_with(b"OK") { Ok(()) } else { Err(said()) };
            }
        }
    }

    /// Says something that is no whole command.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn begin(&mut self, text: &str) -> io::Result<()> {
        self.stream.get_mut().write_all(format!("x {text}").as_bytes()).await?;
        self.stream.get_mut().flush().await
    }

    async fn read_line(&mut self) -> io::Result<()> {
        self.line.clear();
        match self.stream.read_until(b'\n', &mut self.line).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}
