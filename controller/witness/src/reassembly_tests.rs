//! Tables of whole timelines, and properties that hold whatever the events are.

use super::*;
use ebpf_types::{EVENT_BODY, EVENT_CLOSED, EVENT_REQUEST, EVENT_RESPONSE, EVENT_TOKEN, EventHeader};
use proptest::prelude::*;

const PORT: u16 = 8080;

fn flow(kind: u16, client_port: u16, request: u32, at_ns: u64) -> FlowEvent {
    let mut event = FlowEvent::EMPTY;
    event.header.kind = kind;
    event.header.at_ns = at_ns;
    event.key.client_port = client_port;
    event.key.server_port = PORT;
    event.request = request;
    event.start_ns = 100;
    event
}

fn totals(in_flight: u64, ended: u64, pipelined: u64) -> PortTotals {
    PortTotals { in_flight, ended, pipelined, misread: 0 }
}

fn machine(capacity: usize) -> Reassembly {
    let mut machine = Reassembly::new(capacity);
    machine.watch(PORT, PortRole::Gateway);
    machine
}

/// Feeds segments of one answer as the kernel tells them.
fn answer(machine: &mut Reassembly, request: u32, segments: &[(&str, bool)], finished: &mut Vec<RequestRecord>) {
    let mut bytes = 0;
    let mut data = 0;
    for (i, (text, terminated)) in segments.iter().enumerate() {
        bytes += text.len() as u64;
        data += u32::from(text.starts_with("data:"));
        let mut event = flow(EVENT_RESPONSE, 9, request, 200 + i as u64);
        event.first_byte_ns = 200;
        event.last_byte_ns = event.header.at_ns;
        event.response_bytes = bytes;
        event.segment_bytes = text.len() as u32;
        event.data_segments = data;
        event.header.flags = if *terminated { FLAG_TERMINATOR } else { 0 };
        machine.apply(&Event::Response(event, text.as_bytes()), finished);
    }
}

#[test]
fn a_stream_becomes_a_record() {
    let mut machine = machine(8);
    let mut finished = Vec::new();
    let line = b"POST /v1/chat/completions HTTP/1.1";
    machine.apply(&Event::Request(flow(EVENT_REQUEST, 9, 0, 100), line), &mut finished);
    assert_eq!(machine.totals(PORT), totals(1, 0, 0));
    let client = flow(0, 9, 0, 0).key.client_addr();
    assert_eq!(machine.open_record(client, 0).map(|record| record.end), Some(RequestEnd::InProgress));
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    let segments = [
        (head, false),
        ("data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n", false),
        ("data: {\"choices\":[{\"delta\":{\"content\":\"Hi\"}}]}\n\n", false),
        ("data: {\"choices\":[{\"delta\":{\"content\":\" you\"}}]}\n\n", false),
        ("0\r\n\r\n", true),
    ];
    answer(&mut machine, 0, &segments, &mut finished);
    assert_eq!(finished.len(), 1);
    let record = &finished[0];
    assert_eq!(
        (record.start_ns, record.first_byte_ns, record.first_token_ns, record.last_byte_ns),
        (100, 200, 202, 204)
    );
    assert_eq!((record.status, record.data_segments, record.itl_ns_mean), (200, 3, 2));
    assert_eq!(record.line, "POST /v1/chat/completions HTTP/1.1");
    assert_eq!(record.end, RequestEnd::Complete);
    assert_eq!(machine.totals(PORT), totals(0, 1, 0));
    // The closing of the connection afterwards adds nothing.
    machine.apply(&Event::Closed(flow(EVENT_CLOSED, 9, 0, 300)), &mut finished);
    assert_eq!((finished.len(), machine.connections()), (1, 0));
}

fn token(machine: &mut Reassembly, at_ns: u64, data_segments: u32) {
    let header = EventHeader { kind: EVENT_TOKEN, flags: 0, text_bytes: 0, at_ns };
    let event = TokenEvent { header, flow: 77, request: 0, data_segments, response_bytes: 300, segment_bytes: 60 };
    machine.apply(&Event::Token(event), &mut Vec::new());
}

#[test]
fn a_request_is_told_as_it_goes_on() {
    let mut machine = machine(8);
    let mut finished = Vec::new();
    let numbered = |kind, at_ns| FlowEvent { flow: 77, ..flow(kind, 9, 0, at_ns) };
    let head = b"POST /v1/completions HTTP/1.1\r\nContent-Length: 30\r\n\r\n";
    machine
        .apply(&Event::Request(FlowEvent { segment_bytes: 53, ..numbered(EVENT_REQUEST, 100) }, head), &mut finished);
    assert_eq!((machine.take_samples(), machine.in_flight()), (vec![], 1));
    let body = b"{\"model\":\"m\",\"max_tokens\":17}";
    machine.apply(&Event::Body(FlowEvent { segment_bytes: 30, ..numbered(EVENT_BODY, 110) }, body), &mut finished);
    let start = FlowSample::Start { port: PORT, flow: 1, at_ns: 100, request_bytes: 83, max_tokens: Some(17) };
    assert_eq!(machine.take_samples(), [start]);
    let text = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: {\"tokens\":[1]}\n\n";
    let first = FlowEvent {
        segment_bytes: text.len() as u32,
        response_bytes: text.len() as u64,
        ..numbered(EVENT_RESPONSE, 200)
    };
    machine.apply(&Event::Response(FlowEvent { data_segments: 1, first_byte_ns: 200, ..first }, text), &mut finished);
    token(&mut machine, 210, 2);
    // The third is lost, and one that was told comes again.
    token(&mut machine, 240, 4);
    token(&mut machine, 241, 4);
    token(&mut machine, 252, 5);
    machine.apply(&Event::Closed(FlowEvent { first_byte_ns: 200, ..numbered(EVENT_CLOSED, 300) }), &mut finished);
    let told = |at_ns, segments| FlowSample::Token { port: PORT, flow: 1, at_ns, segments };
    let end = FlowSample::End { port: PORT, flow: 1, at_ns: 252, end: RequestEnd::Complete };
    assert_eq!(machine.take_samples(), [told(200, 1), told(210, 1), told(240, 2), told(252, 1), end]);
    let record = &finished[0];
    assert_eq!((record.tokens, record.itl_ns_p50, record.itl_ns_max), (5, 10, 12), "{record:?}");
    assert_eq!(record.body.as_ref().and_then(|body| body.model.as_deref()), Some("m"));
    // Nothing is left of the connection's number.
    token(&mut machine, 260, 6);
    assert_eq!(machine.take_samples(), []);
}

/// Requests sent ahead in one segment, the answers to which share segments as these say.
fn answers_in(segments: &[&str]) -> Vec<(u32, u64, u64, u16, RequestEnd)> {
    let mut machine = machine(8);
    let mut finished = Vec::new();
    let text = "GET /a HTTP/1.1\r\n\r\nPOST /b HTTP/1.1\r\nContent-Length: 2\r\n\r\nabHEAD /c HTTP/1.1\r\n\r\n";
    let bytes = text.len() as u32;
    let whole = FlowEvent { segment_bytes: bytes, request_bytes: bytes.into(), ..flow(EVENT_REQUEST, 9, 0, 100) };
    machine.apply(&Event::Request(whole, text.as_bytes()), &mut finished);
    assert_eq!(machine.totals(PORT), totals(3, 0, 2));
    let told: Vec<(&str, bool)> = segments.iter().map(|text| (*text, text.ends_with("0\r\n\r\n"))).collect();
    answer(&mut machine, 0, &told, &mut finished);
    let total = segments.iter().map(|text| text.len() as u64).sum();
    let closed = FlowEvent { first_byte_ns: 200, response_bytes: total, ..flow(EVENT_CLOSED, 9, 0, 300) };
    machine.apply(&Event::Closed(closed), &mut finished);
    finished.iter().map(|r| (r.sequence, r.request_bytes, r.response_bytes, r.status, r.end)).collect()
}

#[test]
fn answers_are_told_apart_wherever_they_are_cut() {
    use RequestEnd::{Aborted, Complete};
    let a = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let b = "HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
    let c = "HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\n";
    let all = [a, b, c].concat();
    let expected = [
        (0, 19, a.len() as u64, 200, Complete),
        (1, 41, b.len() as u64, 201, Complete),
        (2, 20, c.len() as u64, 404, Complete),
    ];
    for cut in [vec![a, b, c], vec![&all], vec![&all[..50], &all[50..]], vec![a, &b[..30], &all[a.len() + 30..]]] {
        assert_eq!(answers_in(&cut), expected, "{cut:?}");
    }
    // The third is never answered, and the second not wholly.
    let cut = answers_in(&[a, &b[..30]]);
    assert_eq!(cut.iter().map(|one| one.4).collect::<Vec<_>>(), [Complete, RequestEnd::Lost, Aborted]);
    assert_eq!((cut[1].2, cut[2].2), (30, 0));
}

#[test]
fn ends_without_the_last_byte() {
    // (answer so far, expected end at close)
    let table = [
        (None, RequestEnd::Aborted),
        (Some("HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf"), RequestEnd::Aborted),
        (Some("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf"), RequestEnd::Aborted),
        (Some("HTTP/1.0 200 OK\r\n\r\nall of it"), RequestEnd::Complete),
        (Some("\x01\x02 no http"), RequestEnd::Lost),
    ];
    for (text, expected) in table {
        let mut machine = machine(8);
        let mut finished = Vec::new();
        machine.apply(&Event::Request(flow(EVENT_REQUEST, 9, 0, 100), b"GET / HTTP/1.1"), &mut finished);
        let mut closed = flow(EVENT_CLOSED, 9, 0, 300);
        if let Some(text) = text {
            answer(&mut machine, 0, &[(text, false)], &mut finished);
            closed.first_byte_ns = 200;
            closed.last_byte_ns = 200;
            closed.response_bytes = text.len() as u64;
        }
        machine.apply(&Event::Closed(closed), &mut finished);
        assert_eq!(finished.iter().map(|r| r.end).collect::<Vec<_>>(), [expected], "{text:?}");
    }
}

#[test]
fn keep_alive_requests_are_told_apart_and_lost_events_survived() {
    let mut machine = machine(8);
    let mut finished = Vec::new();
    let whole = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    for request in 0..3 {
        machine.apply(&Event::Request(flow(EVENT_REQUEST, 9, request, 100), b"GET / HTTP/1.1"), &mut finished);
        answer(&mut machine, request, &[(whole, false)], &mut finished);
    }
    // Request 3 is known by its answer only; of request 4 nothing is seen; then comes 5.
    answer(&mut machine, 3, &[(whole, false)], &mut finished);
    machine.apply(&Event::Request(flow(EVENT_REQUEST, 9, 5, 100), b"GET / HTTP/1.1"), &mut finished);
    // And the same ports again, with 5 still open.
    machine.apply(&Event::Request(flow(EVENT_REQUEST, 9, 0, 400), b"GET / HTTP/1.1"), &mut finished);
    let got: Vec<(u32, RequestEnd)> = finished.iter().map(|record| (record.sequence, record.end)).collect();
    use RequestEnd::{Complete, Lost};
    assert_eq!(got, [(0, Complete), (1, Complete), (2, Complete), (3, Complete), (5, Lost)]);
    machine.sweep(1000, &mut finished);
    assert_eq!((finished.len(), machine.connections()), (6, 0));
}

#[test]
fn unwatched_ports_and_unknown_connections_are_dropped() {
    let mut machine = machine(8);
    let mut finished = Vec::new();
    let mut other = flow(EVENT_REQUEST, 9, 0, 1);
    other.key.server_port = 1;
    machine.apply(&Event::Request(other, b"GET / HTTP/1.1"), &mut finished);
    machine.apply(&Event::Closed(flow(EVENT_CLOSED, 77, 0, 1)), &mut finished);
    assert_eq!((finished.len(), machine.connections()), (0, 0));
    machine.apply(&Event::Request(flow(EVENT_REQUEST, 9, 0, 1), b"GET / HTTP/1.1"), &mut finished);
    machine.unwatch(PORT, &mut finished);
    assert_eq!((finished.len(), machine.connections()), (1, 0));
}

/// Any event of any flow with any text.
fn any_event() -> impl Strategy<Value = (u16, FlowEvent, Vec<u8>)> {
    let texts = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..80),
        Just(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc".to_vec()),
        Just(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec()),
        Just(b"data: {\"tokens\":[1]}\n\n".to_vec()),
        Just(b"HTTP/1.1 ".to_vec()),
        Just(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\naHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nbb".to_vec()),
        Just(b"GET /a HTTP/1.1\r\n\r\nPOST /b HTTP/1.1\r\nContent-Length: 2\r\n\r\nabGET".to_vec()),
        Just(b"GET / HTTP/1.1\r\n\r\n".repeat(70)),
    ];
    (3u16..7, 0u16..40, 0u32..4, any::<[u64; 6]>(), any::<[u32; 2]>(), 0u16..32, texts).prop_map(
        |(kind, port, request, n, m, flags, text)| {
            let mut event = flow(kind, port, request, n[0]);
            event.header.flags = flags;
            event.start_ns = n[1];
            event.first_byte_ns = n[2];
            event.last_byte_ns = n[3];
            event.request_bytes = n[4];
            event.response_bytes = if n[5] % 2 == 0 { n[5] } else { n[5] % 100 };
            event.data_segments = m[0];
            event.segment_bytes = if m[1] % 2 == 0 { text.len() as u32 } else { m[1] };
            (kind, event, text)
        },
    )
}

proptest! {
    #[test]
    fn garbage_neither_panics_nor_grows(events in proptest::collection::vec(any_event(), 0..200)) {
        let mut machine = machine(8);
        let mut finished = Vec::new();
        for (kind, event, text) in &events {
            let event = match kind {
                3 => Event::Request(*event, text),
                4 => Event::Response(*event, text),
                5 => Event::Body(*event, text),
                _ => Event::Closed(*event),
            };
            machine.apply(&event, &mut finished);
            prop_assert!(machine.connections() <= 8);
            let totals = machine.totals(PORT);
            prop_assert_eq!(totals.ended as usize, finished.len());
            let open: Vec<usize> = machine.connections.values().map(|connection| connection.open.len()).collect();
            prop_assert_eq!(totals.in_flight as usize, open.iter().sum::<usize>());
            prop_assert!(open.iter().all(|&open| open <= OPEN_LIMIT));
        }
        machine.sweep(u64::MAX, &mut finished);
        machine.unwatch(PORT, &mut finished);
        prop_assert_eq!(machine.connections(), 0);
        prop_assert!(finished.iter().all(|record| record.end != RequestEnd::InProgress));
    }
}
