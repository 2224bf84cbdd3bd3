//! Waiting for an instance: the queue of held requests, whose order is that of their arrival, and the bounds of
//! the wait.

use super::{Active, Asked, Ending};
use crate::connection::Connection;
use crate::endpoint::{Choice, Lease};
use crate::model::ModelState;
use engine_http::ApiError;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;
use tokio::sync::{OwnedMutexGuard, watch};
use tokio::time::timeout_at;

/// Result of looking for an instance.
enum Placed {
    At(Lease, Connection),
    Nowhere { retry_at: Option<Instant> },
}

impl<R: Asked> Active<R> {
    /// Holds the request until it has a place at an instance and a connection to it. Requests that are held
    /// for the first time go in the order of their arrival; those that come back from an instance have had
    /// their turn, and so has every request while nobody waits.
    pub(super) async fn acquire(&mut self) -> Result<(Lease, Connection), Ending> {
        let mut version = self.model.subscribe();
        let mut turn: Option<Turn> = None;
        loop {
            // Marked before looking, so that a change meanwhile ends the wait below at once.
            version.mark_unchanged();
            let has_turn = self.progress.admitted || turn.is_some();
            let mut retry_at = None;
            if has_turn || self.model.queued.load(Ordering::Acquire) == 0 {
                match self.place().await? {
                    Placed::At(lease, connection) => {
                        self.progress.admitted = true;
                        return Ok((lease, connection));
                    }
                    Placed::Nowhere { retry_at: at } => retry_at = at,
                }
            }
            self.hold()?;
            if has_turn {
                self.wait_for_change(&mut version, retry_at).await?;
            } else {
                turn = Some(self.take_turn().await?);
            }
        }
    }

    /// Tries instances until one can be reached or none is left. Each failure puts one into quarantine, so
    /// this ends.
    async fn place(&mut self) -> Result<Placed, Ending> {
        loop {
            match self.choose()? {
                Choice::None { retry_at } => return Ok(Placed::Nowhere { retry_at }),
                Choice::Leased(lease) => {
                    if let Some(connection) = self.connect(&lease).await? {
                        return Ok(Placed::At(lease, connection));
                    }
                }
            }
        }
    }

    fn choose(&self) -> Result<Choice, Ending> {
        let limit = self.shared.options.endpoint_in_flight_limit;
        self.model.choose(&self.revision, limit, self.progress.avoid.as_deref()).ok_or_else(|| {
            let message = format!("Model `{}` was removed or replaced while the request waited", self.model.name);
            Ending::Failed(ApiError::Unavailable { message, retry_after_s: Some(1) }, "model_changed")
        })
    }

    /// A connection from the pool or a fresh one. `None` when the instance cannot be reached: it is avoided
    /// from now on, and the request looks for another one.
    async fn connect(&mut self, lease: &Lease) -> Result<Option<Connection>, Ending> {
        let options = &self.shared.options;
        let opened = match lease.endpoint.take_idle() {
            Some(connection) => Ok(connection),
            None => Connection::open(lease.endpoint.addr, options.connect_timeout).await,
        };
        match opened {
            Err(error) => {
                if lease.endpoint.failed(Instant::now(), options.quarantine) {
                    tracing::warn!(instance = lease.endpoint.instance, error, "an instance cannot be reached");
                }
                self.progress.last_setback = error;
                Ok(None)
            }
            Ok(connection) => {
                // An instance that is still loading lets the request wait inside; for the controller it is
                // a held one until then.
                if lease.endpoint.is_ready() {
                    self.demand.fly()
                } else {
                    self.hold()?
                }
                Ok(Some(connection))
            }
        }
    }

    /// Counts the request as held. The first time it may find the queue full.
    fn hold(&mut self) -> Result<(), Ending> {
        let limit = (!self.progress.admitted).then_some(self.shared.options.hold_limit);
        match self.demand.hold(limit) {
            Ok(true) => {
                self.progress.unserved_since.get_or_insert_with(Instant::now);
                self.shared.demand_changed.notify_one();
                self.outlet.waiting();
                Ok(())
            }
            Ok(false) => Ok(()),
            Err(retry_after_s) => {
                let limit = self.shared.options.hold_limit;
                let error = ApiError::QueueFull { model: self.model.name.clone(), limit, retry_after_s };
                Err(Ending::Failed(error, "queue_full"))
            }
        }
    }

    pub(super) fn hold_ends_at(&self) -> Instant {
        self.progress.unserved_since.unwrap_or_else(Instant::now) + self.shared.options.hold_timeout
    }

    pub(super) fn held_too_long(&self) -> Ending {
        let cause = match self.progress.last_setback.as_str() {
            "" => "none is running yet".to_owned(),
            setback => format!("last trouble: {setback}"),
        };
        let message = format!(
            "No instance of model `{}` could take the request within {} s: {cause}",
            self.model.name,
            self.shared.options.hold_timeout.as_secs_f32()
        );
        let retry_after_s = Some(self.model.hold_book().retry_after_s());
        Ending::Failed(ApiError::Unavailable { message, retry_after_s }, "hold_timeout")
    }

    async fn take_turn(&self) -> Result<Turn, Ending> {
        let queued = Queued::new(self.model.clone());
        let lock = timeout_at(self.hold_ends_at().into(), self.model.turn.clone().lock_owned());
        let lock = lock.await.map_err(|_| self.held_too_long())?;
        Ok(Turn { _lock: lock, _queued: queued })
    }

    async fn wait_for_change(
        &self,
        version: &mut watch::Receiver<u64>,
        retry_at: Option<Instant>,
    ) -> Result<(), Ending> {
        let ends_at = self.hold_ends_at();
        let until = retry_at.map_or(ends_at, |at| at.min(ends_at));
        if timeout_at(until.into(), version.changed()).await.is_err() && Instant::now() >= ends_at {
            return Err(self.held_too_long());
        }
        Ok(())
    }
}

/// The turn to look for an instance; dropping it lets the next held request have it.
struct Turn {
    _lock: OwnedMutexGuard<()>,
    _queued: Queued,
}

/// Counts a request that waits for its turn or has it.
struct Queued(Arc<ModelState>);

impl Queued {
    fn new(model: Arc<ModelState>) -> Self {
        model.queued.fetch_add(1, Ordering::AcqRel);
        Self(model)
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.0.queued.fetch_sub(1, Ordering::AcqRel);
    }
}
