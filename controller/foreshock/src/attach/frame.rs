//! What is known of one port at one moment, and how it is written: as a block, as a line, or as JSON.

use super::find::Target;
use controller_core::outside::{Bound, Slo};
use controller_daemon::OutsideView;
use controller_witness::{Fidelity, PortSnapshot, Protocols, RequestEnd, RequestRecord};
use serde::Serialize;
use std::fmt::Write;

/// How requests ended since the watch began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Ended {
    /// Answered, with a status below 400 and with another.
    pub answered: u64,
    pub errors: u64,
    /// Broken off by either side.
    pub broken_off: u64,
    /// Not followed to their end, for want of room.
    pub lost: u64,
    /// Requests without a body, such as polls, which are in none of these.
    pub polls: u64,
}

impl Ended {
    pub fn count(&mut self, record: &RequestRecord) {
        let of = match record.end {
            _ if record.body.is_none() && record.fidelity >= Fidelity::Counted => &mut self.polls,
            RequestEnd::Complete if record.status < 400 => &mut self.answered,
            RequestEnd::Complete => &mut self.errors,
            RequestEnd::Lost | RequestEnd::InProgress => &mut self.lost,
            _ => &mut self.broken_off,
        };
        *of += 1;
    }
}

/// Health of the probes.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Probes {
    pub summary: String,
    /// Events that the kernel could not tell, and samples that we could not take.
    pub events_lost: u64,
    pub samples_lost: u64,
}

/// One port at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct Frame<'a> {
    /// CLOCK_MONOTONIC, ns.
    pub at_ns: u64,
    pub port: u16,
    pub pid: Option<u32>,
    pub counts: Option<PortSnapshot>,
    pub ended: Ended,
    #[serde(flatten)]
    pub outside: OutsideView,
    pub probes: &'a Probes,
}

impl<'a> Frame<'a> {
    pub fn new(
        at_ns: u64,
        target: &Target,
        counts: Option<PortSnapshot>,
        ended: Ended,
        outside: OutsideView,
        probes: &'a Probes,
    ) -> Self {
        Self { at_ns, port: target.port, pid: target.pid, counts, ended, outside, probes }
    }

    /// One line, for a log.
    pub fn line(&self, slo: &Slo) -> String {
        let OutsideView { name, in_flight, load_per_s, service, .. } = &self.outside;
        let mut line = format!(
            "{name}: load {load_per_s:.2}/s, batch {}, queue {}, TTFT {}, ITL {}, {:.0} tokens/s, answered {}, errors {}, \
             broken off {}",
            in_flight.batch,
            in_flight.queue,
            pair(service.first_tokens, service.ttft_ms_p50, service.ttft_ms),
            pair(service.gaps, service.itl_ms_p50, service.itl_ms),
            service.tokens_per_s,
            self.ended.answered,
            self.ended.errors,
            self.ended.broken_off,
        );
        let _ = write!(line, ", {}", self.capacity(slo));
        line
    }

    /// A block of lines, for a reader.
    pub fn block(&self, slo: &Slo) -> String {
        let OutsideView { name, in_flight, load_per_s, service, .. } = &self.outside;
        let owner = self.pid.map_or_else(String::new, |pid| format!(", pid {pid}"));
        let connects = self.counts.as_ref().map_or_else(String::new, |counts| {
            let PortSnapshot { syns, syn_retries, accept_queue, accept_queue_limit, resets_sent, .. } = counts;
            format!(
                ", SYN {syns} and {syn_retries} again, accept queue {accept_queue} of {accept_queue_limit}, resets {resets_sent}"
            )
        });
        let whole =
            if in_flight.whole > 0 { format!(", and {} for one answer", in_flight.whole) } else { String::new() };
        let opaque =
            self.counts.as_ref().map(|counts| counts.protocols).filter(|seen| seen.tls + seen.http2 + seen.other > 0);
        let opaque = opaque.map_or_else(String::new, |seen| {
            let Protocols { http2, tls, other, .. } = seen;
            format!("  not seen   connections with TLS {tls}, HTTP/2 {http2}, other {other}: their requests are in no figure\n")
        });
        let Ended { answered, errors, broken_off, lost, polls } = self.ended;
        format!(
            "{name} (port {}{owner})\n  offered    {load_per_s:.2} requests/s{connects}\n  in flight  batch {}, queue {}{whole}\n  \
             TTFT       {} (p50 / p{:.0} of {}), objective {:.0} ms\n  ITL        {} (of {}), objective {:.0} ms, {:.0} tokens/s\n  \
             ended      {answered} answered, {errors} errors, {broken_off} broken off, {lost} lost; {polls} polls\n  \
             capacity   {}\n{opaque}  probes     {}; {} events and {} samples lost\n",
            self.port,
            in_flight.batch,
            in_flight.queue,
            pair(service.first_tokens, service.ttft_ms_p50, service.ttft_ms),
            slo.quantile * 100.0,
            service.first_tokens,
            slo.ttft_ms,
            pair(service.gaps, service.itl_ms_p50, service.itl_ms),
            service.gaps,
            slo.itl_ms,
            service.tokens_per_s,
            self.capacity(slo),
            self.probes.summary,
            self.probes.events_lost,
            self.probes.samples_lost,
        )
    }

    fn capacity(&self, slo: &Slo) -> String {
        let Some(found) = &self.outside.estimate else { return "knee not known yet".to_owned() };
        let by = match found.bound {
            Bound::Ttft => "TTFT",
            Bound::Itl => "ITL",
            Bound::Throughput => "throughput",
        };
        let slots = found.slots.map_or_else(|| format!("at least {}", found.streams_max), |slots| slots.to_string());
        let headroom =
            self.outside.headroom.map_or_else(String::new, |share| format!(", headroom {:.0}%", share * 100.0));
        format!(
            "knee {:.2}/s ({:.2} to {:.2}) by {by} at p{:.0}{headroom}, {slots} at once",
            found.knee_per_s,
            found.knee_per_s_low,
            found.knee_per_s_high,
            slo.quantile * 100.0,
        )
    }
}

/// Two quantiles in ms, or a dash of nothing.
fn pair(count: u32, middle_ms: f64, high_ms: f64) -> String {
    if count == 0 { "-".to_owned() } else { format!("{middle_ms:.1} / {high_ms:.1} ms") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use controller_core::outside::{Estimate, InFlight, Service};
    use insta::assert_snapshot;

    fn frame(probes: &Probes, estimate: Option<Estimate>) -> Frame<'_> {
        let outside = OutsideView {
            name: "llama".into(),
            in_flight: InFlight { decoding: 3, waiting: 2, batch: 4, queue: 1, whole: 1 },
            load_per_s: 3.2,
            service: Service {
                first_tokens: 96,
                gaps: 3000,
                ttft_ms_p50: 120.0,
                ttft_ms: 640.0,
                itl_ms_p50: 21.0,
                itl_ms: 35.0,
                tokens_per_s: 121.0,
            },
            headroom: estimate.as_ref().map(|found| 1.0 - 3.2 / found.knee_per_s),
            estimate,
        };
        let target =
            Target { port: 8090, name: "llama".into(), pid: Some(77), listening: true, foreign_namespace: false };
        let ended = Ended { answered: 110, errors: 1, broken_off: 2, lost: 0, polls: 2 };
        Frame::new(9, &target, None, ended, outside, probes)
    }

    #[test]
    fn a_frame_in_words() {
        let probes = Probes { summary: "kernel probes: all attached".into(), events_lost: 0, samples_lost: 0 };
        let estimate = Estimate {
            slots: None,
            streams_max: 7,
            itl_ms: vec![12.0, 13.5],
            prefill_ms: 10.0,
            prefill_ms_per_kib: 50.0,
            knee_per_s: 5.0,
            knee_per_s_low: 4.5,
            knee_per_s_high: 5.75,
            bound: Bound::Ttft,
            throughput_per_s: 6.0,
            error: 0.1,
            streams: 110,
        };
        let mut unknown = frame(&probes, None);
        unknown.outside.service = Service::default();
        assert_snapshot!(unknown.line(&Slo::default()), @"llama: load 3.20/s, batch 4, queue 1, TTFT -, ITL -, 0 tokens/s, answered 110, errors 1, broken off 2, knee not known yet");
        let known = frame(&probes, Some(Estimate { slots: Some(4), ..estimate.clone() }));
        assert_snapshot!(known.block(&Slo::default()), @"
        llama (port 8090, pid 77)
          offered    3.20 requests/s
          in flight  batch 4, queue 1, and 1 for one answer
          TTFT       120.0 / 640.0 ms (p50 / p95 of 96), objective 1000 ms
          ITL        21.0 / 35.0 ms (of 3000), objective 100 ms, 121 tokens/s
          ended      110 answered, 1 errors, 2 broken off, 0 lost; 2 polls
          capacity   knee 5.00/s (4.50 to 5.75) by TTFT at p95, headroom 36%, 4 at once
          probes     kernel probes: all attached; 0 events and 0 samples lost
        ");
        assert_snapshot!(frame(&probes, Some(estimate)).line(&Slo::default()), @"llama: load 3.20/s, batch 4, queue 1, TTFT 120.0 / 640.0 ms, ITL 21.0 / 35.0 ms, 121 tokens/s, answered 110, errors 1, broken off 2, knee 5.00/s (4.50 to 5.75) by TTFT at p95, headroom 36%, at least 7 at once");
    }
}
