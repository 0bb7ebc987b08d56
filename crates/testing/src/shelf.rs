//! A keeper of unfinished work, for tests that kill it.

use indexmap::IndexMap;
use tempfile::TempDir;
use tsbd_nn::{Keeper, Result, load_tensors, save_tensors};
use tsbd_tensor::Tensor;

/// Keeps each stage in a file of its own, as a cell of a grid does.
#[derive(Debug)]
pub struct Shelf(TempDir);

impl Shelf {
    /// An empty one.
    pub fn new() -> Shelf {
        Shelf(tempfile::tempdir().unwrap())
    }

    /// How many stages have been kept.
    pub fn len(&self) -> usize {
        std::fs::read_dir(self.0.path()).unwrap().count()
    }

    /// Whether nothing has been kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Default for Shelf {
    fn default() -> Shelf {
        Shelf::new()
    }
}

impl Keeper for Shelf {
    fn keep(&mut self, stage: &str, run: &str, state: &IndexMap<String, Tensor>) -> Result<()> {
        save_tensors(&self.0.path().join(stage), run, state)
    }

    fn kept(&mut self, stage: &str, run: &str) -> Option<IndexMap<String, Tensor>> {
        load_tensors(&self.0.path().join(stage), run).ok().flatten()
    }
}
