//! The commands of `foreshock models` that work on the store.

use super::remote::Local;
use super::{REPLACED, describe, input, open, said, unknown};
use crate::cli::{SegmentsArgs, StateArgs};
use crate::config::{InputError, segments_dir, state_dir};
use anyhow::{Result, bail};
use controller_daemon::catalog::{add_model, remove_model};
use controller_daemon::{ModelRecord, ModelStore, Taking};
use engine_instance::CpuBands;
use engine_store::{Progress, Quantisation};
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// The store of a state folder, laid out for this machine's kernels.
pub fn store(state: &StateArgs, segments: &SegmentsArgs) -> Result<ModelStore> {
    Ok(ModelStore::new(&state_dir(state)?, segments_dir(segments), Arc::new(CpuBands)))
}

pub(super) fn add(
    name: &str,
    local: Local,
    quantise: Option<Quantisation>,
    segments: &SegmentsArgs,
    state: &StateArgs,
) -> Result<()> {
    let (mut registry, store) = (open(state)?, store(state, segments)?);
    let mut teller = Teller::new();
    let added = add_model(&mut registry, &store, name, local.path(), quantise, &mut |taking| teller.taking(taking));
    let stored = teller.end();
    let (added, record) = added.map_err(input)?;
    println!("{name}: {}, {}{stored}", said(added, REPLACED), describe(&record));
    // What the store does not take is served from where it lies.
    if record.head.is_some() { local.stored() } else { Ok(()) }
}

pub(super) fn remove(name: &str, segments: &SegmentsArgs, state: &StateArgs) -> Result<()> {
    if !remove_model(&mut open(state)?, &store(state, segments)?, name).map_err(input)? {
        bail!(unknown(name));
    }
    println!(
        "{name}: removed; what only it needed is drained, its files stay (`foreshock models gc` frees the store's)"
    );
    Ok(())
}

pub(super) fn verify(name: Option<&str>, state: &StateArgs) -> Result<()> {
    let registry = open(state)?;
    let models: Vec<ModelRecord> = match name {
        None => registry.models()?.into_iter().filter(|model| model.head.is_some()).collect(),
        Some(name) => match registry.model(name)? {
            None => bail!(unknown(name)),
            Some(model) if model.head.is_none() => {
                bail!(InputError(format!("`{name}` is not in the store: it is served from {}", model.path.display())))
            }
            Some(model) => vec![model],
        },
    };
    let store = store(state, &SegmentsArgs { segments: None })?;
    let mut damaged = 0;
    for model in &models {
        let (mut bytes, mut teller) = (0, Teller::new());
        let wrong = store.verify(model, |checked| {
            bytes += checked;
            teller.say(&format!("verified {:.1} MB", bytes as f64 / 1e6));
        });
        teller.end();
        let wrong = wrong.map_err(|error| InputError(error.to_string()))?;
        match wrong.len() {
            0 => println!("{}: every byte is as it was written, {:.1} MB", model.name, bytes as f64 / 1e6),
            _ => wrong.iter().for_each(|line| println!("{}: {line}", model.name)),
        }
        damaged += usize::from(!wrong.is_empty());
    }
    match damaged {
        0 if models.is_empty() => println!("No model is in the store"),
        0 => {}
        _ => bail!(InputError(format!("{damaged} of {} models are damaged", models.len()))),
    }
    Ok(())
}

pub(super) fn gc(state: &StateArgs) -> Result<()> {
    let freed = store(state, &SegmentsArgs { segments: None })?.gc(&open(state)?).map_err(input)?;
    println!("freed {:.1} MB in {} files", freed.bytes as f64 / 1e6, freed.files);
    Ok(())
}

/// Tells a person at a terminal how far the work is, on a line that is written over; elsewhere it says nothing until the
/// end.
pub(super) struct Teller {
    terminal: bool,
    told: Option<Instant>,
    progress: Option<Progress>,
}

impl Teller {
    pub(super) fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), told: None, progress: None }
    }

    fn taking(&mut self, taking: Taking) {
        match taking {
            Taking::Reading => self.say("reading the checkpoint"),
            Taking::Waiting => self.say("another process is adding the same model"),
            Taking::Storing(progress) => {
                self.progress = Some(progress);
                let (done, total) = (progress.done_bytes as f64 / 1e6, progress.total_bytes as f64 / 1e6);
                self.say(&format!("stored {done:.0} of {total:.0} MB ({:.0}%)", 100.0 * done / total.max(1e-6)));
            }
        }
    }

    pub(super) fn say(&mut self, what: &str) {
        if self.terminal && self.told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            self.told = Some(Instant::now());
            let mut stderr = std::io::stderr();
            // Whoever closed it does not want to hear.
            let _ = write!(stderr, "\r{what:<60}").and_then(|()| stderr.flush());
        }
    }

    /// Clears the line; answers what was stored, as the rest of a sentence.
    pub(super) fn end(&mut self) -> String {
        if self.told.is_some() {
            eprint!("\r{:60}\r", "");
        }
        let wrote = |progress: Progress| {
            let (written, shared) = (progress.written_bytes as f64 / 1e6, progress.shared_bytes as f64 / 1e6);
            format!(", {written:.1} MB stored and {shared:.1} MB there already")
        };
        self.progress.map(wrote).unwrap_or_default()
    }
}
