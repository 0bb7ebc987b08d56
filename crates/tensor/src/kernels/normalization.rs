//! Batch normalisation over rows of `channels` elements, with the ReLU that usually follows it.
//!
//! The coefficients of the channels are repeated to a *period* of a few hundred elements, so that the inner
//! loops run over long contiguous pieces whatever the number of channels.

use rayon::prelude::*;

use super::simd::multiversion;
use super::{Element, written};

/// Elements per piece of work, about: a piece fits the first-level cache twice over in the second level.
const PIECE: usize = 16 * 1024;

/// How a tensor of rows of `channels` elements is cut.
#[derive(Clone, Copy)]
struct Cut {
    channels: usize,
    /// Elements of the repeated coefficients, a multiple of `channels`.
    period: usize,
    /// Elements per piece, a multiple of `period`.
    piece: usize,
}

impl Cut {
    fn of(channels: usize) -> Self {
        let period = channels * 256usize.div_ceil(channels);
        Self { channels, period, piece: period * (PIECE / period).max(1) }
    }

    fn repeat<T: Element>(&self, values: impl Iterator<Item = f64> + Clone) -> Vec<T> {
        values.map(T::from_f64).cycle().take(self.period).collect()
    }
}

/// Mean and biased variance of every channel.
#[derive(Clone, Debug)]
pub(crate) struct Moments {
    pub mean: Vec<f64>,
    pub variance: Vec<f64>,
    /// How many values there were per channel.
    pub count: usize,
}

multiversion! {
    /// `sums[i] += x[i]`, over all periods of `x`.
    fn add_periods<T>(x: &[T], sums: &mut [T]) {
        for x in x.chunks(sums.len()) {
            for (sum, &x) in sums.iter_mut().zip(x) {
                *sum += x;
            }
        }
    }
}

multiversion! {
    /// `sums[i] += (x[i] - mean[i])²`, over all periods of `x`.
    fn add_squares<T>(x: &[T], mean: &[T], sums: &mut [T]) {
        for x in x.chunks(sums.len()) {
            for ((sum, &x), &mean) in sums.iter_mut().zip(x).zip(mean) {
                let deviation = x - mean;
                *sum += deviation * deviation;
            }
        }
    }
}

/// Folds a period of sums to one sum per channel.
fn fold<T: Element>(cut: Cut, sums: &[T]) -> Vec<f64> {
    let mut folded = vec![0.; cut.channels];
    for sums in sums.chunks_exact(cut.channels) {
        for (folded, sum) in folded.iter_mut().zip(sums) {
            *folded += sum.to_f64();
        }
    }
    folded
}

/// Mean and variance of every channel. Each piece takes two passes while it is in the cache (mean, then
/// squared deviations), and pieces are merged in `f64` (Chan, Golub and LeVeque 1983): no cancellation,
/// also when the mean is much larger than the deviation.
pub(crate) fn moments<T: Element>(x: &[T], channels: usize) -> Moments {
    let cut = Cut::of(channels);
    let pieces: Vec<(usize, Vec<f64>, Vec<f64>)> = x
        .par_chunks(cut.piece)
        .map(|x| {
            let count = x.len() / channels;
            let mut sums = vec![T::zero(); cut.period];
            add_periods(x, &mut sums);
            let mean: Vec<f64> = fold(cut, &sums).into_iter().map(|sum| sum / count as f64).collect();
            // The deviations are taken from the rounded mean, which is corrected for below.
            let centre: Vec<T> = cut.repeat(mean.iter().copied());
            sums.fill(T::zero());
            add_squares(x, &centre, &mut sums);
            let squares = fold(cut, &sums)
                .into_iter()
                .zip(mean.iter().zip(&centre))
                .map(|(squares, (mean, centre))| {
                    let error = mean - centre.to_f64();
                    // `max` would swallow what is not a number.
                    let corrected = squares - count as f64 * error * error;
                    if corrected < 0. { 0. } else { corrected }
                })
                .collect();
            (count, mean, squares)
        })
        .collect();
    let mut count = 0;
    let (mut mean, mut squares) = (vec![0.; channels], vec![0.; channels]);
    for (more, piece_mean, piece_squares) in pieces {
        let (before, more) = (count as f64, more as f64);
        let total = before + more;
        for channel in 0..channels {
            let delta = piece_mean[channel] - mean[channel];
            mean[channel] += delta * more / total;
            squares[channel] += piece_squares[channel] + delta * delta * before * more / total;
        }
        count += more as usize;
    }
    let variance = squares.into_iter().map(|squares| squares / count as f64).collect();
    Moments { mean, variance, count }
}

/// One affine map per channel, `y = x·scale + shift`, and whether a ReLU follows.
#[derive(Clone, Debug)]
pub(crate) struct Affine {
    pub scale: Vec<f64>,
    pub shift: Vec<f64>,
    pub relu: bool,
}

multiversion! {
    fn apply_piece<T>(x: &[T], scale: &[T], shift: &[T], relu: bool, y: &mut [std::mem::MaybeUninit<T>]) {
        let period = scale.len();
        for (x, y) in x.chunks(period).zip(y.chunks_mut(period)) {
            let values = y.iter_mut().zip(x).zip(scale.iter().zip(shift));
            if relu {
                for ((y, &x), (&scale, &shift)) in values {
                    let value = x * scale + shift;
                    y.write(if value <= T::zero() { T::zero() } else { value });
                }
            } else {
                for ((y, &x), (&scale, &shift)) in values {
                    y.write(x * scale + shift);
                }
            }
        }
    }
}

/// Applies the map to every row.
pub(crate) fn apply<T: Element>(x: &[T], affine: &Affine) -> Vec<T> {
    let cut = Cut::of(affine.scale.len());
    let scale: Vec<T> = cut.repeat(affine.scale.iter().copied());
    let shift: Vec<T> = cut.repeat(affine.shift.iter().copied());
    // SAFETY: the pieces cover the output, and each is as long as its input.
    unsafe {
        written(x.len(), |y| {
            y.par_chunks_mut(cut.piece)
                .zip(x.par_chunks(cut.piece))
                .for_each(|(y, x)| apply_piece(x, &scale, &shift, affine.relu, y));
        })
    }
}

multiversion! {
    /// Sums of the gradient, and of the gradient times the deviation of `x` from its mean, after the ReLU
    /// has been undone.
    fn gradient_sums_piece<T>(
        x: &[T], dy: &[T], scale: &[T], shift: &[T], mean: &[T], relu: bool, sums: &mut [T], products: &mut [T],
    ) {
        let period = scale.len();
        for (x, dy) in x.chunks(period).zip(dy.chunks(period)) {
            let sums = sums.iter_mut().zip(products.iter_mut());
            let values = sums.zip(x.iter().zip(dy)).zip(scale.iter().zip(shift).zip(mean));
            if relu {
                for (((sum, product), (&x, &dy)), ((&scale, &shift), &mean)) in values {
                    let dy = if x * scale + shift <= T::zero() { T::zero() } else { dy };
                    *sum += dy;
                    *product += dy * (x - mean);
                }
            } else {
                for (((sum, product), (&x, &dy)), (_, &mean)) in values {
                    *sum += dy;
                    *product += dy * (x - mean);
                }
            }
        }
    }
}

/// Per channel, `Σ dy` and `Σ dy·(x - mean)`, where `dy` is the gradient of the affine map's output (that
/// is, with the ReLU's mask applied).
pub(crate) fn gradient_sums<T: Element>(x: &[T], dy: &[T], affine: &Affine, mean: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let channels = mean.len();
    let cut = Cut::of(channels);
    let scale: Vec<T> = cut.repeat(affine.scale.iter().copied());
    let shift: Vec<T> = cut.repeat(affine.shift.iter().copied());
    let centre: Vec<T> = cut.repeat(mean.iter().copied());
    let pieces: Vec<(Vec<f64>, Vec<f64>)> = x
        .par_chunks(cut.piece)
        .zip(dy.par_chunks(cut.piece))
        .map(|(x, dy)| {
            let (mut sums, mut products) = (vec![T::zero(); cut.period], vec![T::zero(); cut.period]);
            gradient_sums_piece(x, dy, &scale, &shift, &centre, affine.relu, &mut sums, &mut products);
            (fold(cut, &sums), fold(cut, &products))
        })
        .collect();
    let (mut sums, mut products) = (vec![0.; channels], vec![0.; channels]);
    for (piece_sums, piece_products) in pieces {
        for channel in 0..channels {
            sums[channel] += piece_sums[channel];
            products[channel] += piece_products[channel];
        }
    }
    (sums, products)
}

/// How the gradient of the input is made: `dy·scale + (x - mean)·slope + offset`, per channel. Without
/// the last two terms (running statistics) only `dy·scale`.
pub(crate) struct InputGradient<'a> {
    pub affine: &'a Affine,
    pub through_statistics: Option<ThroughStatistics<'a>>,
}

/// What flows to the input through the mean and the variance of the batch.
pub(crate) struct ThroughStatistics<'a> {
    pub mean: &'a [f64],
    pub slope: Vec<f64>,
    pub offset: Vec<f64>,
}

/// The coefficients of [`InputGradient`], repeated to a period.
struct Coefficients<T> {
    scale: Vec<T>,
    shift: Vec<T>,
    mean: Vec<T>,
    slope: Vec<T>,
    offset: Vec<T>,
}

multiversion! {
    /// Writes one piece of the gradient, plus what exists already. `relu` and `statistics` are
    /// constant over the call, and the compiler makes one loop for each combination.
    fn input_gradient_piece<T>(
        x: &[T], dy: &[T], existing: Option<&[T]>, c: &Coefficients<T>, relu: bool, statistics: bool,
        dx: &mut [std::mem::MaybeUninit<T>],
    ) {
        #[inline(always)]
        fn run<T: Element, const RELU: bool, const STATISTICS: bool>(
            x: &[T], dy: &[T], existing: Option<&[T]>, c: &Coefficients<T>, dx: &mut [std::mem::MaybeUninit<T>],
        ) {
            let period = c.scale.len();
            for (index, (dx, (x, dy))) in
                dx.chunks_mut(period).zip(x.chunks(period).zip(dy.chunks(period))).enumerate()
            {
                let length = dx.len();
                let (x, dy) = (&x[..length], &dy[..length]);
                let (scale, shift) = (&c.scale[..length], &c.shift[..length]);
                let (mean, slope, offset) = (&c.mean[..length], &c.slope[..length], &c.offset[..length]);
                let value = |i: usize| {
                    let dy = if RELU && x[i] * scale[i] + shift[i] <= T::zero() { T::zero() } else { dy[i] };
                    if STATISTICS { dy * scale[i] + ((x[i] - mean[i]) * slope[i] + offset[i]) } else { dy * scale[i] }
                };
                match existing {
                    None => {
                        for (i, dx) in dx.iter_mut().enumerate() {
                            dx.write(value(i));
                        }
                    }
                    Some(existing) => {
                        let existing = &existing[index * period..][..length];
                        for (i, dx) in dx.iter_mut().enumerate() {
                            dx.write(value(i) + existing[i]);
                        }
                    }
                }
            }
        }
        match (relu, statistics) {
            (false, false) => run::<T, false, false>(x, dy, existing, c, dx),
            (false, true) => run::<T, false, true>(x, dy, existing, c, dx),
            (true, false) => run::<T, true, false>(x, dy, existing, c, dx),
            (true, true) => run::<T, true, true>(x, dy, existing, c, dx),
        }
    }
}

/// The gradient of the input of a batch normalisation, plus `existing`.
pub(crate) fn input_gradient<T: Element>(
    x: &[T],
    dy: &[T],
    existing: Option<&[T]>,
    gradient: &InputGradient,
) -> Vec<T> {
    let affine = gradient.affine;
    let cut = Cut::of(affine.scale.len());
    let zeros = vec![0.; cut.channels];
    let (mean, slope, offset) = match &gradient.through_statistics {
        Some(through) => (through.mean, &through.slope, &through.offset),
        None => (&zeros[..], &zeros, &zeros),
    };
    let coefficients = Coefficients::<T> {
        scale: cut.repeat(affine.scale.iter().copied()),
        shift: cut.repeat(affine.shift.iter().copied()),
        mean: cut.repeat(mean.iter().copied()),
        slope: cut.repeat(slope.iter().copied()),
        offset: cut.repeat(offset.iter().copied()),
    };
    let statistics = gradient.through_statistics.is_some();
    // SAFETY: the pieces cover the output, and each is as long as its inputs.
    unsafe {
        written(x.len(), |dx| {
            dx.par_chunks_mut(cut.piece).enumerate().for_each(|(index, dx)| {
                let range = index * cut.piece..index * cut.piece + dx.len();
                let existing = existing.map(|existing| &existing[range.clone()]);
                let (x, dy) = (&x[range.clone()], &dy[range]);
                input_gradient_piece(x, dy, existing, &coefficients, affine.relu, statistics, dx);
            });
        })
    }
}
