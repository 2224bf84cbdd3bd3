//! What the engine says on stdout: JSON notices to the controller that started it, plain lines to a person.

use crate::clock;
use engine_wire::control::Notice;
use std::io::Write;
use std::net::SocketAddr;

/// Where the engine speaks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Voice {
    Controller,
    Person,
}

impl Voice {
    pub fn listening(self, addr: SocketAddr, model: &str) {
        match self {
            Self::Controller => {
                let at_ns = clock::monotonic_ns();
                say(&Notice::Listening { port: addr.port(), pid: std::process::id(), at_ns });
            }
            Self::Person => print(&format!("listening on http://{addr}/v1, loading {model}")),
        }
    }

    pub fn ready(self, at_ns: u64, model: &str, since_start_ms: f64) {
        match self {
            Self::Controller => say(&Notice::Ready { at_ns }),
            Self::Person => print(&format!("{model} is ready after {since_start_ms:.0} ms")),
        }
    }

    /// A person reads the failure on stderr, from the caller.
    pub fn failed(self, message: &str) {
        if self == Self::Controller {
            say(&Notice::Failed { message: message.to_string() });
        }
    }
}

fn say(notice: &Notice) {
    if let Ok(line) = serde_json::to_string(notice) {
        print(&line);
    }
}

/// The reader may be gone: the parent can die while the engine goes on under its lease. So errors are no concern.
fn print(line: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}
