//! Frames as people see them, of answers as the admin port gives them.

use super::super::board::Answers;
use super::super::series;
use super::*;
use serde_json::json;

fn board() -> Board {
    let instance = |model: &str, state: &str, core: u32| {
        json!({"model": model, "state": state, "placement": {"shards": [{"device": {"cores": [core]}, "bytes": 1}]},
               "running": 3, "waiting": 1, "resident_bytes": 412_000_000})
    };
    let page = "foreshock_actual_requests_per_second{model=\"chat\"} 12.25\n\
        foreshock_ttft_seconds_bucket{model=\"chat\",vantage=\"kernel\",le=\"0.1\"} 90\n\
        foreshock_ttft_seconds_bucket{model=\"chat\",vantage=\"kernel\",le=\"2.5\"} 100\n\
        foreshock_ttft_seconds_bucket{model=\"chat\",vantage=\"kernel\",le=\"+Inf\"} 100\n\
        foreshock_itl_seconds_bucket{model=\"chat\",vantage=\"kernel\",le=\"0.01\"} 100\n\
        foreshock_itl_seconds_bucket{model=\"chat\",vantage=\"kernel\",le=\"+Inf\"} 100\n";
    let answers = Answers {
        snapshot: json!({
            "now_ns": 100_000_000_000_u64,
            "models": {
                "chat": {"demand": {"held": 0, "in_flight": 4, "unidentified": 0.0}},
                "embed": {"demand": {"held": 2, "in_flight": 0, "unidentified": 1.5}},
            },
            "instances": {"chat-1": instance("chat", "ready", 0), "embed-2": instance("embed", "starting", 1)},
        }),
        decisions: json!({"data": [{"at_ns": 97_000_000_000_u64, "model": "embed", "have": 0, "want": 1,
            "why": "2 requests held and nothing serves embed: starting 1 instance."}]}),
        gpus: json!({"summary": "gpu: 1 device", "gpus": [{"gpu": "0", "name": "NVIDIA H100 80GB HBM3",
            "busy_ratio": 0.37, "memory_used_bytes": 7.1e10, "memory_bytes": 8.5e10, "power_watts": 412.0,
            "temperature_celsius": 61.0, "throttled_by": ["power_cap"], "stale": false}]}),
        series: series::parse(page, &["foreshock_"]),
        earlier: Vec::new(),
    };
    Board::new("127.0.0.1:8081".to_owned(), "last 30 s".to_owned(), &answers)
}

/// A frame of 80 columns and 24 lines, as text.
fn screen(board: &Board) -> String {
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).expect("a terminal");
    terminal.draw(|frame| render(frame, board)).expect("a frame");
    let cells = terminal.backend().buffer().content();
    let line = |row: &[ratatui::buffer::Cell]| row.iter().map(ratatui::buffer::Cell::symbol).collect::<String>();
    cells.chunks(80).map(|row| line(row).trim_end().to_owned() + "\n").collect()
}

#[test]
fn a_full_board_fits_a_small_terminal() {
    let mut board = board();
    board.select(0, false);
    insta::assert_snapshot!(screen(&board), @r"
    foreshock top   127.0.0.1:8081   2 models   2 instances   2 held
      MODEL                 req/s   held in flight  unnamed  ready  start  drain
    > chat                   12.2      0         4      0.0      1      0      0
      embed                     -      2         0      1.5      0      1      0

      LATENCY of chat, last 30 s     streams  TTFT p50       p99   ITL p50       p99
      kernel                             100     56 ms     2.3 s    5.0 ms    9.9 ms
      gateway                              0         -         -         -         -
      engine                               0         -         -         -         -

      INSTANCE          MODEL              STATE     CORES     run  wait   resident
      chat-1            chat               ready     0           3     1     412 MB
      embed-2           embed              starting  1           3     1     412 MB

      GPU   NAME                  busy            memory   power  temp
      0     NVIDIA H100 80GB HB~  37 %   71.0 GB/85.0 GB   412 W  61 C  power_cap

      DECISIONS, newest first
         3 s  embed        0 -> 1  2 requests held and nothing serves embed: startin




    q quit   up/down choose a model   p pause
    ");
}

#[test]
fn nothing_there_is_said() {
    let board = Board::without("127.0.0.1:8081".to_owned(), "no foreshock serve answers".to_owned());
    assert!(screen(&board).contains("no foreshock serve answers. Trying on."));
    let empty = screen(&Board::default());
    for part in ["no model is registered", "none: a request starts one", "none yet"] {
        assert!(empty.contains(part), "{part} in {empty}");
    }
}

#[test]
fn lists_that_are_too_long_are_cut_and_the_chosen_model_stays() {
    let mut board = board();
    let more = (0..40).map(|number| Model { name: format!("m{number:02}"), ..Model::default() });
    board.models.extend(more);
    for (choice, name) in [(0, "> chat"), (20, "> m18"), (41, "> m39"), (99, "> m39")] {
        board.select(choice, true);
        let screen = screen(&board);
        assert!(screen.contains(name), "{name} in {screen}");
        assert!(screen.contains("PAUSED") && screen.contains("DECISIONS"), "{screen}");
        assert_eq!(screen.lines().count(), 24);
    }
}

#[test]
fn text_holds_everything() {
    let mut board = board();
    board.models.extend((0..40).map(|number| Model { name: format!("m{number:02}"), ..Model::default() }));
    let text = text(&board, 100).expect("text");
    assert!(text.contains("m39") && text.contains("nothing serves embed") && !text.contains(" more"), "{text}");
}
