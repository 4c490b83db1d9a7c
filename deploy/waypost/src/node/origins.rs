//! The way to the servers, exchangeable while sessions run: those that are connected stay so.

use discovery_core::id::ServerId;
use epc::origin::{DirectOrigins, OriginTls, ParkCounts};
use seams::{
    AsyncIo, BoxFuture,
    origin::{OpenError, OriginConnector, OriginRequest, OriginStream},
};
use std::sync::{Arc, PoisonError, RwLock};

/// The origins that are configured now.
pub(crate) struct Origins(RwLock<Arc<DirectOrigins>>);

impl Origins {
    pub(crate) fn new(origins: DirectOrigins) -> Self {
        Self(RwLock::new(Arc::new(origins)))
    }

    /// Reaches servers by these from the next client on.
    pub(crate) fn replace(&self, origins: DirectOrigins) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(origins);
    }

    /// What became of the connections kept ready, by server, since the last reload.
    pub(crate) fn parked(&self) -> Vec<(ServerId, ParkCounts)> {
        self.current().parked()
    }

    /// As [`DirectOrigins::greet_over`].
    pub(crate) async fn greet_over(
        &self,
        server: &ServerId,
        tls: Option<OriginTls>,
        io: Box<dyn AsyncIo>,
    ) -> Result<OriginStream, OpenError> {
        self.current().greet_over(server, tls, io).await
    }

    fn current(&self) -> Arc<DirectOrigins> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl OriginConnector for Origins {
    fn open(&self, request: OriginRequest) -> BoxFuture<'_, Result<OriginStream, OpenError>> {
        let origins = self.current();
        Box::pin(async move { origins.open(request).await })
    }

    fn open_anew(&self, request: OriginRequest) -> BoxFuture<'_, Result<OriginStream, OpenError>> {
        let origins = self.current();
        Box::pin(async move { origins.open_anew(request).await })
    }

    fn park(&self, server: &ServerId, n: u8) {
        self.current().park(server, n);
    }
}
