//! The kernel probes on this kernel, against small real servers and clients over plain sockets: exact
//! counts, and times that must lie between the server's write and the client's read.
//!
//! Needs root (or CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN); without, each test says so and is skipped.

#[path = "probes/client.rs"]
mod client;
#[path = "probes/faults.rs"]
mod faults;
#[path = "probes/flows.rs"]
mod flows;
#[path = "probes/hostile.rs"]
mod hostile;
#[path = "probes/pipelining.rs"]
mod pipelining;
#[path = "probes/places.rs"]
mod places;
#[path = "probes/protocols.rs"]
mod protocols;
#[path = "probes/server.rs"]
mod server;

use client::{Client, Seen};
use controller_witness::{
    ExitReason, PortRole, PortSnapshot, RequestEnd, RequestRecord, Witness, WitnessOptions, exit,
};
use server::{Log, Written, now_ns};
use std::io::{BufRead, BufReader, Write};
use std::mem::ManuallyDrop;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const WAIT: Duration = Duration::from_secs(10);

fn attach(options: WitnessOptions) -> Option<Witness> {
    let witness = Witness::attach(options).expect("the object is sound");
    if witness.probes().iter().any(|probe| probe.reason.starts_with("missing CAP_")) {
        println!("skipped: {}", witness.summary());
        return None;
    }
    for probe in witness.probes() {
        assert!(probe.attached, "{}: {}", probe.probe, probe.reason);
    }
    assert_eq!(witness.summary(), "kernel probes: all attached");
    Some(witness)
}

fn engine() -> PortRole {
    PortRole::Engine { model: "m".into(), instance: "i".into() }
}

/// Starts a child that `exit::wait` will reap.
fn child(command: &mut Command) -> ManuallyDrop<Child> {
    ManuallyDrop::new(command.spawn().expect("a child"))
}

/// Binds, watches and serves.
fn start(witness: &Witness, address: &str) -> (SocketAddr, Log) {
    let listener = TcpListener::bind(address).expect("bind");
    let server = listener.local_addr().expect("address");
    witness.watch(server.port(), engine()).expect("watch");
    (server, server::serve(listener))
}

/// Waits until the port's counts are as wanted; the last ones seen if they never are.
async fn settled(witness: &Witness, port: u16, wanted: impl Fn(&PortSnapshot) -> bool) -> PortSnapshot {
    let deadline = Instant::now() + WAIT;
    loop {
        let counts = witness.counters(port).expect("a watched port");
        if wanted(&counts) || Instant::now() > deadline {
            return counts;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// One request as client, server and kernel saw it.
fn check(path: &str, connect_ns: u64, sequence: u32, seen: &Seen, written: &Written, record: &RequestRecord) {
    let at = format!("{path} #{sequence}\n{seen:?}\n{written:?}\n{record:?}");
    assert_eq!(record.end, RequestEnd::Complete, "{at}");
    assert_eq!(record.sequence, sequence, "{at}");
    assert!(connect_ns <= record.syn_ns && record.syn_ns <= record.start_ns, "{at}");
    assert!(seen.sent_ns <= record.start_ns && record.start_ns <= record.first_byte_ns, "{at}");
    assert!(written.first_byte_ns <= record.first_byte_ns && record.first_byte_ns <= seen.first_byte_ns, "{at}");
    assert!(written.last_byte_ns <= record.last_byte_ns && record.last_byte_ns <= seen.last_byte_ns, "{at}");
    assert_eq!((record.request_bytes, record.response_bytes), (seen.request_bytes, seen.response_bytes), "{at}");
    assert_eq!((seen.first_token_ns == 0), (record.first_token_ns == 0), "{at}");
    if seen.first_token_ns != 0 {
        assert!(written.first_token_ns <= record.first_token_ns, "{at}");
        assert!(record.first_token_ns <= seen.first_token_ns, "{at}");
        assert!(record.first_byte_ns <= record.first_token_ns && record.first_token_ns <= record.last_byte_ns, "{at}");
        println!(
            "{path:8} #{sequence} {} first token: write to kernel {:6.1} us, kernel to read {:6.1} us",
            record.client,
            (record.first_token_ns - written.first_token_ns) as f64 / 1e3,
            (seen.first_token_ns - record.first_token_ns) as f64 / 1e3,
        );
    }
}

const PATHS: [&str; 7] = ["/chat", "/packed", "/hop", "/whole", "/missing", "/empty", "/chat"];

#[tokio::test(flavor = "multi_thread")]
async fn every_request_is_counted_once_and_timed_between_write_and_read() {
    let Some(witness) = attach(WitnessOptions::default()) else { return };
    for (bind, connect) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1"), ("[::]:0", "127.0.0.1")] {
        let (server, log) = start(&witness, bind);
        let target = SocketAddr::new(connect.parse().expect("address"), server.port());
        let clients: Vec<_> = (0..4)
            .map(|_| {
                std::thread::spawn(move || {
                    let mut client = Client::connect(target);
                    let seen: Vec<Seen> = PATHS.iter().map(|path| client.post(path)).collect();
                    (client.address(), client.connect_ns, seen)
                })
            })
            .collect();
        let results: Vec<_> = clients.into_iter().map(|client| client.join().expect("client")).collect();
        let total = (results.len() * PATHS.len()) as u64;
        let counts = settled(&witness, server.port(), |c| c.ended == total && c.closed == 4).await;
        assert_eq!((counts.requests, counts.ended, counts.in_flight), (total, total, 0), "{counts:?}");
        assert_eq!((counts.syns, counts.syn_retries, counts.connections, counts.closed), (4, 0, 4, 4), "{counts:?}");
        for (address, connect_ns, seen) in results {
            for (sequence, (path, seen)) in (0..).zip(PATHS.iter().zip(&seen)) {
                // An IPv4 client of an IPv6 socket is known to the server by its mapped address.
                let written = log.lock().expect("log").iter().find_map(|((client, number), written)| {
                    (client.port() == address.port() && *number == sequence).then_some(*written)
                });
                let record = witness.find(address, sequence).expect("a record");
                check(path, connect_ns, sequence, seen, &written.expect("served"), &record);
                let status = match *path {
                    "/missing" => 404,
                    "/empty" => 204,
                    _ => 200,
                };
                assert_eq!((record.status, record.line.as_str()), (status, &*format!("POST {path}")), "{record:?}");
                // Role (in one segment with a comment), 21 tokens and the finish, of which the last may share
                // one with a token; [DONE] and the hop's end are no data.
                match *path {
                    "/chat" => assert!((22..=23).contains(&record.data_segments), "{record:?}"),
                    "/hop" => assert_eq!((record.data_segments, record.itl_ns_mean), (1, 0), "{record:?}"),
                    _ => {}
                }
            }
        }
        witness.unwatch(server.port());
    }
    assert_eq!((witness.events_lost(), witness.events_malformed()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_is_counted_exactly() {
    let Some(witness) = attach(WitnessOptions::default()) else { return };
    let (server, _) = start(&witness, "127.0.0.1:0");
    let clients: Vec<_> = (0..8)
        .map(|_| {
            std::thread::spawn(move || {
                let mut lasting = Client::connect(server);
                for _ in 0..100 {
                    lasting.post("/missing");
                    Client::connect(server).post("/packed");
                }
            })
        })
        .collect();
    for client in clients {
        client.join().expect("client");
    }
    let counts = settled(&witness, server.port(), |c| c.ended == 1600 && c.closed == 808).await;
    assert_eq!((counts.requests, counts.ended, counts.in_flight), (1600, 1600, 0), "{counts:?}");
    assert_eq!((counts.syns, counts.connections, counts.closed), (808, 808, 808), "{counts:?}");
    assert!(witness.recent(usize::MAX).iter().all(|record| record.end == RequestEnd::Complete));
    assert_eq!(witness.events_lost(), 0);
}

/// A link that drops what exceeds a small queue, in a network namespace of its own.
#[test]
fn retransmitted_segments_count_once() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("runtime");
    let Some(observer) =
        runtime.block_on(async { attach(WitnessOptions { all_namespaces: true, ..WitnessOptions::default() }) })
    else {
        return;
    };
    let (address, server_port, seen, retransmitted) = std::thread::scope(|scope| {
        #[expect(
            deprecated,
            reason = "unsafe only where threads share descriptors by CLONE_FILES, which is not asked for"
        )]
        let lossy = || {
            // Only this thread, and those it starts, are there.
            rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET).expect("a network namespace");
            for command in
                ["ip link set lo mtu 1500 up", "tc qdisc add dev lo root tbf rate 20mbit burst 4000 limit 9000"]
            {
                let mut words = command.split(' ');
                let status = Command::new(words.next().expect("a word")).args(words).status().expect("needs iproute2");
                assert!(status.success(), "{command}");
            }
            let (server, _) = start(&observer, "127.0.0.1:0");
            let mut client = Client::connect(server);
            let big = vec![b'b'; 60_000];
            let head = format!("POST /whole HTTP/1.1\r\nContent-Length: {}\r\n\r\n", big.len());
            let seen: Vec<Seen> = (0..5).map(|_| client.request(&[head.as_bytes(), &big])).collect();
            (client.address(), server.port(), seen, retransmissions())
        };
        scope.spawn(lossy).join().expect("client")
    });
    assert!(retransmitted > 0, "the link dropped nothing");
    runtime.block_on(async {
        let counts = settled(&observer, server_port, |c| c.ended == 5).await;
        assert_eq!((counts.requests, counts.ended, counts.syns), (5, 5, 1), "{counts:?}");
        // Its client's are no part of the port's.
        assert!((1..=retransmitted).contains(&counts.retransmits), "{counts:?} of {retransmitted}");
    });
    for (sequence, seen) in (0..).zip(&seen) {
        let record = observer.find(address, sequence).expect("a record");
        assert_eq!(record.response_bytes, seen.response_bytes, "{record:?}");
        assert_eq!(record.request_bytes, seen.request_bytes, "{record:?}");
        assert_eq!(record.end, RequestEnd::Complete, "{record:?}");
        assert!(record.last_byte_ns <= seen.last_byte_ns, "{record:?}");
    }
    println!("{retransmitted} segments retransmitted, each counted once");
}

/// TCP segments retransmitted in this thread's network namespace.
fn retransmissions() -> u64 {
    let snmp = std::fs::read_to_string("/proc/thread-self/net/snmp").expect("snmp");
    let mut tcp = snmp.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (tcp.next().expect("names"), tcp.next().expect("values"));
    let found = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "RetransSegs");
    found.and_then(|(_, value)| value.parse().ok()).expect("a count")
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_split_over_segments_are_one_request() {
    let Some(witness) = attach(WitnessOptions::default()) else { return };
    let (server, log) = start(&witness, "127.0.0.1:0");
    let mut client = Client::connect(server);
    let big = vec![b'a'; 300_000];
    let head = format!("POST /whole HTTP/1.1\r\nContent-Length: {}\r\n\r\n", big.len() + 24);
    // A body that looks like a request is none.
    let seen = client.request(&[head.as_bytes(), b"POST /chat HTTP/1.1\r\n\r\n.", &big]);
    let second = client.request(&[b"GET /chat HT", b"TP/1.1\r\nHost: x\r\n", b"\r\n"]);
    let counts = settled(&witness, server.port(), |c| c.ended == 2).await;
    assert_eq!((counts.requests, counts.ended), (2, 2), "{counts:?}");
    for (sequence, seen) in [(0, seen), (1, second)] {
        let record = witness.find(client.address(), sequence).expect("a record");
        let written = log.lock().expect("log")[&(client.address(), sequence)];
        check("split", client.connect_ns, sequence, &seen, &written, &record);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_connections_end_as_aborted_and_open_requests_can_be_looked_up() {
    let Some(witness) = attach(WitnessOptions::default()) else { return };
    let (server, _) = start(&witness, "127.0.0.1:0");
    let mut records = witness.subscribe();
    let mut end_of = async |client: SocketAddr| {
        let found = async {
            loop {
                let record = records.recv().await.expect("records");
                if record.client == client {
                    return record;
                }
            }
        };
        tokio::time::timeout(WAIT, found).await.expect("a record in time")
    };
    // The server cuts.
    let mut client = Client::connect(server);
    client.post("/cut");
    let record = end_of(client.address()).await;
    assert_eq!((record.end, record.status), (RequestEnd::Aborted, 200), "{record:?}");
    assert!(record.first_token_ns > 0, "{record:?}");
    // A body that the close delimits is complete.
    let mut client = Client::connect(server);
    client.post("/old");
    let record = end_of(client.address()).await;
    assert_eq!((record.end, record.response_bytes), (RequestEnd::Complete, 28), "{record:?}");
    // The client goes away in the middle of a stream.
    let mut client = Client::connect(server);
    let address = client.address();
    client.stream.write_all(b"POST /endless HTTP/1.1\r\nHost: x\r\n\r\n").expect("write");
    let deadline = Instant::now() + WAIT;
    let open = loop {
        match witness.find(address, 0) {
            Some(record) if record.first_token_ns > 0 => break record,
            _ if Instant::now() > deadline => panic!("the open request is not found"),
            _ => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    };
    assert_eq!(open.end, RequestEnd::InProgress);
    assert_eq!(witness.counters(server.port()).expect("watched").in_flight, 1);
    drop(client);
    let record = end_of(address).await;
    assert_eq!(record.end, RequestEnd::Reset, "{record:?}");
    assert!(record.data_segments > 0 && record.last_byte_ns >= open.last_byte_ns, "{record:?}");
    assert_eq!(witness.counters(server.port()).expect("watched").in_flight, 0);
    assert!(witness.recent(10).iter().any(|recent| recent.client == address));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_accept_queue_and_dropped_attempts_are_seen() {
    let Some(witness) = attach(WitnessOptions::default()) else { return };
    let socket =
        rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).expect("socket");
    rustix::net::bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).expect("bind");
    rustix::net::listen(&socket, 2).expect("listen");
    let listener = TcpListener::from(socket);
    let server = listener.local_addr().expect("address");
    // Watched after it began to listen, as with a foreign engine.
    witness.watch(server.port(), PortRole::Gateway).expect("watch");
    let waiting: Vec<Client> = (0..3).map(|_| Client::connect(server)).collect();
    let counts = settled(&witness, server.port(), |c| c.connections == 3).await;
    assert_eq!((counts.syns, counts.connections, counts.accept_queue), (3, 3, 3), "{counts:?}");
    assert_eq!((counts.accept_queue_max, counts.accept_queue_limit), (3, 2), "{counts:?}");
    // The queue is full: this attempt is dropped and repeated after a second, and counted once.
    let late = std::thread::spawn(move || TcpStream::connect_timeout(&server, Duration::from_secs(8)));
    let counts = settled(&witness, server.port(), |c| c.syn_retries >= 1).await;
    assert_eq!((counts.syns, counts.connections), (4, 3), "{counts:?}");
    assert!(counts.syn_retries >= 1, "{counts:?}");
    server::serve(listener);
    let stream = late.join().expect("thread").expect("accepted in the end");
    // Its answer is the sign that it was accepted, which may come after the handshake.
    let late = Client { stream, connect_ns: 0 };
    for mut client in waiting.into_iter().chain([late]) {
        client.post("/missing");
    }
    let counts = settled(&witness, server.port(), |c| c.ended == 4 && c.connections == 4).await;
    assert_eq!((counts.syns, counts.connections, counts.requests), (4, 4, 4), "{counts:?}");
    assert_eq!((counts.accept_queue, counts.accept_queue_max), (0, 3), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn exits_are_told_with_their_reason() {
    let Some(witness) = attach(WitnessOptions::default()) else { return };
    let killed = ExitReason::Signaled { signal: 9, core: false, oom: false };
    // Several threads, of which the first is not the last to end.
    let threads = "import threading,time\nfor _ in range(3): threading.Thread(target=time.sleep,args=(60,)).start()\ntime.sleep(60)";
    for (program, script, kill, expected) in [
        ("sh", "sleep 60", true, killed),
        ("python3", threads, true, killed),
        ("sh", "read x; exit 3", false, ExitReason::Exited(3)),
    ] {
        let mut child = child(Command::new(program).args(["-c", script]).stdin(Stdio::piped()));
        witness.watch_pid(child.id()).expect("watch");
        let pidfd = exit::open(child.id()).expect("pidfd");
        tokio::time::sleep(Duration::from_millis(100)).await;
        if kill {
            child.kill().expect("kill -9");
        }
        drop(child.stdin.take());
        assert_eq!(exit::wait(pidfd).await.expect("waited"), expected, "{script}");
        assert_eq!(witness.exit_reason(child.id(), WAIT).await, Some(expected), "{script}");
    }
    // A process that is not our child, as an adopted engine.
    let mut parent =
        Command::new("sh").args(["-c", "sleep 60 & echo $!; wait"]).stdout(Stdio::piped()).spawn().expect("a child");
    let mut line = String::new();
    BufReader::new(parent.stdout.take().expect("stdout")).read_line(&mut line).expect("its pid");
    let pid: u32 = line.trim().parse().expect("a pid");
    witness.watch_pid(pid).expect("watch");
    let pidfd = exit::open(pid).expect("pidfd");
    Command::new("kill").args(["-9", line.trim()]).status().expect("kill");
    let told = exit::wait(pidfd).await.expect("waited");
    assert!(told == killed || told == ExitReason::Unknown, "{told:?}");
    assert_eq!(witness.exit_reason(pid, WAIT).await, Some(killed));
    parent.wait().expect("reaped");
    // Nobody watched is never told.
    assert_eq!(witness.exit_reason(parent.id(), Duration::from_millis(50)).await, None);
}

/// On one thread that does not yield, the reader stalls and the ring overflows.
#[tokio::test(flavor = "current_thread")]
async fn a_full_ring_is_counted_and_counters_stay_exact() {
    let Some(witness) = attach(WitnessOptions { ring_bytes: 4096, ..WitnessOptions::default() }) else { return };
    let (server, _) = start(&witness, "127.0.0.1:0");
    let mut client = Client::connect(server);
    for _ in 0..200 {
        client.post("/missing");
    }
    let lost = witness.events_lost();
    assert!(lost > 100, "{lost} events lost");
    let counts = witness.counters(server.port()).expect("watched");
    assert_eq!((counts.requests, counts.syns, counts.connections), (200, 1, 1), "{counts:?}");
    // With the reader awake again, the next request is followed as if nothing had been lost.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let seen = client.post("/missing");
    let deadline = Instant::now() + WAIT;
    let record = loop {
        match witness.find(client.address(), 200) {
            Some(record) if record.end != RequestEnd::InProgress => break record,
            _ if Instant::now() > deadline => panic!("no record after the overflow"),
            _ => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    assert_eq!((record.end, record.status), (RequestEnd::Complete, 404), "{record:?}");
    assert!(
        seen.sent_ns <= record.start_ns && record.last_byte_ns <= seen.last_byte_ns && seen.last_byte_ns <= now_ns()
    );
    assert_eq!(witness.events_lost(), lost);
    println!("{lost} events lost of a stalled reader's ring, counters exact");
}

#[test]
fn without_permission_it_says_what_is_missing_and_works_on() {
    // Capabilities belong to a thread.
    std::thread::spawn(|| {
        use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
        let none = CapabilitySet::empty();
        set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
            .expect("giving up capabilities is always allowed");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let witness = Witness::attach(WitnessOptions::default()).expect("no error");
            let line = witness.summary();
            println!("{line}");
            assert!(line.contains("missing CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN"), "{line}");
            assert!(!witness.sees_requests());
            witness.watch(1, PortRole::Gateway).expect("nothing to do");
            assert_eq!(witness.counters(1), None);
            let child = child(Command::new("sh").args(["-c", "exit 4"]));
            let pidfd = exit::open(child.id()).expect("pidfd");
            assert_eq!(exit::wait(pidfd).await.expect("waited"), ExitReason::Exited(4));
            let off =
                Witness::attach(WitnessOptions { enabled: false, ..WitnessOptions::default() }).expect("no error");
            assert!(off.summary().contains("--no-probes"), "{}", off.summary());
        });
    })
    .join()
    .expect("thread");
}
