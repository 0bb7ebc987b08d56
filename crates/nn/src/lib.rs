//! State dicts, layers, optimisers, schedules, the training loop.
