//! The keeper on real segments of a real store.

#[path = "../../../../engine/store/tests/common/random_folder.rs"]
mod random_folder;

use super::*;
use controller_core::snapshot::{WeightsTier, WeightsView};
use engine_store::{Checkpoint, LoadOptions, Loaded, Manifest, Packer, load};
use random_folder::{Tails, scratch, wide, write};
use tempfile::TempDir;

/// Longest that anything in these tests may take.
const PATIENCE: Duration = Duration::from_secs(20);

struct Stage {
    folder: TempDir,
    manifests: Vec<Manifest>,
    keeper: Keeper,
}

impl Stage {
    /// Models of a store, the first of them also in memory, and a keeper that lets so much lie unused.
    fn new(models: &[&str], idle_bytes: u64) -> Self {
        let folder = scratch();
        let store = Store::open(folder.path().join("store")).unwrap();
        let manifests: Vec<Manifest> =
            models.iter().zip(1..).map(|(model, seed)| ingest(&store, model, seed)).collect();
        let places = Places {
            store: store.root().to_owned(),
            segments: folder.path().join("segments"),
            layout: Tails.layout().to_owned(),
            idle_bytes,
        };
        let names = models.iter().map(|model| (*model).to_owned()).collect();
        let keeper = Keeper::start(places, names, Arc::default()).unwrap();
        let stage = Self { folder, manifests, keeper };
        drop(stage.load(0));
        stage.keeper.look();
        stage
    }

    fn load(&self, model: usize) -> Loaded {
        let store = Store::open(self.folder.path().join("store")).unwrap();
        let segments = Segments::open(self.folder.path().join("segments")).unwrap();
        load(&store, &self.manifests[model], &segments, LoadOptions::default()).unwrap()
    }

    fn ask(&self, kind: fn(String, String) -> ActionKind, model: &str) {
        let action = Action { epoch: 1, key: String::new(), kind: kind(model.to_owned(), model.to_owned()) };
        assert_eq!(self.keeper.apply(&action), Some(true));
    }

    /// Waits until a model is seen so.
    fn until(&self, model: &str, wanted: impl Fn(&WeightsView) -> bool) -> Arc<Seen> {
        let began = Instant::now();
        loop {
            let seen = self.keeper.seen();
            if seen.weights(model).is_some_and(&wanted) {
                return seen;
            }
            assert!(began.elapsed() < PATIENCE, "{:?}", seen.weights(model));
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn ingest(store: &Store, revision: &str, seed: u64) -> Manifest {
    let source = scratch();
    write(&wide(3000), source.path(), seed);
    let checkpoint = Checkpoint::open(source.path(), None).unwrap();
    store.ingest(&checkpoint, revision, &Tails, &mut |_| {}).unwrap()
}

fn prefetch(model: String, revision: String) -> ActionKind {
    ActionKind::Prefetch { model, revision }
}

fn forget(model: String, revision: String) -> ActionKind {
    ActionKind::Forget { model, revision }
}

fn is_in(tier: WeightsTier) -> impl Fn(&WeightsView) -> bool {
    move |view| view.tier == tier
}

#[test]
fn weights_come_and_go_as_the_plan_says() {
    let stage = Stage::new(&["one", "two"], 1 << 30);
    let bytes = stage.manifests[0].bytes();
    let seen = stage.until("one", |view| view.freeable_bytes == bytes);
    let view = seen.weights("one").unwrap();
    assert_eq!((view.bytes, view.memory_bytes, view.tier, view.mapped), (bytes, bytes, WeightsTier::Memory, false));
    assert_eq!((seen.node.idle_bytes, seen.node.idle_bytes_max), (bytes, 1 << 30));
    assert_eq!(seen.weights("two").unwrap().tier, WeightsTier::Disk);
    stage.ask(prefetch, "two");
    stage.until("two", is_in(WeightsTier::Memory));
    // What a start finds there needs no reading.
    assert_eq!(stage.load(1).facts.read_bytes, 0);
    stage.ask(forget, "one");
    stage.until("one", |view| view.tier == WeightsTier::Disk && view.memory_bytes == 0);
    assert_eq!(stage.keeper.seen().weights("two").unwrap().tier, WeightsTier::Memory);
}

#[test]
fn what_is_mapped_is_seen_and_never_leaves() {
    let mut stage = Stage::new(&["one"], 1 << 30);
    let loaded = stage.load(0);
    stage.keeper.look();
    stage.until("one", |view| view.mapped && view.freeable_bytes == 0);
    stage.ask(forget, "one");
    // Orders are done in turn: when this one has been, so has the one before it.
    stage.keeper.registered(["one", "later"].map(str::to_owned).into());
    let seen = stage.until("later", |_| true);
    assert_eq!(seen.weights("one").unwrap().tier, WeightsTier::Memory);
    drop(loaded);
    stage.keeper.look();
    let seen = stage.until("one", |view| !view.mapped);
    assert_eq!(seen.weights("one").unwrap().tier, WeightsTier::Memory);
    stage.ask(forget, "one");
    stage.until("one", is_in(WeightsTier::Disk));
}

#[test]
fn reading_ahead_waits_for_starts_and_ends_when_told() {
    let mut stage = Stage::new(&["one", "two"], 1 << 30);
    stage.keeper.planned(Vec::new(), true);
    stage.ask(prefetch, "two");
    let began = Instant::now();
    while stage.keeper.seen().node.bringing.as_deref() != Some("two") {
        assert!(began.elapsed() < PATIENCE, "it never began");
        std::thread::sleep(Duration::from_millis(2));
    }
    stage.ask(forget, "two");
    while stage.keeper.seen().node.bringing.is_some() {
        assert!(began.elapsed() < PATIENCE, "it never ended");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(stage.keeper.seen().weights("two").unwrap().memory_bytes, 0);
    stage.keeper.planned(Vec::new(), false);
    stage.ask(prefetch, "two");
    stage.until("two", is_in(WeightsTier::Memory));
}

#[test]
fn what_is_beyond_the_bound_goes_by_the_plans_order_when_no_plan_does_it() {
    let mut stage = Stage::new(&["one", "two"], 1 << 30);
    let bytes = stage.manifests[0].bytes();
    drop(stage.load(1));
    stage.keeper.look();
    stage.until("two", is_in(WeightsTier::Memory));
    stage.keeper.planned(vec!["two".to_owned(), "one".to_owned()], false);
    let places = Places {
        store: stage.folder.path().join("store"),
        segments: stage.folder.path().join("segments"),
        layout: Tails.layout().to_owned(),
        idle_bytes: bytes,
    };
    let names = ["one", "two"].map(str::to_owned).into();
    stage.keeper = Keeper::start(places, names, Arc::default()).unwrap();
    stage.keeper.planned(vec!["two".to_owned(), "one".to_owned()], false);
    stage.until("two", is_in(WeightsTier::Disk));
    assert_eq!(stage.keeper.seen().weights("one").unwrap().tier, WeightsTier::Memory);
}

#[test]
fn a_model_that_the_store_does_not_have_is_absent() {
    let mut stage = Stage::new(&["one"], 1 << 30);
    stage.keeper.registered(["one", "gone"].map(str::to_owned).into());
    stage.until("gone", is_in(WeightsTier::Absent));
    stage.ask(prefetch, "gone");
    stage.ask(forget, "gone");
    stage.keeper.registered(["one"].map(str::to_owned).into());
    let began = Instant::now();
    while stage.keeper.seen().weights("gone").is_some() {
        assert!(began.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(2));
    }
}
