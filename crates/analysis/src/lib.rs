//! What is measured on a model and inside it.
