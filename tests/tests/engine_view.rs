//! Processes as the kernel serves them, against real ones: one that fights for its CPU, one that reads a file from
//! the disk, one that is stopped, one that is killed. And the probes' own budget: what it turns off, and that it comes
//! back.
//!
//! Needs root (or CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN); without, each test says so and is skipped.

use blackbox::{Foreshock, http, stream};
use controller_witness::{Budget, ExitReason, Group, PortRole, ProcessSource, ProcessView, Witness, WitnessOptions};
use serde_json::json;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const WAIT: Duration = Duration::from_secs(20);
const MS: u64 = 1_000_000;

fn attach(budget: Budget) -> Option<Witness> {
    let witness = Witness::attach(WitnessOptions { budget, ..WitnessOptions::default() }).expect("the object is sound");
    if witness.probes().iter().any(|probe| probe.reason.starts_with("missing CAP_")) {
        println!("skipped: {}", witness.summary());
        return None;
    }
    Some(witness)
}

/// The probes, whatever they cost.
fn unlimited() -> Option<Witness> {
    attach(Budget { cpu_ratio: 1.0, ..Budget::default() })
}

/// A shell with a script, which reads a line before it goes on; killed when dropped.
struct Held(Child);

impl Held {
    fn new(script: &str) -> Self {
        let child = Command::new("sh")
            .args(["-c", &format!("read line; {script}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("a shell");
        Self(child)
    }

    fn watched(script: &str, witness: &Witness) -> Self {
        let held = Self::new(script);
        witness.watch_pid(held.0.id()).expect("watch");
        held
    }

    fn go(&mut self) {
        self.0.stdin.take().expect("once").write_all(b"go\n").expect("a reader");
    }

    fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.0), signal).expect("a child");
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const BURN: &str = "while :; do :; done";

/// Puts a process on the first CPU, where its rivals are too.
fn pin(child: &Child) {
    let mut first = rustix::thread::CpuSet::new();
    let allowed = rustix::thread::sched_getaffinity(None).expect("our own CPUs");
    first.set((0..rustix::thread::CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu)).expect("a CPU"));
    rustix::thread::sched_setaffinity(Some(rustix::process::Pid::from_child(child)), &first).expect("pinned");
}

/// Looks until it is as wanted.
async fn until(witness: &Witness, child: &Held, wanted: impl Fn(&ProcessView) -> bool) -> ProcessView {
    let deadline = Instant::now() + WAIT;
    loop {
        let view = witness.process(child.0.id()).expect("it lives");
        if wanted(&view) {
            return view;
        }
        assert!(Instant::now() < deadline, "{view:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_fights_for_its_cpu_waits_in_the_run_queue() {
    let Some(witness) = unlimited() else { return };
    let mut burner = Held::watched(BURN, &witness);
    let mut rivals = [Held::new(BURN), Held::new(BURN), Held::new(BURN)];
    pin(&burner.0);
    rivals.iter().for_each(|rival| pin(&rival.0));
    rivals.iter_mut().for_each(Held::go);
    burner.go();
    let view = until(&witness, &burner, |view| view.on_cpu_ns > 200 * MS).await;
    let scheduler = view.scheduler.as_ref().expect("its probe is attached");
    let at = format!("{view:?}");
    assert_eq!(view.source, ProcessSource::Probes);
    // Four of one weight on one CPU: three quarters of the time, less what the scheduler's slices leave open.
    assert!(view.run_queue_ns > view.on_cpu_ns, "{at}");
    assert!(scheduler.preemptions > 0 && scheduler.switches >= scheduler.preemptions, "{at}");
    let waits = scheduler.run_queue_waits;
    assert_eq!(waits.count(), scheduler.switches, "{at}");
    assert!(waits.quantile_ns(99) >= MS && waits.quantile_ns(50) <= waits.quantile_ns(99), "{at}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_probes_and_procfs_tell_the_same() {
    let Some(witness) = unlimited() else { return };
    let Ok(blind) = Witness::attach(WitnessOptions { enabled: false, ..WitnessOptions::default() }) else { panic!() };
    let mut burner = Held::watched(BURN, &witness);
    let pid = burner.0.id();
    // It reads a line: it is off its CPU, and has been seen to leave it or has its sums still at hand.
    let start = blind.process(pid).expect("it lives");
    burner.go();
    until(&witness, &burner, |view| view.on_cpu_ns > 300 * MS).await;
    burner.signal(rustix::process::Signal::STOP);
    until(&witness, &burner, |view| view.scheduler.as_ref().is_some_and(|scheduler| scheduler.stopped_ns > 0)).await;
    let (seen, plain) = (witness.process(pid).expect("it lives"), blind.process(pid).expect("it lives"));
    assert_eq!((seen.source, plain.source), (ProcessSource::Probes, ProcessSource::Procfs));
    let at = format!("{seen:?}\n{start:?}\n{plain:?}");
    // The probes count from the first time that they see a thread leave its CPU.
    let by_probes = seen.on_cpu_ns + seen.run_queue_ns;
    let by_procfs = plain.on_cpu_ns + plain.run_queue_ns;
    assert!(by_probes <= by_procfs && by_procfs - by_probes < 100 * MS, "{at}");
    assert!(plain.scheduler.is_none() && plain.block.is_none(), "{at}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_process_is_off_its_cpu() {
    let Some(witness) = unlimited() else { return };
    let mut burner = Held::watched(BURN, &witness);
    burner.go();
    until(&witness, &burner, |view| view.scheduler.as_ref().is_some_and(|scheduler| scheduler.switches > 0)).await;
    burner.signal(rustix::process::Signal::STOP);
    let stopped = |view: &ProcessView| view.scheduler.as_ref().map_or(0, |scheduler| scheduler.stopped_ns);
    let first = until(&witness, &burner, |view| stopped(view) > 0).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let second = witness.process(burner.0.id()).expect("it lives");
    assert_eq!(stopped(&second) - stopped(&first), second.at_ns - first.at_ns, "all of the time between");
    assert_eq!(second.on_cpu_ns, first.on_cpu_ns);
    burner.signal(rustix::process::Signal::CONT);
    until(&witness, &burner, |view| view.on_cpu_ns > second.on_cpu_ns + 50 * MS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_process_reads_from_the_disk_is_its_own() {
    const BYTES: u64 = 8 << 20;
    let Some(witness) = unlimited() else { return };
    // Where this repository lies, since a temporary folder may be memory.
    let folder = tempfile::tempdir_in(blackbox::workspace_root().join("target")).expect("a folder");
    let path = folder.path().join("file");
    let file = std::fs::File::create(&path).expect("a file");
    (&file).write_all(&vec![7; BYTES as usize]).expect("written");
    file.sync_all().expect("synced");
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("dropped from the page cache");
    // The same process all along; after the file it waits for more of its standard input.
    let mut reader = Held::watched(&format!("exec cat '{}' -", path.display()), &witness);
    let mut input = reader.0.stdin.take().expect("once");
    input.write_all(b"go\n").expect("a reader");
    let view = until(&witness, &reader, |view| {
        view.block.as_ref().is_some_and(|block| block.read_bytes >= BYTES) || without_blocks(view)
    })
    .await;
    if without_blocks(&view) {
        println!("skipped: this storage has no block device that the probes see");
        return;
    }
    let block = view.block.as_ref().expect("its probes are attached");
    assert!(block.reads > 0 && block.times.count() >= block.reads && block.read_ns > 0, "{view:?}");
    assert!(block.read_bytes < 2 * BYTES, "{view:?}");
}

/// The process has read all and is asleep, and no block I/O was seen.
fn without_blocks(view: &ProcessView) -> bool {
    let asleep = view.scheduler.as_ref().is_some_and(|scheduler| scheduler.asleep_ns > 5_000 * MS);
    asleep && view.block.as_ref().is_some_and(|block| block.reads == 0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_is_told_of_at_once() {
    let Some(witness) = unlimited() else { return };
    let mut burner = Held::watched(BURN, &witness);
    burner.go();
    let pid = burner.0.id();
    burner.signal(rustix::process::Signal::KILL);
    let told = witness.exit_reason(pid, WAIT).await;
    assert_eq!(told, Some(ExitReason::Signaled { signal: 9, core: false, oom: false }));
    burner.0.wait().expect("reaped");
    assert_eq!(witness.process(pid), None);
}

/// One request and its answer.
fn ask(port: u16) {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).expect("a server");
    socket.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").expect("written");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
}

/// Waits until a group is on or off while requests go on, since what costs nothing is not turned off.
async fn group_is(witness: &Witness, port: u16, group: Group, on: bool) {
    let deadline = Instant::now() + WAIT;
    while witness.cost().groups.iter().any(|status| status.group == group && status.on != on) {
        assert!(Instant::now() < deadline, "{:?}", witness.cost());
        ask(port);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_budget_groups_go_and_come_back_and_counts_stay_right() {
    let millis = Duration::from_millis;
    let budget =
        Budget { cpu_ratio: 0.0, window: millis(50), retry_after: millis(2000), retry_at_latest: millis(4000) };
    let Some(witness) = attach(budget) else { return };
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = listener.local_addr().expect("address").port();
    witness.watch(port, PortRole::Gateway).expect("watch");
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.expect("a client");
            let _ = socket.read(&mut [0; 256]).and_then(|_| socket.write_all(b"HTTP/1.1 204 No Content\r\n\r\n"));
        }
    });
    for group in Group::ALL {
        group_is(&witness, port, group, false).await;
    }
    assert!(!witness.sees_requests());
    let status = witness.probes();
    for probe in &status {
        let stays = probe.probe == "process_exit";
        assert!(probe.attached == stays && (stays || probe.reason.contains("--probe-budget")), "{probe:?}");
    }
    let before = witness.counters(port).expect("watched");
    ask(port);
    assert_eq!(witness.counters(port).expect("watched").requests, before.requests, "nobody counts");
    // With nothing attached nothing costs, so the last to go is tried again; and what costs too much still goes again.
    let (before, after) = loop {
        while !witness.sees_requests() {
            tokio::time::sleep(millis(1)).await;
        }
        let before = witness.counters(port).expect("watched");
        ask(port);
        let after = witness.counters(port).expect("watched");
        if witness.sees_requests() {
            break (before, after);
        }
    };
    assert_eq!((after.requests, after.syns), (before.requests + 1, before.syns + 1), "counted again");
    group_is(&witness, port, Group::Counting, false).await;
    let cost = witness.cost();
    assert!(cost.unknown.is_none() && cost.maps_bytes > 1 << 20, "{cost:?}");
    assert!(cost.programs.iter().any(|program| program.probe == "http_request" && program.run_ns_total > 0));
}

#[test]
fn serve_shows_engines_and_costs_and_keeps_its_budget() -> anyhow::Result<()> {
    let foreshock = Foreshock::start(&["--idle-seconds", "60", "--probe-budget", "0"])?;
    foreshock.add_model("alpha")?;
    let body = json!({"model": "alpha", "prompt": "Once", "max_tokens": 64, "stream": true, "ignore_eos": true});
    stream::post(foreshock.data, "/v1/completions", &body)?;
    foreshock.wait_until("the engine's process is shown", |running| {
        let rows = running.admin_get("instances")?;
        Ok(rows["data"][0]["kernel"]["on_cpu_ns"].as_u64().is_some_and(|ns| ns > 0))
    })?;
    if foreshock.metric_sum("foreshock_probes_attached", &["process_exit"])? == 0.0 {
        println!("skipped: no kernel probe is attached here");
        return Ok(());
    }
    foreshock.wait_until("a budget of nothing turns the engine view off", |running| {
        let probes = running.admin_get("probes")?;
        let group = probes["cost"]["groups"]
            .as_array()
            .and_then(|groups| groups.iter().find(|one| one["group"] == "engine_view"));
        Ok(group.is_some_and(|group| {
            group["on"] == false && group["reason"].as_str().is_some_and(|why| why.contains("--probe-budget"))
        }))
    })?;
    anyhow::ensure!(foreshock.metric_sum("foreshock_probe_group_on", &["engine_view"])? == 0.0);
    anyhow::ensure!(foreshock.log().contains("a group is turned off, and tried again later"), "{}", foreshock.log());
    // The gateway needs no probe.
    let answer = http::post_json(
        foreshock.data,
        "/v1/completions",
        &json!({"model": "alpha", "prompt": "Once", "max_tokens": 2}),
    )?;
    anyhow::ensure!(answer.status == 200, "{}", answer.text());
    Ok(())
}
