//! A model hub: a revision is one commit, and its digests are held to. And folders, whichever remote they lie on.

#[path = "../../store/tests/common/tiny_folder.rs"]
mod tiny_folder;

mod common;

use common::{
    get, options,
    server::{Reply, Request, Server},
    visible,
};
use engine_fetch::{FetchError, Options};
use serde_json::json;
use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    path::Path,
};

const SHA: &str = "0123456789abcdef0123456789abcdef01234567";

/// The files of a tiny checkpoint, cut into two shards or not.
fn files(sharded: bool) -> BTreeMap<String, Vec<u8>> {
    let folder = tiny_folder::llama().folder();
    let read = |name: &str| fs::read(folder.path().join(name)).unwrap();
    let mut files: BTreeMap<String, Vec<u8>> =
        ["config.json", "tokenizer.json"].iter().map(|name| ((*name).to_owned(), read(name))).collect();
    if !sharded {
        files.insert("model.safetensors".into(), read("model.safetensors"));
        return files;
    }
    let mut map = BTreeMap::new();
    for (shard, is_in) in [("a.safetensors", true), ("b.safetensors", false)] {
        let mut plan = tiny_folder::llama();
        plan.tensors.retain(|(name, ..)| name.contains("mlp") == is_in);
        map.extend(plan.tensors.iter().map(|(name, ..)| (name.clone(), shard.to_owned())));
        files.insert(shard.to_owned(), fs::read(plan.folder().path().join("model.safetensors")).unwrap());
    }
    files.insert("model.safetensors.index.json".into(), json!({"metadata": {}, "weight_map": map}).to_string().into());
    files
}

fn is_folder_of(folder: &Path, files: &BTreeMap<String, Vec<u8>>) {
    let names: Vec<String> = visible(folder);
    assert_eq!(names, files.keys().cloned().collect::<Vec<_>>());
    names.iter().for_each(|name| assert_eq!(fs::read(folder.join(name)).unwrap(), files[name], "{name}"));
}

/// A hub with one repository, for those who have the token.
fn hub(files: BTreeMap<String, Vec<u8>>, change: impl Fn(&mut serde_json::Value) + Send + Sync + 'static) -> Server {
    let digest = |bytes: &[u8]| {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), bytes).unwrap();
        engine_store::digest(file.path()).unwrap()
    };
    let sibling = |(name, bytes): (&String, &Vec<u8>)| json!({"rfilename": name, "size": bytes.len(), "lfs": {"sha256": digest(bytes), "size": bytes.len()}});
    let siblings: Vec<_> =
        files.iter().map(sibling).chain([json!({"rfilename": ".gitattributes", "size": 7})]).collect();
    let mut said = json!({"id": "o/r", "sha": SHA, "siblings": siblings});
    change(&mut said);
    let said = said.to_string();
    Server::start(move |request: &Request| {
        if request.header("authorization") != Some("Bearer hush") {
            return Reply::status(401);
        }
        if request.path == "/api/models/o/r/revision/main?blobs=true" {
            return Reply::whole(said.as_bytes());
        }
        let name = request.path.strip_prefix(&format!("/o/r/resolve/{SHA}/"));
        match name.and_then(|name| files.get(name)) {
            Some(file) => Reply::of(request, file, "\"a\""),
            None => Reply::status(404),
        }
    })
}

fn ask(server: &Server, folder: &Path, token: &str) -> Result<engine_fetch::Fetched, FetchError> {
    let endpoint = server.url("").trim_end_matches('/').to_owned();
    get("hf://o/r", folder, &Options { hub_endpoint: endpoint, hub_token: Some(token.into()), ..options() })
}

#[test]
fn repositories_are_fetched_by_their_commit() {
    for sharded in [false, true] {
        let (files, folder) = (files(sharded), tempfile::tempdir().unwrap());
        let server = hub(files.clone(), |_| {});
        let fetched = ask(&server, folder.path(), "hush").unwrap();
        is_folder_of(&fetched.path, &files);
        assert_eq!(fetched.progress.total_bytes, files.values().map(|file| file.len() as u64).sum::<u64>());
        assert_eq!(visible(folder.path()).len(), 1);
        // Files that it has not are not asked for.
        assert!(server.asked().iter().all(|request| !request.path.contains("generation_config")));
    }
}

#[test]
fn files_may_lie_elsewhere_and_the_token_stays_at_home() {
    let (files, folder) = (files(false), tempfile::tempdir().unwrap());
    let served = files.clone();
    let elsewhere = Server::start(move |request| match served.get(request.path.trim_start_matches("/signed/")) {
        _ if request.header("authorization").is_some() => Reply::status(400),
        Some(file) => Reply::of(request, file, "\"a\""),
        None => Reply::status(404),
    });
    let home = hub(files.clone(), |_| {});
    let (to, from) = (elsewhere.url("signed/"), home.url(""));
    // Asks the hub for what it says, and sends those who want files on.
    let sends_on = Server::start(move |request| match request.path.rsplit_once(&format!("{SHA}/")) {
        Some((_, name)) => Reply::status(302).with("Location", format!("{to}{name}")),
        None => Reply::status(307).with("Location", format!("{}{}", from.trim_end_matches('/'), request.path)),
    });
    // Another port is another host: the token does not get there, either.
    let error = ask(&sends_on, folder.path(), "hush").expect_err("no token came").to_string();
    assert!(error.contains("access is refused"), "{error}");
    let said = home_says(&home);
    let to = elsewhere.url("signed/");
    let sends_on = Server::start(move |request| match request.path.rsplit_once(&format!("{SHA}/")) {
        _ if request.header("authorization") != Some("Bearer hush") => Reply::status(401),
        Some((_, name)) => Reply::status(302).with("Location", format!("{to}{name}")),
        None => Reply::whole(&said),
    });
    is_folder_of(&ask(&sends_on, folder.path(), "hush").unwrap().path, &files);
    assert!(elsewhere.asked().iter().any(|request| request.range.is_some()));
}

/// What a hub says of its repository.
fn home_says(home: &Server) -> Vec<u8> {
    let mut stream = std::net::TcpStream::connect(home.addr()).unwrap();
    let asks = "GET /api/models/o/r/revision/main?blobs=true HTTP/1.1\r\nauthorization: Bearer hush\r\n\r\n";
    stream.write_all(asks.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.as_bytes().to_vec()
}

#[test]
fn a_hub_that_is_wrong_is_not_believed() {
    let refused = |token: &str, change: fn(&mut serde_json::Value)| {
        let folder = tempfile::tempdir().unwrap();
        let error = ask(&hub(files(false), change), folder.path(), token).expect_err("refused");
        assert!(visible(folder.path()).is_empty());
        error.to_string()
    };
    assert!(refused("loud", |_| {}).contains("access is refused"));
    assert!(refused("hush", |said| said["siblings"][1]["size"] = json!(7)).contains("7 are said to be there"));
    assert!(
        refused("hush", |said| said["siblings"][1]["lfs"]["sha256"] = json!("0".repeat(64)))
            .contains("it is not that file")
    );
    assert!(refused("hush", |said| said["sha"] = json!("../../x")).contains("it names no commit"));
    assert!(refused("hush", |said| *said = json!([1])).contains("its answer is odd"));
    assert!(refused("hush", |said| said["siblings"] = json!([])).contains("config.json is not there"));
}

#[test]
fn an_index_does_not_lead_out_of_its_folder() {
    for bad in ["../a.safetensors", "/etc/a.safetensors", "..", "a"] {
        let mut files = files(true);
        let index = json!({"weight_map": {"x": bad}}).to_string();
        files.insert("model.safetensors.index.json".into(), index.into());
        let served = files.clone();
        let server = Server::start(move |request| match served.get(request.path.trim_start_matches("/m/")) {
            Some(file) => Reply::of(request, file, "\"a\""),
            None => Reply::status(404),
        });
        let folder = tempfile::tempdir().unwrap();
        let error = get(&server.url("m/"), folder.path(), &options()).expect_err("it leads out").to_string();
        assert!(error.contains("no plain *.safetensors name"), "{error}");
    }
}

#[test]
fn adapters_and_encoders_are_folders_too() {
    let adapter = BTreeMap::from([
        ("adapter_config.json".to_owned(), b"{}".to_vec()),
        ("adapter_model.safetensors".to_owned(), files(false)["model.safetensors"].clone()),
    ]);
    let served = adapter.clone();
    let server = Server::start(move |request| match served.get(request.path.trim_start_matches("/m/")) {
        Some(file) => Reply::of(request, file, "\"a\""),
        None => Reply::status(404),
    });
    let folder = tempfile::tempdir().unwrap();
    let fetched = get(&server.url("m/adapter_config.json"), folder.path(), &options()).unwrap();
    is_folder_of(&fetched.path, &adapter);
    // Without its configuration it is none.
    let error = get(&server.url("n/"), folder.path(), &options()).expect_err("nothing is there").to_string();
    assert!(error.contains("/n/config.json is not there"), "{error}");
}
