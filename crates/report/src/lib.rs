//! Tables from results.
