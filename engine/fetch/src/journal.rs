//! Which pieces of a file have come. A line is appended when a piece has been written, with its checksum, and pieces are
//! read again before they are believed: so it matters neither when the process was killed nor what the disk had kept of it.

use crate::remote::Version;
use engine_store::Checksum;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::FileExt,
    path::Path,
};

/// What the pieces are of. Another version begins anew.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    format: u32,
    bytes: u64,
    etag: Option<String>,
    modified: Option<String>,
    piece_bytes: u64,
}

/// The version of this form.
const FORMAT: u32 = 1;

impl Head {
    pub(crate) fn new(version: &Version, piece_bytes: u64) -> Self {
        let Version { bytes, etag, modified } = version.clone();
        Self { format: FORMAT, bytes, etag, modified, piece_bytes }
    }

    /// Where a piece lies.
    pub(crate) fn range(&self, piece: u64) -> std::ops::Range<u64> {
        let start = piece * self.piece_bytes;
        start..self.bytes.min(start + self.piece_bytes)
    }

    pub(crate) fn pieces(&self) -> u64 {
        self.bytes.div_ceil(self.piece_bytes)
    }
}

pub(crate) struct Journal {
    file: File,
}

impl Journal {
    /// Opens the journal of `part`, and tells which of its pieces are there. None of them, and an empty file, when it is of
    /// another version.
    pub(crate) fn open(path: &Path, head: &Head, part: &File) -> io::Result<(Self, BTreeMap<u64, Checksum>)> {
        let text = std::fs::read(path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let mut lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        let is_same =
            lines.next().and_then(|line| serde_json::from_str::<Head>(line).ok()).is_some_and(|of| of == *head);
        if !is_same {
            part.set_len(0)?;
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
            // Strings and numbers alone: that cannot fail.
            writeln!(file, "{}", serde_json::to_string(head).unwrap_or_default())?;
            return Ok((Self { file }, BTreeMap::new()));
        }
        let piece = |line: &str| {
            let (piece, checksum) = line.split_once(' ')?;
            Some((piece.parse().ok().filter(|piece| *piece < head.pieces())?, Checksum::parse(checksum)?))
        };
        let noted: BTreeMap<u64, Checksum> = lines.filter_map(piece).collect();
        let is_there = |(piece, checksum): &(u64, Checksum)| is_there(part, head.range(*piece), *checksum);
        let there = noted.into_iter().filter(is_there).collect();
        let mut file = OpenOptions::new().append(true).open(path)?;
        // A line that was cut would swallow the next one.
        if !text.ends_with('\n') {
            file.write_all(b"\n")?;
        }
        Ok((Self { file }, there))
    }

    pub(crate) fn note(&mut self, piece: u64, checksum: Checksum) -> io::Result<()> {
        // One call, so that a kill leaves a line or a part of one.
        self.file.write_all(format!("{piece} {checksum}\n").as_bytes())
    }
}

fn is_there(part: &File, range: std::ops::Range<u64>, checksum: Checksum) -> bool {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    part.read_exact_at(&mut bytes, range.start).is_ok() && Checksum::of(&bytes) == checksum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_believed_when_they_are_there_as_noted() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, part) = (folder.path().join("pieces"), folder.path().join("part"));
        let open =
            || OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&part).expect("a file");
        let version = Version { bytes: 25, etag: Some("\"a\"".into()), modified: None };
        let head = Head::new(&version, 10);
        let there =
            |head: &Head| Journal::open(&path, head, &open()).expect("readable").1.into_keys().collect::<Vec<_>>();
        assert!(there(&head).is_empty());
        let bytes: Vec<u8> = (0..25).collect();
        open().write_all_at(&bytes, 0).expect("written");
        let mut journal = Journal::open(&path, &head, &open()).expect("readable").0;
        for piece in 0..3 {
            let range = head.range(piece);
            journal.note(piece, Checksum::of(&bytes[range.start as usize..range.end as usize])).expect("noted");
        }
        assert_eq!(there(&head), [0, 1, 2]);
        // What the disk has lost is not believed, nor a line that was cut, nor one that makes no sense.
        open().write_all_at(&[99], 12).expect("written");
        let text = std::fs::read(&path).expect("readable");
        std::fs::write(&path, [&text[..text.len() - 3], b""].concat()).expect("written");
        assert_eq!(there(&head), [0]);
        std::fs::write(&path, [&text[..], b"9 x\n77 ", &text[text.len() - 65..]].concat()).expect("written");
        assert_eq!(there(&head), [0, 2]);
        // Another version, or other pieces, begin anew.
        assert!(there(&Head::new(&version, 5)).is_empty());
        assert_eq!(std::fs::metadata(&part).expect("there").len(), 0);
    }
}
