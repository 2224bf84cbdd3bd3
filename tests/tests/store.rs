//! The checkpoint store in use: a model outlives the file that it came from, many engines have one copy of its weights,
//! damage is found and never served, and what nobody needs goes.

use anyhow::{Context, Result, ensure};
use blackbox::serve::{engine_pids, kill_engines};
use blackbox::{Foreshock, demo_model, foreshock_binary, http};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// A state folder with a copy of the demo checkpoint beside it and shared memory of its own, which go at the end.
struct Place {
    folder: TempDir,
    memory: TempDir,
}

impl Place {
    fn new() -> Result<Self> {
        let place = Self { folder: tempfile::tempdir()?, memory: tempfile::tempdir_in("/dev/shm")? };
        fs::create_dir(place.state())?;
        fs::copy(demo_model()?, place.source())?;
        Ok(place)
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn source(&self) -> PathBuf {
        self.folder.path().join("model.gguf")
    }

    fn segments(&self) -> PathBuf {
        self.memory.path().join("segments")
    }

    fn serve(&self, args: &[&str]) -> Result<Foreshock> {
        let segments = self.segments();
        let own = ["--segments", segments.to_str().context("a path")?];
        Foreshock::start_in(&self.state(), &[&own[..], args].concat())
    }

    fn models(&self, args: &[&str]) -> Result<Output> {
        Ok(Command::new(foreshock_binary()?).arg("models").args(args).arg("--state").arg(self.state()).output()?)
    }

    /// The same, which must succeed.
    fn models_ok(&self, args: &[&str]) -> Result<String> {
        let output = self.models(args)?;
        ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn add(&self, name: &str) -> Result<String> {
        self.models_ok(&["add", name, self.source().to_str().context("a path")?])
    }

    /// Files of objects in the store, the largest first.
    fn objects(&self) -> Result<Vec<(u64, PathBuf)>> {
        let mut files = Vec::new();
        for folder in fs::read_dir(self.state().join("store/objects"))? {
            for file in fs::read_dir(folder?.path())? {
                let file = file?;
                files.push((file.metadata()?.len(), file.path()));
            }
        }
        files.sort();
        files.reverse();
        Ok(files)
    }

    /// Names of segments in memory.
    fn held(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.segments()).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(|name| name.len() == 64).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        kill_engines(&self.state());
    }
}

fn ask(serve: &Foreshock, model: &str) -> Result<String> {
    let body = json!({"model": model, "prompt": "The sea is", "max_tokens": 24, "temperature": 0});
    let answer = http::post_json(serve.data, "/v1/completions", &body)?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
    let text = answer.json()?["choices"][0]["text"].as_str().map(str::to_owned);
    text.context("no text")
}

/// Waits until a model's newest `count` starts are recorded; newest first.
fn starts(serve: &Foreshock, model: &str, count: usize) -> Result<Vec<Value>> {
    let rows = |serve: &Foreshock| -> Result<Vec<Value>> {
        Ok(serve.admin_get(&format!("starts?model={model}"))?["data"].as_array().cloned().unwrap_or_default())
    };
    serve.wait_until("starts to be recorded", |serve| Ok(rows(serve)?.len() >= count))?;
    rows(serve)
}

fn asleep(serve: &Foreshock) -> Result<()> {
    serve.wait_until("no engine", |serve| Ok(engine_pids(serve.state()).is_empty()))
}

#[test]
fn a_model_outlives_its_file_and_its_memory_outlives_serve() -> Result<()> {
    let place = Place::new()?;
    let added = place.add("m")?;
    ensure!(added.contains("MB stored"), "{added}");
    // The same again costs nothing, and under another name no byte either.
    let objects = place.objects()?;
    ensure!(place.add("m")?.contains("already registered"), "not known again");
    place.add("n")?;
    ensure!(place.objects()? == objects, "stored twice");

    let first = place.serve(&["--idle-seconds", "60"])?;
    let text = ask(&first, "m")?;
    let start = starts(&first, "m", 1)?.remove(0);
    ensure!(start["tier"] == "disk" && start["read_bytes"].as_u64() > Some(90_000_000), "{start}");
    let phases = ["decision_ms", "spawn_ms", "load_ms", "ready_ms", "first_token_ms"];
    ensure!(phases.iter().all(|phase| start[phase].as_f64() > Some(0.0)), "{start}");
    ensure!(first.terminate()?.success(), "no clean exit");

    fs::remove_file(place.source())?;
    let held = place.held();
    let second = place.serve(&["--idle-seconds", "60"])?;
    ensure!(ask(&second, "m")? == text, "another answer after the restart");
    let newest = starts(&second, "m", 2)?.remove(0);
    ensure!(newest["tier"] == "memory" && newest["read_bytes"] == 0, "{newest}");
    ensure!(place.held() == held && held.len() == objects.len(), "other segments than before");
    // With tokenizer and template from the store too.
    let chat = json!({"model": "n", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4});
    let answer = http::post_json(second.data, "/v1/chat/completions", &chat)?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
    let explained = Command::new(foreshock_binary()?).args(["explain", "m", "--state"]).arg(place.state()).output()?;
    let explained = String::from_utf8_lossy(&explained.stdout).into_owned();
    ensure!(explained.contains("MB from disk") && explained.contains("weights in memory"), "{explained}");
    ensure!(place.models_ok(&["inspect", "m"])?.contains("\"architecture\": \"llama\""), "not inspected");
    Ok(())
}

/// Device and inode of each segment that a process has mapped.
fn mapped(pid: i32, segments: &Path) -> Result<BTreeSet<(String, String)>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let of = |line: &str| {
        let mut words = line.split_whitespace().skip(3);
        Some((words.next()?.to_owned(), words.next()?.to_owned()))
    };
    Ok(maps.lines().filter(|line| line.contains(&*segments.to_string_lossy())).filter_map(of).collect())
}

#[test]
fn two_engines_have_one_copy() -> Result<()> {
    let place = Place::new()?;
    place.add("m")?;
    place.add("n")?;
    let serve = place.serve(&["--idle-seconds", "60", "--cores-per-instance", "1"])?;
    ensure!(ask(&serve, "m")? == ask(&serve, "n")?, "the same weights say two things");
    let pids = engine_pids(serve.state());
    ensure!(pids.len() == 2, "engines: {pids:?}");
    let (first, second) = (mapped(pids[0], &place.segments())?, mapped(pids[1], &place.segments())?);
    ensure!(first == second && first.len() == place.objects()?.len(), "{} and {} maps", first.len(), second.len());
    let read: u64 = ["m", "n"]
        .iter()
        .map(|model| Ok(starts(&serve, model, 1)?[0]["read_bytes"].as_u64().unwrap_or(0)))
        .sum::<Result<u64>>()?;
    let once: u64 = place.objects()?.iter().map(|(bytes, _)| bytes).sum();
    ensure!(read == once, "{read} bytes were read of {once}");
    for held in place.held() {
        let meta = fs::metadata(place.segments().join(held))?;
        ensure!(meta.mode() & 0o777 == 0o400, "a segment can be written");
    }
    Ok(())
}

#[test]
fn a_flipped_byte_is_named_never_served_and_mended() -> Result<()> {
    let place = Place::new()?;
    place.add("m")?;
    let good = place.models_ok(&["verify"])?;
    ensure!(good.contains("every byte is as it was written"), "{good}");
    let (_, object) = place.objects()?.remove(0);
    let mut bytes = fs::read(&object)?;
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::write(&object, &bytes)?;
    let found = place.models(&["verify", "m"])?;
    let said = String::from_utf8_lossy(&found.stdout).into_owned();
    ensure!(!found.status.success(), "damage passes: {said}");
    ensure!(said.contains(&*object.to_string_lossy()) && said.contains("token_embd.weight"), "{said}");
    let serve = place.serve(&["--hold-timeout-ms", "3000"])?;
    let body = json!({"model": "m", "prompt": "x", "max_tokens": 1});
    let refused = http::post_json(serve.data, "/v1/completions", &body)?;
    ensure!(refused.status >= 500, "served from damaged weights: {}", refused.text());
    ensure!(serve.log().contains("are not those that were written"), "not said why:\n{}", serve.log());
    drop(serve);
    fs::remove_file(&object)?;
    place.add("m")?;
    place.models_ok(&["verify", "m"])?;
    // What is no weight is looked after as well.
    let folder = fs::read_dir(place.state().join("store/heads"))?.next().context("a head")??.path();
    let head = folder.join("checkpoint");
    let mut file = fs::OpenOptions::new().write(true).open(&head)?;
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(1000))?;
    std::io::Write::write_all(&mut file, b"\xff\xff")?;
    let said = String::from_utf8_lossy(&place.models(&["verify"])?.stdout).into_owned();
    ensure!(said.contains(&*head.to_string_lossy()), "{said}");
    place.add("m")?;
    place.models_ok(&["verify"])?;
    Ok(())
}

#[test]
fn what_nobody_needs_goes_from_memory_and_disk() -> Result<()> {
    let place = Place::new()?;
    place.add("m")?;
    place.add("n")?;
    let serve = place.serve(&["--idle-seconds", "60"])?;
    ask(&serve, "m")?;
    let segments = place.segments();
    let segments = segments.to_str().context("a path")?;
    place.models_ok(&["rm", "m", "--segments", segments])?;
    ensure!(!place.held().is_empty(), "another name has these weights");
    ensure!(place.models_ok(&["gc"])?.contains("freed 0.0 MB"), "what a name needs was freed");
    place.models_ok(&["rm", "n", "--segments", segments])?;
    ensure!(place.held().is_empty(), "weights of no model are in memory");
    let freed = place.models_ok(&["gc"])?;
    ensure!(!freed.contains("freed 0.0 MB") && place.objects()?.is_empty(), "{freed}");
    ensure!(place.models_ok(&["gc"])?.contains("freed 0.0 MB in 0 files"), "freed twice");
    asleep(&serve)
}

#[test]
fn idle_weights_leave_memory_beyond_a_bound_and_come_back_from_disk() -> Result<()> {
    let place = Place::new()?;
    place.add("m")?;
    let serve = place.serve(&["--idle-seconds", "1", "--idle-weights-bytes", "0"])?;
    let text = ask(&serve, "m")?;
    asleep(&serve)?;
    serve.wait_until("idle weights to leave memory", |_| Ok(place.held().is_empty()))?;
    ensure!(ask(&serve, "m")? == text, "another answer");
    let tiers: Vec<Value> = starts(&serve, "m", 2)?.iter().map(|start| start["tier"].clone()).collect();
    ensure!(tiers == ["disk", "disk"], "{tiers:?}");
    ensure!(serve.metric_sum("foreshock_weights_discarded_bytes_total", &[])? > 9e7, "not counted");
    Ok(())
}

#[test]
fn without_shared_memory_the_stores_files_serve() -> Result<()> {
    let place = Place::new()?;
    place.add("m")?;
    let first = place.serve(&["--idle-seconds", "60"])?;
    let text = ask(&first, "m")?;
    first.terminate()?;
    // A folder that others may write is not believed.
    fs::remove_dir_all(place.segments())?;
    fs::create_dir(place.segments())?;
    fs::set_permissions(place.segments(), fs::Permissions::from_mode(0o777))?;
    let serve = place.serve(&["--idle-seconds", "60"])?;
    ensure!(ask(&serve, "m")? == text, "another answer");
    ensure!(starts(&serve, "m", 2)?[0]["tier"] == "file", "no word of it");
    Ok(())
}

#[test]
fn a_kill_while_adding_leaves_no_half_of_a_model() -> Result<()> {
    let place = Place::new()?;
    let source = place.source();
    for wait_ms in [5, 40, 120, 300, 600] {
        let mut adding = Command::new(foreshock_binary()?)
            .args(["models", "add", "m"])
            .arg(&source)
            .arg("--state")
            .arg(place.state())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        std::thread::sleep(Duration::from_millis(wait_ms));
        adding.kill()?;
        let done = adding.wait()?.success();
        let listed = place.models_ok(&["ls"])?.contains("llama with");
        ensure!(listed == done || listed, "killed after {wait_ms} ms");
        if listed {
            place.models_ok(&["verify", "m"])?;
        }
    }
    place.add("m")?;
    place.models_ok(&["verify", "m"])?;
    let serve = place.serve(&["--idle-seconds", "60"])?;
    // An engine that is killed while it loads leaves memory that the next one can use.
    let body = json!({"model": "m", "prompt": "The sea is", "max_tokens": 1, "temperature": 0}).to_string();
    let asking = std::thread::spawn({
        let data = serve.data;
        move || http::request(data, "POST", "/v1/completions", &[("content-type", "application/json")], body.as_bytes())
    });
    serve.wait_until("an engine", |serve| Ok(!engine_pids(serve.state()).is_empty()))?;
    kill_engines(serve.state());
    let answer = asking.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
    ensure!(!ask(&serve, "m")?.is_empty(), "no answer");
    Ok(())
}
