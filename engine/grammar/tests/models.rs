//! Masks over the vocabularies of real models: any way through them is an output that its constraint allows, and every
//! such output has a way.

use engine_grammar::{Guide, Vocabulary};
use engine_store::Gguf;
use engine_text::TextModel;
use engine_wire::TokenId;
use engine_wire::constraint::{Constraint, JsonConstraint};
use serde_json::Value;
use std::path::Path;
use std::sync::LazyLock;

struct Model {
    text: TextModel,
    vocabulary: Vocabulary,
}

fn load(file: &str) -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/models").join(file);
    assert!(path.exists(), "no checkpoint at {}: `cargo xtask setup` fetches it", path.display());
    let text = TextModel::from_gguf(&Gguf::open(&path).expect("it opens")).expect("a tokenizer");
    let bytes = |id: TokenId| if text.is_special(id) { Vec::new() } else { text.token_bytes(id).to_vec() };
    let vocabulary = Vocabulary::new((0..text.vocab() as TokenId).map(bytes).collect(), text.eos_ids());
    Model { vocabulary: vocabulary.expect("a trie"), text }
}

static SMOLLM2: LazyLock<Model> = LazyLock::new(|| load("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"));
static GEMMA3: LazyLock<Model> = LazyLock::new(|| load("gemma3-270m/gemma3-270m-q4_k_m.gguf"));

fn json(schema: &str) -> Constraint {
    Constraint::Json(JsonConstraint { schema: schema.to_owned(), strict: true, whitespace: true })
}

impl Model {
    fn guide(&self, constraint: &Constraint) -> Guide {
        self.vocabulary.guide(constraint).unwrap_or_else(|error| panic!("{constraint:?}: {error}"))
    }

    /// An output drawn at random; it ends where it may after `tokens` of them, or is given up after 20 times as many.
    fn walk(&self, constraint: &Constraint, tokens: usize, random: &mut u64) -> Option<String> {
        let (mut guide, mut ids) = (self.guide(constraint), Vec::new());
        while !guide.is_complete() && ids.len() < 20 * tokens {
            let mask =
                guide.mask().unwrap_or_else(|error| panic!("after {:?}: {error}", self.text.decode(&ids, false)));
            if ids.len() >= tokens && self.text.eos_ids().iter().any(|end| mask.allows(*end)) {
                return Some(self.text.decode(&ids, false));
            }
            let token = self.draw(&mask, ids.len() >= tokens, random);
            guide.take(token).unwrap_or_else(|error| panic!("{error} after {:?}", self.text.decode(&ids, false)));
            ids.push(token);
        }
        guide.is_complete().then(|| self.text.decode(&ids, false))
    }

    /// Any token that the mask allows and that is no end; one that closes something when it is time.
    fn draw(&self, mask: &engine_grammar::Mask, close: bool, random: &mut u64) -> TokenId {
        let may = |id: &TokenId| mask.allows(*id) && !self.text.eos_ids().contains(id);
        let closing = |id: &TokenId| matches!(self.text.token_bytes(*id), b"\"" | b"}" | b"]");
        let all: Vec<TokenId> = (0..self.text.vocab() as TokenId).filter(may).collect();
        assert!(all.iter().all(|id| !self.text.is_special(*id)), "special tokens are no text");
        *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let any = all[(*random >> 33) as usize % all.len()];
        if close { all.iter().copied().find(closing).unwrap_or(any) } else { any }
    }

    /// Whether a text is taken as it is tokenized, and may end there.
    fn accepts(&self, constraint: &Constraint, text: &str) -> bool {
        let mut guide = self.guide(constraint);
        let ids = self.text.encode(text, false).expect("tokens");
        let taken = ids.iter().all(|id| guide.take(*id).is_ok());
        taken && (guide.is_complete() || guide.mask().is_ok_and(|mask| mask.allows(self.text.eos_ids()[0])))
    }
}

fn check_walks(constraint: &Constraint, valid: impl Fn(&str) -> bool) {
    for model in [&*SMOLLM2, &*GEMMA3] {
        let (mut random, mut finished) = (1, 0);
        for tokens in [1, 5, 12, 25, 40] {
            let Some(text) = model.walk(constraint, tokens, &mut random) else { continue };
            finished += 1;
            assert!(valid(&text), "{constraint:?} gave {text:?}");
        }
        assert!(finished > 0, "no walk through {constraint:?} came to an end");
    }
}

fn parsed(text: &str) -> Option<Value> {
    serde_json::from_str(text).ok()
}

#[test]
fn every_way_through_a_schema_is_a_value_of_it() {
    check_walks(&Constraint::json_object(), |text| parsed(text).is_some_and(|value| value.is_object()));
    let person = r#"{"type":"object","properties":{"name":{"type":"string","maxLength":12},"age":{"type":"integer","minimum":-3,"maximum":150},
        "colour":{"enum":["red","gr\u00fcn",null,7]},"address":{"type":"object","properties":{"zip":{"type":"string","pattern":"^[0-9]{5}$"}},"required":["zip"],"additionalProperties":false}},
        "required":["name","age","colour","address"],"additionalProperties":false}"#;
    check_walks(&json(person), |text| {
        let Some(value) = parsed(text) else { return false };
        let keys: Vec<&str> = value.as_object().map(|map| map.keys().map(String::as_str).collect()).unwrap_or_default();
        let zip = value["address"]["zip"].as_str().unwrap_or("");
        keys == ["name", "age", "colour", "address"]
            && value["name"].as_str().is_some_and(|name| name.chars().count() <= 12)
            && value["age"].as_f64().is_some_and(|age| age.fract() == 0.0 && (-3.0..=150.0).contains(&age))
            && [Value::from("red"), "grün".into(), Value::Null, 7.into()].contains(&value["colour"])
            && zip.len() == 5
            && zip.bytes().all(|byte| byte.is_ascii_digit())
    });
    let list = r#"{"type":"array","minItems":2,"maxItems":4,"items":{"anyOf":[{"type":"boolean"},{"type":"number","exclusiveMinimum":0,"maximum":1}]}}"#;
    check_walks(&json(list), |text| {
        let item = |item: &Value| item.is_boolean() || item.as_f64().is_some_and(|n| n > 0.0 && n <= 1.0);
        parsed(text)
            .and_then(|value| Some(value.as_array()?.clone()))
            .is_some_and(|items| (2..=4).contains(&items.len()) && items.iter().all(item))
    });
    let tree = r##"{"$ref":"#/$defs/node","$defs":{"node":{"type":"object","properties":{"v":{"type":"integer"},"next":{"anyOf":[{"type":"null"},{"$ref":"#/$defs/node"}]}},"required":["v","next"],"additionalProperties":false}}}"##;
    check_walks(&json(tree), |text| {
        let mut node = parsed(text).unwrap_or_default();
        while node["v"].is_i64() || node["v"].is_u64() || node["v"].is_f64() {
            node = node["next"].take();
        }
        node.is_null() && parsed(text).is_some()
    });
}

#[test]
fn every_way_through_other_constraints_is_one_of_their_texts() {
    let date = Constraint::Regex(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])".to_owned());
    check_walks(&date, |text| {
        let parts: Vec<u32> = text.split('-').filter_map(|part| part.parse().ok()).collect();
        text.len() == 10
            && text.is_ascii()
            && parts.len() == 3
            && (1..=12).contains(&parts[1])
            && (1..=31).contains(&parts[2])
    });
    let choices = ["yes", "yes, sir", "non", "größer", "日本", "a\nb"].map(str::to_owned);
    check_walks(&Constraint::Choice(choices.to_vec()), |text| choices.iter().any(|choice| choice == text));
    let sums = Constraint::Lark("start: sum\nsum: NUMBER (\" + \" NUMBER)*\nNUMBER: /[1-9][0-9]{0,2}/\n".to_owned());
    check_walks(&sums, |text| {
        text.split(" + ").all(|number| number.parse::<u32>().is_ok_and(|n| (1..=999).contains(&n)))
    });
}

#[test]
fn allowed_texts_are_taken_however_they_are_tokenized() {
    let unicode =
        json(r#"{"type":"object","properties":{"t":{"type":"string"}},"required":["t"],"additionalProperties":false}"#);
    for model in [&*SMOLLM2, &*GEMMA3] {
        for text in [r#"{"t":"plain"}"#, r#"{ "t": "日本 é \u001f \n" }"#, "{\n    \"t\": \"😀\"\n}", r#"{"t":""}"#]
        {
            assert!(model.accepts(&unicode, text), "{text}");
        }
        for text in [r#"{"t":1}"#, r#"{"u":""}"#, r#"{"t":"a""#, r#"{"t":"a"}}"#, "", "{\"t\":\"\n\"}"] {
            assert!(!model.accepts(&unicode, text), "{text}");
        }
        let date = Constraint::Regex(r"\d{4}-\d\d-\d\d".to_owned());
        assert!(
            model.accepts(&date, "2024-02-29")
                && !model.accepts(&date, "2024-02-2")
                && !model.accepts(&date, "٢024-02-29")
        );
    }
}

/// What a speculation needs: a draft is cut where it leaves the grammar, and taken tokens can be given back.
#[test]
fn tokens_can_be_tried_and_given_back() {
    let model = &*SMOLLM2;
    let constraint = Constraint::Choice(vec!["alpha beta gamma".to_owned(), "alpha delta".to_owned()]);
    let mut guide = model.guide(&constraint);
    let good = model.text.encode("alpha beta gamma", false).expect("tokens");
    let bad = model.text.encode("alpha beta delta", false).expect("tokens");
    let agree = good.iter().zip(&bad).take_while(|(a, b)| a == b).count();
    let before = guide.mask().expect("a mask");
    assert_eq!(guide.allowed_prefix(&bad).expect("a state"), agree);
    assert_eq!(guide.mask().expect("a mask"), before, "trying changes nothing");
    for (taken, token) in good.iter().enumerate() {
        let mask = guide.mask().expect("a mask");
        guide.take(*token).expect("allowed");
        guide.give_back(1).expect("taken");
        assert_eq!(guide.mask().expect("a mask"), mask, "after {taken} tokens");
        guide.take(*token).expect("allowed");
    }
    assert!(guide.is_complete());
    guide.give_back(good.len()).expect("taken");
    assert_eq!(guide.mask().expect("a mask"), before);
}

/// A grammar whose states explode ends at a limit, with an error that says so, in bounded time and memory.
#[test]
fn an_explosive_grammar_ends_at_a_limit() {
    let explosive = Constraint::Regex(r"(.*a.{60}b.*)&?(.*c.{50}d.*)".to_owned());
    let model = &*SMOLLM2;
    let Ok(mut guide) = model.vocabulary.guide(&explosive) else { return };
    let mut random = 7;
    for _ in 0..3000 {
        let mask = match guide.mask() {
            Ok(mask) => mask,
            Err(error) => {
                assert!(matches!(error, engine_grammar::GrammarError::TooComplex { .. }), "{error}");
                assert_eq!(guide.mask(), Err(error), "and stays so");
                return;
            }
        };
        let token = model.draw(&mask, false, &mut random);
        guide.take(token).expect("allowed");
    }
    panic!("3000 tokens and no limit reached");
}
