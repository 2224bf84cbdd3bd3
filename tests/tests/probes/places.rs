//! Servers elsewhere and servers that were there before: other network namespaces, connections that were open when
//! their port was watched, ports that change hands.

use super::{PATHS, attach, check, client::Client, engine, settled, start};
use crate::client::Seen;
use crate::protocols::{say, sink};
use crate::server::{self, Log};
use controller_witness::{Protocols, RequestEnd, Witness, WitnessOptions};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::sync::Barrier;

/// What happened in one namespace: its inode, its server, the client's address, when it connected, what it saw, and
/// what the server wrote.
type Visit = (u64, SocketAddr, SocketAddr, u64, Vec<Seen>, Log);

/// Makes a namespace for this thread, and in it a server on `port` and a client on one given port.
#[expect(deprecated, reason = "unsafe only where threads share descriptors by CLONE_FILES, which is not asked for")]
fn visit(client_port: u16, port: u16, ready: &Barrier) -> Visit {
    rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET).expect("a network namespace");
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("needs iproute2");
    assert!(up.success());
    let namespace = std::fs::metadata("/proc/thread-self/ns/net").expect("our own").ino();
    let listener = TcpListener::bind(("127.0.0.1", port)).expect("bind");
    let target = listener.local_addr().expect("address");
    let log = server::serve(listener);
    ready.wait();
    let mut client = Client::connect_from(SocketAddr::from(([127, 0, 0, 1], client_port)), target);
    let seen = PATHS.iter().map(|path| client.post(path)).collect();
    ready.wait();
    (namespace, target, client.address(), client.connect_ns, seen, log)
}

#[test]
fn the_same_addresses_in_two_namespaces_are_two_connections() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("runtime");
    let all = WitnessOptions { all_namespaces: true, ..WitnessOptions::default() };
    let Some(everywhere) = runtime.block_on(async { attach(all) }) else { return };
    let here = runtime.block_on(async { attach(WitnessOptions::default()) }).expect("attached again");
    const PORT: u16 = 20_001;
    for witness in [&everywhere, &here] {
        witness.watch(PORT, engine()).expect("watch");
    }
    let mut records = everywhere.subscribe();
    let ready = Barrier::new(2);
    let visits: Vec<Visit> = std::thread::scope(|scope| {
        let visits = [(); 2].map(|()| scope.spawn(|| visit(20_002, PORT, &ready)));
        visits.map(|visit| visit.join().expect("a visit")).into()
    });
    let total = 2 * PATHS.len() as u64;
    let counts = runtime.block_on(settled(&everywhere, PORT, |c| c.ended == total && c.closed == 2));
    assert_eq!((counts.requests, counts.ended, counts.in_flight), (total, total, 0), "{counts:?}");
    assert_eq!((counts.syns, counts.connections, counts.accepts, counts.closed), (2, 2, 2, 2), "{counts:?}");
    let found: Vec<_> = std::iter::from_fn(|| records.try_recv().ok()).collect();
    for (namespace, _, address, connect_ns, seen, log) in &visits {
        for (sequence, (path, seen)) in (0..).zip(PATHS.iter().zip(seen)) {
            let ours = found
                .iter()
                .find(|record| u64::from(record.vantage.net_namespace) == *namespace && record.sequence == sequence);
            let written = log.lock().expect("log")[&(*address, sequence)];
            check(path, *connect_ns, sequence, seen, &written, ours.expect("a record"));
        }
    }
    // Whoever watches its own namespace alone sees none of it.
    let counts = here.counters(PORT).expect("watched");
    assert_eq!((counts.syns, counts.connections, counts.requests), (0, 0, 0), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_open_before_is_seen_from_its_next_request_on() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let target = listener.local_addr().expect("address");
    let log = server::serve(listener);
    let mut idle = Client::connect(target);
    let mut used = Client::connect(target);
    used.post("/chat");
    let mut busy = Client::connect(target);
    busy.send(b"GET /chat HTTP/1.1\r\n\r\n");
    // The server has long been running when the probes are attached.
    let Some(witness) = attach(WitnessOptions::default()) else { return };
    witness.watch(target.port(), engine()).expect("watch");
    busy.receive(&mut Seen::default());
    for client in [&mut idle, &mut used, &mut busy] {
        let (first, second) = (client.post("/hop"), client.post("/missing"));
        settled(&witness, target.port(), |c| c.in_flight == 0 && c.requests % 2 == 0 && c.ended == c.requests).await;
        let before = log.lock().expect("log").keys().filter(|(of, _)| *of == client.address()).count() as u32 - 2;
        for (sequence, seen) in [(0, first), (1, second)] {
            let record = witness.find(client.address(), sequence).expect("a record");
            assert_eq!((record.syn_ns, record.end), (0, RequestEnd::Complete), "{record:?}");
            assert_eq!((record.request_bytes, record.response_bytes), (seen.request_bytes, seen.response_bytes));
            let written = log.lock().expect("log")[&(client.address(), before + sequence)];
            assert!(written.first_byte_ns <= record.first_byte_ns && record.first_byte_ns <= seen.first_byte_ns);
        }
    }
    drop((idle, used, busy));
    let counts = settled(&witness, target.port(), |c| c.closed == 3).await;
    // The connections themselves were made before.
    assert_eq!((counts.requests, counts.ended, counts.syns, counts.connections), (6, 6, 0, 0), "{counts:?}");
    assert_eq!((counts.closed, counts.protocols.http1, counts.accepts), (3, 3, 0), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_and_a_tuple_that_are_used_again_begin_anew() {
    let Some(witness) = attach(WitnessOptions::default()) else { return };
    let (server, _) = start(&witness, "127.0.0.1:0");
    // Not one that the kernel gives to others meanwhile. Each connection is reset, so that its ports are free at once.
    let from = SocketAddr::from(([127, 0, 0, 1], 10_000 + (std::process::id() % 10_000) as u16));
    let mut client = Client::connect_from(from, server);
    for round in 1..=20_u64 {
        client.post(if round % 2 == 0 { "/chat" } else { "/missing" });
        if round % 5 == 0 {
            // One that is cut in the middle.
            client.send(b"GET /endless HTTP/1.1\r\n\r\n");
        }
        client.reset();
        settled(&witness, server.port(), |c| c.closed == round && c.in_flight == 0).await;
        client = Client::connect_from(from, server);
    }
    let counts = settled(&witness, server.port(), |c| c.connections == 21).await;
    assert_eq!((counts.requests, counts.ended, counts.in_flight), (24, 24, 0), "{counts:?}");
    assert_eq!((counts.syns, counts.syn_retries, counts.protocols.http1), (21, 0, 20), "{counts:?}");
    let recent = witness.recent(100);
    assert_eq!(recent.iter().filter(|record| record.end == RequestEnd::Reset).count(), 4);
    assert_eq!(recent.iter().filter(|record| record.end == RequestEnd::Complete).count(), 20);
    // What is watched anew counts from nothing.
    witness.unwatch(server.port());
    assert!(witness.counters(server.port()).is_none());
    witness.watch(server.port(), engine()).expect("watch");
    client.post("/missing");
    let counts = settled(&witness, server.port(), |c| c.ended == 1).await;
    assert_eq!((counts.requests, counts.syns, counts.connections), (1, 0, 0), "{counts:?}");
    assert_eq!(witness.events_lost(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_witnesses_see_the_same() {
    let Some(first) = attach(WitnessOptions::default()) else { return };
    let second = attach(WitnessOptions::default()).expect("attached beside it");
    let server = sink(&first, b"no");
    second.watch(server.port(), engine()).expect("watch");
    say(server, &[b"*1\r\n$4\r\nPING\r\n"], 2);
    let mut counts: Vec<(u64, u64, Protocols)> = Vec::new();
    for witness in [&first, &second] as [&Witness; 2] {
        let seen = settled(witness, server.port(), |c| c.closed == 1).await;
        counts.push((seen.syns, seen.closed, seen.protocols));
    }
    assert_eq!(counts[0], counts[1]);
    assert_eq!((counts[0].0, counts[0].2.other), (1, 1));
}
