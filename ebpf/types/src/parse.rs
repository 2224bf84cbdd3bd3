//! From the bytes of a ring buffer entry to an event. Nothing is assumed of the bytes: an entry that a
//! different version wrote gives an error, never a panic.

use crate::event::{
    EVENT_BODY, EVENT_CLOSED, EVENT_ESTABLISHED, EVENT_EXIT, EVENT_REQUEST, EVENT_RESPONSE, EVENT_SYN, EVENT_TOKEN,
    EventHeader, ExitEvent, FlowEvent, FlowKey, TokenEvent,
};
use core::fmt;
use core::net::{IpAddr, Ipv6Addr, SocketAddr};

/// One event with its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    Syn(FlowEvent),
    Established(FlowEvent),
    Request(FlowEvent, &'a [u8]),
    Body(FlowEvent, &'a [u8]),
    Response(FlowEvent, &'a [u8]),
    Token(TokenEvent),
    Closed(FlowEvent),
    Exit(ExitEvent),
}

/// Why bytes are not an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseError {
    Truncated { needed: usize, have: usize },
    UnknownKind(u16),
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { needed, have } => write!(f, "probe event has {have} bytes where {needed} are needed"),
            Self::UnknownKind(kind) => write!(f, "probe event of unknown kind {kind}"),
        }
    }
}

impl core::error::Error for ParseError {}

/// Reads one ring buffer entry.
///
/// # Errors
/// [`ParseError`] when the entry is too short for its kind or the kind is unknown.
pub fn parse(bytes: &[u8]) -> Result<Event<'_>, ParseError> {
    let header: EventHeader = read(bytes)?;
    match header.kind {
        EVENT_SYN => Ok(Event::Syn(read(bytes)?)),
        EVENT_ESTABLISHED => Ok(Event::Established(read(bytes)?)),
        EVENT_REQUEST => Ok(Event::Request(read(bytes)?, text(bytes, &header)?)),
        EVENT_BODY => Ok(Event::Body(read(bytes)?, text(bytes, &header)?)),
        EVENT_TOKEN => Ok(Event::Token(read(bytes)?)),
        EVENT_RESPONSE => Ok(Event::Response(read(bytes)?, text(bytes, &header)?)),
        EVENT_CLOSED => Ok(Event::Closed(read(bytes)?)),
        EVENT_EXIT => Ok(Event::Exit(read(bytes)?)),
        kind => Err(ParseError::UnknownKind(kind)),
    }
}

fn read<T: bytemuck::AnyBitPattern>(bytes: &[u8]) -> Result<T, ParseError> {
    let needed = size_of::<T>();
    let fixed = bytes.get(..needed).ok_or(ParseError::Truncated { needed, have: bytes.len() })?;
    Ok(bytemuck::pod_read_unaligned(fixed))
}

fn text<'a>(bytes: &'a [u8], header: &EventHeader) -> Result<&'a [u8], ParseError> {
    let start = size_of::<FlowEvent>();
    let needed = start.saturating_add(header.text_bytes as usize);
    bytes.get(start..needed).ok_or(ParseError::Truncated { needed, have: bytes.len() })
}

impl FlowKey {
    /// The client's address; an IPv4-mapped one as IPv4.
    pub fn client_addr(&self) -> SocketAddr {
        SocketAddr::new(unmap(self.client), self.client_port)
    }

    /// The server's address; an IPv4-mapped one as IPv4.
    pub fn server_addr(&self) -> SocketAddr {
        SocketAddr::new(unmap(self.server), self.server_port)
    }
}

fn unmap(address: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(address).to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_is_cut_at_its_length() {
        let mut event = FlowEvent::EMPTY;
        event.header.kind = EVENT_REQUEST;
        event.header.text_bytes = 3;
        let mut bytes = [0u8; 192];
        bytes[..152].copy_from_slice(bytemuck::bytes_of(&event));
        bytes[152..158].copy_from_slice(b"GET /x");
        assert_eq!(parse(&bytes), Ok(Event::Request(event, b"GET")));
        assert_eq!(parse(&bytes[..154]), Err(ParseError::Truncated { needed: 155, have: 154 }));
        assert_eq!(parse(&bytes[..20]), Err(ParseError::Truncated { needed: 152, have: 20 }));
        assert_eq!(parse(&[]), Err(ParseError::Truncated { needed: 16, have: 0 }));
    }

    #[test]
    fn mapped_addresses_read_as_ipv4() {
        let mut key = FlowEvent::EMPTY.key;
        key.client = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 127, 0, 0, 1];
        key.client_port = 9;
        assert_eq!(key.client_addr(), SocketAddr::from(([127, 0, 0, 1], 9)));
        key.client = [0; 16];
        key.client[15] = 1;
        assert_eq!(key.client_addr(), SocketAddr::from((Ipv6Addr::LOCALHOST, 9)));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400), kind in 0u16..10) {
            let mut bytes = bytes;
            if bytes.len() >= 2 {
                bytes[..2].copy_from_slice(&kind.to_le_bytes());
            }
            if let Ok(Event::Response(_, text) | Event::Request(_, text) | Event::Body(_, text)) = parse(&bytes) {
                prop_assert!(text.len() + 152 <= bytes.len());
            }
        }
    }
}
