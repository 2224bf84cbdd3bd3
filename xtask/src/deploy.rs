//! `cargo xtask deploy`: from a clone to a streamed answer of a model that had no instance, and
//! `undeploy`, which stops it. Both may be run again at any time.

use crate::server::{DeployArgs, Serve, StateArgs};
use crate::shell::{make_folder, step};
use crate::{layout, setup, sse, test, timeline};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};

/// Name under which the demo checkpoint is registered.
const MODEL: &str = "smollm2";
const QUESTION: &str = "What is the capital of France? Answer in one sentence.";

/// Sets up, builds, starts, registers, asks, and says where everything is.
pub fn deploy(args: &DeployArgs) -> Result<()> {
    setup::for_deploy()?;
    test::build_binary()?;
    let serve = running_serve(args)?;
    step(&format!("registering the demo checkpoint as `{MODEL}`"), || serve.add_model(MODEL, &layout::demo_model()))?;
    ask(&serve)?;
    print_locations(&serve);
    Ok(())
}

/// Stops the serve of a state folder; its registry and logs stay.
pub fn undeploy(args: &StateArgs) -> Result<()> {
    let state = args.folder()?;
    let Some(serve) = Serve::running(&state) else {
        println!("no foreshock serve runs on {}", state.display());
        return Ok(());
    };
    step(&format!("stopping foreshock serve (pid {})", serve.pid), || serve.stop())?;
    println!("stopped; the registry stays in {}", state.display());
    Ok(())
}

fn running_serve(args: &DeployArgs) -> Result<Serve> {
    let state = args.state.folder()?;
    if let Some(serve) = Serve::running(&state) {
        if !serve.is_outdated() {
            println!("foreshock serve already runs (pid {}) on {}", serve.pid, state.display());
            return Ok(serve);
        }
        step(&format!("stopping foreshock serve (pid {}), which runs an older build", serve.pid), || serve.stop())?;
    }
    make_folder(&state)?;
    for (port, option) in [(args.port, "--port"), (args.admin_port, "--admin-port")] {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        free.with_context(|| format!("port {port} is in use: choose another with {option}"))?;
    }
    ensure!(layout::foreshock().exists(), "{} was not built", layout::foreshock().display());
    step(&format!("starting foreshock serve on 127.0.0.1:{}", args.port), || {
        Serve::start_detached(&state, args.port, args.admin_port)
    })
}

fn ask(serve: &Serve) -> Result<()> {
    // No instance is the point of a first request; a second `deploy` may well meet a warm one.
    match serve.instances(MODEL)? {
        0 => println!("\n{MODEL} has no instance: this request wakes it"),
        count => println!("\n{MODEL} has {count} instance(s): this request finds it warm"),
    }
    println!("user: {QUESTION}");
    print!("{MODEL}: ");
    let body = json!({
        "model": MODEL, "stream": true, "max_tokens": 64, "temperature": 0,
        "messages": [{"role": "user", "content": QUESTION}]
    });
    let stream = sse::stream(serve.data, "/v1/chat/completions", &body, &mut |text| {
        print!("{text}");
        // A terminal that is gone is no reason to stop measuring.
        let _ = std::io::stdout().flush();
    })
    .context("the first request failed")?;
    println!("\n");
    timeline::print(&timeline::of(serve, &stream));
    Ok(())
}

fn print_locations(serve: &Serve) {
    let (data, admin) = (serve.data, serve.admin);
    println!(
        "
endpoint     http://{data}/v1   (OpenAI API; model `{MODEL}`)
metrics      http://{data}/metrics
decisions    http://{admin}/v1/foreshock/decisions   or: target/release/foreshock explain {MODEL} --state {state}
dashboards   dashboards/foreshock.json (Grafana), dashboards/alerts.yaml (Prometheus), docs/metrics.md
logs         {log}, engines: {state}/logs/<instance>.log
stop         cargo xtask undeploy --state {state}

try it:
  curl -N http://{data}/v1/chat/completions -H 'content-type: application/json' \\
    -d '{{\"model\":\"{MODEL}\",\"stream\":true,\"messages\":[{{\"role\":\"user\",\"content\":\"Tell me a joke.\"}}]}}'",
        state = serve.state.display(),
        log = serve.log().display(),
    );
}
