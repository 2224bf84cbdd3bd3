//! How text is cut into words before byte-pair merging, by the name that `tokenizer.ggml.pre` gives.
//!
//! The patterns are those of the models' own `tokenizer.json`. An unknown name is refused: a wrong pattern yields
//! tokens that look right and degrade every answer.

use crate::TextError;
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior};

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Names that are understood, for the error message.
const SUPPORTED: &[&str] = &[
    "smollm",
    "starcoder",
    "refact",
    "codeshell",
    "gpt-2",
    "gpt2",
    "default",
    "llama-bpe",
    "llama3",
    "llama-v3",
    "qwen2",
    "deepseek-r1-qwen",
];

/// What a family of tokenizers does before merging.
pub struct Family {
    pub normalizer: Option<NormalizerWrapper>,
    pub pre_tokenizer: PreTokenizerWrapper,
    /// Words that are whole in the vocabulary are taken as they are, whatever the merges say.
    pub ignore_merges: bool,
}

/// The family of a name.
pub fn family(pre: &str) -> Result<Family, TextError> {
    let plain = |steps| Family { normalizer: None, pre_tokenizer: sequence(steps), ignore_merges: false };
    match pre {
        // Every digit by itself, then GPT-2's pattern.
        "smollm" | "starcoder" | "refact" | "codeshell" => {
            Ok(plain(vec![Digits::new(true).into(), ByteLevel::new(false, false, true).into()]))
        }
        "gpt-2" | "gpt2" | "default" => Ok(plain(vec![ByteLevel::new(false, false, true).into()])),
        "llama-bpe" | "llama3" | "llama-v3" => Ok(Family { ignore_merges: true, ..plain(split_by(LLAMA3)?) }),
        // DeepSeek's distillations keep the tokenizer of their base; those of Llama have its name too.
        "qwen2" | "deepseek-r1-qwen" => Ok(Family { normalizer: Some(NFC.into()), ..plain(split_by(QWEN2)?) }),
        other => Err(TextError::PreTokenizer { pre: other.to_owned(), supported: SUPPORTED.join(", ") }),
    }
}

fn sequence(steps: Vec<PreTokenizerWrapper>) -> PreTokenizerWrapper {
    Sequence::new(steps).into()
}

fn split_by(pattern: &str) -> Result<Vec<PreTokenizerWrapper>, TextError> {
    let pattern = SplitPattern::Regex(pattern.to_owned());
    let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
        .map_err(|error| TextError::Build { message: error.to_string() })?;
    Ok(vec![split.into(), ByteLevel::new(false, false, false).into()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    fn check(pre: &str, expected: &[&str]) {
        let family = family(pre).expect("a known name");
        let mut text = PreTokenizedString::from("Hello  world'S 12345\n\n x");
        family.pre_tokenizer.pre_tokenize(&mut text).expect("words");
        let words = text.get_splits(OffsetReferential::Original, OffsetType::Byte);
        let words: Vec<&str> = words.into_iter().map(|(word, _, _)| word).collect();
        assert_eq!(words, expected, "{pre}");
    }

    #[test]
    fn words_are_cut_as_the_models_were_trained() {
        check("gpt-2", &["Hello", "Ġ", "Ġworld", "'", "S", "Ġ12345", "ĊĊ", "Ġx"]);
        check("smollm", &["Hello", "Ġ", "Ġworld", "'", "S", "Ġ", "1", "2", "3", "4", "5", "ĊĊ", "Ġx"]);
        check("llama-bpe", &["Hello", "Ġ", "Ġworld", "'S", "Ġ", "123", "45", "ĊĊ", "Ġx"]);
        check("qwen2", &["Hello", "Ġ", "Ġworld", "'S", "Ġ", "1", "2", "3", "4", "5", "ĊĊ", "Ġx"]);
        check("deepseek-r1-qwen", &["Hello", "Ġ", "Ġworld", "'S", "Ġ", "1", "2", "3", "4", "5", "ĊĊ", "Ġx"]);
    }

    #[test]
    fn every_supported_name_is_known_and_others_are_refused() {
        for pre in SUPPORTED {
            assert!(family(pre).is_ok(), "{pre}");
        }
        let error = family("tekken").err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("pre-tokenizer \"tekken\"") && error.contains("smollm"), "{error}");
    }
}
