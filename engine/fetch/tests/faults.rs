//! Remotes that fail, lie and change: either every byte is right in the end, or nothing is there and the error says why.

mod common;

use common::{
    get, gguf, options,
    server::{Reply, Request, Server},
    visible,
};
use engine_fetch::{FetchError, Options, Source, fetch};
use std::{
    fs,
    ops::ControlFlow,
    sync::atomic::{AtomicUsize, Ordering},
};

/// Fetches `m.gguf` from a server, into a folder that must be as empty after a failure as before.
fn fetched(server: &Server, options: &Options) -> Result<Vec<u8>, FetchError> {
    let folder = tempfile::tempdir().unwrap();
    let outcome = get(&server.url("m.gguf"), folder.path(), options);
    assert_eq!(visible(folder.path()).len(), usize::from(outcome.is_ok()));
    outcome.map(|fetched| fs::read(fetched.path).unwrap())
}

fn failed(options: &Options, answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> FetchError {
    fetched(&Server::start(answer), options).expect_err("the remote is bad")
}

#[test]
fn requests_that_are_cut_are_gone_on_from_where_they_were() {
    let file = gguf(20_000, 1);
    let (served, len) = (file.clone(), file.len() as u64);
    // Two of three requests end early, each at another place.
    let server = Server::start(move |request| match (request.number, request.number % 3) {
        (0, _) | (_, 0) => Reply::of(request, &served, "\"a\""),
        (number, _) => Reply { cut: Some(number * 37 % 5000), ..Reply::of(request, &served, "\"a\"") },
    });
    let folder = tempfile::tempdir().unwrap();
    let options = Options { retries: 100, ..options() };
    let fetched = get(&server.url("m.gguf"), folder.path(), &options).unwrap();
    assert_eq!(fs::read(&fetched.path).unwrap(), file);
    assert!(fetched.progress.retries > 3);
    // Nothing came twice.
    assert_eq!(
        (fetched.progress.read_bytes, fetched.progress.done_bytes, fetched.progress.total_bytes),
        (len, len, len)
    );
    let again = get(&server.url("m.gguf"), folder.path(), &options).unwrap();
    assert_eq!((again.path, again.progress.read_bytes), (fetched.path, 0));
}

#[test]
fn answers_that_will_not_change_are_not_asked_for_again() {
    for (status, said) in [(404, "is not there"), (403, "access is refused"), (401, "access is refused"), (410, "410")]
    {
        let server = Server::start(move |_| Reply::status(status));
        let error = fetched(&server, &options()).expect_err("refused").to_string();
        assert!(error.contains(said) && error.contains(&server.url("m.gguf")), "{error}");
        assert_eq!(server.asked().len(), 1, "{status}");
    }
}

#[test]
fn failures_are_bounded() {
    let server = Server::start(|_| Reply::status(503));
    let error = fetched(&server, &options()).expect_err("it is down");
    assert!(matches!(error, FetchError::GivenUp { failures: 5, .. }), "{error}");
    assert!(error.to_string().contains("503") && error.to_string().contains("goes on from there"), "{error}");
    assert_eq!(server.asked().len(), 5);
    // Nobody listens there any more.
    let address = server.url("m.gguf");
    drop(server);
    let folder = tempfile::tempdir().unwrap();
    let error = get(&address, folder.path(), &options()).expect_err("nobody is there");
    assert!(matches!(error, FetchError::GivenUp { .. }), "{error}");
    // A body that never gets to its end.
    let error = failed(&options(), |request| match request.number {
        0 => Reply::of(request, &gguf(20_000, 1), "\"a\""),
        _ => Reply { cut: Some(0), ..Reply::of(request, &gguf(20_000, 1), "\"a\"") },
    });
    assert!(matches!(error, FetchError::GivenUp { .. }), "{error}");
}

#[test]
fn a_remote_that_gives_nothing_is_not_waited_for() {
    let options = Options { stall_ms: 50, retries: 1, ..options() };
    let hang =
        |request: &Request| Reply { cut: Some(100), hang: true, ..Reply::of(request, &gguf(20_000, 1), "\"a\"") };
    // In the middle of a body, before it, and after a trickle.
    type Answer = fn(&Request, &dyn Fn(&Request) -> Reply) -> Reply;
    let answers: [Answer; 2] = [
        |request, hang| if request.number == 0 { Reply::of(request, &gguf(20_000, 1), "\"a\"") } else { hang(request) },
        |_, _| {
            Reply { hang: true, cut: Some(0), body: vec![0; 4], ..Reply::status(206) }
                .with("Content-Range", "bytes 0-3/99".into())
        },
    ];
    for answer in answers {
        let error = failed(&options, move |request| answer(request, &hang)).to_string();
        assert!(error.contains("less than 64 KiB in 50 ms") && error.contains("given up after 2"), "{error}");
    }
}

#[test]
fn versions_are_never_mixed() {
    // The version changes at the sixth request. One server looks at conditions, one does not, one says so by its length
    // alone, and one says so only afterwards.
    type Answer = fn(&Request, &[u8], &str) -> Reply;
    let answers: [Answer; 3] = [
        Reply::of,
        |request, file, etag| Reply::careless(request, file, Some(etag)),
        |request, file, etag| {
            let last_modified = if etag == "\"a\"" { "Tue, 10" } else { "Wed, 11" };
            let reply = Reply::careless(request, file, None);
            reply.with("Last-Modified", format!("{last_modified} Nov 2026 00:00:00 GMT"))
        },
    ];
    for answer in answers {
        let count = AtomicUsize::new(0);
        let (old, new) = (gguf(20_000, 1), gguf(20_000, 2));
        let want = new.clone();
        let server = Server::start(move |request| match count.fetch_add(1, Ordering::Relaxed) {
            0..6 => answer(request, &old, "\"a\""),
            _ => answer(request, &new, "\"b\""),
        });
        let folder = tempfile::tempdir().unwrap();
        let error = get(&server.url("m.gguf"), folder.path(), &options()).expect_err("it changed");
        assert!(matches!(error, FetchError::Changed { .. }), "{error}");
        assert!(error.to_string().contains("begins anew"), "{error}");
        assert!(visible(folder.path()).is_empty());
        let fetched = get(&server.url("m.gguf"), folder.path(), &options()).unwrap();
        assert_eq!(fs::read(fetched.path).unwrap(), want);
        assert_eq!(fetched.progress.kept_bytes, 0);
    }
    let error = failed(&options(), |request| match request.number {
        0..6 => Reply::careless(request, &gguf(20_000, 1), Some("\"a\"")),
        _ => Reply::careless(request, &gguf(20_001, 1), Some("\"a\"")),
    });
    assert!(matches!(error, FetchError::Changed { what: "length", .. }), "{error}");
}

#[test]
fn what_changed_where_it_lay_is_noticed_at_the_end() {
    // All of its pieces are asked for under the old version, the bytes are half and half.
    let (old, new) = (gguf(20_000, 1), gguf(20_000, 2));
    let pieces = old.len().div_ceil(10_000);
    let error = failed(&options(), move |request| match request.number {
        number if number <= 4 => Reply::of(request, &old, "\"a\""),
        number if number <= pieces => Reply::of(request, &new, "\"a\""),
        _ => Reply::of(request, &new, "\"b\""),
    });
    assert!(matches!(error, FetchError::Changed { what: "ETag", .. }), "{error}");
}

#[test]
fn remotes_without_ranges_or_versions_are_read_in_one_piece() {
    let file = gguf(20_000, 1);
    let served = file.clone();
    let server = Server::start(move |request| match request.number {
        // Cut once: what came is not gone on from, since nobody knows of what it was.
        2 => Reply { cut: Some(50_000), ..Reply::whole(&served) },
        _ => Reply::whole(&served),
    });
    assert_eq!(fetched(&server, &options()).unwrap(), file);
    let served = file.clone();
    let server = Server::start(move |request| Reply::careless(request, &served, Some("W/\"weak\"")));
    assert_eq!(fetched(&server, &options()).unwrap(), file);
    assert_eq!(server.asked().iter().filter(|request| request.range.is_none()).count(), 1);
}

#[test]
fn only_checkpoints_are_fetched_and_only_whole_ones_are_kept() {
    let page = b"<html>please log in</html>".repeat(10_000);
    let server = Server::start(move |request| Reply::of(request, &page, "\"a\""));
    let error = fetched(&server, &options()).expect_err("no checkpoint").to_string();
    assert!(error.contains("begins with \"<htm\""), "{error}");
    assert_eq!(server.asked().len(), 1);
    let mut cut = gguf(20_000, 1);
    cut.truncate(50_000);
    let error = failed(&options(), move |request| Reply::of(request, &cut, "\"a\"")).to_string();
    assert!(error.contains("truncated"), "{error}");
    let lies = |request: &Request| {
        let mut reply = Reply::of(request, &gguf(20_000, 1), "\"a\"");
        reply.body.push(7);
        reply
    };
    let error = failed(&options(), lies).to_string();
    assert!(error.contains("more than was asked for"), "{error}");
}

#[test]
fn what_cannot_fit_is_not_begun() {
    let server = Server::start(|request| {
        let reply = Reply { body: b"GGUF".to_vec(), ..Reply::status(206) };
        match request.path.as_str() {
            "/m.gguf" | "/n/model.safetensors.index.json" => {
                reply.with("Content-Range", format!("bytes 0-3/{}", 1u64 << 55))
            }
            "/n/config.json" => Reply::of(request, b"{}12", "\"a\""),
            _ => Reply::status(404),
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let error = get(&server.url("m.gguf"), folder.path(), &options()).expect_err("it is too large");
    assert!(matches!(error, FetchError::Full { needed_bytes, .. } if needed_bytes == 1 << 55), "{error}");
    assert_eq!(server.asked().len(), 1);
    let error = get(&server.url("n/"), folder.path(), &options()).expect_err("it is too large").to_string();
    assert!(error.contains("more than any index"), "{error}");
    assert!(visible(folder.path()).is_empty());
}

#[test]
fn a_digest_is_held_to() {
    let file = gguf(20_000, 1);
    let served = file.clone();
    let server = Server::start(move |request| Reply::of(request, &served, "\"a\""));
    let folder = tempfile::tempdir().unwrap();
    let digest = engine_digest(&file);
    let wrong = format!("{}#sha256={}", server.url("m.gguf"), "0".repeat(64));
    let error = get(&wrong, folder.path(), &options()).expect_err("another file").to_string();
    assert!(error.contains(&digest), "{error}");
    let right = format!("{}#sha256={digest}", server.url("m.gguf"));
    assert_eq!(fs::read(get(&right, folder.path(), &options()).unwrap().path).unwrap(), file);
}

fn engine_digest(bytes: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    engine_store::digest(file.path()).unwrap()
}

#[test]
fn what_was_stopped_goes_on_where_it_was() {
    let file = gguf(50_000, 1);
    let served = file.clone();
    let server = Server::start(move |request| match request.number {
        number if number < 12 => Reply::of(request, &served, "\"a\""),
        // Nothing more comes until it is stopped.
        number if number < 20 => Reply { cut: Some(10), hang: true, ..Reply::of(request, &served, "\"a\"") },
        _ => Reply::of(request, &served, "\"a\""),
    });
    let folder = tempfile::tempdir().unwrap();
    let options = Options { parallel: 8, ..options() };
    let source = Source::parse(&server.url("m.gguf")).unwrap();
    let mut busy = false;
    let stopped = fetch(&source, folder.path(), &options, &mut |now| {
        if now.done_bytes < 110_000 {
            return ControlFlow::Continue(());
        }
        // Called on a thread that runs async tasks: that is nobody's concern.
        busy = matches!(get(&server.url("m.gguf"), folder.path(), &options), Err(FetchError::Busy { .. }));
        ControlFlow::Break(())
    });
    assert!(matches!(stopped, Err(FetchError::Stopped)) && busy && visible(folder.path()).is_empty());
    // Some of the requests up to the twentieth may hang.
    let options = Options { stall_ms: 300, retries: 20, ..options };
    let fetched = get(&server.url("m.gguf"), folder.path(), &options).unwrap();
    assert_eq!(fs::read(fetched.path).unwrap(), file);
    assert!(fetched.progress.kept_bytes >= 80_000, "{:?}", fetched.progress);
    assert_eq!(fetched.progress.done_bytes, file.len() as u64);
}

#[test]
fn a_fetch_that_ends_at_any_request_is_gone_on_with() {
    let file = gguf(20_000, 1);
    let pieces = file.len().div_ceil(10_000);
    // A look before, the pieces, a look after.
    for limit in 0..=pieces + 2 {
        let (served, count) = (file.clone(), AtomicUsize::new(0));
        let server = Server::start(move |request| match count.fetch_add(1, Ordering::Relaxed) {
            // Those that were on their way with it fail as well.
            number if (limit..limit + 8).contains(&number) => Reply::status(410),
            _ => Reply::of(request, &served, "\"a\""),
        });
        let folder = tempfile::tempdir().unwrap();
        let mut read_bytes = 0;
        let fetched = loop {
            let source = Source::parse(&server.url("m.gguf")).unwrap();
            let mut last = 0;
            let outcome = fetch(&source, folder.path(), &options(), &mut |now| {
                last = now.read_bytes;
                ControlFlow::Continue(())
            });
            read_bytes += last;
            match outcome {
                Ok(fetched) => break fetched,
                Err(error) => assert!(matches!(error, FetchError::Answer { .. }), "{error}"),
            }
            assert!(visible(folder.path()).is_empty() && server.asked().len() < 100);
        };
        assert_eq!(fs::read(fetched.path).unwrap(), file, "{limit}");
        // Whole pieces that were there do not come again; of each request on its way one piece may.
        assert!(read_bytes <= file.len() as u64 + 8 * 3 * 10_000, "{limit}: {read_bytes}");
    }
}
