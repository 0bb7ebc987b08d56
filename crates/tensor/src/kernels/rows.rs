//! Sums over single rows, in `f64` and in a fixed order, and how many rows make a piece of work.

/// Elements per piece of work, about.
const PIECE: usize = 16 * 1024;
/// Sums that run side by side: a vector or two.
const LANES: usize = 8;

/// Rows of `columns` elements that make one piece of work.
pub(super) fn per_piece(columns: usize) -> usize {
    (PIECE / columns).max(1)
}

/// The sum of `term` over a row.
#[inline(always)]
pub(super) fn sum(row: &[f64], term: impl Fn(f64) -> f64) -> f64 {
    let mut lanes = [0.; LANES];
    let (blocks, rest) = row.as_chunks::<LANES>();
    for block in blocks {
        for (lane, &value) in lanes.iter_mut().zip(block) {
            *lane += term(value);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane += term(value);
    }
    lanes.iter().sum()
}

/// The largest number of a row; what is not a number is passed over, and of nothing else it is negative infinity.
#[inline(always)]
pub(super) fn largest(row: &[f64]) -> f64 {
    let mut lanes = [f64::NEG_INFINITY; LANES];
    let (blocks, rest) = row.as_chunks::<LANES>();
    for block in blocks {
        for (lane, &value) in lanes.iter_mut().zip(block) {
            *lane = if value > *lane { value } else { *lane };
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane = if value > *lane { value } else { *lane };
    }
    lanes.into_iter().fold(f64::NEG_INFINITY, f64::max)
}
