//! Loads a probe object into this kernel, attaches it and says what became of each probe:
//! `verify OBJECT`. Exits with 1 unless all are attached. `cargo xtask probes check` runs it.

use controller_witness::{Witness, WitnessOptions};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let object = std::env::args_os().nth(1).map(Into::into);
    let witness = match Witness::attach(WitnessOptions { object, ..WitnessOptions::default() }) {
        Ok(witness) => witness,
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    };
    for probe in witness.probes() {
        println!("{:17} {}", probe.probe, if probe.attached { "attached" } else { &probe.reason });
    }
    let attached = witness.probes().iter().all(|probe| probe.attached);
    drop(witness);
    std::process::exit(i32::from(!attached));
}
