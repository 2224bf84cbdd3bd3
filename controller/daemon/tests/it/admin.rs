//! The admin API over a real socket.

use crate::stage::{config, record};
use crate::tiny_folder;
use controller_daemon::{Admin, Daemon, ModelStore, Registry, admin};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use warp::{Filter, Reply};

/// A daemon's admin port; the loop runs until the test ends.
async fn begin(folder: &std::path::Path) -> SocketAddr {
    Registry::open(folder).unwrap().put_model(&record(folder, "a/b:c")).unwrap();
    let daemon = Daemon::start(config(folder)).await.unwrap();
    let admin = Admin {
        view: daemon.view(),
        engines: daemon.engine_views(),
        catalog: daemon.catalog(),
        routes: daemon.routes(),
        state_dir: folder.to_path_buf(),
        store: ModelStore::new(folder, folder.join("segments"), Arc::new(engine_store::AsStored)),
        requests: Arc::new(|limit| json!({ "limit": limit })),
        probes: Arc::new(|_| json!({ "attached": [] })),
        outside: Arc::new(|_| None),
        gpus: Arc::new(|_| json!({ "summary": "gpu: none", "gpus": [] })),
        metrics: Arc::new(|| "metric 1\n".to_owned()),
    };
    tokio::spawn(daemon.run(std::future::pending()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let filter = admin::routes(admin).map(Reply::into_response).boxed();
    tokio::spawn(engine_http::serve(listener, filter, std::future::pending(), engine_http::ServeOptions::default()));
    addr
}

/// Status and body of one request, `head` being its first line and further headers.
async fn ask(addr: SocketAddr, head: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let length = if body.is_empty() { String::new() } else { format!("content-length: {}\r\n", body.len()) };
    let (first, headers) = head.split_once('\n').unwrap_or((head, ""));
    let headers = if headers.is_empty() { String::new() } else { format!("{headers}\r\n") };
    let request = format!("{first} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}{length}\r\n{body}");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

async fn check_error(addr: SocketAddr, head: &str, body: &str, status: u16, part: &str) {
    let (found, text) = ask(addr, head, body).await;
    assert_eq!(found, status, "{head}: {text}");
    let error = serde_json::from_str::<Value>(&text).unwrap()["error"].clone();
    let message = error["message"].as_str().unwrap();
    assert!(message.contains(part), "{head}: {message}");
    assert!(error["type"].is_string() && error.get("param").is_some() && error.get("code").is_some(), "{error}");
}

#[tokio::test]
async fn what_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let addr = begin(folder.path()).await;
    let get = async |path: &str| {
        let (status, text) = ask(addr, &format!("GET {path}"), "").await;
        assert_eq!(status, 200, "{path}: {text}");
        text
    };
    let object = |text: String| serde_json::from_str::<Value>(&text).unwrap();
    assert_eq!(get("/healthz").await, "ok\n");
    assert_eq!(get("/metrics").await, "metric 1\n");
    assert_eq!(object(get("/v1/foreshock/requests?limit=7").await), json!({ "limit": 7 }));
    assert_eq!(object(get("/v1/foreshock/probes").await), json!({ "attached": [] }));
    assert_eq!(object(get("/v1/foreshock/instances").await), json!({ "object": "list", "data": [] }));
    assert_eq!(object(get("/v1/foreshock/models").await)["data"][0]["name"], "a/b:c");
    assert!(object(get("/v1/foreshock/decisions?model=a/b:c&limit=5").await)["data"].is_array());
    let deadline = tokio::time::Instant::now() + crate::stage::PATIENCE;
    while ask(addr, "GET /v1/foreshock/snapshot", "").await.0 != 200 {
        assert!(tokio::time::Instant::now() < deadline, "no tick was made");
    }
    assert!(object(get("/v1/foreshock/snapshot").await)["models"]["a/b:c"].is_object());
}

#[tokio::test]
async fn bad_input_gets_the_error_object() {
    let folder = tempfile::tempdir().unwrap();
    let addr = begin(folder.path()).await;
    const POST: &str = "POST /v1/foreshock/models\ncontent-type: application/json";
    check_error(addr, "GET /nowhere", "", 404, "nothing at this path").await;
    check_error(addr, "POST /v1/foreshock/decisions", "", 405, "Method not allowed").await;
    check_error(addr, "GET /v1/foreshock/decisions?limit=0", "", 400, "`limit`").await;
    check_error(addr, "GET /v1/foreshock/requests?limit=x", "", 400, "`limit`").await;
    check_error(addr, "DELETE /v1/foreshock/models/none", "", 404, "`none` is not registered").await;
    check_error(addr, "DELETE /v1/foreshock/models/%ff", "", 400, "UTF-8").await;
    check_error(addr, "POST /v1/foreshock/models", "{}", 415, "application/json").await;
    check_error(addr, POST, "{", 400, "The body must be").await;
    check_error(addr, POST, r#"{"name": "x", "path": "/x", "gpus": 8}"#, 400, "gpus").await;
    check_error(addr, POST, r#"{"name": "x", "path": "here.gguf"}"#, 400, "absolute").await;
    check_error(addr, POST, r#"{"name": "x y", "path": "/x"}"#, 400, "no model name").await;
    check_error(addr, POST, r#"{"name": "x", "path": "/nowhere/x.gguf"}"#, 400, "No such file").await;
    check_error(addr, POST, r#"{"name": "x", "path": "/x", "quantise": "q9"}"#, 400, "\"q9\" is no quantisation").await;
    let file = json!({"name": "x", "path": folder.path().join("a-b:c.gguf"), "quantise": "q8_0"}).to_string();
    check_error(addr, POST, &file, 400, "cannot be quantised to q8_0 at load").await;
    let chunked = format!("{POST}\r\ntransfer-encoding: chunked");
    check_error(addr, &chunked, "", 411, "Content-Length").await;
    let large = format!("{{\"name\": \"{}\"}}", "x".repeat(70_000));
    check_error(addr, POST, &large, 413, "larger than").await;
}

#[tokio::test]
async fn a_model_with_slashes_in_its_name_is_removed_when_the_answer_comes() {
    let folder = tempfile::tempdir().unwrap();
    let addr = begin(folder.path()).await;
    let (status, text) = ask(addr, "DELETE /v1/foreshock/models/a/b%3Ac", "").await;
    assert_eq!(status, 200, "{text}");
    let (_, text) = ask(addr, "GET /v1/foreshock/models", "").await;
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["data"], json!([]));
    assert!(Registry::open(folder.path()).unwrap().models().unwrap().is_empty());
}

/// The same folder, as it is stored and rounded at load, is two revisions; a folder with a fault is refused by name.
#[tokio::test]
async fn a_folder_is_registered_with_what_it_is_rounded_to() {
    let folder = tempfile::tempdir().unwrap();
    let addr = begin(folder.path()).await;
    let model = tiny_folder::llama().folder();
    const POST: &str = "POST /v1/foreshock/models\ncontent-type: application/json";
    let add = async |quantise: Value| {
        let body = json!({"name": "tiny", "path": model.path(), "quantise": quantise}).to_string();
        let (status, text) = ask(addr, POST, &body).await;
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert!(status < 300, "{status}: {text}");
        (status, answer["outcome"].clone(), answer["model"].clone())
    };
    let (status, outcome, plain) = add(Value::Null).await;
    assert_eq!((status, outcome, &plain["quantise"]), (201, json!("new"), &Value::Null));
    let (status, outcome, rounded) = add(json!("q8_0")).await;
    assert_eq!((status, outcome, &rounded["quantise"]), (200, json!("replaced"), &json!("q8_0")));
    let revision = plain["revision"].as_str().unwrap();
    assert_eq!(rounded["revision"], format!("{revision}+q8_0"));
    assert!(rounded["instance_bytes"].as_u64() < plain["instance_bytes"].as_u64(), "{rounded} {plain}");
    assert_eq!(add(json!("Q8_0")).await.1, "unchanged");
    // A later start of the program reads the same from the database.
    let kept = Registry::open(folder.path()).unwrap().model("tiny").unwrap().unwrap();
    assert_eq!(serde_json::to_value(kept).unwrap(), rounded);
    std::fs::remove_file(model.path().join("tokenizer.json")).unwrap();
    let body = json!({"name": "tiny", "path": model.path()}).to_string();
    check_error(addr, POST, &body, 400, "has no tokenizer.json").await;
}
