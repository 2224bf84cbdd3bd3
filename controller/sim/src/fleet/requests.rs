//! Requests in a fleet: they are held, routed to the instance with the least load, served, and measured.

use super::engine::{Done, Job};
use super::world::{Event, Request, World};
use crate::NS_PER_MS;
use crate::check::{Invariant, Violation, ensure};

/// Requests at one instance, in batches of it, before the gateway holds further ones.
const LOAD_MAX_BATCHES: u32 = 2;

impl World<'_> {
    /// A request comes in: to an instance, into the queue, or back with a refusal.
    pub(super) fn arrive(&mut self, number: usize, eager: bool) -> Result<(), Violation> {
        let arrival = &self.work.arrivals[number];
        let (model, now_ns) = (arrival.model as usize, self.now_ns);
        let request = Request {
            arrived_ns: now_ns,
            first_ns: 0,
            model: arrival.model,
            output_tokens: arrival.output_tokens,
            ended: false,
        };
        let id = self.requests.len() as u32;
        self.requests.push(request);
        let measured = now_ns >= self.measure_from_ns;
        self.report.measured += u64::from(measured);
        let sight = &mut self.sights[model];
        sight.integrate(now_ns);
        sight.arrivals_total += 1;
        sight.prompt_tokens_total += u64::from(arrival.prompt_tokens);
        sight.last_arrival_ns = Some(now_ns + self.ahead_ns);
        if self.held[model].len() >= self.config.held_max {
            self.requests[id as usize].ended = true;
            self.report.refused += 1;
            return Ok(());
        }
        sight.held += 1;
        self.open += 1;
        let job = Job { request: id, prefill_tokens: arrival.prompt_tokens, output_tokens: arrival.output_tokens };
        self.held[model].push_back(job);
        self.dispatch(arrival.model, eager)
    }

    /// Routes what is held as far as instances have room.
    pub(super) fn dispatch(&mut self, model: u32, eager: bool) -> Result<(), Violation> {
        let slot = model as usize;
        let limit = self.config.engine.max_batch.saturating_mul(LOAD_MAX_BATCHES);
        while !self.held[slot].is_empty() {
            let Some((load, at)) = self.routable[slot].first().copied() else { break };
            if load >= limit {
                break;
            }
            let Some(job) = self.held[slot].pop_front() else { break };
            self.serve(at)?;
            let sight = &mut self.sights[slot];
            sight.integrate(self.now_ns);
            sight.held -= 1;
            sight.in_flight += 1;
            let before = self.instances[at as usize].engine.load();
            let instance = &mut self.instances[at as usize];
            instance.engine.submit(job, &self.work.arrivals[job.request as usize].prefix, &self.config.engine);
            instance.last_used_ns = self.now_ns;
            self.reorder(at, before);
            self.wake(at);
        }
        if eager && !self.held[slot].is_empty() && self.sights[slot].have() == 0 {
            self.next_tick_ns = self.next_tick_ns.min(self.now_ns + NS_PER_MS);
        }
        Ok(())
    }

    /// Brings one engine to now, and takes what it has done.
    pub(super) fn serve(&mut self, at: u32) -> Result<(), Violation> {
        let instance = &mut self.instances[at as usize];
        let model = instance.model as usize;
        let (before, busy_ns) = (instance.engine.load(), instance.engine.totals().busy_ns);
        let mut done = std::mem::take(&mut self.done);
        instance.engine.advance(self.now_ns, &self.config.engine, &mut done);
        let busy_s = (instance.engine.totals().busy_ns - busy_ns) as f64 / 1e9;
        if before > 0 {
            instance.last_used_ns = self.now_ns;
        }
        self.sights[model].busy_s += busy_s;
        if self.now_ns > self.measure_from_ns && self.loaded() {
            self.report.busy_s += busy_s;
        }
        for done in done.drain(..) {
            match done {
                Done::First(id) => self.first_token(id),
                Done::Last(id) => self.last_token(id)?,
            }
        }
        self.done = done;
        self.reorder(at, before);
        self.wake(at);
        self.leave_if_drained(at);
        Ok(())
    }

    fn first_token(&mut self, id: u32) {
        let request = &mut self.requests[id as usize];
        if request.first_ns > 0 {
            return;
        }
        request.first_ns = self.now_ns;
        if request.arrived_ns >= self.measure_from_ns {
            self.report.ttft_ms.push(ms(self.now_ns - request.arrived_ns));
        }
    }

    fn last_token(&mut self, id: u32) -> Result<(), Violation> {
        let now_ns = self.now_ns;
        let request = &mut self.requests[id as usize];
        let first = !request.ended;
        request.ended = true;
        let request = *request;
        self.report.answered += 1;
        self.open = self.open.saturating_sub(1);
        let sight = &mut self.sights[request.model as usize];
        sight.integrate(now_ns);
        sight.in_flight = sight.in_flight.saturating_sub(1);
        sight.output_tokens_total += u64::from(request.output_tokens);
        if request.arrived_ns >= self.measure_from_ns {
            let gaps = request.output_tokens.saturating_sub(1);
            let itl_ms = if gaps > 0 { ms(now_ns - request.first_ns) / gaps as f32 } else { 0.0 };
            if gaps > 0 {
                self.report.itl_ms.push(itl_ms);
            }
            let slo = self.config.slo;
            let ttft_ms = ms(request.first_ns - request.arrived_ns);
            let within = f64::from(ttft_ms) <= slo.ttft_ms && f64::from(itl_ms) <= slo.itl_ms;
            self.report.within_slo += u64::from(within);
        }
        let once = ensure(first, Invariant::AnsweredOnce, now_ns, || format!("request {id} was answered twice"));
        self.judge(once)
    }

    /// Requests that lost their instance wait again, before all others.
    pub(super) fn come_back(&mut self, model: u32, jobs: Vec<Job>) {
        let sight = &mut self.sights[model as usize];
        sight.integrate(self.now_ns);
        sight.in_flight -= jobs.len() as u32;
        sight.held += jobs.len() as u32;
        for job in jobs.into_iter().rev() {
            self.held[model as usize].push_front(job);
        }
    }

    /// Keeps the order of routing after a change of load.
    fn reorder(&mut self, at: u32, before: u32) {
        let instance = &self.instances[at as usize];
        let (model, load) = (instance.model as usize, instance.engine.load());
        if load != before && self.routable[model].remove(&(before, at)) {
            self.routable[model].insert((load, at));
        }
    }

    /// Sets the engine's next event.
    fn wake(&mut self, at: u32) {
        let instance = &mut self.instances[at as usize];
        instance.version = instance.version.wrapping_add(1);
        let version = instance.version;
        if let Some(due_ns) = instance.engine.due_ns(&self.config.engine) {
            self.push(due_ns.max(self.now_ns), Event::Engine(at, version));
        }
    }
}

fn ms(ns: u64) -> f32 {
    (ns as f64 / NS_PER_MS as f64) as f32
}
