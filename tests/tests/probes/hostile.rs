//! What clients and servers do wrong on purpose, by accident or by dying: counted and named, and never a wrong number.

use super::{WAIT, attach, child, client::Client, engine, settled, start};
use crate::client::Seen;
use crate::protocols::{say, sink};
use controller_witness::{
    BodyFacts, ExitReason, Fidelity, PortRole, ProbeError, Protocols, RequestEnd, Witness, WitnessOptions, exit,
};
use std::io::{BufRead, BufReader, Read};
use std::net::{Shutdown, SocketAddr};
use std::process::{Child, Command, Stdio};

#[tokio::test(flavor = "multi_thread")]
async fn giant_headers_are_one_request_whose_body_is_not_guessed() {
    let Some(witness) = attach(WitnessOptions::default()) else { return };
    let (server, _) = start(&witness, "127.0.0.1:0");
    let mut client = Client::connect(server);
    let body = r#"{"model":"m","stream":true}"#;
    let headers = "X-Filler: POST / HTTP/1.1\r\n".repeat(40_000);
    let length = format!("Content-Length: {}\r\n\r\n", body.len());
    let giant = format!("POST /missing HTTP/1.1\r\n{headers}{length}{body}");
    let seen = client.request(&[giant.as_bytes()]);
    // One line without an end, beyond all that is kept of it.
    let long = format!("GET /missing?{} HTTP/1.1\r\n\r\n", "secret".repeat(30_000));
    client.request(&[&long.as_bytes()[..7000], &long.as_bytes()[7000..]]);
    let plain = client.request(&[format!("POST /missing HTTP/1.1\r\n{length}{body}").as_bytes()]);
    let counts = settled(&witness, server.port(), |c| c.ended == 3).await;
    assert_eq!((counts.requests, counts.ended, counts.protocols.http1), (3, 3, 1), "{counts:?}");
    let record = |sequence| witness.find(client.address(), sequence).expect("a record");
    let first = record(0);
    assert_eq!((first.body, first.fidelity, first.end), (None, Fidelity::Counted, RequestEnd::Complete));
    assert_eq!(first.request_bytes, seen.request_bytes);
    assert!(!format!("{:?}", record(1)).contains("secret") && record(1).status == 404, "{:?}", record(1));
    let body = BodyFacts { model: Some("m".into()), stream: Some(true), max_tokens: None, n: None };
    assert_eq!((record(2).body, record(2).request_bytes), (Some(body), plain.request_bytes));
    assert_eq!(witness.events_lost(), 0);
}

/// A sequence of numbers that is the same in every run (xorshift64).
fn noise(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[tokio::test(flavor = "multi_thread")]
async fn binary_noise_is_no_request() {
    let Some(witness) = attach(WitnessOptions::default()) else { return };
    let server = sink(&witness, b"\0\xff\r\n\r\ndata: x\n\n");
    let mut state = 88_172_645_463_325_252;
    let mut expected = Protocols::default();
    for _ in 0..200 {
        let bytes: Vec<u8> = (0..noise(&mut state) % 3000 + 1).map(|_| noise(&mut state) as u8).collect();
        let cut = noise(&mut state) as usize % (bytes.len() + 1);
        say(server, &[&bytes[..cut], &bytes[cut..]], 15);
        if bytes.len() >= 4 {
            expected.opaque_request_bytes += bytes.len() as u64;
            expected.opaque_response_bytes += 15;
            expected.other += 1;
        }
    }
    let counts = settled(&witness, server.port(), |c| c.closed == 200).await;
    assert_eq!((counts.requests, counts.in_flight, counts.ended), (0, 0, 0), "{counts:?}");
    assert_eq!((counts.protocols, counts.connections), (expected, 200));
    // Where a method and nothing like it follows, the request is there, and nothing of it is understood.
    for text in [&b"POST\0\x01\x02\n"[..], b"GET  \xff\xfe\r\n\r\n", b"PUT no version\r\n\r\n", b"HEAD"] {
        say(server, &[text], 15);
    }
    let counts = settled(&witness, server.port(), |c| c.closed == 204 && c.ended == 4).await;
    assert_eq!((counts.requests, counts.protocols.http1, counts.in_flight), (4, 4, 0), "{counts:?}");
    for record in witness.recent(4) {
        assert_eq!((record.status, record.tokens, record.body.as_ref()), (0, 0, None), "{record:?}");
        // An answer that is none: how it ended cannot be told.
        assert_eq!(record.end, RequestEnd::Lost, "{record:?}");
    }
    assert_eq!((witness.events_lost(), witness.events_malformed()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_and_half_closed_clients_are_what_they_are() {
    let Some(witness) = attach(WitnessOptions::default()) else { return };
    // Those that never finish a header: requests that began, but for those with less than a method.
    let server = sink(&witness, b"");
    let mut slow: Vec<Client> = (0..40).map(|_| Client::connect(server)).collect();
    for (i, client) in slow.iter_mut().enumerate() {
        client.send(if i % 4 == 0 { b"PO" } else { b"POST /chat HTTP/1.1\r\n" });
    }
    for _ in 0..5 {
        slow.iter_mut().skip(1).step_by(2).for_each(|client| client.send(b"X-A: b\r\n"));
    }
    let counts = settled(&witness, server.port(), |c| c.in_flight == 30 && c.connections == 40).await;
    assert_eq!((counts.requests, counts.in_flight, counts.ended), (30, 30, 0), "{counts:?}");
    drop(slow);
    let counts = settled(&witness, server.port(), |c| c.ended == 30 && c.closed == 40).await;
    assert_eq!((counts.requests, counts.ended, counts.in_flight), (30, 30, 0), "{counts:?}");
    assert!(witness.recent(30).iter().all(|record| record.end == RequestEnd::Aborted && record.first_byte_ns == 0));
    // A client that has said all that it will say gets its answer all the same.
    let (server, _) = start(&witness, "127.0.0.1:0");
    let mut half = Client::connect(server);
    half.send(b"GET /chat HTTP/1.1\r\n\r\n");
    half.stream.shutdown(Shutdown::Write).expect("shutdown");
    let mut seen = Seen::default();
    half.receive(&mut seen);
    settled(&witness, server.port(), |c| c.ended == 1 && c.closed == 1).await;
    let record = witness.find(half.address(), 0).expect("a record");
    assert_eq!((record.end, record.response_bytes, record.status), (RequestEnd::Complete, seen.response_bytes, 200));
    assert_eq!(witness.events_lost(), 0);
}

/// Answers each connection's first bytes with a beginning, and then with nothing any more.
const DYING: &str = "
import socket
listener = socket.create_server(('127.0.0.1', 0))
print(listener.getsockname()[1], flush=True)
kept = []
while True:
    stream, _ = listener.accept()
    stream.recv(65536)
    stream.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 100\\r\\n\\r\\nhalf')
    kept.append(stream)
";

/// A process that waits for the end of its input, with this id, where the kernel and the others let it have it.
fn process_with_id(id: u32) -> Option<Child> {
    for _ in 0..200 {
        std::fs::write("/proc/sys/kernel/ns_last_pid", (id - 1).to_string()).ok()?;
        let child = Command::new("sh").args(["-c", "read x; exit 3"]).stdin(Stdio::piped()).spawn().expect("a child");
        if child.id() == id {
            return Some(child);
        }
        child.wait_with_output().expect("waited");
    }
    println!("the number of process {id} did not come again");
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_ends_its_requests_and_its_successor_is_another() {
    let Some(witness) = attach(WitnessOptions::default()) else { return };
    let mut server = child(Command::new("python3").args(["-c", DYING]).stdout(Stdio::piped()));
    let mut line = String::new();
    BufReader::new(server.stdout.take().expect("stdout")).read_line(&mut line).expect("a port");
    let target = SocketAddr::from(([127, 0, 0, 1], line.trim().parse::<u16>().expect("a port")));
    witness.watch(target.port(), engine()).expect("watch");
    witness.watch_pid(server.id()).expect("watch");
    let pidfd = exit::open(server.id()).expect("pidfd");
    let mut clients: Vec<Client> = (0..5).map(|_| Client::connect(target)).collect();
    for client in &mut clients {
        client.send(b"GET / HTTP/1.1\r\n\r\n");
        client.stream.read_exact(&mut [0; 43]).expect("a beginning");
    }
    // One more begins, and is not answered; what it sends is never read.
    clients[0].send(&[b'x'; 100]);
    let counts = settled(&witness, target.port(), |c| c.in_flight == 5).await;
    assert_eq!((counts.requests, counts.in_flight), (5, 5), "{counts:?}");
    server.kill().expect("kill -9");
    let killed = ExitReason::Signaled { signal: 9, core: false, oom: false };
    assert_eq!(exit::wait(pidfd).await.expect("waited"), killed);
    assert_eq!(witness.exit_reason(server.id(), WAIT).await, Some(killed));
    let counts = settled(&witness, target.port(), |c| c.ended == 5 && c.closed == 5 && c.accept_queue_limit == 0).await;
    assert_eq!((counts.requests, counts.ended, counts.in_flight), (5, 5, 0), "{counts:?}");
    assert_eq!((counts.resets_sent, counts.accept_queue_limit), (1, 0), "{counts:?}");
    let ends = |end| witness.recent(5).iter().filter(|record| record.end == end).count();
    assert_eq!((ends(RequestEnd::Reset), ends(RequestEnd::Aborted)), (1, 4));
    // Its number comes again for another process, of which nothing is known but what is its own.
    if let Some(mut other) = process_with_id(server.id()) {
        witness.watch_pid(other.id()).expect("watch");
        assert_eq!(witness.exit_reason(other.id(), std::time::Duration::ZERO).await, None);
        drop(other.stdin.take());
        assert_eq!(other.wait().expect("waited").code(), Some(3));
        assert_eq!(witness.exit_reason(other.id(), WAIT).await, Some(ExitReason::Exited(3)));
    }
    // And its port for another server.
    drop(clients);
    let listener = std::net::TcpListener::bind(target).expect("the port is free again");
    crate::server::serve(listener);
    let mut client = Client::connect(target);
    client.post("/missing");
    let counts = settled(&witness, target.port(), |c| c.ended == 6).await;
    assert_eq!((counts.requests, counts.ended, counts.accept_queue_limit > 0), (6, 6, true), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_map_of_ports_is_named_and_changes_nothing_else() {
    let Some(witness) = attach(WitnessOptions::default()) else { return };
    let (server, _) = start(&witness, "127.0.0.1:0");
    let others = (1..=u16::MAX).filter(|&port| port != server.port());
    let mut watched = 1;
    let refused = others.map_while(|port| match witness.watch(port, PortRole::Gateway) {
        Ok(()) => {
            watched += 1;
            Some(port)
        }
        Err(ProbeError::Map(error)) => {
            println!("{port}: {error}");
            assert_eq!(witness.counters(port), None);
            None
        }
        Err(other) => panic!("{other}"),
    });
    let last = refused.last().expect("some ports");
    assert_eq!((watched, witness.snapshot().len()), (1024, 1024));
    Client::connect(server).post("/chat");
    let counts = settled(&witness, server.port(), |c| c.ended == 1).await;
    assert_eq!((counts.requests, counts.syns), (1, 1), "{counts:?}");
    witness.unwatch(last);
    witness.watch(last + 1, PortRole::Gateway).expect("there is room again");
}

/// What is attached where this file is taken for the kernel's types, or this thread may not do everything.
fn names(witness: &Witness) -> (Vec<&'static str>, Vec<&'static str>) {
    let of = |attached| witness.probes().iter().filter(|p| p.attached == attached).map(|p| p.probe).collect();
    (of(true), of(false))
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_kernels_types_requests_are_counted_all_the_same() {
    if attach(WitnessOptions::default()).is_none() {
        return;
    }
    let options = WitnessOptions { btf: "/no/such/file".into(), ..WitnessOptions::default() };
    let witness = Witness::attach(options).expect("no error");
    let (attached, missing) = names(&witness);
    assert!(attached.starts_with(&["http_request", "http_response"]), "{}", witness.summary());
    assert!(missing.contains(&"connection_state") && missing.contains(&"process_exit"), "{missing:?}");
    assert!(witness.summary().contains("this kernel has no BTF (CONFIG_DEBUG_INFO_BTF)"), "{}", witness.summary());
    let (server, _) = start(&witness, "127.0.0.1:0");
    let mut client = Client::connect(server);
    let seen = [client.post("/chat"), client.post("/missing")];
    let counts = settled(&witness, server.port(), |c| c.ended == 2).await;
    assert_eq!((counts.requests, counts.ended, counts.syns, counts.protocols.http1), (2, 2, 1, 1), "{counts:?}");
    // What is not seen is nothing, not something.
    assert_eq!((counts.connections, counts.closed, counts.accept_queue_limit, counts.accepts), (0, 0, 0, 0));
    for (sequence, seen) in (0..).zip(seen) {
        let record = witness.find(client.address(), sequence).expect("a record");
        assert_eq!((record.response_bytes, record.end), (seen.response_bytes, RequestEnd::Complete));
        assert_eq!((record.vantage.net_namespace, record.accept_wait_ns), (0, 0));
    }
}

#[test]
fn one_missing_capability_takes_its_own_probes_alone() {
    // Capabilities belong to a thread.
    std::thread::spawn(|| {
        use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
        let have = capabilities(None).expect("our own").effective;
        if !have.contains(CapabilitySet::BPF | CapabilitySet::PERFMON | CapabilitySet::NET_ADMIN) {
            println!("skipped: needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN");
            return;
        }
        // CAP_SYS_ADMIN would stand in for it.
        let effective = have - CapabilitySet::NET_ADMIN - CapabilitySet::SYS_ADMIN;
        set_capabilities(None, CapabilitySets { effective, permitted: effective, inheritable: CapabilitySet::empty() })
            .expect("giving up capabilities is always allowed");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let witness = Witness::attach(WitnessOptions::default()).expect("no error");
            let (attached, missing) = names(&witness);
            assert_eq!(missing, ["http_request", "http_response", "accepted_ipv4", "accepted_ipv6"]);
            assert!(attached.contains(&"connection_state"), "{attached:?}");
            assert!(witness.summary().contains("missing CAP_NET_ADMIN (run as root"), "{}", witness.summary());
            assert!(!witness.sees_requests());
            let (server, _) = start(&witness, "127.0.0.1:0");
            Client::connect(server).post("/missing");
            let counts = settled(&witness, server.port(), |c| c.closed == 1).await;
            assert_eq!((counts.connections, counts.closed, counts.requests), (1, 1, 0), "{counts:?}");
        });
    })
    .join()
    .expect("thread");
}
