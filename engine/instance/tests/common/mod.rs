//! An engine in this process over a small device, its hop client and its control client.

#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod device;

use device::DigestDevice;
use engine_instance::{Came, EngineError, EngineOptions, Loaded, LoadedModel, Supervision, run_with};
use engine_wire::TokenId;
use engine_wire::control::{Command, EngineState, Hello, PROTOCOL, Reply, Telemetry};
use engine_wire::hop::{FinishReason, GENERATE_PATH, GenerateRequest, HopEvent};
use engine_wire::sampling::{Sampling, StopRule};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;

/// Bound of every wait in the tests: only a hang reaches it.
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const MODEL: &str = "digest";

pub struct TestEngine {
    pub dir: TempDir,
    pub port: u16,
    pub socket: PathBuf,
    pub task: JoinHandle<Result<(), EngineError>>,
}

/// Options of an engine in `dir`, with a long lease.
pub fn options(dir: &Path) -> EngineOptions {
    let model = dir.join("model.gguf");
    std::fs::write(&model, b"not read by the test's loader").expect("the folder is writable");
    let mut options = EngineOptions::new(model);
    options.name = Some(MODEL.into());
    options.supervision = Some(Supervision {
        instance: "one".into(),
        revision: "r1".into(),
        control: dir.join("one.sock"),
        lease: Duration::from_secs(600),
    });
    options
}

pub fn loaded(pace: Duration) -> Loaded {
    let forward = Box::new(DigestDevice::new(pace));
    LoadedModel { forward, eos_token_ids: vec![device::EOS], adapters: None, came: Came::default() }.into()
}

impl TestEngine {
    pub async fn start(pace: Duration, change: impl FnOnce(&mut EngineOptions)) -> Self {
        let engine = Self::start_with(change, move || Ok(loaded(pace))).await;
        engine.until(|telemetry| telemetry.state == EngineState::Ready).await;
        engine
    }

    /// Answers once the port is bound.
    pub async fn start_with(
        change: impl FnOnce(&mut EngineOptions),
        load: impl FnOnce() -> Result<Loaded, EngineError> + Send + 'static,
    ) -> Self {
        Self::begin(change, |options| tokio::spawn(run_with(options, Box::new(move |_, _| load())))).await
    }

    /// An engine that loads the checkpoint of its options, ready.
    pub async fn start_checkpoint(change: impl FnOnce(&mut EngineOptions)) -> Self {
        let engine = Self::begin(change, |options| tokio::spawn(engine_instance::run(options))).await;
        engine.until(|telemetry| telemetry.state == EngineState::Ready).await;
        engine
    }

    async fn begin(
        change: impl FnOnce(&mut EngineOptions),
        run: impl FnOnce(EngineOptions) -> JoinHandle<Result<(), EngineError>>,
    ) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let mut options = options(dir.path());
        change(&mut options);
        let socket = options.supervision.as_ref().expect("under control").control.clone();
        let task = run(options);
        let began = Instant::now();
        while !socket.exists() {
            assert!(began.elapsed() < PATIENCE && !task.is_finished(), "the engine does not start");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let mut engine = Self { dir, port: 0, socket, task };
        engine.port = engine.hello().await.port;
        engine
    }

    pub async fn command(&self, command: &Command) -> Reply {
        Controller::connect(&self.socket).await.send(command).await
    }

    pub async fn hello(&self) -> Hello {
        match self.command(&Command::Hello { protocol: PROTOCOL }).await {
            Reply::Hello(hello) => hello,
            other => panic!("no hello: {other:?}"),
        }
    }

    pub async fn telemetry(&self) -> Telemetry {
        match self.command(&Command::Renew { epoch: 1, lease_ms: 600_000 }).await {
            Reply::Telemetry(telemetry) => telemetry,
            other => panic!("no telemetry: {other:?}"),
        }
    }

    /// Waits until the telemetry shows something.
    pub async fn until(&self, shown: impl Fn(&Telemetry) -> bool) -> Telemetry {
        let began = Instant::now();
        loop {
            let telemetry = self.telemetry().await;
            if shown(&telemetry) {
                return telemetry;
            }
            assert!(began.elapsed() < PATIENCE, "it never shows: {telemetry:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub async fn generate(&self, request: &GenerateRequest) -> HopStream {
        HopStream::open(self.port, serde_json::to_vec(request).expect("serializable"), &[]).await
    }

    /// The JSON answer to a JSON body.
    pub async fn post(&self, path: &str, body: &serde_json::Value) -> serde_json::Value {
        let stream = HopStream::open_at(self.port, path, body.to_string().into_bytes(), &[]).await;
        serde_json::from_slice(&stream.bytes().await).expect("a JSON body")
    }

    /// The engine's end.
    pub async fn ended(self) -> Result<(), EngineError> {
        tokio::time::timeout(PATIENCE, self.task).await.expect("it ends").expect("no panic")
    }
}

/// A control connection.
pub struct Controller {
    stream: BufReader<UnixStream>,
}

impl Controller {
    pub async fn connect(path: &Path) -> Self {
        Self { stream: BufReader::new(UnixStream::connect(path).await.expect("the engine listens")) }
    }

    pub async fn send(&mut self, command: &Command) -> Reply {
        self.send_line(&serde_json::to_string(command).expect("serializable")).await
    }

    pub async fn send_line(&mut self, line: &str) -> Reply {
        self.stream.get_mut().write_all(format!("{line}\n").as_bytes()).await.expect("the engine reads");
        let mut reply = String::new();
        let read = self.stream.read_line(&mut reply);
        tokio::time::timeout(PATIENCE, read).await.expect("an answer").expect("readable");
        serde_json::from_str(&reply).unwrap_or_else(|error| panic!("{error}: {reply}"))
    }
}

/// A hop answer that is being read.
pub struct HopStream {
    pub status: u16,
    pub headers: hyper::HeaderMap,
    body: Incoming,
    connection: JoinHandle<()>,
    buffer: String,
}

impl Drop for HopStream {
    fn drop(&mut self) {
        // Closes the socket, as a client that goes away does.
        self.connection.abort();
    }
}

impl HopStream {
    pub async fn open(port: u16, body: Vec<u8>, headers: &[(&str, &str)]) -> Self {
        Self::open_at(port, GENERATE_PATH, body, headers).await
    }

    pub async fn open_at(port: u16, path: &str, body: Vec<u8>, headers: &[(&str, &str)]) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("the port is bound");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("a connection");
        let connection = tokio::spawn(async move {
            let _ = connection.await;
        });
        let mut request =
            hyper::Request::post(path).header("host", "127.0.0.1").header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::from(body))).expect("a request");
        let response = tokio::time::timeout(PATIENCE, sender.send_request(request)).await;
        let response = response.expect("an answer").expect("an answer");
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Self { status, headers, body: response.into_body(), connection, buffer: String::new() }
    }

    /// The next event; none after `[DONE]` or when the connection breaks.
    pub async fn next(&mut self) -> Option<HopEvent> {
        loop {
            if let Some(end) = self.buffer.find("\n\n") {
                let block: String = self.buffer.drain(..end + 2).collect();
                match block.trim().strip_prefix("data: ") {
                    Some("[DONE]") => return None,
                    Some(json) => return Some(serde_json::from_str(json).expect("an event")),
                    None => continue,
                }
            }
            let frame = tokio::time::timeout(PATIENCE, self.body.frame()).await.expect("more in time")?;
            let data = frame.ok()?.into_data().expect("data");
            self.buffer.push_str(std::str::from_utf8(&data).expect("UTF-8"));
        }
    }

    /// The rest of the tokens, and how it ended.
    pub async fn collect(mut self) -> (Vec<TokenId>, Option<HopEvent>) {
        let mut tokens = Vec::new();
        while let Some(event) = self.next().await {
            match event {
                HopEvent::Tokens(more) | HopEvent::Scored { tokens: more, .. } => tokens.extend(more),
                end => {
                    assert_eq!(self.next().await, None, "nothing comes after the end");
                    return (tokens, Some(end));
                }
            }
        }
        (tokens, None)
    }

    /// The message of an error answer in OpenAI's shape.
    pub async fn error_message(self) -> String {
        let body: serde_json::Value = serde_json::from_slice(&self.bytes().await).expect("a JSON body");
        body["error"]["message"].as_str().expect("an error object").to_string()
    }

    /// The whole body.
    pub async fn bytes(mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Some(Ok(frame)) = tokio::time::timeout(PATIENCE, self.body.frame()).await.expect("more in time") {
            bytes.extend_from_slice(&frame.into_data().expect("data"));
        }
        bytes
    }
}

pub fn request(prompt: &[TokenId], max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        model: MODEL.into(),
        adapter_revision: None,
        prompt: prompt.to_vec(),
        emitted: Vec::new(),
        given: Vec::new(),
        sampling: Sampling { temperature: 0.0, ..Sampling::default() },
        stop: StopRule { max_tokens, ignore_eos: true, ..StopRule::default() },
        top_logprobs: None,
        priority: 0,
        constraint: None,
    }
}

/// Why a stream ended, when it came to its end.
pub fn reason(end: &Option<HopEvent>) -> Option<FinishReason> {
    match end {
        Some(HopEvent::Finished { reason, .. }) => Some(*reason),
        _ => None,
    }
}

/// Tokens of its prompt that a finished stream found in the prefix cache.
pub fn cached(end: &Option<HopEvent>) -> Option<u32> {
    match end {
        Some(HopEvent::Finished { cached_tokens, .. }) => Some(*cached_tokens),
        _ => None,
    }
}
