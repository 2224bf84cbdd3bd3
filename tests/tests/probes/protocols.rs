//! What a client speaks: requests are counted in HTTP/1 however it is cut, and of everything else the bytes.

use super::{attach, check, client::Client, settled, start};
use crate::server::now_ns;
use controller_witness::{Fidelity, PortRole, Protocols, Witness, WitnessOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};

/// Answers the first bytes of each connection with `answer`, and reads on to its end.
pub fn sink(witness: &Witness, answer: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let server = listener.local_addr().expect("address");
    witness.watch(server.port(), PortRole::Gateway).expect("watch");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut buffer = [0; 65536];
                if stream.read(&mut buffer)? > 0 {
                    stream.write_all(answer)?;
                }
                while stream.read(&mut buffer)? > 0 {}
                std::io::Result::Ok(())
            });
        }
    });
    server
}

/// Sends these pieces on a connection of their own, waits for the answer, and ends it regularly.
pub fn say(server: SocketAddr, pieces: &[&[u8]], answer_bytes: usize) {
    let mut stream = TcpStream::connect(server).expect("connect");
    stream.set_nodelay(true).expect("nodelay");
    for piece in pieces {
        stream.write_all(piece).expect("write");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    stream.shutdown(Shutdown::Write).expect("shutdown");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("read");
    assert_eq!(answer.len(), answer_bytes);
}

/// The client's preface of HTTP/2 and an empty SETTINGS frame.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_http1_is_recognised_and_its_bytes_are_counted() {
    let Some(witness) = attach(WitnessOptions::default()) else { return };
    // (what the client sends, what is counted)
    let table: [(&[&[u8]], Protocols); 5] = [
        (&[HTTP2], Protocols { http2: 1, ..opaque(HTTP2.len()) }),
        (&[b"P", b"R", &HTTP2[2..20], &HTTP2[20..]], Protocols { http2: 1, ..opaque(HTTP2.len()) }),
        (&[b"*1\r\n$4\r\nPING\r\n", b"POST / HTTP/1.1\r\n\r\n"], Protocols { other: 1, ..opaque(33) }),
        (&[b"\0\xff", b"\0\xff\xff GET / HTTP/1.1\r\n\r\n"], Protocols { other: 1, ..opaque(24) }),
        // Too little to be told.
        (&[b"POS"], Protocols::default()),
    ];
    for (pieces, expected) in table {
        let server = sink(&witness, b"no");
        say(server, pieces, 2);
        let counts = settled(&witness, server.port(), |c| c.closed == 1).await;
        assert_eq!((counts.protocols, counts.requests, counts.in_flight), (expected, 0, 0), "{pieces:?}");
    }
    assert_eq!((witness.events_lost(), witness.events_malformed()), (0, 0));
}

fn opaque(bytes: usize) -> Protocols {
    Protocols { opaque_request_bytes: bytes as u64, opaque_response_bytes: 2, ..Protocols::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tls_session_is_counted_by_the_byte() {
    let Some(witness) = attach(WitnessOptions::default()) else { return };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/probes/tls.py");
    let mut child = Command::new("python3");
    let mut child = child.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3");
    let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines().map(|line| line.expect("a line"));
    let port: u16 = lines.next().expect("a port").parse().expect("a port");
    witness.watch(port, PortRole::Gateway).expect("watch");
    writeln!(child.stdin.take().expect("stdin")).expect("write");
    let bytes = lines.next().expect("what the client counted");
    assert!(child.wait().expect("waited").success());
    let (sent, received) = bytes.split_once(' ').expect("two numbers");
    let counts = settled(&witness, port, |c| c.closed == 1).await;
    let expected = Protocols {
        tls: 1,
        opaque_request_bytes: sent.parse().expect("a number"),
        opaque_response_bytes: received.parse().expect("a number"),
        ..Protocols::default()
    };
    assert_eq!((counts.protocols, counts.requests), (expected, 0), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_come_byte_by_byte_are_requests() {
    let Some(witness) = attach(WitnessOptions::default()) else { return };
    let (server, log) = start(&witness, "127.0.0.1:0");
    let mut client = Client::connect(server);
    let text = "GET /missing HTTP/1.1\r\nHost: x\r\n\r\n";
    let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
    for sequence in 0..2 {
        let seen = client.request(&bytes);
        let counts = settled(&witness, server.port(), |c| c.ended > u64::from(sequence)).await;
        assert_eq!((counts.requests, counts.protocols.http1), (u64::from(sequence) + 1, 1), "{counts:?}");
        let record = witness.find(client.address(), sequence).expect("a record");
        let written = log.lock().expect("log")[&(client.address(), sequence)];
        check("bytes", client.connect_ns, sequence, &seen, &written, &record);
        assert_eq!((record.line.as_str(), record.fidelity), ("GET /missing HTTP/1.1", Fidelity::Counted));
    }
    assert!(now_ns() > 0 && witness.events_lost() == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_begins_like_http_is_told_by_its_bytes() {
    let Some(witness) = attach(WitnessOptions::default()) else { return };
    let server = sink(&witness, b"?");
    say(server, &[b"POST\x01\x02\xff\0garbage\r\n\r\n"], 1);
    let counts = settled(&witness, server.port(), |c| c.ended == 1 && c.closed == 1).await;
    assert_eq!((counts.requests, counts.in_flight), (1, 0), "{counts:?}");
    assert_eq!(witness.recent(1)[0].fidelity, Fidelity::Bytes);
}
