//! A scripted backend, a server on a free port and a client that sees bytes.

use crate::checkpoint::{CONTEXT_TOKENS, ids, text_model};
use engine_http::{
    AccessRecord, ApiError, Backend, Limits, ModelCard, RequestContext, RouteOptions, ServeOptions, StreamEvent,
    TokenStream, metrics_route, routes, serve, with_fallback,
};
use engine_text::{EncoderCheckpoint, TextModel};
use engine_wire::hop::{EmbedRequest, Embedded, FinishReason, GenerateRequest, HopEvent, TokenLogprobs};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use warp::Filter;

/// Longer than anything here takes: a test that reaches it has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What the backend does next.
#[derive(Clone, Debug)]
pub enum Step {
    Waiting,
    Tokens(Vec<u32>),
    /// Tokens of log-probability -0.5, each with one alternative: the token 33 (`!`) at -1.5.
    Scored(Vec<u32>),
    Finish(FinishReason),
    Fail(ApiError),
    /// Stays silent until the stream is dropped.
    Hang,
    /// Tokens without end.
    Flood,
}

/// A step for each character's bytes, then the end.
pub fn says(text: &str) -> Vec<Step> {
    let tokens = text.chars().map(|character| Step::Tokens(ids(&character.to_string())));
    tokens.chain([Step::Finish(FinishReason::Length)]).collect()
}

/// Plays a script for each request, in the order of requests; records what it was asked.
#[derive(Clone)]
pub struct Scripted {
    text: Arc<TextModel>,
    scripts: Arc<Mutex<Vec<Vec<Step>>>>,
    refusal: Option<ApiError>,
    pub asked: Arc<Mutex<Vec<GenerateRequest>>>,
    pub embedded: Arc<Mutex<Vec<EmbedRequest>>>,
    cancelled: mpsc::UnboundedSender<()>,
}

impl Backend for Scripted {
    fn models(&self) -> Vec<ModelCard> {
        let card = |name: &str| ModelCard {
            name: name.to_owned(),
            revision: "r1".to_owned(),
            created_unix_s: 7,
            context_tokens: CONTEXT_TOKENS,
            root: name.to_owned(),
            parent: None,
        };
        vec![card("tiny"), card("org/tiny")]
    }

    async fn text(&self, model: &str) -> Result<Arc<TextModel>, ApiError> {
        match model {
            "tiny" => Ok(self.text.clone()),
            EMBEDDER => Ok(embedder()),
            _ => Err(ApiError::ModelNotFound { model: model.to_owned() }),
        }
    }

    async fn generate(&self, _: RequestContext, request: GenerateRequest) -> Result<TokenStream, ApiError> {
        self.asked.lock().expect("no poison").push(request);
        if let Some(error) = &self.refusal {
            return Err(error.clone());
        }
        let script = self.scripts.lock().expect("no poison").remove(0);
        let (sender, events) = mpsc::channel(4);
        tokio::spawn(play(script, sender, self.cancelled.clone()));
        Ok(TokenStream { events })
    }

    /// Vectors that tell the text: its tokens' count, its first and last token, and zeros.
    async fn embed(&self, _: RequestContext, request: EmbedRequest) -> Result<Embedded, ApiError> {
        if let Some(error) = &self.refusal {
            return Err(error.clone());
        }
        let mut numbers = Vec::new();
        for text in &request.texts {
            if text.as_slice() == HANGS {
                let _signal = Signal(self.cancelled.clone());
                std::future::pending::<()>().await;
            }
            let mut vector = vec![0.0; DIMENSIONS];
            let [first, last] = [text.first(), text.last()].map(|token| token.copied().unwrap_or(0) as f32 / 1e5);
            vector[..3].copy_from_slice(&[text.len() as f32 / 7.0, first, last]);
            numbers.extend(vector);
        }
        self.embedded.lock().expect("no poison").push(request);
        Ok(Embedded { dimensions: DIMENSIONS, numbers })
    }

    fn ready(&self) -> Result<(), String> {
        match &self.refusal {
            None => Ok(()),
            Some(error) => Err(error.to_string()),
        }
    }
}

/// An embedding model with a real tokenizer.
pub const EMBEDDER: &str = "embedder";
/// Numbers in its vectors.
pub const DIMENSIONS: usize = 384;
/// A text for which no vector ever comes.
pub const HANGS: &[u32] = &[666];

fn embedder() -> Arc<TextModel> {
    static MODEL: OnceLock<Arc<TextModel>> = OnceLock::new();
    let load = || {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/models/minilm");
        let checkpoint = EncoderCheckpoint::open(path.as_ref());
        let checkpoint = checkpoint.unwrap_or_else(|error| panic!("{error}: run `cargo xtask setup`"));
        Arc::new(TextModel::from_encoder(&checkpoint).expect("a tokenizer"))
    };
    MODEL.get_or_init(load).clone()
}

/// Says that it was dropped.
struct Signal(mpsc::UnboundedSender<()>);

impl Drop for Signal {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

async fn play(
    script: Vec<Step>,
    sender: mpsc::Sender<Result<StreamEvent, ApiError>>,
    cancelled: mpsc::UnboundedSender<()>,
) {
    for step in script {
        let event = match step {
            Step::Waiting => Ok(StreamEvent::Waiting),
            Step::Tokens(tokens) => Ok(StreamEvent::Hop(HopEvent::Tokens(tokens))),
            Step::Scored(tokens) => {
                let logprobs = vec![TokenLogprobs { logprob: -0.5, top: vec![(33, -1.5)] }; tokens.len()];
                Ok(StreamEvent::Hop(HopEvent::Scored { tokens, logprobs }))
            }
            Step::Finish(reason) => Ok(StreamEvent::Hop(HopEvent::Finished { reason, cached_tokens: 2 })),
            Step::Fail(error) => Err(error),
            Step::Hang => {
                sender.closed().await;
                let _ = cancelled.send(());
                return;
            }
            Step::Flood => {
                while sender.send(Ok(StreamEvent::Hop(HopEvent::Tokens(ids(&"x".repeat(4096)))))).await.is_ok() {}
                let _ = cancelled.send(());
                return;
            }
        };
        if sender.send(event).await.is_err() {
            let _ = cancelled.send(());
            return;
        }
    }
}

/// A running server.
pub struct Server {
    pub addr: SocketAddr,
    pub asked: Arc<Mutex<Vec<GenerateRequest>>>,
    pub embedded: Arc<Mutex<Vec<EmbedRequest>>>,
    records: mpsc::UnboundedReceiver<AccessRecord>,
    cancelled: mpsc::UnboundedReceiver<()>,
    shutdown: Option<oneshot::Sender<()>>,
    done: tokio::task::JoinHandle<()>,
}

/// How a server is set up.
#[derive(Default)]
pub struct Setup {
    pub scripts: Vec<Vec<Step>>,
    pub refusal: Option<ApiError>,
    pub limits: Limits,
    pub serve: ServeOptions,
    /// Context of the model where the usual one is too short.
    pub context_tokens: Option<u32>,
}

/// A server that plays one script.
pub async fn server(script: Vec<Step>) -> Server {
    Setup { scripts: vec![script], ..Setup::default() }.start().await
}

impl Setup {
    pub async fn start(self) -> Server {
        let (access, records) = mpsc::unbounded_channel();
        let (cancelled_sender, cancelled) = mpsc::unbounded_channel();
        let (asked, embedded) = (Arc::default(), Arc::default());
        let mut text = text_model();
        text.context_tokens = self.context_tokens.unwrap_or(text.context_tokens);
        let backend = Scripted {
            text: Arc::new(text),
            scripts: Arc::new(Mutex::new(self.scripts)),
            refusal: self.refusal,
            asked: Arc::clone(&asked),
            embedded: Arc::clone(&embedded),
            cancelled: cancelled_sender,
        };
        let access = Arc::new(move |record| drop(access.send(record)));
        let api = routes(backend, RouteOptions { limits: self.limits, access });
        let all = api.or(metrics_route(|| "up 1\n".to_owned())).unify().boxed();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("an address");
        let (shutdown, stopped) = oneshot::channel::<()>();
        let stopped = async move { drop(stopped.await) };
        let done = tokio::spawn(serve(listener, with_fallback(all, self.limits), stopped, self.serve));
        Server { addr, asked, embedded, records, cancelled, shutdown: Some(shutdown), done }
    }
}

impl Server {
    pub async fn connect(&self) -> Client {
        Client(TcpStream::connect(self.addr).await.expect("a connection"))
    }

    /// Sends one request on its own connection and reads to the connection's end.
    pub async fn exchange(&self, request: &[u8]) -> Answer {
        let mut client = self.connect().await;
        client.send(request).await;
        client.answer().await
    }

    /// Posts JSON.
    pub async fn post(&self, path: &str, body: &str) -> Answer {
        self.exchange(&post(path, "", body.as_bytes())).await
    }

    /// The next access record.
    pub async fn record(&mut self) -> AccessRecord {
        timeout(PATIENCE, self.records.recv()).await.expect("a record in time").expect("a record")
    }

    /// Waits until the backend sees a stream dropped.
    pub async fn cancelled(&mut self) {
        timeout(PATIENCE, self.cancelled.recv()).await.expect("a cancellation in time").expect("a cancellation");
    }

    /// Begins the shutdown.
    pub fn stop(&mut self) {
        drop(self.shutdown.take());
    }

    /// Waits for the end of the shutdown.
    pub async fn stopped(self) {
        timeout(PATIENCE, self.done).await.expect("the server ends in time").expect("the server does not panic");
    }
}

/// A POST that closes its connection; `headers` are whole lines.
pub fn post(path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nx-request-id: t1\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// A request without a body.
pub fn bare(method: &str, path: &str) -> Vec<u8> {
    format!("{method} {path} HTTP/1.1\r\nhost: x\r\nx-request-id: t1\r\nconnection: close\r\n\r\n").into_bytes()
}

/// One connection.
pub struct Client(pub TcpStream);

impl Client {
    pub async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.expect("the request is taken");
    }

    /// Reads to the end of the connection.
    pub async fn answer(&mut self) -> Answer {
        let mut bytes = Vec::new();
        timeout(PATIENCE, self.0.read_to_end(&mut bytes)).await.expect("an answer in time").expect("an answer");
        Answer::parse(&bytes)
    }

    /// Reads until what came contains `text`; everything so far.
    pub async fn read_until(&mut self, text: &str) -> String {
        let mut bytes = Vec::new();
        loop {
            let mut buffer = [0; 4096];
            let length = timeout(PATIENCE, self.0.read(&mut buffer)).await.expect("bytes in time").expect("bytes");
            bytes.extend_from_slice(&buffer[..length]);
            let seen = String::from_utf8_lossy(&bytes).into_owned();
            if seen.contains(text) {
                return seen;
            }
            assert!(length > 0, "the connection ended before {text:?}: {seen}");
        }
    }
}

/// An answer taken apart.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    head: String,
    /// The body, or each chunk of a chunked one: one chunk is one write of the server.
    pub chunks: Vec<String>,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8(bytes.to_vec()).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let chunked = head.contains("transfer-encoding: chunked");
        let chunks = if chunked { unchunk(body) } else { vec![body.to_owned()] };
        Self { status, head: head.to_owned(), chunks: chunks.iter().map(|chunk| without_times(chunk)).collect() }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let line = self.head.lines().find_map(|line| line.split_once(": ").filter(|(key, _)| *key == name));
        line.map(|(_, value)| value)
    }

    pub fn body(&self) -> String {
        self.chunks.concat()
    }
}

fn unchunk(mut body: &str) -> Vec<String> {
    let mut chunks = Vec::new();
    while let Some((length, rest)) = body.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).expect("a chunk length");
        if length == 0 {
            break;
        }
        chunks.push(rest[..length].to_owned());
        body = &rest[length + 2..];
    }
    chunks
}

/// Creation times become 0.
fn without_times(text: &str) -> String {
    let mut parts = text.split("\"created\":");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str("\"created\":0");
        out.push_str(part.trim_start_matches(|character: char| character.is_ascii_digit()));
    }
    out
}
