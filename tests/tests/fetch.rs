//! `foreshock models add` of an address: what an interrupted one has brought is not asked for again, and what is in the store
//! lies nowhere else.

use anyhow::{Context, Result, ensure};
use blackbox::serve::kill_engines;
use blackbox::{Foreshock, demo_model, foreshock_binary, http};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Longest wait for something that takes a moment.
const PATIENCE: Duration = Duration::from_secs(60);
/// What is asked for at once has so many bytes at least; less is a look at what the file is.
const PIECE_BYTES_MIN: usize = 1 << 20;
/// Pieces that the server gives before it hangs, and requests that a client has on their way at once.
const GIVEN: usize = 2;
const PARALLEL: usize = 8;

/// A file on an HTTP server of one path, `/model.gguf`, in ranges. It gives a few pieces and lets all others wait until it
/// is told to go on.
struct Remote {
    file: Vec<u8>,
    goes_on: AtomicBool,
    /// Beginnings of pieces that were given.
    given: Mutex<BTreeSet<usize>>,
    waits: Mutex<Sender<()>>,
}

impl Remote {
    fn start(file: Vec<u8>) -> Result<(Arc<Self>, SocketAddr, Receiver<()>)> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let addr = listener.local_addr()?;
        let (waits, waiting) = channel();
        let (goes_on, given, waits) = (AtomicBool::new(false), Mutex::default(), Mutex::new(waits));
        let remote = Arc::new(Self { file, goes_on, given, waits });
        let own = Arc::clone(&remote);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let remote = Arc::clone(&own);
                // A client that goes away is no fault of the server's.
                thread::spawn(move || drop(remote.answer(stream)));
            }
        });
        Ok((remote, addr, waiting))
    }

    fn given(&self) -> BTreeSet<usize> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a piece may go now.
    fn gives(&self, range: &Range<usize>) -> bool {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        let gives = range.len() < PIECE_BYTES_MIN || self.goes_on.load(Ordering::Relaxed) || given.len() < GIVEN;
        if gives && range.len() >= PIECE_BYTES_MIN {
            given.insert(range.start);
        }
        gives
    }

    fn answer(&self, mut stream: TcpStream) -> Result<()> {
        let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
        let first = lines.next().context("a request")?;
        let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
        if first.split(' ').nth(1) != Some("/model.gguf") {
            let none = "HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
            return Ok(stream.write_all(none.as_bytes())?);
        }
        let all = self.file.len();
        let asked =
            head.iter().find_map(|line| line.to_ascii_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
        let (begin, last) = asked.as_deref().and_then(|range| range.split_once('-')).context("a range")?;
        let range = begin.parse::<usize>()?..last.parse::<usize>()?.saturating_add(1).min(all);
        if !self.gives(&range) {
            self.waits.lock().unwrap_or_else(PoisonError::into_inner).send(())?;
            // Until the client has gone.
            let _ = stream.read(&mut [0; 1])?;
            return Ok(());
        }
        let (start, end, len) = (range.start, range.end - 1, range.len());
        let head = format!(
            "HTTP/1.1 206 Partial Content\r\nConnection: close\r\nETag: \"one\"\r\nContent-Length: {len}\r\n\
             Content-Range: bytes {start}-{end}/{all}\r\n\r\n"
        );
        stream.write_all(head.as_bytes())?;
        Ok(stream.write_all(self.file.get(range).context("a range of the file")?)?)
    }
}

/// Engines of a state folder, which outlive their serve, but not this.
struct Engines<'a>(&'a Path);

impl Drop for Engines<'_> {
    fn drop(&mut self) {
        kill_engines(self.0);
    }
}

fn add(state: &Path, address: &str) -> Result<Command> {
    let mut command = Command::new(foreshock_binary()?);
    command.args(["models", "add", "m", address, "--state"]).arg(state);
    command.env_remove("http_proxy").env_remove("HTTP_PROXY").stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command)
}

#[test]
fn an_address_is_added_and_what_an_interrupted_one_brought_is_kept() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let state = folder.path().join("state");
    let (remote, addr, waiting) = Remote::start(fs::read(demo_model()?)?)?;
    let address = format!("http://{addr}/model.gguf");

    let mut first = add(&state, &address)?.spawn()?;
    // All that the client asks for at once waits, so what was given is noted.
    for _ in 0..PARALLEL {
        waiting.recv_timeout(PATIENCE).context("the client asks for less than it should")?;
    }
    kill_process(Pid::from_child(&first), Signal::INT)?;
    ensure!(!first.wait()?.success(), "an interrupted command succeeded");
    let kept = remote.given();
    ensure!(kept.len() == GIVEN, "{kept:?}");

    remote.goes_on.store(true, Ordering::Relaxed);
    remote.given.lock().unwrap_or_else(PoisonError::into_inner).clear();
    let second = add(&state, &address)?.output()?;
    let (said, wrong) = (String::from_utf8_lossy(&second.stdout), String::from_utf8_lossy(&second.stderr));
    ensure!(second.status.success() && said.contains("m: registered") && said.contains("MB stored"), "{said} {wrong}");
    ensure!(remote.given().is_disjoint(&kept) && !remote.given().is_empty(), "fetched again: {kept:?}");
    let left = fs::read_dir(state.join("fetched"))?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    ensure!(left.iter().all(|path| path.extension().is_some_and(|end| end == "lock")), "left behind: {left:?}");

    let memory = tempfile::tempdir_in("/dev/shm")?;
    let segments = memory.path().join("segments");
    let _engines = Engines(&state);
    let serve = Foreshock::start_in(&state, &["--segments", segments.to_str().context("a path")?])?;
    let body = json!({"model": "m", "prompt": "The sea is", "max_tokens": 4, "temperature": 0});
    let answer = http::post_json(serve.data, "/v1/completions", &body)?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
    ensure!(serve.terminate()?.success(), "no clean exit");
    Ok(())
}

#[test]
fn what_is_not_there_is_said_in_one_line() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (_remote, addr, _waiting) = Remote::start(Vec::new())?;
    for (address, wanted) in [
        (format!("http://{addr}/other.gguf"), "is not there: check the address"),
        ("hf://alone".to_owned(), "names no checkpoint"),
    ] {
        let output = add(&folder.path().join("state"), &address)?.output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(2) && said.contains(wanted) && said.lines().count() == 1, "{said}");
    }
    Ok(())
}
