//! The dashboard and the alerts against the real thing: a Prometheus that scrapes a running Foreshock which
//! has served requests, slept and woken again. Every panel's query has to return data, so a metric that
//! nobody emits, or emits under another name or label, fails here.

use anyhow::{Context, Result, ensure};
use blackbox::{Foreshock, free_port, http, workspace_root};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const MODEL: &str = "smollm2";
/// Window that stands for Grafana's: longer than the whole test's traffic.
const RATE_WINDOW: &str = "2m";
/// For Prometheus to start, and for the last query to have data.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn alert_rules_are_valid() -> Result<()> {
    let rules = workspace_root().join("dashboards/alerts.yaml");
    let output = Command::new("promtool").args(["check", "rules"]).arg(rules).output().context(MISSING)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn every_panel_returns_data() -> Result<()> {
    let foreshock = Foreshock::start(&["--idle-seconds", "1"])?;
    foreshock.add_model(MODEL)?;
    let prometheus = Prometheus::scraping(foreshock.data)?;
    serve_some(&foreshock, &prometheus)?;

    let seen = kernel_sees(&foreshock)?;
    let queries = panel_queries()?;
    ensure!(queries.len() > 30, "only {} queries in the dashboard", queries.len());
    let absent = absent(&foreshock)?;
    let is_expected = |query: &String| (seen || !needs_kernel(query)) && !absent.iter().any(|of| query.contains(of));
    let mut empty: Vec<String> = queries.into_iter().filter(is_expected).collect();
    let deadline = Instant::now() + PATIENCE;
    // The last scrape may still be on its way, so what is empty is asked again until the deadline.
    while !empty.is_empty() && Instant::now() < deadline {
        empty = prometheus.without_data(empty)?;
        std::thread::sleep(Duration::from_millis(500));
    }
    ensure!(empty.is_empty(), "panels without data:\n{}\n\nexposition:\n{}", empty.join("\n"), foreshock.metrics()?);
    Ok(())
}

const MISSING: &str = "cannot start it; `cargo xtask setup` installs the Debian package prometheus";

/// Wakes the model twice, with scrapes between, since a rate needs a counter at two moments.
fn serve_some(foreshock: &Foreshock, prometheus: &Prometheus) -> Result<()> {
    for _ in 0..2 {
        for stream in [true, false, true] {
            let body = json!({
                "model": MODEL, "stream": stream, "max_tokens": 8, "temperature": 0,
                "messages": [{"role": "user", "content": "Count to five."}]
            });
            let answer = http::post_json(foreshock.data, "/v1/chat/completions", &body)?;
            ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
            prometheus.wait_scrape()?;
        }
        foreshock
            .wait_until("the model to sleep again", |running| Ok(instances(&running.admin_get("instances")?) == 0))?;
        prometheus.wait_scrape()?;
    }
    Ok(())
}

/// Objects that name the model, anywhere in the answer.
fn instances(value: &Value) -> usize {
    match value {
        Value::Object(fields) if fields.get("model").is_some_and(|name| name == MODEL) => 1,
        Value::Object(fields) => fields.values().map(instances).sum(),
        Value::Array(items) => items.iter().map(instances).sum(),
        _ => 0,
    }
}

/// Whether probes are attached. Where they may not be, panels of the kernel's figures are rightly empty.
fn kernel_sees(foreshock: &Foreshock) -> Result<bool> {
    let seen = foreshock.metric_sum("foreshock_probes_attached", &[])? > 0.0;
    if !seen {
        eprintln!("no kernel probe is attached here: the kernel's panels are not checked");
    }
    Ok(seen)
}

/// Prefixes of metrics whose panels are rightly empty here: no GPU, no process that uses CUDA, no PSI.
fn absent(foreshock: &Foreshock) -> Result<Vec<&'static str>> {
    let exposition = foreshock.metrics()?;
    let kinds = [
        ("foreshock_gpu_", "\nforeshock_gpu_up{"),
        ("foreshock_cuda_", "\nforeshock_cuda_calls_per_second{"),
        ("foreshock_pressure_", "\nforeshock_pressure_ratio{"),
    ];
    let absent: Vec<&str> =
        kinds.iter().filter(|(_, series)| !exposition.contains(series)).map(|(prefix, _)| *prefix).collect();
    if !absent.is_empty() {
        eprintln!("not on this machine, so their panels are not checked: {absent:?}");
    }
    Ok(absent)
}

fn needs_kernel(query: &str) -> bool {
    const PREFIXES: [&str; 3] = ["foreshock_kernel_", "foreshock_outside_", "foreshock_probe_"];
    PREFIXES.iter().any(|prefix| query.contains(prefix)) || query.contains("vantage=\"kernel\"")
}

/// Every query of the dashboard, with Grafana's variables filled in.
fn panel_queries() -> Result<Vec<String>> {
    let text = std::fs::read_to_string(workspace_root().join("dashboards/foreshock.json"))?;
    let dashboard: Value = serde_json::from_str(&text)?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    Ok(targets
        .filter_map(|target| target["expr"].as_str())
        .map(|query| query.replace("$__rate_interval", RATE_WINDOW).replace("$model", ".*"))
        .collect())
}

/// A Prometheus on a free port with its data in a folder that goes away.
struct Prometheus {
    process: Child,
    addr: SocketAddr,
    folder: tempfile::TempDir,
}

impl Prometheus {
    fn scraping(target: SocketAddr) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let config = folder.path().join("prometheus.yml");
        let rules = workspace_root().join("dashboards/alerts.yaml");
        std::fs::write(&config, scrape_config(target, &rules))?;
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let log = std::fs::File::create(folder.path().join("log"))?;
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={addr}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context(MISSING)?;
        let running = Self { process, addr, folder };
        running.wait_ready()?;
        Ok(running)
    }

    fn wait_ready(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !http::get(self.addr, "/-/ready").is_ok_and(|answer| answer.status == 200) {
            ensure!(Instant::now() < deadline, "Prometheus is not ready:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Waits until a scrape that began after this call is in.
    fn wait_scrape(&self) -> Result<()> {
        let last = |running: &Self| Ok::<_, anyhow::Error>(running.query("timestamp(foreshock_build_info)")?.pop());
        let before = last(self)?;
        let deadline = Instant::now() + PATIENCE;
        let mut fresh = 0;
        let mut newest = before;
        // The first new scrape may have begun before this call; the second has not.
        while fresh < 2 {
            ensure!(Instant::now() < deadline, "no new scrape:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(200));
            let now = last(self)?;
            if now.is_some() && now != newest {
                (newest, fresh) = (now, fresh + 1);
            }
        }
        Ok(())
    }

    /// Those of the queries that give no number.
    fn without_data(&self, queries: Vec<String>) -> Result<Vec<String>> {
        let mut empty = Vec::new();
        for query in queries {
            if self.query(&query)?.iter().all(|value| value.is_nan()) {
                empty.push(query);
            }
        }
        Ok(empty)
    }

    /// Values of an instant query now.
    fn query(&self, query: &str) -> Result<Vec<f64>> {
        let path = format!("/api/v1/query?query={}", percent_encoded(query));
        let answer = http::get(self.addr, &path)?.json()?;
        ensure!(answer["status"] == "success", "{query}: {answer}");
        let series = answer["data"]["result"].as_array().context("no result")?;
        Ok(series.iter().filter_map(|one| one["value"][1].as_str()?.parse().ok()).collect())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn scrape_config(target: SocketAddr, rules: &Path) -> String {
    format!(
        "global:\n  scrape_interval: 1s\n  evaluation_interval: 1s\nrule_files:\n  - '{}'\nscrape_configs:\n  \
         - job_name: foreshock\n    static_configs:\n      - targets: ['{target}']\n",
        rules.display()
    )
}

/// RFC 3986: everything but unreserved characters as %XX.
fn percent_encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
