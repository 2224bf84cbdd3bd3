//! Connections that wait to be accepted, and connections that are reset.

use super::{WAIT, attach, client::Client, engine, settled, start};
use crate::server::{self, now_ns};
use controller_witness::{RequestEnd, RequestRecord, WitnessOptions};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;
use tokio::sync::broadcast::Receiver;

const REQUEST: &[u8] = b"POST /endless HTTP/1.1\r\nContent-Length: 400000\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn the_wait_to_be_accepted_is_known() {
    let Some(witness) = attach(WitnessOptions::default()) else { return };
    for (bind, connect) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1"), ("[::]:0", "127.0.0.1")] {
        let listener = TcpListener::bind(bind).expect("bind");
        let port = listener.local_addr().expect("address").port();
        witness.watch(port, engine()).expect("watch");
        let target = SocketAddr::new(connect.parse().expect("address"), port);
        let clients: Vec<(Client, u64)> = (0..3).map(|_| (Client::connect(target), now_ns())).collect();
        tokio::time::sleep(Duration::from_millis(60)).await;
        let accepting_ns = now_ns();
        server::serve(listener);
        let mut most_ns = 0;
        for (mut client, connected_ns) in clients {
            let ended = witness.counters(port).expect("watched").ended;
            client.post("/missing");
            let most = now_ns() - client.connect_ns;
            settled(&witness, port, |c| c.ended > ended).await;
            let record = witness.find(client.address(), 0).expect("a record");
            let least = accepting_ns - connected_ns;
            assert!((least..=most).contains(&record.accept_wait_ns), "{least} to {most}: {record:?}");
            most_ns += most;
        }
        let counts = settled(&witness, port, |c| c.ended == 3).await;
        assert_eq!((counts.accepts, counts.connections), (3, 3), "{counts:?}");
        assert!(counts.accept_wait_ns <= most_ns && counts.accept_wait_ns_max >= 60_000_000, "{counts:?}");
        assert!(counts.accept_wait_ns_max < counts.accept_wait_ns, "{counts:?}");
        witness.unwatch(port);
    }
}

async fn record_of(records: &mut Receiver<std::sync::Arc<RequestRecord>>, client: SocketAddr) -> RequestRecord {
    let found = async {
        loop {
            let record = records.recv().await.expect("records");
            if record.client == client {
                return RequestRecord::clone(&record);
            }
        }
    };
    tokio::time::timeout(WAIT, found).await.expect("a record in time")
}

/// Until the other side is gone.
fn gone(mut stream: &TcpStream) {
    let mut buffer = [0; 4096];
    while !matches!(stream.read(&mut buffer), Ok(0) | Err(_)) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn resets_are_counted_by_their_sender_and_end_requests() {
    let Some(witness) = attach(WitnessOptions::default()) else { return };
    let mut records = witness.subscribe();
    // The client resets in the middle of an answer.
    let (server, _) = start(&witness, "127.0.0.1:0");
    let mut client = Client::connect(server);
    let address = client.address();
    client.stream.write_all(b"GET /endless HTTP/1.1\r\n\r\n").expect("write");
    client.stream.read_exact(&mut [0; 40]).expect("an answer");
    rustix::net::sockopt::set_socket_linger(&client.stream, Some(Duration::ZERO)).expect("linger");
    drop(client);
    let record = record_of(&mut records, address).await;
    assert_eq!((record.end, record.status), (RequestEnd::Reset, 200), "{record:?}");
    let counts = settled(&witness, server.port(), |c| c.resets_received == 1 && c.closed == 1).await;
    assert_eq!((counts.resets_received, counts.resets_sent, counts.in_flight), (1, 0, 0), "{counts:?}");
    // The server closes with the half of a request unread, in the middle of its answer.
    for answer in ["", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", "HTTP/1.0 200 OK\r\n\r\nhalf"] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let server = listener.local_addr().expect("address");
        witness.watch(server.port(), engine()).expect("watch");
        let mut client = Client::connect(server);
        let (mut stream, _) = listener.accept().expect("accept");
        client.stream.write_all(REQUEST).expect("write");
        client.stream.write_all(&[b'x'; 30_000]).expect("write");
        stream.read_exact(&mut [0; 100]).expect("a request");
        stream.write_all(answer.as_bytes()).expect("write");
        drop(stream);
        gone(&client.stream);
        let record = record_of(&mut records, client.address()).await;
        assert_eq!((record.end, record.response_bytes), (RequestEnd::Reset, answer.len() as u64), "{record:?}");
        let counts = settled(&witness, server.port(), |c| c.resets_sent == 1).await;
        assert_eq!((counts.resets_sent, counts.resets_received, counts.closed), (1, 0, 1), "{counts:?}");
    }
    // A regular end is none.
    let (server, _) = start(&witness, "127.0.0.1:0");
    let mut client = Client::connect(server);
    client.post("/missing");
    drop(client);
    let counts = settled(&witness, server.port(), |c| c.closed == 1).await;
    assert_eq!((counts.resets_sent, counts.resets_received, counts.retransmits), (0, 0, 0), "{counts:?}");
    assert_eq!(witness.events_lost(), 0);
}
