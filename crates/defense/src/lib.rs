//! Backdoor defenses that repair a model.
