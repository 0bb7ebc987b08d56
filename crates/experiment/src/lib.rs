//! Experiment files, cells, keys and the result store.
