//! One client's IMAP session between a client and its origin. So far it forwards verbatim and learns nothing.

mod exchange;

pub use exchange::{Closing, Compress, Event, Outcome, Output, Reason, Road, SessionConfig, Side};

use crate::catalog::CatalogReply;
use bytes::Bytes;
use discovery_core::{id::AccountKey, now::Now};
use std::{collections::VecDeque, time::Instant};

/// See the module's documentation.
pub struct Session {
    config: SessionConfig,
    closed: bool,
    outputs: VecDeque<Output>,
}

impl Session {
    /// A session whose origin is connected; [`Session::handle_greeting`] comes first.
    #[must_use]
    pub fn new(config: SessionConfig) -> Self {
        Self { config, closed: false, outputs: VecDeque::new() }
    }

    /// The origin's greeting line, CRLF included.
    pub fn handle_greeting(&mut self, _: Now, line: &Bytes) {
        self.outputs.push_back(Output::ToClient(line.clone()));
    }

    /// Octets from the client.
    pub fn handle_client(&mut self, _: Now, octets: Bytes) {
        self.outputs.push_back(Output::ToServer(octets));
    }

    /// Octets from the origin.
    pub fn handle_server(&mut self, _: Now, octets: Bytes) {
        self.outputs.push_back(Output::ToClient(octets));
    }

    /// The store's answer to a question of ours.
    pub fn handle_store(&mut self, _: Now, _: CatalogReply) {}

    /// The client's TLS is up after [`Output::StartTls`].
    pub fn handle_client_tls(&mut self, _: Now) {
        self.config.road = Road::Tls;
    }

    /// One side closed its stream, in whatever way.
    pub fn handle_closed(&mut self, _: Now, _: Side) {
        self.close();
    }

    /// The deadline of [`Session::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, _: Now) {}

    /// Ends the session from our side, telling the client `why`.
    pub fn handle_shutdown(&mut self, _: Now, why: &str) {
        self.outputs.push_back(Output::ToClient(format!("* BYE Waypost: {why}\r\n").into()));
        self.close();
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`Session::handle_timeout`], if nothing happens before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    /// Whether the session can take more from the client now; if not, the shell stops reading it.
    #[must_use]
    pub fn wants_client(&self) -> bool {
        true
    }

    /// Whether the session can take more from the origin now.
    #[must_use]
    pub fn wants_server(&self) -> bool {
        true
    }

    /// Whether a secret may pass: the shell then keeps its buffers to itself and wipes them.
    #[must_use]
    pub fn is_secret(&self) -> bool {
        true
    }

    /// Whether nothing is half done, so that a drain may end the session here.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        true
    }

    /// The account, once the origin has accepted the login.
    #[must_use]
    pub fn account(&self) -> Option<&AccountKey> {
        None
    }

    /// The state in one word, for `status`.
    #[must_use]
    pub fn state_word(&self) -> &'static str {
        if self.closed { "closed" } else { "open" }
    }

    fn close(&mut self) {
        if !self.closed {
            self.closed = true;
            self.outputs.push_back(Output::Close(Closing::Done));
        }
    }
}
