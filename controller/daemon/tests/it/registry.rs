//! The state database: what it keeps, and what it says when it cannot.

use crate::stage::record;
use controller_core::action::{CapacityView, Decision, ForecastView, Reason, Seen};
use controller_daemon::foreign::{EngineKind, EngineSpec};
use controller_daemon::registry::{DATABASE_FILE, HistoryWriter};
use controller_daemon::{Added, Registry, RegistryError};

fn decision(model: &str, at_ns: u64) -> Decision {
    Decision {
        at_ns,
        epoch: 1,
        model: model.to_owned(),
        seen: Seen::default(),
        forecast: ForecastView::default(),
        capacity: CapacityView::default(),
        have: 0,
        want: 1,
        reason: Reason::HeldAtZero,
        why: "because".to_owned(),
        actions: vec![],
    }
}

#[test]
fn models_survive_and_replace_by_revision() {
    let folder = tempfile::tempdir().unwrap();
    let mut registry = Registry::open(folder.path()).unwrap();
    let model = record(folder.path(), "a");
    let version = registry.models_version().unwrap();
    assert_eq!(registry.put_model(&model).unwrap(), Added::New);
    assert_eq!(registry.put_model(&model).unwrap(), Added::Unchanged);
    assert_eq!(registry.models_version().unwrap(), version + 1, "adding again is no change");
    let mut other = model.clone();
    other.revision = "another".to_owned();
    other.engine = Some(EngineSpec {
        kind: EngineKind::Custom,
        command: Some("prog {port}".to_owned()),
        health: "/ready".to_owned(),
        slots: 3,
    });
    assert_eq!(registry.put_model(&other).unwrap(), Added::Replaced);
    drop(registry);
    let mut registry = Registry::open(folder.path()).unwrap();
    assert_eq!(registry.models().unwrap(), [other.clone()]);
    assert_eq!(registry.model("a").unwrap(), Some(other));
    assert_eq!(registry.model("b").unwrap(), None);
    assert!(registry.remove_model("a").unwrap());
    assert!(!registry.remove_model("a").unwrap());
    assert_eq!(registry.models().unwrap(), []);
}

#[test]
fn a_change_by_another_connection_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let reader = Registry::open(folder.path()).unwrap();
    let mut writer = Registry::connect(folder.path()).unwrap();
    let before = reader.models_version().unwrap();
    writer.put_model(&record(folder.path(), "a")).unwrap();
    assert!(reader.models_version().unwrap() > before);
    assert_eq!(reader.models().unwrap().len(), 1);
}

#[test]
fn each_start_has_a_higher_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let epochs: Vec<u64> = (0..3).map(|_| Registry::open(folder.path()).unwrap().next_epoch().unwrap()).collect();
    assert_eq!(epochs, [1, 2, 3]);
}

#[test]
fn history_is_bounded_and_comes_back_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let mut registry = Registry::open(folder.path()).unwrap();
    let decisions: Vec<Decision> =
        (0..10_050).map(|at_ns| decision(if at_ns % 2 == 0 { "a" } else { "b" }, at_ns)).collect();
    registry.record_decisions(&decisions).unwrap();
    assert_eq!(registry.decisions(None, usize::MAX).unwrap(), decisions[50..]);
    let newest: Vec<u64> = registry.decisions(Some("a"), 2).unwrap().iter().map(|kept| kept.at_ns).collect();
    assert_eq!(newest, [10_046, 10_048]);
    for sample in 0..70 {
        registry.record_cold_start("a", "r", f64::from(sample)).unwrap();
    }
    registry.record_cold_start("b", "r", 1.5).unwrap();
    let kept = registry.cold_starts().unwrap();
    assert_eq!(kept[&("a".to_owned(), "r".to_owned())], (6..70).map(f64::from).collect::<Vec<_>>());
    assert_eq!(kept[&("b".to_owned(), "r".to_owned())], [1.5]);
}

#[test]
fn the_writer_has_written_when_it_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::open(folder.path()).unwrap();
    let mut writer = HistoryWriter::start(folder.path()).unwrap();
    writer.decisions(vec![decision("a", 1), decision("a", 2)]);
    writer.cold_start("a", "r", 12.0);
    drop(writer);
    assert_eq!(registry.decisions(None, 10).unwrap().len(), 2);
    assert_eq!(registry.cold_starts().unwrap().len(), 1);
}

#[test]
fn a_newer_schema_is_refused_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    drop(Registry::open(folder.path()).unwrap());
    let other = rusqlite::Connection::open(folder.path().join(DATABASE_FILE)).unwrap();
    other.pragma_update(None, "user_version", 99).unwrap();
    let message = Registry::open(folder.path()).err().unwrap().to_string();
    assert!(message.contains("schema version 99") && message.contains("knows only up to"), "{message}");
    let version: i64 = other.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
    assert_eq!(version, 99);
}

#[test]
fn a_damaged_database_is_one_clear_line() {
    let check = |damage: &dyn Fn(&std::path::Path)| {
        let folder = tempfile::tempdir().unwrap();
        let mut registry = Registry::open(folder.path()).unwrap();
        registry.record_decisions(&(0..500).map(|at_ns| decision("a", at_ns)).collect::<Vec<_>>()).unwrap();
        drop(registry);
        damage(&folder.path().join(DATABASE_FILE));
        let error = Registry::open(folder.path()).err().expect("the damage went unnoticed");
        assert!(matches!(error, RegistryError::Damaged { .. }), "{error}");
        let message = error.to_string();
        assert!(message.contains("is damaged") && message.lines().count() == 1, "{message}");
    };
    check(&|path| std::fs::write(path, "this is no database, whatever its name says, not at all").unwrap());
    check(&|path| {
        let mut bytes = std::fs::read(path).unwrap();
        bytes[5_000..20_000].fill(0xa5);
        std::fs::write(path, bytes).unwrap();
    });
}

#[test]
fn a_state_folder_that_cannot_be_is_one_clear_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let message = Registry::open(&file.join("state")).err().unwrap().to_string();
    assert!(message.contains("cannot be used") && message.contains("--state"), "{message}");
    // A folder where the file should be: as root, permissions alone stop nobody.
    std::fs::create_dir(folder.path().join(DATABASE_FILE)).unwrap();
    let message = Registry::open(folder.path()).err().unwrap().to_string();
    assert!(message.contains("cannot be opened or written"), "{message}");
}
