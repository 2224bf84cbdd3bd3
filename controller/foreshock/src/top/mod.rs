//! `foreshock top`: a live view of a running serve, by its admin port alone. One thread asks the port, this one
//! draws and takes keys, so that a serve that hangs does not hang the view.

mod board;
mod draw;
mod fetch;
mod series;

use crate::cli::TopArgs;
use anyhow::{Context, Result, bail};
use board::Board;
use fetch::Watcher;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Longest time until a key, a signal or a new board is noticed.
const REACTION: Duration = Duration::from_millis(100);
/// Columns of a frame that goes to no terminal.
const TEXT_COLUMNS: u16 = 100;

/// Shows the view until `q`, or one frame of it.
pub fn run(args: &TopArgs) -> Result<()> {
    if args.once || !std::io::stdout().is_terminal() {
        return once(args);
    }
    let stop = Arc::new(AtomicBool::new(false));
    // Kept until the end: it watches for signals, which would else end the process on a spoilt terminal.
    let _signals = stop_on_signals(stop.clone())?;
    let (sender, boards) = mpsc::sync_channel(1);
    let mut watcher = Watcher::new(args.admin);
    let every = Duration::from_millis(args.every_ms);
    std::thread::spawn(move || {
        while sender.send(watcher.look()).is_ok() {
            std::thread::sleep(every);
        }
    });
    // Also puts the terminal back when something panics.
    let mut terminal = ratatui::try_init().context("preparing the terminal (try --once)")?;
    let outcome = show(&mut terminal, &boards, &stop);
    ratatui::restore();
    outcome
}

fn once(args: &TopArgs) -> Result<()> {
    let board = Watcher::new(args.admin).look();
    if let Some(trouble) = &board.trouble {
        bail!("{trouble}");
    }
    let text = draw::text(&board, TEXT_COLUMNS)?;
    std::io::stdout().write_all(text.as_bytes()).context("writing the frame")
}

/// Sets `stop` when the process is told to end.
fn stop_on_signals(stop: Arc<AtomicBool>) -> Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let entered = runtime.enter();
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()] {
        let mut told = signal(kind).context("watching for signals")?;
        let stop = stop.clone();
        runtime.spawn(async move {
            told.recv().await;
            stop.store(true, Ordering::Relaxed);
        });
    }
    drop(entered);
    Ok(runtime)
}

fn show(terminal: &mut ratatui::DefaultTerminal, boards: &mpsc::Receiver<Board>, stop: &AtomicBool) -> Result<()> {
    let mut board = Board::default();
    let mut selected = 0;
    let mut paused = false;
    while !stop.load(Ordering::Relaxed) {
        while let Ok(newer) = boards.try_recv() {
            if !paused {
                board = newer;
            }
        }
        selected = board.select(selected, paused);
        terminal.draw(|frame| draw::render(frame, &board)).context("drawing")?;
        if !event::poll(REACTION).context("reading keys")? {
            continue;
        }
        if let Event::Key(key) = event::read().context("reading keys")? {
            match command(&key) {
                Some(Command::Quit) => return Ok(()),
                Some(Command::Pause) => paused = !paused,
                Some(Command::Next) => selected = (selected + 1) % board.models.len().max(1),
                Some(Command::Previous) => selected = selected.checked_sub(1).unwrap_or(board.models.len()),
                None => {}
            }
        }
    }
    Ok(())
}

#[derive(Debug, PartialEq)]
enum Command {
    Quit,
    Pause,
    Next,
    Previous,
}

fn command(key: &KeyEvent) -> Option<Command> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Command::Quit),
        KeyCode::Char('q') | KeyCode::Esc => Some(Command::Quit),
        KeyCode::Char('p') => Some(Command::Pause),
        KeyCode::Down | KeyCode::Tab => Some(Command::Next),
        KeyCode::Up | KeyCode::BackTab => Some(Command::Previous),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_do_what_the_last_line_says() {
        let check = |code, modifiers, want| {
            assert_eq!(command(&KeyEvent::new(code, modifiers)), want, "{code:?} {modifiers:?}");
        };
        let none = KeyModifiers::NONE;
        check(KeyCode::Char('q'), none, Some(Command::Quit));
        check(KeyCode::Char('c'), KeyModifiers::CONTROL, Some(Command::Quit));
        check(KeyCode::Char('c'), none, None);
        check(KeyCode::Char('p'), none, Some(Command::Pause));
        check(KeyCode::Tab, none, Some(Command::Next));
        check(KeyCode::Up, none, Some(Command::Previous));
    }
}
