//! A request for vectors: held and placed like a generation, and answered whole. What an instance had computed when it
//! died is computed again elsewhere, to the same bits, so nothing has to be carried over.

use super::{Active, Ending, until_ready};
use crate::connection::Connection;
use crate::endpoint::Lease;
use crate::hop::{self, Setback};
use engine_http::ApiError;
use engine_wire::hop::{EMBED_PATH, EmbedRequest, Embedded};
use tokio::sync::oneshot;
use tokio::time::sleep_until;

impl Active<EmbedRequest> {
    /// Runs the request to its end, whichever that is. The client is gone when nobody waits for the answer.
    pub async fn run_embed(mut self, mut answer: oneshot::Sender<Result<Embedded, ApiError>>) {
        let deadline = self.context.deadline.into();
        let served = tokio::select! {
            biased;
            () = answer.closed() => Err(Ending::ClientGone),
            () = sleep_until(deadline) => Err(self.deadline_passed()),
            served = self.serve_embed() => served,
        };
        self.close(served.as_ref().err());
        // Whoever is gone meanwhile needs no answer.
        let _ = match served {
            Ok(embedded) => answer.send(Ok(embedded)),
            Err(Ending::Failed(error, _)) => answer.send(Err(error)),
            Err(Ending::ClientGone) => Ok(()),
        };
    }

    /// Attempts until there are vectors or no hope.
    async fn serve_embed(&mut self) -> Result<Embedded, Ending> {
        loop {
            let (lease, connection) = self.acquire().await?;
            match self.attempt_embed(&lease, connection).await? {
                Ok((embedded, connection)) => {
                    self.served(&lease);
                    if let Some(connection) = connection {
                        lease.endpoint.put_idle(connection, &self.shared.options);
                    }
                    return Ok(embedded);
                }
                Err(setback) => self.set_back(&lease, setback).await?,
            }
        }
    }

    async fn attempt_embed(
        &mut self,
        lease: &Lease,
        connection: Connection,
    ) -> Result<Result<(Embedded, Option<Connection>), Setback>, Ending> {
        self.note_attempt(lease);
        let request = match hop::http_request(lease, &self.context, EMBED_PATH, &self.request) {
            Ok(request) => request,
            Err(setback) => return Ok(Err(setback)),
        };
        let (shared, texts) = (self.shared.clone(), self.request.texts.len());
        let work = hop::embed(lease, connection, request, texts, &shared.options);
        let ends_at = self.hold_ends_at();
        until_ready(&self.model, lease, &mut self.demand, ends_at, work).await.ok_or_else(|| self.held_too_long())
    }
}
