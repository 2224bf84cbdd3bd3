//! What constraints cost with a model's vocabulary: `cargo run --release -p engine-grammar --example masks -- FILE.gguf`.
//! Times are of one core: to build the vocabulary, to compile, and per mask and token along outputs drawn at random from what
//! the masks allow, with plain text preferred inside strings as a model would.

use engine_grammar::Vocabulary;
use engine_store::Gguf;
use engine_text::TextModel;
use engine_wire::constraint::{Constraint, JsonConstraint};
use std::time::Instant;

const PERSON: &str = r#"{"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer","minimum":0,"maximum":150},
    "mail":{"type":"string","pattern":"^[a-z]+@[a-z]+\\.com$"},"tags":{"type":"array","items":{"type":"string","maxLength":20},"maxItems":5}},
    "required":["name","age","tags"],"additionalProperties":false}"#;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: masks FILE.gguf")?;
    let text = TextModel::from_gguf(&Gguf::open(&path)?)?;
    let before = resident_bytes();
    let began = Instant::now();
    let plain = |id: u32| if text.is_special(id) { Vec::new() } else { text.token_bytes(id).to_vec() };
    let vocabulary = Vocabulary::new((0..text.vocab() as u32).map(plain).collect(), text.eos_ids())?;
    println!(
        "{} tokens: built in {:.1} ms, {:.1} MB resident, {:.1} MB estimated",
        vocabulary.tokens(),
        ms(began),
        (resident_bytes() - before) as f64 / 1e6,
        vocabulary.memory_bytes() as f64 / 1e6
    );
    let json =
        |schema: &str| Constraint::Json(JsonConstraint { schema: schema.to_owned(), strict: true, whitespace: true });
    for (name, constraint) in [
        ("json_object", Constraint::json_object()),
        ("person", json(PERSON)),
        ("string", json(r#"{"type":"string","minLength":2000}"#)),
        ("string of at most 300", json(r#"{"type":"string","minLength":200,"maxLength":300}"#)),
        ("date", Constraint::Regex(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])".to_owned())),
        ("words", Constraint::Regex(r"([A-Z][a-z]+ ){30}".to_owned())),
        ("choice", Constraint::Choice((0..200).map(|n| format!("choice number {n}")).collect())),
    ] {
        run(name, &vocabulary, &text, &constraint)?;
    }
    Ok(())
}

fn run(
    name: &str,
    vocabulary: &Vocabulary,
    text: &TextModel,
    constraint: &Constraint,
) -> Result<(), Box<dyn std::error::Error>> {
    let began = Instant::now();
    engine_grammar::check(constraint)?;
    let check_ms = ms(began);
    let began = Instant::now();
    let mut guide = vocabulary.guide(constraint)?;
    let compile_ms = ms(began);
    let (mut masks_us, mut takes_us, mut ids, mut random) = (Vec::new(), Vec::new(), Vec::new(), 1u64);
    while !guide.is_complete() && masks_us.len() < 400 {
        let began = Instant::now();
        let mask = guide.mask()?;
        masks_us.push(began.elapsed().as_secs_f64() * 1e6);
        let Some(token) = draw(&mask, text, &mut random) else { break };
        let began = Instant::now();
        guide.take(token)?;
        takes_us.push(began.elapsed().as_secs_f64() * 1e6);
        ids.push(token);
    }
    println!(
        "{name:24} check {check_ms:6.2} ms, compile {compile_ms:6.2} ms, {:3} masks: first {:6.0} us, median {:6.0}, p99 {:6.0}, most {:6.0}; take {:4.0}; {:?}",
        masks_us.len(),
        masks_us[0],
        quantile(&masks_us, 0.5),
        quantile(&masks_us, 0.99),
        quantile(&masks_us, 1.0),
        quantile(&takes_us, 0.5),
        text.decode(&ids, false).chars().take(40).collect::<String>()
    );
    Ok(())
}

/// A token that the mask allows: of 50 tries the longest plain one, else the first.
fn draw(mask: &engine_grammar::Mask, text: &TextModel, random: &mut u64) -> Option<u32> {
    let vocab = text.vocab() as u64;
    let mut tried = Vec::new();
    for _ in 0..50 {
        *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let token = ((*random >> 33) % vocab) as u32;
        if mask.allows(token) {
            tried.push(token);
        }
    }
    tried
        .pop()
        .or_else(|| (0..vocab as u32).filter(|token| !text.eos_ids().contains(token)).find(|token| mask.allows(*token)))
}

fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(((sorted.len().max(1) - 1) as f64 * share) as usize).copied().unwrap_or(0.0)
}

fn ms(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1e3
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}
