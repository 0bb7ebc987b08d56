//! Runs a grid of cells and resumes it.
