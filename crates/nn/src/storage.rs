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
            DType::U8 => Dtype::U8,
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
        DType::U8 => flat.to_vec1::<u8>()?,
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

/// Reads one tensor of a file with the shape, type and layout that it has there.
pub(crate) fn read_as_stored(file: &SafeTensors, name: &str, path: &Path) -> Result<Tensor> {
    let view = file.tensor(name).map_err(|source| Error::Safetensors { path: path.to_path_buf(), source })?;
    if view.dtype() == Dtype::U8 {
        return Ok(Tensor::from_raw_buffer(view.data(), DType::U8, view.shape(), &Device::Cpu)?);
    }
    let role = if view.dtype() == Dtype::I64 { Role::Counter } else { Role::Buffer };
    let slot = Slot { name: name.to_owned(), dims: view.shape().to_vec(), role, layout: Layout::Same };
    read(file, name, &slot, path, true)
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
        StateDict::build(modules, |_, slot| {
            read(file, &format!("{prefix}{}", slot.name), slot, path, !prefix.is_empty())
        })
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

    /// Writes several networks to one safetensors file, each name with its network's prefix before it, whole or not at all.
    pub fn save_together(path: impl AsRef<Path>, parts: &[(&str, &StateDict)]) -> Result<()> {
        let path = path.as_ref();
        let mut file = FileTensors::new();
        for (prefix, state) in parts {
            state.add_to(&mut file, prefix)?;
        }
        write_atomically(path, &[&file.serialize(Some(("format", "pt".to_owned())), path)?])
    }

    /// Reads what [`StateDict::save_together`] wrote, for networks with these prefixes and modules: every tensor of each
    /// must be there, and no other.
    pub fn load_together<const N: usize>(
        path: impl AsRef<Path>,
        parts: [(&str, &[Module]); N],
    ) -> Result<[StateDict; N]> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(Error::file(path))?;
        let file = SafeTensors::deserialize(&bytes)
            .map_err(|source| Error::Safetensors { path: path.to_path_buf(), source })?;
        let mut states = Vec::with_capacity(N);
        for (prefix, modules) in parts {
            states.push(StateDict::read_from(&file, prefix, modules, path)?);
        }
        let known = |name: &str| {
            let mut parts = parts.iter().zip(&states);
            parts.any(|((prefix, _), state)| name.strip_prefix(prefix).is_some_and(|name| state.get(name).is_ok()))
        };
        refuse_others(&file, known, path)?;
        Ok(states.try_into().unwrap_or_else(|_| unreachable!("one state for each of the {N} parts")))
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

#[cfg(test)]
mod tests {
    use crate::tiny::{model, tiny};
    use crate::{Architecture, Error, Layer, Module, StateDict};
    use safetensors::{Dtype, SafeTensors};
    use tsbd_tensor::Tensor;

    #[test]
    fn a_saved_state_dict_loads_with_the_same_bits_and_saves_to_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let state = model(0).state;
        let [first, second] = ["a.safetensors", "b.safetensors"].map(|name| folder.path().join(name));
        state.save(&first).unwrap();
        let loaded = StateDict::load(&first, tiny().modules()).unwrap();
        assert_eq!(loaded.digest().unwrap(), state.digest().unwrap());
        loaded.save(&second).unwrap();
        assert_eq!(std::fs::read(&first).unwrap(), std::fs::read(&second).unwrap());
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(left.len(), 2, "temporary files stayed");
    }

    #[test]
    fn files_have_pytorchs_layouts_and_types() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let state = model(0).state;
        state.save(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let weight = file.tensor("conv1.weight").unwrap();
        assert_eq!(weight.shape(), [4, 3, 3, 3]);
        let counter = file.tensor("bn1.num_batches_tracked").unwrap();
        assert_eq!((counter.dtype(), counter.shape()), (Dtype::I64, [].as_slice()));
        // Element [out 2, in 1, row 0, column 2] of the file is element [0, 2, 1, 2] in memory.
        let place = ((2 * 3 + 1) * 3) * 3 + 2;
        let number = f32::from_le_bytes(weight.data()[4 * place..][..4].try_into().unwrap());
        let memory = state.get("conv1.weight").unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(number, memory[((2 * 3) + 1) * 4 + 2]);
    }

    #[test]
    fn a_file_of_another_network_is_refused_with_the_tensor_and_both_shapes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        model(0).state.save(&path).unwrap();
        let error = |modules: &[Module]| StateDict::load(&path, modules).unwrap_err();

        let mut wider = tiny().modules().to_vec();
        wider[2].layer = Layer::Linear { in_features: 4, out_features: 7 };
        let message = error(&wider).to_string();
        assert!(
            message.contains("model.safetensors: tensor `linear.weight` has shape [5, 4], the network needs [7, 4]"),
            "{message}"
        );
        assert!(
            matches!(error(&tiny().modules()[..2]), Error::TensorUnexpected { ref name, .. } if name == "linear.bias")
        );
        wider[2].name = "head".into();
        assert!(matches!(error(&wider), Error::TensorMissing { ref name, .. } if name == "head.weight"));
        let missing = StateDict::load(folder.path().join("none"), tiny().modules()).unwrap_err();
        assert!(matches!(missing, Error::File { .. }) && missing.to_string().contains("none"));
        std::fs::write(&path, b"not a model").unwrap();
        assert!(matches!(error(tiny().modules()), Error::Safetensors { .. }));
    }

    #[test]
    fn networks_saved_together_are_read_together_and_nothing_else_with_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("both.safetensors");
        let (first, second) = (model(0).state, model(1).state);
        StateDict::save_together(&path, &[("a.", &first), ("b.", &second)]).unwrap();
        let network = tiny();
        let modules = network.modules();
        let [a, b] = StateDict::load_together(&path, [("a.", modules), ("b.", modules)]).unwrap();
        assert_eq!([a, b].map(|state| state.digest().unwrap()), [first, second].map(|state| state.digest().unwrap()));
        let one = StateDict::load_together(&path, [("a.", modules)]).unwrap_err();
        assert!(matches!(one, Error::TensorUnexpected { ref name, .. } if name.starts_with("b.")), "{one}");
        let other = StateDict::load_together(&path, [("a.", modules), ("c.", modules)]).unwrap_err();
        assert!(matches!(other, Error::TensorMissing { ref name, .. } if name.starts_with("c.")), "{other}");
    }

    #[test]
    fn a_counter_of_another_type_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let state = model(0).state;
        let mut file = super::FileTensors::new();
        state.add_to(&mut file, "").unwrap();
        let zero = Tensor::zeros((), tsbd_tensor::DType::F32, &tsbd_tensor::Device::Cpu).unwrap();
        file.add("bn1.num_batches_tracked".into(), &zero, crate::Layout::Same).unwrap();
        std::fs::write(&path, file.serialize(None, &path).unwrap()).unwrap();
        let error = StateDict::load(&path, tiny().modules()).unwrap_err();
        assert!(matches!(error, Error::TensorType { ref name, .. } if name == "bn1.num_batches_tracked"), "{error}");
    }
}
