//! The tensors of a network under PyTorch's names.

use crate::module::BATCH_NORM_MOMENTUM;
use crate::{Error, Layout, Module, ParameterGradients, Result, Role, Slot, Statistics};
use indexmap::IndexMap;
use tsbd_tensor::{DType, Device, Tensor, Var};

/// A tensor of a state dict.
#[derive(Debug)]
pub struct Entry {
    /// The value, contiguous.
    pub tensor: Tensor,
    /// What it is for.
    pub role: Role,
    /// How it lies in memory.
    pub layout: Layout,
}

/// The tensors of a network: parameters, running estimates and counters, in PyTorch's order under PyTorch's names.
///
/// Convolutions' weights lie as `[kh, kw, in, out]` in memory; [`StateDict::filters`] and files show them in PyTorch's
/// order. A step of training changes parameters and running estimates in place, so a [`Tensor`] cloned from here (which
/// shares memory) changes with them; a clone of the state dict itself is deep.
#[derive(Debug)]
pub struct StateDict {
    entries: IndexMap<String, Entry>,
}

impl Clone for StateDict {
    /// A deep copy: training one leaves the other as it was.
    fn clone(&self) -> StateDict {
        let entries = self.entries.iter().map(|(name, entry)| {
            (name.clone(), Entry { tensor: deep_copy(name, &entry.tensor), role: entry.role, layout: entry.layout })
        });
        StateDict { entries: entries.collect() }
    }
}

impl StateDict {
    /// The state dict of `modules`, each tensor made by `value` from its module and slot.
    pub fn build(modules: &[Module], mut value: impl FnMut(&Module, &Slot) -> Result<Tensor>) -> Result<StateDict> {
        let mut entries = IndexMap::new();
        for module in modules {
            for slot in module.slots() {
                let tensor = value(module, &slot)?;
                debug_assert_eq!(tensor.dims(), slot.dims, "{}", slot.name);
                let tensor = tensor.contiguous()?;
                entries.insert(slot.name, Entry { tensor, role: slot.role, layout: slot.layout });
            }
        }
        Ok(StateDict { entries })
    }

    /// A state dict that shares its tensors with this one: for handing them on without a copy, never for keeping.
    pub(crate) fn shared(&self) -> StateDict {
        let share = |(name, entry): (&String, &Entry)| {
            (name.clone(), Entry { tensor: entry.tensor.clone(), role: entry.role, layout: entry.layout })
        };
        StateDict { entries: self.entries.iter().map(share).collect() }
    }

    /// Every name, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Every name with its entry, in order.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// The trainable tensors, in order.
    pub fn parameters(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.with_role(Role::Parameter)
    }

    /// The running estimates, in order (without the counters).
    pub fn buffers(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.with_role(Role::Buffer)
    }

    fn with_role(&self, role: Role) -> impl Iterator<Item = (&str, &Tensor)> {
        self.entries().filter(move |(_, entry)| entry.role == role).map(|(name, entry)| (name, &entry.tensor))
    }

    /// The first of the trainable tensors and running estimates that holds a number which is infinite or none at all; one whose
    /// sum overflows counts as such.
    pub fn non_finite(&self) -> Result<Option<&str>> {
        let floats = || self.parameters().chain(self.buffers());
        let sum = |(_, tensor): (_, &Tensor)| Ok(Var::constant(tensor.clone()).sum()?.tensor().clone());
        let sums = floats().map(sum).collect::<Result<Vec<_>>>()?;
        // Read together: a GPU is waited for once.
        let sums = Tensor::stack(&sums, 0)?.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        Ok(floats().zip(sums).find(|(_, sum)| !sum.is_finite()).map(|((name, _), _)| name))
    }

    /// How many numbers the trainable tensors hold.
    pub fn parameter_count(&self) -> usize {
        self.parameters().map(|(_, tensor)| tensor.elem_count()).sum()
    }

    /// The entry named `name`.
    pub fn entry(&self, name: &str) -> Result<&Entry> {
        self.entries.get(name).ok_or_else(|| self.unknown(name))
    }

    /// The tensor named `name`, in the layout of memory.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        self.entry(name).map(|entry| &entry.tensor)
    }

    fn unknown(&self, name: &str) -> Error {
        let example = self.entries.keys().next().cloned().unwrap_or_default();
        Error::UnknownTensor { name: name.to_owned(), example }
    }

    /// Replaces the tensor named `name` by a copy of `tensor`, which has the same shape (in memory) and type.
    pub fn set(&mut self, name: &str, tensor: &Tensor) -> Result<()> {
        let old = self.get(name)?;
        if old.dims() != tensor.dims() || old.dtype() != tensor.dtype() {
            let describe = |tensor: &Tensor| format!("{:?} {}", tensor.dims(), tensor.dtype().as_str());
            let (expected, found) = (describe(old), describe(tensor));
            return Err(Error::Replacement { name: name.to_owned(), expected, found });
        }
        let tensor = owned(tensor)?.to_device(old.device())?;
        self.entries[name].tensor = tensor;
        Ok(())
    }

    /// A weight with one row per output filter: `[out, in * kh * kw]` in PyTorch's order for a convolution, the weight
    /// itself for a linear layer.
    pub fn filters(&self, name: &str) -> Result<Tensor> {
        let entry = self.entry(name)?;
        match (entry.layout, entry.tensor.dims()) {
            (Layout::Convolution, &[kh, kw, input, output]) => {
                Ok(entry.tensor.permute((3, 2, 0, 1))?.reshape((output, input * kh * kw))?.contiguous()?)
            }
            (Layout::Same, &[_, _]) => Ok(owned(&entry.tensor)?),
            (_, shape) => Err(Error::NoFilters { name: name.to_owned(), shape: shape.to_vec() }),
        }
    }

    /// [`StateDict::filters`] as numbers: one `Vec` per output filter.
    pub fn filter_rows(&self, name: &str) -> Result<Vec<Vec<f32>>> {
        Ok(self.filters(name)?.to_dtype(DType::F32)?.to_vec2()?)
    }

    /// Sets a weight from rows as [`StateDict::filters`] gives them.
    pub fn set_filters(&mut self, name: &str, filters: &Tensor) -> Result<()> {
        let entry = self.entry(name)?;
        let tensor = match (entry.layout, entry.tensor.dims()) {
            (Layout::Convolution, &[kh, kw, input, output]) if filters.dims() == [output, input * kh * kw] => {
                filters.reshape((output, input, kh, kw))?.permute((2, 3, 1, 0))?.contiguous()?
            }
            _ => filters.clone(),
        };
        self.set(name, &tensor)
    }

    /// Sets a weight from numbers as [`StateDict::filter_rows`] gives them.
    pub fn set_filter_rows(&mut self, name: &str, rows: &[Vec<f32>]) -> Result<()> {
        let old = self.get(name)?;
        let columns = rows.first().map_or(0, Vec::len);
        let flat: Vec<f32> = rows.iter().flatten().copied().collect();
        let filters = Tensor::from_vec(flat, (rows.len(), columns), &Device::Cpu)?
            .to_dtype(old.dtype())?
            .to_device(old.device())?;
        self.set_filters(name, &filters)
    }

    /// Adds to every parameter `scale(name) *` its entry in `direction`; a scale of 0 leaves a parameter as it is.
    pub fn add_scaled(&mut self, direction: &ParameterGradients, scale: impl Fn(&str) -> f64) -> Result<()> {
        for (name, step) in direction.iter() {
            let scale = scale(name);
            if scale != 0.0 {
                let moved = (self.get(name)? + (step * scale)?)?;
                self.entries[name].tensor = moved;
            }
        }
        Ok(())
    }

    /// The parameters of this state dict minus those of `other`, which has the same names.
    pub fn difference(&self, other: &StateDict) -> Result<ParameterGradients> {
        let pairs =
            self.parameters().map(|(name, tensor)| Ok((name.to_owned(), (tensor - other.get(name)?)?))).collect();
        Result::<Vec<_>>::map(pairs, ParameterGradients::from_iter)
    }

    /// Moves the running estimates towards what a pass met: momentum 0.1, unbiased variance, as PyTorch.
    pub fn absorb(&mut self, statistics: &Statistics) -> Result<()> {
        self.absorb_at(BATCH_NORM_MOMENTUM, statistics)
    }

    /// [`Self::absorb`] in a network whose batch norms have another momentum, the share of an estimate that is replaced.
    pub fn absorb_at(&mut self, momentum: f64, statistics: &Statistics) -> Result<()> {
        self.move_estimates(momentum, statistics, None)?;
        self.count(statistics.iter().map(|(module, _)| module))
    }

    /// Moves the running estimates in place, unless `loss` is a loss that is not finite. Counts nothing.
    pub(crate) fn move_estimates(&self, momentum: f64, statistics: &Statistics, loss: Option<&Tensor>) -> Result<()> {
        let mut met_once = IndexMap::new();
        for (module, met) in statistics.iter() {
            for (buffer, met) in [("running_mean", &met.mean), ("running_var", &met.variance)] {
                let name = format!("{module}.{buffer}");
                // A batch norm that several passes have met moves once for each.
                if met_once.contains_key(&name) {
                    let pairs: Vec<_> = std::mem::take(&mut met_once).into_values().collect();
                    tsbd_tensor::move_estimates(&pairs, momentum, loss)?;
                }
                met_once.insert(name.clone(), [self.get(&name)?, met]);
            }
        }
        let pairs: Vec<_> = met_once.into_values().collect();
        Ok(tsbd_tensor::move_estimates(&pairs, momentum, loss)?)
    }

    /// Counts one batch more for each of these batch norms.
    pub(crate) fn count<'m>(&mut self, modules: impl Iterator<Item = &'m str>) -> Result<()> {
        for module in modules {
            let name = format!("{module}.num_batches_tracked");
            let counter = self.get(&name)?;
            let count = counter.to_scalar::<i64>()? + 1;
            let counter = Tensor::new(count, counter.device())?;
            self.set(&name, &counter)?;
        }
        Ok(())
    }

    /// The tensors themselves (not copies) under their names with `prefix` before them: for a state kept in a
    /// checkpoint with others.
    pub fn tensors(&self, prefix: &str) -> impl Iterator<Item = (String, Tensor)> {
        self.entries().map(move |(name, entry)| (format!("{prefix}{name}"), entry.tensor.clone()))
    }

    /// Takes copies of what [`Self::tensors`] gave.
    pub fn restore(&mut self, prefix: &str, tensors: &IndexMap<String, Tensor>) -> Result<()> {
        let names: Vec<String> = self.names().map(str::to_owned).collect();
        for name in names {
            let tensor = tensors.get(&format!("{prefix}{name}")).ok_or_else(|| self.unknown(&name))?;
            self.set(&name, tensor)?;
        }
        Ok(())
    }

    /// A copy with every number converted to `dtype`; counters stay integers.
    pub fn to_dtype(&self, dtype: DType) -> Result<StateDict> {
        self.map(|entry| match entry.role {
            Role::Counter => owned(&entry.tensor),
            // Converting to the type a tensor has already would share its memory.
            _ if entry.tensor.dtype() == dtype => owned(&entry.tensor),
            _ => Ok(entry.tensor.to_dtype(dtype)?),
        })
    }

    /// A copy on another device. Counters stay on the CPU, where they are counted: to read one from a GPU, every step would
    /// wait for it.
    pub fn to_device(&self, device: &Device) -> Result<StateDict> {
        self.map(|entry| match entry.role {
            Role::Counter => owned(&entry.tensor.to_device(&Device::Cpu)?),
            _ => owned(&entry.tensor.to_device(device)?),
        })
    }

    fn map(&self, convert: impl Fn(&Entry) -> Result<Tensor>) -> Result<StateDict> {
        let converted = self.entries.iter().map(|(name, entry)| {
            Ok((name.clone(), Entry { tensor: convert(entry)?, role: entry.role, layout: entry.layout }))
        });
        Ok(StateDict { entries: converted.collect::<Result<_>>()? })
    }

    /// BLAKE3 of all names, shapes and numbers in hexadecimal: equal exactly when every bit is.
    pub fn digest(&self) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        for (name, entry) in self.entries() {
            hasher.update(&(name.len() as u64).to_le_bytes());
            hasher.update(name.as_bytes());
            hasher.update(format!("{:?}{:?}", entry.tensor.dtype(), entry.tensor.dims()).as_bytes());
            hasher.update(&crate::storage::bytes(&entry.tensor)?);
        }
        Ok(hasher.finalize().to_hex().to_string())
    }
}

/// A copy for `Clone`, which cannot fail.
pub(crate) fn deep_copy(name: &str, tensor: &Tensor) -> Tensor {
    // A copy of a tensor that exists can only fail for want of memory, which aborts elsewhere too.
    tensor.copy().unwrap_or_else(|error| panic!("cannot copy `{name}`: {error}"))
}

/// A contiguous tensor that shares its memory with no other.
pub(crate) fn owned(tensor: &Tensor) -> Result<Tensor> {
    // `copy` keeps the layout of a view, and `contiguous` copies only a view.
    Ok(if tensor.is_contiguous() { tensor.copy()? } else { tensor.contiguous()? })
}

#[cfg(test)]
mod tests {
    use crate::tiny::model;
    use crate::{Error, ParameterGradients};
    use tsbd_tensor::{DType, Device, Tensor};

    #[test]
    fn a_clone_shares_no_memory_with_the_original() {
        let original = model(0).state;
        let digest = original.digest().unwrap();
        let clone = original.clone();
        let options = tsbd_tensor::Sgd { learning_rate: 1.0, momentum: 0.0, weight_decay: 0.5 };
        for (_, tensor) in clone.parameters() {
            tsbd_tensor::sgd_step(tensor, &tensor.zeros_like().unwrap(), &tensor.ones_like().unwrap(), options)
                .unwrap();
        }
        assert_ne!(clone.digest().unwrap(), digest);
        assert_eq!(original.digest().unwrap(), digest);
    }

    #[test]
    fn a_tensor_that_was_set_does_not_move_with_its_source() {
        let mut state = model(0).state;
        let bias = Tensor::ones(5, DType::F32, &Device::Cpu).unwrap();
        state.set("linear.bias", &bias).unwrap();
        let options = tsbd_tensor::Sgd { learning_rate: 1.0, momentum: 0.0, weight_decay: 0.0 };
        tsbd_tensor::sgd_step(&bias, &bias.zeros_like().unwrap(), &bias.ones_like().unwrap(), options).unwrap();
        assert_eq!(state.get("linear.bias").unwrap().to_vec1::<f32>().unwrap(), [1.0; 5]);
    }

    #[test]
    fn filters_are_rows_in_pytorchs_order_and_return_unchanged() {
        let mut state = model(0).state;
        let digest = state.digest().unwrap();
        let filters = state.filters("conv1.weight").unwrap();
        assert_eq!(filters.dims(), [4, 27]);
        let rows = state.filter_rows("conv1.weight").unwrap();
        let memory: Vec<f32> = state.get("conv1.weight").unwrap().flatten_all().unwrap().to_vec1().unwrap();
        for (output, row) in rows.iter().enumerate() {
            for input in 0..3 {
                for place in 0..9 {
                    assert_eq!(row[input * 9 + place], memory[(place * 3 + input) * 4 + output]);
                }
            }
        }
        state.set_filters("conv1.weight", &filters).unwrap();
        state.set_filter_rows("linear.weight", &state.filter_rows("linear.weight").unwrap()).unwrap();
        assert_eq!(state.digest().unwrap(), digest);
    }

    #[test]
    fn wrong_names_and_shapes_are_refused_with_what_would_be_right() {
        let mut state = model(0).state;
        let unknown = state.get("conv.weight").unwrap_err();
        assert!(unknown.to_string().contains("`conv.weight`") && unknown.to_string().contains("conv1.weight"));
        let wrong = Tensor::ones(6, DType::F32, &Device::Cpu).unwrap();
        assert!(matches!(state.set("linear.bias", &wrong), Err(Error::Replacement { .. })));
        assert!(matches!(state.set_filters("conv1.weight", &wrong), Err(Error::Replacement { .. })));
        assert!(matches!(state.filters("bn1.weight"), Err(Error::NoFilters { .. })));
    }

    #[test]
    fn moving_along_a_difference_leads_from_one_state_to_the_other() {
        let (mut from, to) =
            (model(0).state.to_dtype(DType::F64).unwrap(), model(1).state.to_dtype(DType::F64).unwrap());
        let way = to.difference(&from).unwrap();
        from.add_scaled(&way, |_| 0.25).unwrap();
        from.add_scaled(&way, |name| if name == "linear.bias" { 0.0 } else { 0.75 }).unwrap();
        let rest = to.difference(&from).unwrap();
        for (name, norm) in rest.norms().unwrap() {
            let expected = if name == "linear.bias" { 0.75 * way.norm(&name).unwrap() } else { 0.0 };
            assert!((norm - expected).abs() < 1e-14, "{name}: {norm}");
        }
    }

    #[test]
    fn norms_are_euclidean_per_tensor_and_over_all() {
        let tensor = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap();
        let a: ParameterGradients =
            [("a".to_owned(), tensor(&[3.0, 4.0])), ("b".to_owned(), tensor(&[12.0]))].into_iter().collect();
        assert_eq!([a.norm("a").unwrap(), a.norm("b").unwrap(), a.global_norm().unwrap()], [5.0, 12.0, 13.0]);
        let long = tensor(&(0..1000).map(|i| i as f32).collect::<Vec<_>>());
        let long: ParameterGradients = [("c".to_owned(), long)].into_iter().collect();
        assert_eq!(long.norm("c").unwrap(), f64::sqrt(332_833_500.0));
        let mixed = a.mix(0.5, &a.scale(-1.0).unwrap(), 0.25).unwrap();
        assert_eq!(mixed.get("a").unwrap().to_vec1::<f32>().unwrap(), [0.75, 1.0]);
        assert!(matches!(a.mix(1.0, &long, 1.0), Err(Error::NoGradient { .. })));
    }
}
