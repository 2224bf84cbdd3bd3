//! A board as lines on a screen: a pure function, so that tests see what people see.

use super::board::{Board, Decision, Gpu, Instance, Model, VANTAGES};
use anyhow::{Context, Result};
use ratatui::backend::TestBackend;
use ratatui::style::{Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::{Paragraph, Wrap};
use ratatui::{Frame, Terminal};

/// Lines around the four lists: title, headings with a blank line before each, latencies, keys.
const FIXED_LINES: usize = 14;
/// Each list gets at least this.
const LEAST_ROWS: usize = 2;

/// Draws the whole screen.
pub fn render(frame: &mut Frame, board: &Board) {
    let area = frame.area();
    if let Some(trouble) = &board.trouble {
        let lines =
            vec![title(board), Line::default(), format!("{trouble}. Trying on.").into(), Line::default(), keys()];
        frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }), area);
        return;
    }
    let room = usize::from(area.height).saturating_sub(FIXED_LINES);
    let mut lines = body(board, room);
    lines.truncate(usize::from(area.height).saturating_sub(1));
    lines.resize(usize::from(area.height).saturating_sub(1), Line::default());
    lines.push(keys());
    frame.render_widget(Paragraph::new(lines), area);
}

/// The board as plain text of this width, nothing cut off below.
pub fn text(board: &Board, columns: u16) -> Result<String> {
    let rows = board.models.len() + board.instances.len() + board.gpus.len().max(1) + board.decisions.len();
    let lines = u16::try_from(FIXED_LINES + rows + 4 * LEAST_ROWS).unwrap_or(u16::MAX).min(u16::MAX / columns.max(1));
    let mut terminal = Terminal::new(TestBackend::new(columns, lines)).context("a frame of text")?;
    terminal.draw(|frame| render(frame, board)).context("a frame of text")?;
    let cells = terminal.backend().buffer().content();
    let line = |row: &[ratatui::buffer::Cell]| {
        let text: String = row.iter().map(ratatui::buffer::Cell::symbol).collect();
        text.trim_end().to_owned()
    };
    let mut lines: Vec<String> = cells.chunks(usize::from(columns)).map(line).collect();
    // Keys are of no use on paper.
    lines.pop();
    while lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
    Ok(lines.join("\n") + "\n")
}

fn body(board: &Board, room: usize) -> Vec<Line<'static>> {
    let counts = [board.models.len(), board.instances.len(), board.gpus.len(), board.decisions.len()];
    let [models, instances, gpus, decisions] = shares(counts, room);
    let mut lines = vec![title(board)];
    lines.push(heading(format!(
        "  {:<20} {:>6} {:>6} {:>9} {:>8} {:>6} {:>6} {:>6}",
        "MODEL", "req/s", "held", "in flight", "unnamed", "ready", "start", "drain"
    )));
    // The last line may be the one that tells of more.
    let first = if board.models.len() <= models { 0 } else { (board.selected + 2).saturating_sub(models) };
    let shown = board.models.iter().enumerate().skip(first).map(|(at, model)| model_line(model, at == board.selected));
    lines.extend(list(shown, models, board.models.len() - first, "no model is registered: `foreshock models add`"));
    lines.push(Line::default());
    lines.extend(latencies(board));
    lines.push(Line::default());
    lines.push(heading(format!(
        "  {:<17} {:<18} {:<9} {:<8} {:>4} {:>5} {:>10}",
        "INSTANCE", "MODEL", "STATE", "CORES", "run", "wait", "resident"
    )));
    let none = "none: a request starts one";
    lines.extend(list(board.instances.iter().map(instance_line), instances, board.instances.len(), none));
    lines.push(Line::default());
    lines.push(heading(format!(
        "  {:<5} {:<20} {:>5} {:>17} {:>7} {:>5}",
        "GPU", "NAME", "busy", "memory", "power", "temp"
    )));
    let summary = if board.gpu_summary.is_empty() { "gpu: not known" } else { &board.gpu_summary };
    lines.extend(list(board.gpus.iter().map(gpu_line), gpus, board.gpus.len(), summary));
    lines.push(Line::default());
    lines.push(heading("  DECISIONS, newest first".to_owned()));
    lines.extend(list(board.decisions.iter().map(decision_line), decisions, board.decisions.len(), "none yet"));
    lines
}

/// Rows of each list: what it needs up to its share of the room, and then what the others leave.
fn shares(counts: [usize; 4], room: usize) -> [usize; 4] {
    let share = (room / 4).max(LEAST_ROWS);
    let mut rows = counts.map(|count| count.clamp(1, share));
    let mut free = room.saturating_sub(rows.iter().sum());
    for (rows, count) in rows.iter_mut().zip(counts) {
        let more = count.saturating_sub(*rows).min(free);
        *rows += more;
        free -= more;
    }
    rows
}

/// At most `room` lines of `count`; the last one tells of those left out.
fn list(lines: impl Iterator<Item = Line<'static>>, room: usize, count: usize, none: &str) -> Vec<Line<'static>> {
    if count == 0 {
        return vec![Line::from(format!("  {none}")).dim()];
    }
    let shown = if count > room { room.saturating_sub(1) } else { count };
    let mut lines: Vec<Line> = lines.take(shown).collect();
    if shown < count {
        lines.push(Line::from(format!("  ... {} more", count - shown)).dim());
    }
    lines
}

fn heading(text: String) -> Line<'static> {
    Line::from(text).bold()
}

fn keys() -> Line<'static> {
    Line::from("q quit   up/down choose a model   p pause").dim()
}

fn title(board: &Board) -> Line<'static> {
    let held: u64 = board.models.iter().map(|model| model.held).sum();
    let counts = match board.trouble {
        Some(_) => String::new(),
        None => format!("   {} models   {} instances   {held} held", board.models.len(), board.instances.len(),),
    };
    let paused = if board.paused { "   PAUSED" } else { "" };
    Line::from(format!("foreshock top   {}{counts}{paused}", board.address)).bold()
}

fn model_line(model: &Model, is_selected: bool) -> Line<'static> {
    let mark = if is_selected { '>' } else { ' ' };
    let rate = model.arrivals_per_s.map_or("-".to_owned(), |rate| format!("{rate:.1}"));
    let line = format!(
        "{mark} {:<20} {rate:>6} {:>6} {:>9} {:>8.1} {:>6} {:>6} {:>6}",
        cut(&model.name, 20),
        model.held,
        model.in_flight,
        model.unidentified,
        model.ready,
        model.starting,
        model.draining,
    );
    let style = if is_selected { Style::new().reversed() } else { Style::new() };
    let style = if model.held > 0 { style.yellow() } else { style };
    Line::styled(line, style)
}

/// Quantiles of the chosen model by vantage.
fn latencies(board: &Board) -> Vec<Line<'static>> {
    let Some(model) = board.models.get(board.selected) else {
        return vec![heading("  LATENCY".to_owned()), Line::from("  no model").dim()];
    };
    let what = cut(&format!("LATENCY of {}, {}", cut(&model.name, 12), board.window), 30);
    let quantiles = ["TTFT p50", "p99", "ITL p50", "p99"].map(|name| format!("{name:>9}")).join(" ");
    let mut lines = vec![heading(format!("  {what:<30} {:>7} {quantiles}", "streams"))];
    for (vantage, latency) in VANTAGES.iter().zip(&model.latencies) {
        let [ttft_p50, ttft_p99] = latency.ttft_s.map(duration);
        let [itl_p50, itl_p99] = latency.itl_s.map(duration);
        lines.push(Line::from(format!(
            "  {vantage:<30} {:>7} {ttft_p50:>9} {ttft_p99:>9} {itl_p50:>9} {itl_p99:>9}",
            latency.streams
        )));
    }
    lines
}

fn instance_line(instance: &Instance) -> Line<'static> {
    let line = format!(
        "  {:<17} {:<18} {:<9} {:<8} {:>4} {:>5} {:>10}",
        cut(&instance.id, 17),
        cut(&instance.model, 18),
        instance.state,
        cut(&instance.cores, 8),
        instance.running,
        instance.waiting,
        bytes(instance.resident_bytes as f64),
    );
    if instance.state == "ready" { Line::from(line) } else { Line::from(line).yellow() }
}

fn gpu_line(gpu: &Gpu) -> Line<'static> {
    let known = |value: Option<f64>, show: fn(f64) -> String| value.map_or("-".to_owned(), show);
    let memory = format!("{}/{}", known(gpu.memory_used_bytes, bytes), known(gpu.memory_bytes, bytes));
    let line = format!(
        "  {:<5} {:<20} {:>5} {memory:>17} {:>7} {:>5}  {}",
        gpu.gpu,
        cut(&gpu.name, 20),
        known(gpu.busy_ratio, |share| format!("{:.0} %", share * 100.0)),
        known(gpu.power_watts, |watts| format!("{watts:.0} W")),
        known(gpu.temperature_celsius, |celsius| format!("{celsius:.0} C")),
        gpu.remarks,
    );
    if gpu.remarks.is_empty() { Line::from(line) } else { Line::from(line).red() }
}

fn decision_line(decision: &Decision) -> Line<'static> {
    let age = if decision.age_s < 600.0 {
        format!("{:.0} s", decision.age_s)
    } else {
        format!("{:.0} min", decision.age_s / 60.0)
    };
    let Decision { have, want, .. } = decision;
    Line::from(format!("  {age:>6}  {:<12} {have} -> {want}  {}", cut(&decision.model, 12), decision.why))
}

fn duration(seconds: Option<f64>) -> String {
    match seconds {
        None => "-".to_owned(),
        Some(s) if s < 0.01 => format!("{:.1} ms", s * 1e3),
        Some(s) if s < 1.0 => format!("{:.0} ms", s * 1e3),
        Some(s) => format!("{s:.1} s"),
    }
}

fn bytes(count: f64) -> String {
    if count < 1e9 { format!("{:.0} MB", count / 1e6) } else { format!("{:.1} GB", count / 1e9) }
}

/// The first characters, and a sign that there were more.
fn cut(text: &str, columns: usize) -> String {
    if text.chars().count() <= columns {
        return text.to_owned();
    }
    text.chars().take(columns - 1).chain(['~']).collect()
}

#[cfg(test)]
mod tests;
