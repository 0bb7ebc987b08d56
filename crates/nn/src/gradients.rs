//! One tensor per parameter: gradients, and the directions that defenses make of them.

use crate::{Error, Result};
use indexmap::IndexMap;
use tsbd_tensor::{DType, Tensor};

/// A tensor for each parameter, by name: a gradient, or a difference of weights.
#[derive(Debug, Clone, Default)]
pub struct ParameterGradients {
    tensors: IndexMap<String, Tensor>,
}

impl FromIterator<(String, Tensor)> for ParameterGradients {
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(pairs: I) -> ParameterGradients {
        ParameterGradients { tensors: pairs.into_iter().collect() }
    }
}

impl ParameterGradients {
    /// Every name with its tensor, in the order of the state dict.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// The tensor for the parameter `name`, in the layout of memory.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| Error::NoGradient { parameter: name.to_owned() })
    }

    /// Replaces the tensor for the parameter `name`.
    pub fn set(&mut self, name: &str, tensor: Tensor) {
        self.tensors.insert(name.to_owned(), tensor);
    }

    /// How many parameters there are.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there is no parameter.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// `self * own + other * others`, parameter by parameter.
    pub fn mix(&self, own: f64, other: &ParameterGradients, others: f64) -> Result<ParameterGradients> {
        self.iter()
            .map(|(name, tensor)| Ok((name.to_owned(), ((tensor * own)? + (other.get(name)? * others)?)?)))
            .collect()
    }

    /// Every tensor times `factor`.
    pub fn scale(&self, factor: f64) -> Result<ParameterGradients> {
        self.iter().map(|(name, tensor)| Ok((name.to_owned(), (tensor * factor)?))).collect()
    }

    /// The Euclidean norm of one parameter's tensor.
    pub fn norm(&self, name: &str) -> Result<f64> {
        Ok(squares(self.get(name)?)?.sqrt())
    }

    /// The Euclidean norm of every parameter's tensor, by name.
    pub fn norms(&self) -> Result<IndexMap<String, f64>> {
        self.iter().map(|(name, tensor)| Ok((name.to_owned(), squares(tensor)?.sqrt()))).collect()
    }

    /// The Euclidean norm of all tensors together.
    pub fn global_norm(&self) -> Result<f64> {
        let squares: Result<Vec<f64>> = self.tensors.values().map(squares).collect();
        Ok(squares?.iter().sum::<f64>().sqrt())
    }
}

/// The sum of squares, in `f64` and always in the same order.
fn squares(tensor: &Tensor) -> Result<f64> {
    const LANES: usize = 16;
    let values = tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    let mut lanes = [0.0; LANES];
    let blocks = values.chunks_exact(LANES);
    let rest: f64 = blocks.remainder().iter().map(|value| value * value).sum();
    for block in blocks {
        for (lane, value) in lanes.iter_mut().zip(block) {
            *lane += value * value;
        }
    }
    Ok(lanes.iter().sum::<f64>() + rest)
}
