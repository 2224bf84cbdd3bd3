//! How long an engine lives: the lease that a controller renews, the drain that ends it, and the epoch
//! that keeps a controller which was thought dead from ending it.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// An epoch that is too old.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fenced {
    /// The highest epoch seen.
    pub epoch: u64,
}

/// Shared by the control socket and the main loop.
pub(crate) struct Life {
    epoch: Mutex<u64>,
    /// When the lease ends; none without a controller.
    lease: watch::Sender<Option<Instant>>,
    /// When a drain that was asked for must be over; none while nobody asked.
    drain: watch::Sender<Option<Instant>>,
}

impl Life {
    pub fn new(lease: Option<Duration>) -> Self {
        Self {
            epoch: Mutex::new(0),
            lease: watch::Sender::new(lease.map(|lease| after(Instant::now(), lease))),
            drain: watch::Sender::new(None),
        }
    }

    /// Highest epoch seen.
    pub fn epoch(&self) -> u64 {
        *self.epoch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a command of this epoch through unless a higher one was seen.
    pub fn fence(&self, epoch: u64) -> Result<(), Fenced> {
        let mut highest = self.epoch.lock().unwrap_or_else(PoisonError::into_inner);
        if epoch < *highest {
            return Err(Fenced { epoch: *highest });
        }
        *highest = epoch;
        Ok(())
    }

    pub fn renew(&self, lease: Duration) {
        self.lease.send_replace(Some(after(Instant::now(), lease)));
    }

    /// Asks for the end within `limit`; of several limits the earliest counts.
    pub fn drain_within(&self, limit: Duration) {
        let wanted = after(Instant::now(), limit);
        self.drain.send_modify(|deadline| *deadline = Some(deadline.map_or(wanted, |deadline| deadline.min(wanted))));
    }

    /// Answers the deadline once a drain is asked for.
    pub async fn drain_asked(&self) -> Instant {
        let mut drain = self.drain.subscribe();
        loop {
            if let Some(deadline) = *drain.borrow_and_update() {
                return deadline;
            }
            if drain.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Answers when the drain's deadline has passed, however often it was moved forward meanwhile.
    pub async fn drain_over(&self) {
        let mut drain = self.drain.subscribe();
        let mut deadline = self.drain_asked().await;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(deadline.into()) => return,
                changed = drain.changed() => {
                    if changed.is_ok() && let Some(earlier) = *drain.borrow_and_update() {
                        deadline = earlier;
                    }
                }
            }
        }
    }

    /// Answers when the lease has ended unrenewed; never without a lease.
    pub async fn lease_over(&self) {
        let mut lease = self.lease.subscribe();
        loop {
            let end = *lease.borrow_and_update();
            let Some(end) = end else {
                if lease.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
                continue;
            };
            tokio::select! {
                () = tokio::time::sleep_until(end.into()) => return,
                _ = lease.changed() => {}
            }
        }
    }
}

/// `limit` after `start`; a limit beyond the clock's range is a year.
fn after(start: Instant, limit: Duration) -> Instant {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
    start + limit.min(YEAR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lower_epoch_is_fenced() {
        let life = Life::new(None);
        assert_eq!(life.fence(3), Ok(()));
        assert_eq!(life.fence(2), Err(Fenced { epoch: 3 }));
        assert_eq!(life.fence(3), Ok(()));
        assert_eq!(life.fence(9), Ok(()));
        assert_eq!(life.epoch(), 9);
    }

    #[tokio::test]
    async fn of_several_drains_the_earliest_counts() {
        let life = Life::new(Some(Duration::from_secs(3600)));
        life.drain_within(Duration::from_secs(3600));
        let late = life.drain_asked().await;
        life.drain_within(Duration::ZERO);
        assert!(life.drain_asked().await < late);
        life.drain_within(Duration::from_secs(7200));
        life.drain_over().await;
    }

    #[tokio::test]
    async fn a_lease_that_is_not_renewed_ends() {
        let life = Life::new(Some(Duration::from_secs(3600)));
        life.renew(Duration::ZERO);
        life.lease_over().await;
    }
}
