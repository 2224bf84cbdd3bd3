//! Watches a port, whoever listens there, and prints what the kernel saw: `records PORT`. First a line that says it
//! watches, then each finished request as a line of JSON, and, when its standard input ends, the port's counts.
//! `cargo xtask bench witness` lays these beside the server's and the clients' own clocks.

use controller_witness::{Budget, PortRole, Witness, WitnessOptions};
use std::process::ExitCode;
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;

/// Events of finished requests are all read by then.
const LAST_EVENTS: Duration = Duration::from_millis(300);

#[tokio::main]
async fn main() -> ExitCode {
    let Some(port) = std::env::args().nth(1).and_then(|word| word.parse::<u16>().ok()) else {
        eprintln!("usage: records PORT");
        return ExitCode::from(2);
    };
    match watch(port).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn watch(port: u16) -> Result<(), Box<dyn std::error::Error>> {
    // What is watched is measured whole, whatever that costs.
    let budget = Budget { cpu_ratio: 1.0, ..Budget::default() };
    let witness = Witness::attach(WitnessOptions { budget, ..WitnessOptions::default() })?;
    if !witness.sees_requests() {
        return Err(witness.summary().into());
    }
    let mut records = witness.subscribe();
    witness.watch(port, PortRole::Engine { model: "watched".to_owned(), instance: "watched".to_owned() })?;
    println!("{{\"watching\":{port}}}");
    let (told, mut input_ended) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = told.send(());
    });
    loop {
        tokio::select! {
            record = records.recv() => match record {
                Ok(record) => println!("{}", serde_json::to_string(&*record)?),
                Err(RecvError::Lagged(lost)) => return Err(format!("fell behind by {lost} records").into()),
                Err(RecvError::Closed) => break,
            },
            _ = &mut input_ended => break,
        }
    }
    tokio::time::sleep(LAST_EVENTS).await;
    while let Ok(record) = records.try_recv() {
        println!("{}", serde_json::to_string(&*record)?);
    }
    let counts = serde_json::to_string(&witness.counters(port))?;
    println!("{{\"counts\":{counts},\"events_lost\":{}}}", witness.events_lost());
    Ok(())
}
