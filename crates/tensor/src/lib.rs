//! Differentiable operations on Candle tensors.
