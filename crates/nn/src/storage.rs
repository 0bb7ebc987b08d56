//! State dicts in files: safetensors with PyTorch's names and layouts.
//!
//! `safetensors.torch.load_file` reads what is written here and `load_state_dict(strict=True)` takes it; a file that
//! PyTorch wrote from the same network is read here.

use crate::state::owned;
use crate::{Error, Layout, Module, Result, Role, Slot, StateDict, write_atomically};
use indexmap::IndexMap;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::collections::HashMap;
use std::path::Path;
use tsbd_tensor::{DType, Device, Tensor};

/// Tensors in a file's layout, ready to be written.
pub(crate) struct FileTensors(IndexMap<String, (Dtype, Vec<usize>, Vec<u8>)>);

impl FileTensors {
    pub(crate) fn new() -> FileTensors {
        FileTensors(IndexMap::new())
    }

    /// Adds `tensor` as `name`, in PyTorch's layout.
    pub(crate) fn add(&mut self, name: String, tensor: &Tensor, layout: Layout) -> Result<()> {
        let tensor = match layout {
            Layout::Same => tensor.clone(),
            Layout::Convolution => tensor.permute((3, 2, 0, 1))?.contiguous()?,
        };
        let dtype = match tensor.dtype() {
            DType::F32 => Dtype::F32,
            DType::F64 => Dtype::F64,
            DType::I64 => Dtype::I64,
            other => return Err(candle_core::Error::UnsupportedDTypeForOp(other, "save").into()),
        };
        self.0.insert(name, (dtype, tensor.dims().to_vec(), bytes(&tensor)?));
        Ok(())
    }

    /// The bytes of a safetensors file; `metadata` holds one entry at most, so that equal content gives equal bytes.
    pub(crate) fn serialize(&self, metadata: Option<(&str, String)>, path: &Path) -> Result<Vec<u8>> {
        let refused = |source| Error::Safetensors { path: path.to_path_buf(), source };
        let views = self
            .0
            .iter()
            .map(|(name, (dtype, dims, bytes))| Ok((name, TensorView::new(*dtype, dims.clone(), bytes)?)))
            .collect::<Result<Vec<_>, _>>()
            .map_err(refused)?;
        let metadata = metadata.map(|(key, value)| HashMap::from([(key.to_owned(), value)]));
        safetensors::serialize(views, metadata).map_err(refused)
    }
}

/// A tensor's numbers in memory order, little endian.
pub(crate) fn bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    let flat = tensor.flatten_all()?;
    Ok(match tensor.dtype() {
        DType::F64 => flat.to_vec1::<f64>()?.into_iter().flat_map(f64::to_le_bytes).collect(),
        DType::I64 => flat.to_vec1::<i64>()?.into_iter().flat_map(i64::to_le_bytes).collect(),
        _ => flat.to_vec1::<f32>()?.into_iter().flat_map(f32::to_le_bytes).collect(),
    })
}

/// Reads one tensor of a file into memory layout.
///
/// `exact` demands the slot's own type for floating-point numbers; otherwise any of PyTorch's is converted to `f32`.
pub(crate) fn read(file: &SafeTensors, name: &str, slot: &Slot, path: &Path, exact: bool) -> Result<Tensor> {
    let view = file.tensor(name).map_err(|_| Error::TensorMissing {
        path: path.to_path_buf(),
        name: name.to_owned(),
        found: file.len(),
    })?;
    let expected = slot.layout.file_dims(&slot.dims);
    if view.shape() != expected {
        let found = view.shape().to_vec();
        return Err(Error::TensorShape { path: path.to_path_buf(), name: name.to_owned(), found, expected });
    }
    let wrong_type = |expected| Error::TensorType {
        path: path.to_path_buf(),
        name: name.to_owned(),
        found: format!("{:?}", view.dtype()),
        expected,
    };
    let cpu = &Device::Cpu;
    let tensor = match (slot.role, view.dtype()) {
        (Role::Counter, Dtype::I64) => Tensor::from_raw_buffer(view.data(), DType::I64, &expected, cpu)?,
        (Role::Counter, _) => return Err(wrong_type("I64")),
        (_, Dtype::F32) => Tensor::from_raw_buffer(view.data(), DType::F32, &expected, cpu)?,
        (_, Dtype::F64) => Tensor::from_raw_buffer(view.data(), DType::F64, &expected, cpu)?,
        (_, Dtype::F16) => Tensor::from_raw_buffer(view.data(), DType::F16, &expected, cpu)?,
        (_, Dtype::BF16) => Tensor::from_raw_buffer(view.data(), DType::BF16, &expected, cpu)?,
        _ => return Err(wrong_type("F32, F64, F16 or BF16")),
    };
    let tensor = if slot.role == Role::Counter || exact { tensor } else { tensor.to_dtype(DType::F32)? };
    match slot.layout {
        Layout::Same => Ok(tensor),
        Layout::Convolution => owned(&tensor.permute((2, 3, 1, 0))?),
    }
}

/// Refuses a file that has a tensor other than the `expected` ones.
pub(crate) fn refuse_others(file: &SafeTensors, expected: impl Fn(&str) -> bool, path: &Path) -> Result<()> {
    let mut names = file.names();
    names.sort_unstable();
    match names.into_iter().find(|name| !expected(name)) {
        None => Ok(()),
        Some(name) => Err(Error::TensorUnexpected {
            path: path.to_path_buf(),
            name: name.to_owned(),
            shape: file.tensor(name).map(|view| view.shape().to_vec()).unwrap_or_default(),
        }),
    }
}

impl StateDict {
    pub(crate) fn add_to(&self, file: &mut FileTensors, prefix: &str) -> Result<()> {
        for (name, entry) in self.entries() {
            file.add(format!("{prefix}{name}"), &entry.tensor, entry.layout)?;
        }
        Ok(())
    }

    pub(crate) fn read_from(file: &SafeTensors, prefix: &str, modules: &[Module], path: &Path) -> Result<StateDict> {
        StateDict::build(modules, |_, slot| read(file, &format!("{prefix}{}", slot.name), slot, path, !prefix.is_empty()))
    }

    /// Writes a safetensors file with PyTorch's names and layouts, whole or not at all.
    ///
    /// Equal weights give equal bytes.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let mut file = FileTensors::new();
        self.add_to(&mut file, "")?;
        // Other readers look at this key; it says that layouts are PyTorch's.
        let bytes = file.serialize(Some(("format", "pt".to_owned())), path)?;
        write_atomically(path, &[&bytes])
    }

    /// Reads a safetensors file for a network with these `modules`: every tensor of the network must be there with its
    /// shape, and no other. Half-precision and double-precision numbers become `f32`.
    pub fn load(path: impl AsRef<Path>, modules: &[Module]) -> Result<StateDict> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(Error::file(path))?;
        let file = SafeTensors::deserialize(&bytes)
            .map_err(|source| Error::Safetensors { path: path.to_path_buf(), source })?;
        let state = StateDict::read_from(&file, "", modules, path)?;
        refuse_others(&file, |name| state.get(name).is_ok(), path)?;
        Ok(state)
    }
}
