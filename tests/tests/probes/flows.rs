//! What is told of requests while they go on: the body's facts, every token's time, the end.

use super::{WAIT, attach, client::Client, engine, settled, start};
use controller_witness::{BodyFacts, Fidelity, FlowSample, Hop, RequestEnd, RequestRecord, Witness, WitnessOptions};
use std::os::unix::fs::MetadataExt;
use tokio::sync::broadcast::Receiver;

/// A request's samples, once it has ended.
async fn one_flow(samples: &mut Receiver<FlowSample>) -> Vec<FlowSample> {
    let mut seen = Vec::new();
    let all = async {
        while !matches!(seen.last(), Some(FlowSample::End { .. })) {
            seen.push(samples.recv().await.expect("samples"));
        }
    };
    tokio::time::timeout(WAIT, all).await.expect("an end in time");
    seen
}

/// Sends a request for a stream in these pieces and compares what was told of it with what was sent.
async fn check(
    witness: &Witness,
    client: &mut Client,
    sequence: u32,
    pieces: &[&str],
    body: &BodyFacts,
) -> RequestRecord {
    let mut samples = witness.subscribe_flow();
    let bytes: Vec<&[u8]> = pieces.iter().map(|piece| piece.as_bytes()).collect();
    let sent = client.request(&bytes);
    let seen = one_flow(&mut samples).await;
    let record = witness.find(client.address(), sequence).expect("a record");
    let at = format!("{pieces:?}\n{record:?}\n{seen:?}");
    let FlowSample::Start { port, flow, at_ns, request_bytes, max_tokens } = seen[0] else { panic!("{at}") };
    assert_eq!((port, at_ns, max_tokens), (record.port, record.start_ns, body.max_tokens), "{at}");
    assert_eq!(request_bytes, sent.request_bytes, "{at}");
    // 21 tokens, of which two may share a segment where the sender was held up; neither role nor finish is one.
    let tokens: Vec<u64> = seen
        .iter()
        .filter_map(|sample| match sample {
            FlowSample::Token { flow: theirs, at_ns, segments: 1, .. } if *theirs == flow => Some(*at_ns),
            _ => None,
        })
        .collect();
    assert_eq!(tokens.len(), seen.len() - 2, "{at}");
    assert!((20..=21).contains(&tokens.len()) && tokens.is_sorted(), "{at}");
    assert_eq!((tokens[0], tokens.len() as u32), (record.first_token_ns, record.tokens), "{at}");
    let longest = tokens.windows(2).map(|pair| pair[1] - pair[0]).max();
    assert_eq!(Some(record.itl_ns_max), longest, "{at}");
    assert!(0 < record.itl_ns_p50 && record.itl_ns_p50 <= record.itl_ns_p99, "{at}");
    assert!(record.itl_ns_p99 <= record.itl_ns_max, "{at}");
    let Some(FlowSample::End { end: RequestEnd::Complete, at_ns, .. }) = seen.last() else { panic!("{at}") };
    assert_eq!(*at_ns, record.last_byte_ns, "{at}");
    assert_eq!((record.body.as_ref(), record.fidelity), (Some(body), Fidelity::Tokens), "{at}");
    assert!(!format!("{record:?}").contains("secret"), "{at}");
    record
}

#[tokio::test(flavor = "multi_thread")]
async fn every_token_is_told_and_the_body_is_read_however_it_is_cut() {
    let Some(witness) = attach(WitnessOptions::default()) else { return };
    let (server, _) = start(&witness, "127.0.0.1:0");
    let mut client = Client::connect(server);
    let facts = |max_tokens| BodyFacts { model: Some("m".into()), stream: Some(true), max_tokens, n: None };
    let body = r#"{"model":"m","messages":[{"content":"a \"secret\" {"}],"stream":true,"max_tokens":21}"#;
    let head = format!("POST /chat HTTP/1.1\r\nAuthorization: secret\r\nContent-Length: {}\r\n\r\n", body.len());
    let whole = format!("{head}{body}");
    let first = check(&witness, &mut client, 0, &[&whole], &facts(Some(21))).await;
    let halves: [&[&str]; 3] = [
        &[&head, body],
        &[&whole[..13], &whole[13..head.len() - 2], &whole[head.len() - 2..]],
        &[&head, &body[..9], &body[9..]],
    ];
    for (sequence, pieces) in (1..).zip(halves) {
        let again = check(&witness, &mut client, sequence, pieces, &facts(Some(21))).await;
        assert_eq!(again.fingerprint, first.fingerprint, "the same request, cut otherwise");
    }
    // What comes after more than the kernel tells is not seen, and not guessed.
    let long = format!(r#"{{"model":"m","stream":true,"prompt":"{}","max_tokens":9}}"#, "secret ".repeat(1000));
    let long = format!("POST /chat HTTP/1.1\r\nContent-Length: {}\r\n\r\n{long}", long.len());
    let other = check(&witness, &mut client, 4, &[&long[..700], &long[700..]], &facts(None)).await;
    assert_ne!(other.fingerprint, first.fingerprint);
    let namespace = std::fs::metadata("/proc/self/ns/net").expect("our own").ino();
    let vantage = other.vantage;
    assert_eq!((vantage.hop, u64::from(vantage.net_namespace)), (engine().hop(), namespace));
    assert!(vantage.hop == Hop::Engine && vantage.cookie != 0 && vantage.cookie == first.vantage.cookie);
    let counts = settled(&witness, server.port(), |c| c.ended == 5).await;
    assert_eq!((counts.requests, counts.in_flight, witness.events_lost()), (5, 0, 0), "{counts:?}");
}
