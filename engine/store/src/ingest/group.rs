//! Which tensors share an object, and in which order objects come: that of a forward pass, so that a model's beginning can
//! be computed while its end is read.

use super::ObjectWriter;
use crate::{
    Checkpoint, GgmlType, Object, PackedTensor, Packer, StoreError, TensorShape, huge::HUGE_BYTES,
    manifest::ALIGN_BYTES,
};
use std::{io, path::Path};

/// Tensors of fewer bytes lie together in one object: as many files of a block or two each would cost more to open than
/// to read. Few fine-tunes leave them as they are, and they are a thousandth of a model.
const SMALL_BYTES: u64 = 64 << 10;

/// Tensors of one object, at least one.
pub(super) struct Group<'a> {
    tensors: Vec<TensorShape<'a>>,
    is_small: bool,
}

/// All tensors of a checkpoint: the small ones first, then each large one by itself, and those of a layer that do not fill a
/// huge page together, so that they can lie in huge pages and are mapped at once.
pub(super) fn groups(checkpoint: &Checkpoint) -> Vec<Group<'_>> {
    grouped(checkpoint.tensors().collect())
}

fn grouped(mut tensors: Vec<TensorShape<'_>>) -> Vec<Group<'_>> {
    tensors.sort_by(|a, b| (step(a.name), a.name).cmp(&(step(b.name), b.name)));
    let is_small = |tensor: &TensorShape<'_>| tensor.dims.len() == 1 || tensor.bytes() < SMALL_BYTES;
    let (small, rest): (Vec<_>, Vec<_>) = tensors.into_iter().partition(is_small);
    let mut groups: Vec<Group<'_>> = Vec::new();
    if !small.is_empty() {
        groups.push(Group { tensors: small, is_small: true });
    }
    // Where the layer that is being looked at has its group.
    let mut gathered: Option<(u64, usize)> = None;
    for tensor in rest {
        let step = step(tensor.name);
        if tensor.bytes() >= HUGE_BYTES as u64 {
            groups.push(Group { tensors: vec![tensor], is_small: false });
            continue;
        }
        match gathered.filter(|(of, _)| *of == step).and_then(|(_, index)| groups.get_mut(index)) {
            Some(group) => group.tensors.push(tensor),
            None => {
                gathered = Some((step, groups.len()));
                groups.push(Group { tensors: vec![tensor], is_small: false });
            }
        }
    }
    groups
}

/// When a forward pass comes to a tensor.
fn step(name: &str) -> u64 {
    match name.strip_prefix("blk.") {
        Some(rest) => rest
            .split('.')
            .next()
            .and_then(|layer| layer.parse().ok())
            .map_or(u64::MAX, |layer: u32| 1 + u64::from(layer)),
        None if name.starts_with("output") => u64::MAX,
        None => 0,
    }
}

impl Group<'_> {
    /// Bytes before they are laid out.
    pub(super) fn bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.bytes()).sum()
    }

    /// Its tensors in order, and the type of the largest; none of the small ones, which are not worth a difference.
    pub(super) fn matrices(&self) -> Option<(&[TensorShape<'_>], GgmlType)> {
        let largest = self.tensors.iter().max_by_key(|tensor| tensor.bytes()).filter(|_| !self.is_small)?;
        Some((&self.tensors, largest.kind))
    }

    /// The first one's.
    pub(super) fn name(&self) -> &str {
        self.tensors.first().map_or("", |tensor| tensor.name)
    }

    /// Lays the tensors out one after the other. `path` is where they go, for errors; indices of objects are not
    /// known yet.
    pub(super) fn pack(
        &self,
        checkpoint: &Checkpoint,
        packer: &dyn Packer,
        mut writer: ObjectWriter,
        path: &Path,
    ) -> Result<(Object, Vec<PackedTensor>), StoreError> {
        let io = |source: io::Error| StoreError::io("write", path, source);
        let mut packed = Vec::with_capacity(self.tensors.len());
        for tensor in &self.tensors {
            writer.align(ALIGN_BYTES).map_err(io)?;
            let offset = writer.bytes();
            let stored = checkpoint.tensor_data(tensor.name)?;
            packer.pack(*tensor, &stored, &mut writer).map_err(io)?;
            let bytes = writer.bytes() - offset;
            if bytes < tensor.bytes() {
                let message = format!("{bytes} bytes came out of {}", tensor.bytes());
                let (tensor, layout) = (tensor.name.to_owned(), packer.layout().to_owned());
                return Err(StoreError::Pack { tensor, layout, message });
            }
            let (name, dims) = (tensor.name.to_owned(), tensor.dims.to_vec());
            packed.push(PackedTensor { name, kind: tensor.kind, dims, object: 0, offset, bytes });
        }
        match writer.finish().map_err(io)? {
            Some(object) => Ok((object, packed)),
            None => {
                let (tensor, layout) = (self.name().to_owned(), packer.layout().to_owned());
                Err(StoreError::Pack { tensor, layout, message: "nothing came out".into() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forward_pass_reads_embeddings_layers_and_outputs() {
        let mut names = ["output.weight", "blk.10.ffn_up.weight", "blk.2.attn_q.weight", "token_embd.weight", "blk.x"];
        names.sort_by_key(|name| step(name));
        assert_eq!(names[..3], ["token_embd.weight", "blk.2.attn_q.weight", "blk.10.ffn_up.weight"]);
    }

    #[test]
    fn what_does_not_fill_a_huge_page_lies_with_its_layer() {
        let shape = |name, dims| TensorShape { name, dims, kind: GgmlType::F32 };
        let (middle, large): (&[u64], &[u64]) = (&[1024, 256], &[1024, 1024]);
        let tensors = vec![
            shape("blk.1.attn_q.weight", middle),
            shape("blk.0.ffn_up.weight", middle),
            shape("blk.0.attn_q.weight", middle),
            shape("blk.0.ffn_down.weight", large),
            shape("token_embd.weight", large),
            shape("blk.0.attn_norm.weight", &[4096 * 4096]),
            shape("output_norm.weight", &[64]),
        ];
        let groups = grouped(tensors);
        let names: Vec<Vec<&str>> =
            groups.iter().map(|group| group.tensors.iter().map(|tensor| tensor.name).collect()).collect();
        let expected: [&[&str]; 5] = [
            &["blk.0.attn_norm.weight", "output_norm.weight"],
            &["token_embd.weight"],
            &["blk.0.attn_q.weight", "blk.0.ffn_up.weight"],
            &["blk.0.ffn_down.weight"],
            &["blk.1.attn_q.weight"],
        ];
        assert_eq!(names, expected);
        assert!(groups[0].matrices().is_none() && groups[2].matrices().is_some_and(|(all, _)| all.len() == 2));
    }
}
