//! Reading of the golden files that the programs in `tools/reference` write. Tests only.

use std::{collections::HashMap, fs, path::PathBuf};

use candle_core::{Device, Tensor};
use serde::Deserialize;

/// Two successive draws after one seed: their first elements and the sums of all.
#[derive(Debug, Deserialize)]
pub struct Draws {
    pub seed: u64,
    pub n: u32,
    pub k: u32,
    pub first: Vec<u32>,
    pub first_sum: u64,
    pub second: Vec<u32>,
    pub second_sum: u64,
}

/// The cases of `random_draws.json` for one library, `numpy` or `python` (tools/reference/random_draws.py).
pub fn draws(library: &str) -> Vec<Draws> {
    let text = fs::read_to_string(path("random_draws.json")).unwrap();
    let mut cases: HashMap<String, Vec<Draws>> = serde_json::from_str(&text).unwrap();
    let cases = cases.remove(library).unwrap();
    assert!(!cases.is_empty());
    cases
}

/// All tensors of one safetensors file (tools/reference/data.py).
pub fn tensors(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path(name), &Device::Cpu).unwrap()
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tools/reference/golden/data")).join(name)
}
