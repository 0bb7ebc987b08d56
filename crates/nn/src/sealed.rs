//! Files that tell whether they are what was written: for checkpoints.
//!
//! The eight bytes of [`MAGIC`], the BLAKE3 digest of what follows, and the content. A file that was cut off or changed
//! does not match its digest and is refused before anything of it is used.

use crate::storage::{FileTensors, read_as_stored};
use crate::{Error, Layout, Result, write_atomically};
use indexmap::IndexMap;
use safetensors::SafeTensors;
use std::path::Path;
use tsbd_tensor::{Device, Tensor};

/// The first bytes of every such file; the digit is the format's version.
const MAGIC: &[u8; 8] = b"tsbdckp2";
const DIGEST: usize = 32;

/// Writes the file, whole or not at all.
fn write(path: &Path, content: &[u8]) -> Result<()> {
    write_atomically(path, &[MAGIC, blake3::hash(content).as_bytes(), content])
}

/// What [`write`] wrote.
fn read(path: &Path) -> Result<Vec<u8>> {
    let damaged = |reason: &str| Error::DamagedCheckpoint { path: path.to_path_buf(), reason: reason.to_owned() };
    let mut bytes = std::fs::read(path).map_err(Error::file(path))?;
    let sealed = bytes.strip_prefix(MAGIC).ok_or_else(|| damaged("it does not begin as one"))?;
    let Some((digest, content)) = sealed.split_at_checked(DIGEST) else {
        return Err(damaged(&format!("only {} bytes long", bytes.len())));
    };
    if blake3::hash(content).as_bytes() != digest {
        return Err(damaged("its digest does not match its content: it was cut off or changed"));
    }
    Ok(bytes.split_off(MAGIC.len() + DIGEST))
}

/// Keeps tensors (`f32`, `f64`, `i64` or `u8`, as they lie in memory) from which unfinished work can go on. `run` says what
/// they belong to.
pub fn save_tensors(path: &Path, run: &str, tensors: &IndexMap<String, Tensor>) -> Result<()> {
    let mut file = FileTensors::new();
    for (name, tensor) in tensors {
        file.add(name.clone(), tensor, Layout::Same)?;
    }
    write(path, &file.serialize(Some((RUN, run.to_owned())), path)?)
}

/// What [`save_tensors`] wrote, or nothing when there is no such file. Refused: what belongs to another run, and a damaged
/// file.
pub fn load_tensors(path: &Path, run: &str) -> Result<Option<IndexMap<String, Tensor>>> {
    let content = match read(path) {
        Err(Error::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        content => content?,
    };
    let file = parse(&content, path)?;
    let found = run_of(&content, path)?;
    if found != run {
        return Err(Error::ForeignCheckpoint { field: "configuration", found, expected: run.to_owned() });
    }
    let tensors = file.names().into_iter().map(|name| Ok((name.to_owned(), read_as_stored(&file, name, path)?)));
    tensors.collect::<Result<_>>().map(Some)
}

/// A text as a tensor of its bytes, to be kept among others.
pub fn text_tensor(text: &str) -> Result<Tensor> {
    Ok(Tensor::from_vec(text.as_bytes().to_vec(), text.len(), &Device::Cpu)?)
}

/// The text of a [`text_tensor`].
pub fn tensor_text(tensor: &Tensor) -> Result<String> {
    Ok(String::from_utf8_lossy(&tensor.to_vec1::<u8>()?).into_owned())
}

/// The name of the entry that says what a checkpoint belongs to.
const RUN: &str = "run";

/// The safetensors file in a checkpoint.
fn parse<'a>(content: &'a [u8], path: &Path) -> Result<SafeTensors<'a>> {
    SafeTensors::deserialize(content).map_err(|source| Error::Safetensors { path: path.to_path_buf(), source })
}

/// What a checkpoint says that it belongs to.
fn run_of(content: &[u8], path: &Path) -> Result<String> {
    let unreadable = |source| Error::Safetensors { path: path.to_path_buf(), source };
    let (_, header) = SafeTensors::read_metadata(content).map_err(unreadable)?;
    let run = header.metadata().as_ref().and_then(|metadata| metadata.get(RUN)).cloned();
    let reason = "it does not say which run it belongs to".to_owned();
    run.ok_or_else(|| Error::DamagedCheckpoint { path: path.to_path_buf(), reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_tensors_come_back_with_their_bits_and_only_to_the_run_that_kept_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint");
        assert!(load_tensors(&path, "a").unwrap().is_none());
        let tensor = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap();
        let steps = Tensor::new(7i64, &Device::Cpu).unwrap();
        let notes = text_tensor("{\"größe\": 1}").unwrap();
        let kept = [("w", tensor(&[0.1, f32::MIN_POSITIVE])), ("step", steps), ("notes", notes)];
        let kept = kept.map(|(name, tensor)| (name.to_owned(), tensor)).into();
        save_tensors(&path, "a", &kept).unwrap();
        let found = load_tensors(&path, "a").unwrap().unwrap();
        assert_eq!(found["w"].to_vec1::<f32>().unwrap(), [0.1, f32::MIN_POSITIVE]);
        assert_eq!((found["step"].to_scalar::<i64>().unwrap(), found.len()), (7, 3));
        assert_eq!(tensor_text(&found["notes"]).unwrap(), "{\"größe\": 1}");
        let foreign = load_tensors(&path, "b").unwrap_err();
        assert!(matches!(foreign, Error::ForeignCheckpoint { .. }), "{foreign}");

        let bytes = std::fs::read(&path).unwrap();
        for (place, byte) in [(0, 1), (20, 1), (bytes.len() - 1, 1)] {
            let mut changed = bytes.clone();
            changed[place] ^= byte;
            std::fs::write(&path, changed).unwrap();
            let error = load_tensors(&path, "a").unwrap_err();
            assert!(matches!(error, Error::DamagedCheckpoint { .. }), "byte {place}: {error}");
        }
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(matches!(load_tensors(&path, "a"), Err(Error::DamagedCheckpoint { .. })));
    }
}
