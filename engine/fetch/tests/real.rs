//! Remotes as they are in the world: nginx, and moto's S3. `cargo xtask setup` installs both.

#[path = "../../store/tests/common/tiny_folder.rs"]
mod tiny_folder;

#[path = "../../store/tests/common/random_folder.rs"]
mod random_folder;

mod common;

use common::{get, gguf, visible};
use engine_fetch::{FetchError, Options};
use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// Takes more than a second from the slow part of nginx, which gives the first second's bytes at once.
const SLOW_PIECE_BYTES: u64 = 200_000;

/// A server that ends with the test.
struct Running {
    child: Child,
    addr: SocketAddr,
    folder: TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    /// Starts what `command` makes of a port and a folder, and waits until somebody listens there.
    fn start(command: impl FnOnce(u16, &Path) -> Command) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        drop(listener);
        let folder = tempfile::tempdir().unwrap();
        let mut command = command(addr.port(), folder.path());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.unwrap_or_else(|error| panic!("{command:?}: {error}; `cargo xtask setup` installs it"));
        let mut running = Self { child, addr, folder };
        let begun = Instant::now();
        while TcpStream::connect(addr).is_err() {
            let ended = running.child.try_wait().unwrap();
            assert!(
                ended.is_none() && begun.elapsed() < Duration::from_secs(60),
                "{command:?} does not listen: {ended:?}"
            );
            thread::sleep(Duration::from_millis(20));
        }
        running
    }

    /// nginx, over the folder `files`; slow where the path begins with `slow`.
    fn nginx() -> Self {
        let program = if Path::new("/usr/sbin/nginx").exists() { "/usr/sbin/nginx" } else { "nginx" };
        Self::start(|port, folder| {
            fs::create_dir(folder.join("files")).unwrap();
            fs::create_dir(folder.join("files/slow")).unwrap();
            let root = folder.display();
            let config = format!(
                "daemon off; master_process off; pid {root}/pid; error_log stderr;\n\
                 events {{ worker_connections 64; }}\n\
                 http {{ access_log off; client_body_temp_path {root}/t1; proxy_temp_path {root}/t2;\n\
                 fastcgi_temp_path {root}/t3; uwsgi_temp_path {root}/t4; scgi_temp_path {root}/t5;\n\
                 server {{ listen 127.0.0.1:{port}; root {root}/files; location /slow/ {{ limit_rate 100k; }} }} }}\n"
            );
            fs::write(folder.join("nginx.conf"), config).unwrap();
            let mut command = Command::new(program);
            command.arg("-p").arg(folder).arg("-c").arg(folder.join("nginx.conf"));
            command
        })
    }

    fn moto() -> Self {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/moto/bin/moto_server");
        Self::start(|port, _| {
            let mut command = Command::new(program);
            command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
            command
        })
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.addr)
    }

    fn files(&self) -> PathBuf {
        self.folder.path().join("files")
    }

    /// Puts an object into S3, or makes a bucket; a test's own, so that nothing of ours stands on both sides.
    fn put(&self, path: &str, body: &[u8]) {
        let mut stream = TcpStream::connect(self.addr).unwrap();
        let head = format!(
            "PUT /{path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n\
             Authorization: AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request\r\n\r\n",
            self.addr,
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    fn s3(&self) -> Options {
        let values = [
            ("AWS_ENDPOINT_URL", self.url("")),
            ("AWS_ACCESS_KEY_ID", "a".into()),
            ("AWS_SECRET_ACCESS_KEY", "b".into()),
            ("AWS_REGION", "us-east-1".into()),
            ("AWS_PAGER", "less".into()),
        ];
        Options { s3: values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(), ..common::options() }
    }
}

#[test]
fn nginx_gives_files_and_folders() {
    let (nginx, folder) = (Running::nginx(), tempfile::tempdir().unwrap());
    let file = gguf(500_000, 1);
    fs::write(nginx.files().join("a model.gguf"), &file).unwrap();
    age(&nginx.files().join("a model.gguf"));
    let fetched = get(&nginx.url("a%20model.gguf?download=true"), folder.path(), &common::options()).unwrap();
    assert_eq!(fs::read(&fetched.path).unwrap(), file);
    assert_eq!(fetched.path.file_name().unwrap(), "a model.gguf");
    assert_eq!(fetched.progress.read_bytes, file.len() as u64);
    fs::create_dir(nginx.files().join("m")).unwrap();
    random_folder::write(&random_folder::wide(3000), &nginx.files().join("m"), 1);
    for address in ["m/", "m/model.safetensors", "m/config.json"] {
        let fetched = get(&nginx.url(address), folder.path(), &common::options()).unwrap();
        for name in ["config.json", "tokenizer.json", "model.safetensors"] {
            assert_eq!(
                fs::read(fetched.path.join(name)).unwrap(),
                fs::read(nginx.files().join("m").join(name)).unwrap()
            );
        }
        engine_store::Checkpoint::open(&fetched.path, None).unwrap();
    }
    assert_eq!(visible(folder.path()).len(), 2);
    // Another version is another checkpoint; the old one stays for those who have it open.
    fs::write(nginx.files().join("a model.gguf"), gguf(500_000, 2)).unwrap();
    let second = get(&nginx.url("a%20model.gguf"), folder.path(), &common::options()).unwrap();
    assert_ne!(second.path, fetched.path);
    assert_eq!(fs::read(&fetched.path).unwrap(), file);
    assert_eq!(fs::read(&second.path).unwrap(), gguf(500_000, 2));
    second.discard().unwrap();
    assert_eq!(visible(folder.path()).len(), 2);
    let error = get(&nginx.url("none.gguf"), folder.path(), &common::options()).unwrap_err();
    assert!(matches!(error, FetchError::NotFound { .. }), "{error}");
}

/// nginx's ETag is the second of the change and the length; so that it differs from that of a file written now.
fn age(path: &Path) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000)).unwrap();
}

/// The example, as a process of its own.
fn example() -> Command {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    Command::new(path.join("examples/add"))
}

/// Pieces that have come and are noted.
fn noted(folder: &Path) -> usize {
    let Ok(entries) = fs::read_dir(folder.join("fetched")) else { return 0 };
    let part =
        entries.flatten().map(|entry| entry.path()).find(|path| path.extension().is_some_and(|end| end == "part"));
    let text = part.and_then(|part| fs::read_to_string(part.join("pieces/m.gguf")).ok()).unwrap_or_default();
    text.lines().count().saturating_sub(1)
}

#[test]
fn a_process_that_is_killed_goes_on_where_it_was() {
    let (nginx, folder) = (Running::nginx(), tempfile::tempdir().unwrap());
    let file = gguf(250_000, 1);
    let place = nginx.files().join("slow/m.gguf");
    fs::write(&place, &file).unwrap();
    let kill = |least: usize| {
        let mut command = example();
        command
            .arg(nginx.url("slow/m.gguf"))
            .arg(folder.path())
            .args([&format!("piece_bytes={SLOW_PIECE_BYTES}"), "parallel=2"]);
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("`cargo build --release -p engine-fetch --examples` builds it");
        let begun = Instant::now();
        while noted(folder.path()) < least {
            assert!(begun.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none());
            thread::sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(visible(&folder.path().join("fetched")).is_empty());
    };
    kill(1);
    kill(3);
    let kept = noted(folder.path()) as u64;
    let options = Options { piece_bytes: SLOW_PIECE_BYTES, ..common::options() };
    let fetched = get(&nginx.url("slow/m.gguf"), &folder.path().join("fetched"), &options).unwrap();
    assert_eq!(fs::read(&fetched.path).unwrap(), file);
    // The last piece is a short one.
    assert!(kept >= 3 && fetched.progress.kept_bytes > (kept - 1) * SLOW_PIECE_BYTES, "{:?}", fetched.progress);
    assert_eq!(fetched.progress.read_bytes + fetched.progress.kept_bytes, file.len() as u64);
}

#[test]
fn a_file_that_is_replaced_meanwhile_is_begun_anew() {
    let (nginx, folder) = (Running::nginx(), tempfile::tempdir().unwrap());
    let (old, new) = (gguf(250_000, 1), gguf(250_000, 2));
    let place = nginx.files().join("slow/m.gguf");
    fs::write(&place, &old).unwrap();
    age(&place);
    let source = engine_fetch::Source::parse(&nginx.url("slow/m.gguf")).unwrap();
    let options = Options { piece_bytes: SLOW_PIECE_BYTES, parallel: 1, ..common::options() };
    let mut is_replaced = false;
    let error = engine_fetch::fetch(&source, folder.path(), &options, &mut |now| {
        if now.done_bytes > 0 && !is_replaced {
            fs::write(place.with_extension("new"), &new).unwrap();
            fs::rename(place.with_extension("new"), &place).unwrap();
            is_replaced = true;
        }
        std::ops::ControlFlow::Continue(())
    });
    let error = error.expect_err("it was replaced");
    assert!(matches!(error, FetchError::Changed { .. }) && visible(folder.path()).is_empty(), "{error}");
    let fetched = get(&nginx.url("slow/m.gguf"), folder.path(), &Options { parallel: 16, ..options }).unwrap();
    assert_eq!((fs::read(fetched.path).unwrap(), fetched.progress.kept_bytes), (new, 0));
}

#[test]
fn s3_gives_files_and_folders() {
    let (moto, folder) = (Running::moto(), tempfile::tempdir().unwrap());
    let file = gguf(500_000, 1);
    moto.put("models", b"");
    moto.put("models/small/m.gguf", &file);
    let fetched = get("s3://models/small/m.gguf", folder.path(), &moto.s3()).unwrap();
    assert_eq!(fs::read(&fetched.path).unwrap(), file);
    let source = tempfile::tempdir().unwrap();
    random_folder::write(&random_folder::wide(3000), source.path(), 1);
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        moto.put(&format!("models/llama/{name}"), &fs::read(source.path().join(name)).unwrap());
    }
    let fetched = get("s3://models/llama/", folder.path(), &moto.s3()).unwrap();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        assert_eq!(fs::read(fetched.path.join(name)).unwrap(), fs::read(source.path().join(name)).unwrap());
    }
    for absent in ["s3://models/none.gguf", "s3://none/m.gguf"] {
        let error = get(absent, folder.path(), &moto.s3()).unwrap_err();
        assert!(matches!(error, FetchError::NotFound { .. }), "{error}");
    }
}
