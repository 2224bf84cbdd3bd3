//! The hop's parser: the same items however the bytes are cut, and errors for what is not the hop.

use controller_gateway::sse::{HopItem, HopParser, HopSyntaxError, LINE_LIMIT_BYTES};
use engine_wire::hop::{FinishReason, HopEvent};
use proptest::prelude::*;

fn parse(chunks: &[&[u8]]) -> (Vec<HopItem>, Option<HopSyntaxError>) {
    let (mut parser, mut items) = (HopParser::default(), Vec::new());
    let error = chunks.iter().find_map(|chunk| parser.push(chunk, &mut items).err());
    (items, error)
}

#[test]
fn events_comments_and_fields() {
    let text = b": hello\r\nevent: x\nid\nretry: 5\n\ndata: {\"tokens\":[1,2]}\r\n\r\ndata:{\"finished\":{\"reason\":\"stop\",\"cached_tokens\":4}}\n\ndata: [DONE]\n\n: bye\n";
    let (items, error) = parse(&[text]);
    let finished = HopEvent::Finished { reason: FinishReason::Stop, cached_tokens: 4 };
    let wanted = [HopItem::Event(HopEvent::Tokens(vec![1, 2])), HopItem::Event(finished), HopItem::Done];
    assert_eq!((items.as_slice(), error), (&wanted[..], None));
}

#[test]
fn garbage_is_an_error() {
    let long = vec![b'x'; LINE_LIMIT_BYTES + 1];
    for (text, wanted) in [
        (&b"HTTP/1.1 200 OK\n"[..], "no field"),
        (b"eventful: x\n", "no field"),
        (b"\xff\xfe\n", "no field"),
        (b"data: {\"tokens\":[1,-2]}\n", "not a hop event"),
        (b"data: {\"tokens\":[4294967296]}\n", "not a hop event"),
        (b"data: {\"tokens\":[1]\n", "not a hop event"),
        (b"data: \xff\n", "not a hop event"),
        (b"data: [DONE]\ndata: {\"tokens\":[1]}\n", "after [DONE]"),
        (&long, "longer than"),
    ] {
        let error = parse(&[text]).1.map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(wanted), "{:?}: {error}", String::from_utf8_lossy(&text[..text.len().min(40)]));
    }
}

#[test]
fn a_line_grown_in_small_pieces_is_bounded_too() {
    let piece = [b'x'; 1000];
    let pieces = vec![&piece[..]; LINE_LIMIT_BYTES / 1000 + 1];
    assert_eq!(parse(&pieces), (vec![], Some(HopSyntaxError::LineTooLong)));
}

proptest! {
    #[test]
    fn cuts_change_nothing(
        tokens in prop::collection::vec(prop::collection::vec(any::<u32>(), 0..5), 0..6),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let events: Vec<HopEvent> = tokens.into_iter().map(HopEvent::Tokens).collect();
        let lines = events.iter().map(|event| format!("data: {}\r\n\n", serde_json::to_string(event).unwrap()));
        let text = lines.collect::<String>() + "data: [DONE]\n\n";
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len())).collect();
        at.extend([0, text.len()]);
        at.sort_unstable();
        let chunks: Vec<&[u8]> = at.windows(2).map(|pair| &text.as_bytes()[pair[0]..pair[1]]).collect();
        let wanted: Vec<HopItem> = events.into_iter().map(HopItem::Event).chain([HopItem::Done]).collect();
        prop_assert_eq!(parse(&chunks), (wanted, None));
    }

    #[test]
    fn any_bytes_are_survived(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8)) {
        let chunks: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
        let _ = parse(&chunks);
    }
}
