//! Twenty fine-tunes of one base, generated with seeded noise, in a store of their own, for `cargo xtask bench fine-tunes`. The
//! base is a real checkpoint in BF16; what training would do to it is made up.
//!
//!     tunes BASE.gguf FOLDER      one line of JSON for each, and one of the whole

use engine_store::{
    Adapter, AsStored, Checkpoint, GgmlType, Linear, LoadOptions, Manifest, Progress, Segments, Store, load,
};
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    error::Error,
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Adapters, fine-tunes of a few layers, and noise of the whole ones, as a share of each tensor's root mean square.
const ADAPTERS: u64 = 8;
const FEW: u64 = 7;
const WHOLE: [f32; 5] = [0.001, 0.003, 0.01, 0.03, 0.1];
/// Layers that one of the few changes, and its noise.
const FEW_LAYERS: u64 = 2;
const FEW_NOISE: f32 = 0.01;
const RANK: usize = 16;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [base, folder] = &args[..] else { return Err("usage: tunes BASE.gguf FOLDER".into()) };
    let bench = Bench::new(Path::new(base), Path::new(folder))?;
    for number in 0..ADAPTERS {
        println!("{}", bench.adapter(number)?);
    }
    for number in 0..FEW {
        let first = number * bench.layers / FEW;
        let is_in = |name: &str| (first..first + FEW_LAYERS).any(|layer| name.starts_with(&format!("blk.{layer}.")));
        println!("{}", bench.tune(&format!("few-{number}"), FEW_NOISE, &is_in)?);
    }
    for noise in WHOLE {
        println!("{}", bench.tune(&format!("whole-{noise}").replace('.', "_"), noise, &|_| true)?);
    }
    println!("{}", bench.all()?);
    Ok(())
}

struct Bench {
    /// The base's file.
    bytes: Vec<u8>,
    checkpoint: Checkpoint,
    base: Manifest,
    /// What loading the base took, all of it kept as it is.
    base_load_ms: f64,
    layers: u64,
    store: Store,
    segments: Segments,
    adapters: PathBuf,
    /// Where each fine-tune's file is written, one after the other.
    file: PathBuf,
}

/// Noise of mean 0 and variance 1.
struct Noise(u64);

impl Noise {
    fn uniform(&mut self) -> f32 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32
    }

    /// The sum of twelve uniform numbers is near enough to a normal one.
    fn next(&mut self) -> f32 {
        (0..12).map(|_| self.uniform()).sum::<f32>() - 6.0
    }
}

impl Bench {
    fn new(base: &Path, folder: &Path) -> Result<Self> {
        let store = Store::open(folder.join("store"))?;
        let segments = Segments::open(Path::new("/dev/shm").join(format!("foreshock-tunes-{}", std::process::id())))?;
        let checkpoint = Checkpoint::open(base, None)?;
        let layers = checkpoint.validate()?.layers as u64;
        let manifest = store.ingest(&checkpoint, "base", &AsStored, &mut |_| {})?;
        let begun = Instant::now();
        load(&store, &manifest, &segments, LoadOptions::default())?;
        let base_load_ms = begun.elapsed().as_secs_f64() * 1e3;
        let (adapters, file) = (folder.join("adapters"), folder.join("tune.gguf"));
        fs::create_dir_all(&adapters)?;
        Ok(Self {
            bytes: fs::read(base)?,
            checkpoint,
            base: manifest,
            base_load_ms,
            layers,
            store,
            segments,
            adapters,
            file,
        })
    }

    /// A fine-tune: noise of that share added to the tensors that are in it. Written, ingested, loaded and compared.
    fn tune(&self, name: &str, noise: f32, is_in: &dyn Fn(&str) -> bool) -> Result<Value> {
        let tuned = self.tuned(name, noise, is_in)?;
        let count = |pair: &(&u8, &u8)| pair.0 != pair.1;
        let differing = self.bytes.iter().zip(&tuned).filter(count).count();
        fs::write(&self.file, tuned)?;
        let checkpoint = Checkpoint::open(&self.file, None)?;
        let found = self.store.base_of(&checkpoint, "stored-1")?.ok_or("the base is not found")?;
        if found != self.base {
            return Err("another model was taken for the base".into());
        }
        let (begun, mut progress) = (Instant::now(), Progress::default());
        let keep = &mut |now| progress = now;
        let manifest = self.store.ingest_tune(&checkpoint, name, &AsStored, Some(&found), keep)?;
        let ingest_s = begun.elapsed().as_secs_f64();
        let changed = |t: &&engine_store::PackedTensor| !self.base.objects.contains(&manifest.objects[t.object]);
        let changed_bytes: u64 = manifest.tensors.iter().filter(changed).map(|t| t.bytes).sum();
        let begun = Instant::now();
        let loaded = load(&self.store, &manifest, &self.segments, LoadOptions::default())?;
        let load_ms = begun.elapsed().as_secs_f64() * 1e3;
        for tensor in checkpoint.tensors() {
            let data = loaded.tensor_data(tensor.name).ok_or("a tensor is missing")?;
            if *data != *checkpoint.tensor_data(tensor.name)? {
                return Err(format!("{name}: {} is not what was ingested", tensor.name).into());
            }
        }
        Ok(json!({
            "name": name, "noise": noise, "differing_bytes": differing, "changed_tensor_bytes": changed_bytes,
            "written_bytes": progress.written_bytes, "saved_bytes": progress.saved_bytes, "ingest_s": ingest_s,
            "load_ms": load_ms, "read_bytes": loaded.facts.read_bytes,
        }))
    }

    /// The base's file with noise in it.
    fn tuned(&self, name: &str, share: f32, is_in: &dyn Fn(&str) -> bool) -> Result<Vec<u8>> {
        let mut out = self.bytes.clone();
        let gguf = self.checkpoint.as_gguf().ok_or("the base is no GGUF file")?;
        let mut noise = Noise(name.bytes().fold(1, |seed, byte| seed * 31 + u64::from(byte)));
        // Data follow each other in the order of the file, so a tensor's place is found by its bytes' address.
        let start = self.bytes.len() as u64 - gguf.tensors().map(|t| padded(t.bytes.len())).sum::<u64>();
        let mut at = start as usize;
        for tensor in gguf.tensors() {
            let place = at..at + tensor.bytes.len();
            if self.bytes[place.clone()] != *tensor.bytes {
                return Err("tensors do not follow each other as expected".into());
            }
            if is_in(tensor.name) {
                add(tensor.kind, &mut out[place], share, &mut noise)?;
            }
            at += padded(tensor.bytes.len()) as usize;
        }
        Ok(out)
    }

    /// An adapter of all linear layers, checked against the base. It is no part of the store: a folder, loaded beside the
    /// base's memory.
    fn adapter(&self, number: u64) -> Result<Value> {
        let folder = self.adapters.join(number.to_string());
        fs::create_dir_all(&folder)?;
        let config = self.checkpoint.validate()?;
        let mut noise = Noise(number);
        let (mut header, mut data) = (Map::new(), Vec::<u8>::new());
        let places = (0..config.layers).flat_map(|layer| Linear::ALL.map(|linear| (layer, linear)));
        for (layer, linear) in places {
            let (cols, rows) = linear.shape(&config);
            for (half, shape) in [("lora_A", [RANK, cols]), ("lora_B", [rows, RANK])] {
                let begin = data.len();
                data.extend((0..shape[0] * shape[1]).flat_map(|_| half_bits(0.01 * noise.next())));
                let name = format!("base_model.model.model.layers.{layer}.{}.{half}.weight", linear.path());
                let entry = json!({"dtype": "BF16", "shape": shape, "data_offsets": [begin, data.len()]});
                header.insert(name, entry);
            }
        }
        let header = Value::Object(header).to_string();
        let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
        fs::write(folder.join("adapter_model.safetensors"), file)?;
        let names: Vec<&str> = Linear::ALL.iter().filter_map(|linear| linear.path().rsplit('.').next()).collect();
        let text = json!({"peft_type": "LORA", "r": RANK, "lora_alpha": 32, "target_modules": names}).to_string();
        fs::write(folder.join("adapter_config.json"), text)?;
        Adapter::open(&folder, &config)?;
        let bytes = disk_bytes(&folder)?;
        Ok(json!({
            "name": format!("adapter-{number}"), "differing_bytes": bytes, "changed_tensor_bytes": bytes,
            "written_bytes": bytes, "saved_bytes": 0,
        }))
    }

    /// The whole, on disk and in memory.
    fn all(&self) -> Result<Value> {
        let objects = |manifest: Manifest| manifest.objects.into_iter().map(|object| (object.name(), object.bytes()));
        let plain: BTreeMap<_, u64> = self.store.manifests()?.into_iter().flat_map(objects).collect();
        let said = json!({
            "name": "all", "base_load_ms": self.base_load_ms, "base_bytes": self.base.bytes(), "source_bytes": self.bytes.len(),
            "store_bytes": disk_bytes(&self.store.root().join("objects"))? + disk_bytes(&self.store.root().join("models"))?,
            "adapter_bytes": disk_bytes(&self.adapters)?, "plain_object_bytes": plain.values().sum::<u64>(),
            "memory_bytes": disk_bytes(self.segments.folder())?,
        });
        fs::remove_file(&self.file)?;
        Ok(said)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.segments.folder());
    }
}

fn padded(bytes: usize) -> u64 {
    (bytes as u64).next_multiple_of(32)
}

fn half_bits(number: f32) -> [u8; 2] {
    // To the nearest, ties to even; the numbers here are finite.
    let bits = number.to_bits();
    (((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16).to_le_bytes()
}

/// Adds noise to numbers of a file.
fn add(kind: GgmlType, bytes: &mut [u8], share: f32, noise: &mut Noise) -> Result<()> {
    match kind {
        GgmlType::BF16 => {
            let number = |bytes: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
            let numbers = bytes.as_chunks_mut::<2>().0;
            let by = share * rms(numbers.iter().map(number));
            numbers.iter_mut().for_each(|bytes| *bytes = half_bits(number(bytes) + by * noise.next()));
        }
        GgmlType::F32 => {
            let numbers = bytes.as_chunks_mut::<4>().0;
            let by = share * rms(numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)));
            let noisy = |bytes: &[u8; 4], noise: f32| (f32::from_le_bytes(*bytes) + by * noise).to_le_bytes();
            numbers.iter_mut().for_each(|bytes| *bytes = noisy(bytes, noise.next()));
        }
        _ => return Err(format!("a base of {kind} is not for fine-tuning").into()),
    }
    Ok(())
}

fn rms(numbers: impl ExactSizeIterator<Item = f32>) -> f32 {
    let count = numbers.len() as f64;
    (numbers.map(|number| f64::from(number) * f64::from(number)).sum::<f64>() / count).sqrt() as f32
}

/// Bytes of all files of a folder.
fn disk_bytes(folder: &Path) -> Result<u64> {
    let mut total = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        total += if entry.path().is_dir() { disk_bytes(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(total)
}
