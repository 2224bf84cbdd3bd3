//! The kernel programs and where they hang. Each is attached by itself: where one is refused the others go on, and its
//! status says what is missing, why, and what is lost with it. A group of them can be taken off and put back while
//! all runs, since what costs too much must go.

use crate::attach::{ProbeStatus, refused};
use crate::budget::Group;
use crate::cuda::Cuda;
use aya::Ebpf;
use aya::maps::{Array, MapData};
use aya::programs::cgroup_skb::CgroupSkbLinkId;
use aya::programs::cgroup_sock_addr::CgroupSockAddrLinkId;
use aya::programs::tp_btf::BtfTracePointLinkId;
use aya::programs::{BtfTracePoint, CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSockAddr, ProgramError};
use ebpf_types::{QUIET_BODIES, QUIET_TOKENS};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// Where a program belongs.
#[derive(Clone, Copy)]
enum Hook {
    Ingress,
    Egress,
    /// The end of accept(2), as its program's section says for which kind of address.
    Address,
    Tracepoint(&'static str),
    /// A tracepoint whose program names processes by the first pid namespace.
    ProcessTracepoint(&'static str),
}

/// One kernel program.
struct Probe {
    name: &'static str,
    hook: Hook,
    /// With which it is taken off; none is never taken off, since it costs nothing.
    group: Option<Group>,
    loses: &'static str,
}

/// All of them, in the order in which they are attached.
const PROBES: [Probe; 12] = [
    Probe {
        name: "http_request",
        hook: Hook::Ingress,
        group: Some(Group::Counting),
        loses: "SYN and request counts, request start times",
    },
    Probe {
        name: "http_response",
        hook: Hook::Egress,
        group: Some(Group::Counting),
        loses: "first byte, first token and last byte times as the kernel sees them",
    },
    Probe {
        name: "connection_state",
        hook: Hook::Tracepoint("inet_sock_set_state"),
        group: Some(Group::Counting),
        loses: "connection counts, accept-queue depth, ends of cut connections",
    },
    Probe {
        name: "accepted_ipv4",
        hook: Hook::Address,
        group: Some(Group::Counting),
        loses: "how long connections over IPv4 wait to be accepted",
    },
    Probe {
        name: "accepted_ipv6",
        hook: Hook::Address,
        group: Some(Group::Counting),
        loses: "how long connections over IPv6 wait to be accepted",
    },
    Probe {
        name: "segment_resent",
        hook: Hook::Tracepoint("tcp_retransmit_skb"),
        group: Some(Group::Counting),
        loses: "retransmissions",
    },
    Probe {
        name: "reset_received",
        hook: Hook::Tracepoint("tcp_receive_reset"),
        group: Some(Group::Counting),
        loses: "counts of resets that clients sent",
    },
    Probe {
        name: "reset_sent",
        hook: Hook::Tracepoint("tcp_send_reset"),
        group: Some(Group::Counting),
        loses: "counts of resets that servers sent",
    },
    Probe {
        name: "process_exit",
        hook: Hook::ProcessTracepoint("sched_process_exit"),
        group: None,
        loses: "exit reasons of adopted engines (their exits are still seen)",
    },
    Probe {
        name: "scheduler",
        hook: Hook::ProcessTracepoint("sched_switch"),
        group: Some(Group::EngineView),
        loses: "how long engines wait for a CPU each time (the sums are still read from /proc)",
    },
    Probe {
        name: "block_begin",
        hook: Hook::ProcessTracepoint("block_bio_queue"),
        group: Some(Group::EngineView),
        loses: "block I/O of engines",
    },
    Probe {
        name: "block_end",
        hook: Hook::Tracepoint("block_rq_complete"),
        group: Some(Group::EngineView),
        loses: "block I/O of engines",
    },
];

/// Inode of the first pid namespace (kernel: PROC_PID_INIT_INO).
const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// All probes not attached, for one reason.
pub(crate) fn nothing(reason: &str) -> Vec<ProbeStatus> {
    let status = |probe: &Probe| ProbeStatus {
        probe: probe.name,
        attached: false,
        reason: reason.to_owned(),
        loses: probe.loses,
    };
    PROBES.iter().map(status).collect()
}

enum Link {
    Cgroup(CgroupSkbLinkId),
    Address(CgroupSockAddrLinkId),
    Tracepoint(BtfTracePointLinkId),
}

/// A program as it hangs, or why it does not.
type State = Result<Link, String>;

/// The loaded programs.
pub(crate) struct Programs {
    pub ebpf: Ebpf,
    pub cuda: Option<Cuda>,
    cgroup: Result<PathBuf, String>,
    /// Of each probe, in their order.
    states: Vec<State>,
    quiet: u32,
}

impl Programs {
    /// Attaches all that can be.
    pub fn attach(mut ebpf: Ebpf, cgroup: Result<PathBuf, String>, kernel: &Result<aya::Btf, String>) -> Self {
        let states = PROBES.iter().map(|probe| {
            load(&mut ebpf, probe, kernel)?;
            hang(&mut ebpf, probe, &cgroup)
        });
        let states = states.collect();
        let cuda = Cuda::take(&mut ebpf);
        Self { ebpf, cuda, cgroup, states, quiet: 0 }
    }

    /// Every probe, attached or not and why.
    pub fn status(&self) -> Vec<ProbeStatus> {
        let status = |(probe, state): (&Probe, &State)| ProbeStatus {
            probe: probe.name,
            attached: state.is_ok(),
            reason: state.as_ref().err().cloned().unwrap_or_default(),
            loses: probe.loses,
        };
        PROBES.iter().zip(&self.states).map(status).collect()
    }

    /// Takes a group off. What the kernel refused keeps its own reason.
    pub fn shed(&mut self, group: Group, why: &str) {
        self.tell_quiet(group, true);
        let hangs = |(probe, state): &(&Probe, &mut State)| probe.group == Some(group) && state.is_ok();
        for (probe, state) in PROBES.iter().zip(&mut self.states).filter(hangs) {
            if let Ok(link) = std::mem::replace(state, Err(why.to_owned())) {
                take_off(&mut self.ebpf, probe.name, link);
            }
        }
    }

    /// Puts a group back that was taken off for this reason.
    pub fn restore(&mut self, group: Group, why: &str) {
        for (probe, state) in PROBES.iter().zip(&mut self.states) {
            if probe.group == Some(group) && state.as_ref().is_err_and(|reason| reason == why) {
                *state = hang(&mut self.ebpf, probe, &self.cgroup);
            }
        }
        self.tell_quiet(group, false);
    }

    /// Tells the programs not to tell something, or to tell it again.
    fn tell_quiet(&mut self, group: Group, quiet: bool) {
        let bit = match group {
            Group::Tokens => QUIET_TOKENS,
            Group::Bodies => QUIET_BODIES,
            Group::EngineView | Group::Counting => return,
        };
        self.quiet = if quiet { self.quiet | bit } else { self.quiet & !bit };
        let map = self.ebpf.map_mut("QUIET").and_then(|map| Array::<&mut MapData, u32>::try_from(map).ok());
        // Only an object of another version lacks it, and that one tells all.
        if let Some(mut map) = map {
            let _ = map.set(0, self.quiet, 0);
        }
    }
}

fn load(ebpf: &mut Ebpf, probe: &Probe, kernel: &Result<aya::Btf, String>) -> Result<(), String> {
    let loaded = match probe.hook {
        Hook::Ingress | Hook::Egress => program::<CgroupSkb>(ebpf, probe.name)?.load(),
        Hook::Address => program::<CgroupSockAddr>(ebpf, probe.name)?.load(),
        Hook::Tracepoint(tracepoint) | Hook::ProcessTracepoint(tracepoint) => {
            if matches!(probe.hook, Hook::ProcessTracepoint(_)) {
                in_first_pid_namespace()?;
            }
            let kernel = kernel.as_ref().map_err(Clone::clone)?;
            program::<BtfTracePoint>(ebpf, probe.name)?.load(tracepoint, kernel)
        }
    };
    loaded.map_err(|error| refused(&error))
}

fn hang(ebpf: &mut Ebpf, probe: &Probe, cgroup: &Result<PathBuf, String>) -> State {
    let folder = || {
        let path = cgroup.as_ref().map_err(Clone::clone)?;
        File::open(path).map_err(|error| format!("{}: {error}", path.display()))
    };
    // As links they stand beside whatever else is attached there.
    let mode = CgroupAttachMode::Single;
    let packets = |ebpf, direction| {
        let program = program::<CgroupSkb>(ebpf, probe.name)?;
        program.attach(folder()?, direction, mode).map(Link::Cgroup).map_err(|error| refused(&error))
    };
    match probe.hook {
        Hook::Ingress => packets(ebpf, CgroupSkbAttachType::Ingress),
        Hook::Egress => packets(ebpf, CgroupSkbAttachType::Egress),
        Hook::Address => {
            let program = program::<CgroupSockAddr>(ebpf, probe.name)?;
            program.attach(folder()?, mode).map(Link::Address).map_err(|error| refused(&error))
        }
        Hook::Tracepoint(_) | Hook::ProcessTracepoint(_) => {
            let program = program::<BtfTracePoint>(ebpf, probe.name)?;
            program.attach().map(Link::Tracepoint).map_err(|error| refused(&error))
        }
    }
}

/// Fails only when it is off already.
fn take_off(ebpf: &mut Ebpf, name: &str, link: Link) {
    let _ = match link {
        Link::Cgroup(link) => program::<CgroupSkb>(ebpf, name).map(|program| program.detach(link).is_ok()),
        Link::Address(link) => program::<CgroupSockAddr>(ebpf, name).map(|program| program.detach(link).is_ok()),
        Link::Tracepoint(link) => program::<BtfTracePoint>(ebpf, name).map(|program| program.detach(link).is_ok()),
    };
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, String>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or_else(|| format!("the object has no program {name}"))?;
    program.try_into().map_err(|error: ProgramError| error.to_string())
}

/// Kernel events name processes as the first pid namespace does.
fn in_first_pid_namespace() -> Result<(), String> {
    match std::fs::metadata("/proc/self/ns/pid") {
        Ok(namespace) if namespace.ino() == FIRST_PID_NAMESPACE => Ok(()),
        Ok(_) => Err("runs in a pid namespace of its own (share the host's)".to_owned()),
        Err(error) => Err(format!("/proc/self/ns/pid: {error}")),
    }
}
