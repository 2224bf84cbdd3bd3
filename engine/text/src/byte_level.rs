//! GPT-2's byte alphabet (`bytes_to_unicode` in openai/gpt-2's encoder.py): each byte is written as one
//! printable character, so that a vocabulary of strings can hold arbitrary bytes.

/// The bytes that stand for themselves.
fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// The character that stands for each byte.
pub fn alphabet() -> [char; 256] {
    let mut next = 0x100;
    std::array::from_fn(|index| {
        let byte = index as u8;
        if is_printable(byte) {
            return char::from(byte);
        }
        let stand_in = char::from_u32(next).unwrap_or(char::REPLACEMENT_CHARACTER);
        next += 1;
        stand_in
    })
}

/// Turns a vocabulary entry into the bytes that it stands for; an entry with any character outside the
/// alphabet stands for itself, as in `tokenizers`.
pub struct ByteDecoder {
    /// Byte of each character up to U+0143, the alphabet's last.
    table: [Option<u8>; 0x144],
}

impl ByteDecoder {
    pub fn new() -> Self {
        let mut table = [None; 0x144];
        for (byte, character) in alphabet().into_iter().enumerate() {
            if let Some(slot) = table.get_mut(character as usize) {
                *slot = Some(byte as u8);
            }
        }
        Self { table }
    }

    /// Appends the bytes of one entry.
    pub fn append(&self, entry: &str, out: &mut Vec<u8>) {
        let start = out.len();
        for character in entry.chars() {
            match self.table.get(character as usize).copied().flatten() {
                Some(byte) => out.push(byte),
                None => {
                    out.truncate(start);
                    out.extend_from_slice(entry.as_bytes());
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_its_own_character() {
        let decoder = ByteDecoder::new();
        for (byte, character) in alphabet().into_iter().enumerate() {
            let mut out = Vec::new();
            decoder.append(&character.to_string(), &mut out);
            assert_eq!(out, [byte as u8], "{character:?}");
        }
        // Two landmarks of the published alphabet: the space and the line feed.
        assert_eq!((alphabet()[0x20], alphabet()[0x0A]), ('Ġ', 'Ċ'));
    }

    #[test]
    fn an_entry_outside_the_alphabet_stands_for_itself() {
        let mut out = Vec::new();
        ByteDecoder::new().append("Ġ日", &mut out);
        assert_eq!(out, "Ġ日".as_bytes());
    }
}
