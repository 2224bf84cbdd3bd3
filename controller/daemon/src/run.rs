//! The one loop: observe, tick, act, publish. It wakes when a request is held, when an engine reports or
//! ends, when the registry changes, and when the last tick asked to be called again.
//!
//! Order matters in it. Between a held request and its engine's exec stand reading counters, the tick and
//! the spawn; logging, metrics, the database and the admin API's view come after.

use crate::actuate::{ActuateError, Actuator, Applied, EngineEvent, EngineEventKind, Exit, Models, adapter_specs};
use crate::clock::monotonic_ns;
use crate::daemon::{Daemon, DaemonError};
use crate::fleet::Change;
use crate::measure;
use crate::observe::{Observations, Signal};
use controller_core::Nanos;
use controller_core::action::{Action, ActionKind, Decision, Effects, Reason};
use controller_core::snapshot::{ModelName, ModelView, NodeView, Snapshot};
use controller_witness::record::PortRole;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout_at};

/// Ticks are at least this far apart, so that a flood of arrivals costs no flood of ticks.
const TICK_SPACING: Duration = Duration::from_millis(1);
/// Longest time without a tick, whatever the planner asks for: gauges and leases stay fresh.
const TICK_AT_LATEST: Duration = Duration::from_secs(5);
/// Engine reports taken in between two ticks.
const EVENTS_AT_ONCE: usize = 256;
/// After the engines' drain deadline, the time that their killing and reaping may take.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(4);

impl Daemon {
    /// Runs until `shutdown` completes, then drains the engines (or leaves them to their lease, as
    /// configured). Keep the gateway draining before: engines serve until this returns.
    ///
    /// # Errors
    /// [`DaemonError::Fenced`] when a newer controller has taken over.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> Result<(), DaemonError> {
        tokio::pin!(shutdown);
        let mut models_changed = self.catalog.models();
        let mut models = models_changed.borrow_and_update().clone();
        self.publish_routes(&models);
        self.actuator.offer_adapters(&models);
        let wake = self.wake.clone();
        let mut due = Instant::now();
        let mut ticked = due - TICK_SPACING;
        loop {
            // Not left to the timer when it is due now: timers round up to the next millisecond.
            if due <= Instant::now() {
                ticked = Instant::now();
                due = self.tick(&models).max(ticked + TICK_SPACING);
                self.fits.turn(&mut self.state).await;
                self.keeping.turn(&self.state, &mut self.history);
            }
            let changed = tokio::select! {
                biased;
                () = &mut shutdown => break,
                () = wake.notified() => true,
                Some(event) = self.events.recv() => self.take_events(event, &models)?,
                Ok(()) = models_changed.changed() => {
                    models = models_changed.borrow_and_update().clone();
                    self.tell_models(&models);
                    self.publish_routes(&models);
                    self.actuator.offer_adapters(&models);
                    true
                }
                () = sleep_until(due) => false,
            };
            if changed {
                due = due.min(ticked + TICK_SPACING);
            }
        }
        self.keeping.end(&self.state, &mut self.history);
        if !self.config.advise && self.config.drain_on_shutdown {
            self.actuator.end_spares().await;
            self.drain_all(&models).await?;
        }
        Ok(())
    }

    /// Takes in an event and what else is queued. True when the plan may change by it.
    fn take_events(&mut self, first: EngineEvent, models: &Models) -> Result<bool, DaemonError> {
        let mut tick_due = false;
        let mut next = Some(first);
        for _ in 0..EVENTS_AT_ONCE {
            let Some(event) = next else { break };
            tick_due |= self.take_event(event, models)?;
            next = self.events.try_recv().ok();
        }
        if let Some(event) = next {
            tick_due |= self.take_event(event, models)?;
        }
        if !tick_due {
            self.publisher.instances(self.fleet.instances());
        }
        self.record_starts();
        Ok(tick_due)
    }

    /// Log line, metric, API answer and database entry of each start that is whole.
    fn record_starts(&mut self) {
        for start in self.fleet.take_starts() {
            measure::start(&start);
            tracing::info!(
                instance = start.instance,
                model = start.model,
                tier = start.tier.label(),
                total_ms = start.total_ms(),
                phases = ?start.phases(),
                "a start is over"
            );
            self.cold_starts.started(&start);
            self.history.start_record(&start);
            self.publisher.started(start);
        }
    }

    fn take_event(&mut self, event: EngineEvent, models: &Models) -> Result<bool, DaemonError> {
        let EngineEvent { instance, kind } = event;
        let is_telemetry = matches!(kind, EngineEventKind::Telemetry(_));
        match self.fleet.take(&instance, kind, monotonic_ns()) {
            Change::None => return Ok(false),
            Change::Listening { port, model } => {
                self.publish_routes(models);
                self.ports.watch(port, PortRole::Engine { model, instance });
                return Ok(false);
            }
            Change::Ready { model, revision, cold_start_ms } => {
                self.publish_routes(models);
                self.look_at_weights();
                tracing::info!(instance, model, cold_start_ms, by_telemetry = is_telemetry, "engine ready");
                if let Some(cold_start_ms) = cold_start_ms {
                    measure::cold_start(&model, cold_start_ms);
                    self.cold_starts.push(&model, &revision, cold_start_ms);
                    self.history.cold_start(&model, &revision, cold_start_ms);
                }
            }
            Change::Adapters => {
                self.publish_routes(models);
                return Ok(false);
            }
            Change::Draining => self.publish_routes(models),
            Change::Exited { model, port, exit } => self.exited(&instance, &model, port, &exit, models),
            Change::Fenced { message } => return Err(DaemonError::Fenced { message }),
        }
        Ok(true)
    }

    fn exited(&mut self, instance: &str, model: &str, port: Option<u16>, exit: &Exit, models: &Models) {
        self.publish_routes(models);
        self.look_at_weights();
        if let Some(port) = port {
            self.ports.unwatch(port);
        }
        tracing::info!(instance, model, reason = exit.reason.label(), detail = exit.detail, "engine ended");
        measure::exited(model, exit);
    }

    /// One tick and everything that follows from it; says when the next is due.
    fn tick(&mut self, models: &Models) -> Instant {
        let began = Instant::now();
        let snapshot = self.observe(models);
        let Effects { actions, next_tick_ns, decisions, least_worth_first } =
            controller_core::tick(&mut self.state, &snapshot);
        let took = began.elapsed();
        let owners = self.owners();
        for action in &actions {
            self.apply(action, snapshot.now_ns, models, &owners);
        }
        let acted_ns = monotonic_ns();
        if !actions.is_empty() {
            self.publish_routes(models);
        }
        self.tell_plan(&snapshot, least_worth_first);
        self.publisher.ticked(&snapshot, acted_ns, actions.len());
        measure::tick(took);
        let decisions = if self.config.advise { self.new_advice(decisions) } else { decisions };
        self.record(decisions);
        self.gauges.set(&self.state, &snapshot, &self.kv_blocks());
        self.keep_spares(&snapshot, models);
        let wait_ns = next_tick_ns.saturating_sub(snapshot.now_ns);
        self.publisher.saw(snapshot);
        self.publisher.instances(self.fleet.instances());
        began + Duration::from_nanos(wait_ns).min(TICK_AT_LATEST)
    }

    /// Reads every Signal and joins them.
    fn observe(&mut self, models: &Models) -> Snapshot {
        let now_ns = monotonic_ns();
        let mut observations = Observations { now_ns, ..Observations::default() };
        for signal in &mut self.signals {
            signal.observe(now_ns, &mut observations);
        }
        self.fleet.observe(now_ns, &mut observations);
        self.engine_views.mark(&mut observations.instances);
        let adapters = models.values().flat_map(|record| &record.adapters);
        let names: Vec<&ModelName> = models.keys().chain(adapters.map(|adapter| &adapter.name)).collect();
        let by_name = self.reconciler.join(&observations, names.iter().copied());
        let mut demand = self.adapter_demand.fold(by_name, models);
        let seen = self.weights_seen();
        let view = |(name, record): (&ModelName, &crate::registry::ModelRecord)| {
            let view = self.model_view(name, record, seen.as_deref());
            (name.clone(), ModelView { demand: demand.remove(name).unwrap_or_default(), ..view })
        };
        Snapshot {
            now_ns,
            epoch: self.epoch,
            node: NodeView { weights: self.node_weights(seen.as_deref()), ..self.config.node(now_ns) },
            models: models.iter().map(view).collect(),
            instances: observations.instances,
        }
    }

    fn apply(&mut self, action: &Action, decided_at_ns: Nanos, models: &Models, owners: &BTreeMap<String, ModelName>) {
        if self.config.advise {
            measure::action(owners, action, "advised");
            return;
        }
        if self.apply_move(action, owners) {
            return;
        }
        match (self.actuator.apply(action, models), &action.kind) {
            (Ok(Applied::Nothing), _) => measure::action(owners, action, "unchanged"),
            (
                Ok(Applied::Started { pid, spawned_at_ns }),
                ActionKind::Start { instance, model, revision, placement },
            ) => {
                let times = (decided_at_ns, spawned_at_ns);
                self.fleet.started(instance, (model, revision), placement, pid, times);
                self.fleet.serves_adapters(instance, adapter_specs(models, model, revision));
                measure::action(owners, action, "applied");
            }
            (Ok(_), ActionKind::Drain { instance, .. }) => {
                self.fleet.draining(instance);
                measure::action(owners, action, "applied");
            }
            (Ok(_), _) => measure::action(owners, action, "applied"),
            (Err(error), _) => {
                report_failure(action, &error);
                measure::action(owners, action, "failed");
            }
        }
    }

    /// Advice that nobody follows is the same at every tick: it is told once, until it changes or lapses.
    fn new_advice(&mut self, mut decisions: Vec<Decision>) -> Vec<Decision> {
        self.state.forget_actions();
        let standing: BTreeMap<ModelName, (u32, Reason)> =
            decisions.iter().map(|decision| (decision.model.clone(), (decision.want, decision.reason))).collect();
        decisions.retain(|decision| self.advised.get(&decision.model) != standing.get(&decision.model));
        self.advised = standing;
        decisions
    }

    /// Log line, metric, API answer and database entry of each decision.
    fn record(&mut self, decisions: Vec<Decision>) {
        measure::decisions(&decisions);
        for decision in &decisions {
            let reason = measure::reason_label(decision);
            tracing::info!(
                model = decision.model,
                have = decision.have,
                want = decision.want,
                reason,
                actions = decision.actions.len(),
                advised_only = self.config.advise,
                "{}",
                decision.why
            );
        }
        self.publisher.decided(&decisions);
        self.history.decisions(decisions);
    }

    fn publish_routes(&self, models: &Models) {
        let table = self.fleet.routes(models);
        self.routes.send_if_modified(|current| {
            let changed = **current != table;
            if changed {
                *current = Arc::new(table);
            }
            changed
        });
    }

    /// Which model each instance serves: for the labels of actions that name an instance only.
    fn owners(&self) -> BTreeMap<String, ModelName> {
        self.fleet.instances().iter().map(|(id, instance)| (id.clone(), instance.model.clone())).collect()
    }

    /// KV blocks (used, in all) by model.
    fn kv_blocks(&self) -> BTreeMap<ModelName, (u64, u64)> {
        let mut blocks: BTreeMap<ModelName, (u64, u64)> = BTreeMap::new();
        for instance in self.fleet.instances().values() {
            if let Some(telemetry) = &instance.telemetry {
                let entry = blocks.entry(instance.model.clone()).or_default();
                entry.0 += u64::from(telemetry.kv_blocks_used);
                entry.1 += u64::from(telemetry.kv_blocks_total);
            }
        }
        blocks
    }

    /// Drains every engine and waits until all have ended, or the deadline and what follows it have passed.
    async fn drain_all(&mut self, models: &Models) -> Result<(), DaemonError> {
        let deadline_ms = self.config.drain_deadline_ms;
        let instances: Vec<String> = self.fleet.instances().keys().cloned().collect();
        for instance in instances {
            let action = Action {
                epoch: self.epoch,
                key: format!("shutdown-{}-{instance}", self.epoch),
                kind: ActionKind::Drain { instance, deadline_ms },
            };
            self.apply(&action, monotonic_ns(), models, &self.owners());
        }
        self.publish_routes(models);
        let deadline = Instant::now() + Duration::from_millis(deadline_ms) + SHUTDOWN_GRACE;
        while !self.fleet.instances().is_empty() {
            let Ok(Some(event)) = timeout_at(deadline, self.events.recv()).await else {
                let left: Vec<&String> = self.fleet.instances().keys().collect();
                tracing::error!(?left, "engines are left behind; they end by their lease");
                break;
            };
            self.take_event(event, models)?;
        }
        Ok(())
    }
}

fn report_failure(action: &Action, error: &ActuateError) {
    tracing::error!(key = action.key, %error, "an action failed");
}
