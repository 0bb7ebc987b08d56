//! Golden values: tensors and numbers computed by the programs in `tools/reference`.

use std::path::PathBuf;

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// The path of the file `name` below `tools/reference/golden`.
pub fn golden_path(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tools/reference/golden")).join(name)
}

/// The numbers of the JSON file `name`.
pub fn numbers(name: &str) -> Value {
    serde_json::from_slice(&read(name)).unwrap()
}

/// The tensors of one file.
#[derive(Debug)]
pub struct Golden(Vec<u8>);

impl Golden {
    /// Reads `<name>.safetensors`.
    pub fn read(name: &str) -> Golden {
        Golden(read(&format!("{name}.safetensors")))
    }

    /// The shape of a tensor.
    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.tensor(name).1
    }

    /// A tensor of 8-bit integers.
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        let (dtype, _, bytes) = self.tensor(name);
        assert_eq!(dtype, Dtype::U8, "{name}");
        bytes
    }

    /// A tensor of 32-bit integers.
    pub fn integers(&self, name: &str) -> Vec<u32> {
        let (dtype, _, bytes) = self.tensor(name);
        assert!(matches!(dtype, Dtype::U32 | Dtype::I32), "{name}");
        bytes.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect()
    }

    /// A tensor in single precision.
    pub fn floats(&self, name: &str) -> Vec<f32> {
        let (dtype, _, bytes) = self.tensor(name);
        assert_eq!(dtype, Dtype::F32, "{name}");
        bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }

    /// A tensor in double precision, or in single, converted.
    pub fn doubles(&self, name: &str) -> Vec<f64> {
        let (dtype, _, bytes) = self.tensor(name);
        match dtype {
            Dtype::F32 => self.floats(name).into_iter().map(f64::from).collect(),
            _ => {
                assert_eq!(dtype, Dtype::F64, "{name}");
                bytes.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect()
            }
        }
    }

    fn tensor(&self, name: &str) -> (Dtype, Vec<usize>, Vec<u8>) {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        (tensor.dtype(), tensor.shape().to_vec(), tensor.data().to_vec())
    }
}

fn read(name: &str) -> Vec<u8> {
    let path = golden_path(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
