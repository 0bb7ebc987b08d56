//! What every backdoor attack shares.
