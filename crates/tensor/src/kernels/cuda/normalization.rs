//! Batch normalisation, with the ReLU that usually follows it.

use super::Argument::{Double, Integer, Maybe, Natural, Read, Write};
use super::{Argument, Memory, Queue, Stored, THREADS, View, integer, named, natural, one_each, width};
use crate::error::Result;

/// How rows of channels are cut into blocks for a sum over the rows; see `normalization.cuh`. Depends on the shape alone.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    pub blocks: usize,
    pub width: usize,
    chunks: usize,
    rows: i32,
    channels: i32,
    rows_per_block: i32,
}

impl Cut {
    /// Two blocks for each multiprocessor of a large GPU.
    const BLOCKS: usize = 264;
    /// Rows that a thread should add at least, so that what it reads is more than what a block writes.
    const ROWS: usize = 8;
    /// Channels of a block of `coefficients.cuh`.
    const COLUMNS: usize = 8;

    pub fn of(operation: &'static str, elements: usize, channels: usize, width: usize) -> Result<Self> {
        let (rows, groups) = (elements / channels, channels / width);
        let lanes = THREADS / groups.min(THREADS);
        let rows_per_block = rows.div_ceil(Self::BLOCKS).max(Self::ROWS * lanes);
        Ok(Self {
            blocks: rows.div_ceil(rows_per_block),
            width,
            chunks: groups.div_ceil(THREADS),
            rows: integer(operation, rows)?,
            channels: integer(operation, channels)?,
            rows_per_block: integer(operation, rows_per_block)?,
        })
    }

    pub fn grid(&self) -> [u32; 2] {
        [self.blocks as u32, self.chunks as u32]
    }

    pub fn channel_grid(&self) -> [u32; 2] {
        Self::column_grid(self.channels as usize)
    }

    /// The blocks of `coefficients.cuh` for lines of so many partial results.
    pub fn column_grid(columns: usize) -> [u32; 2] {
        [columns.div_ceil(Self::COLUMNS) as u32, 1]
    }

    /// Rows, channels and rows per block, as the kernels take them.
    pub fn sizes(&self) -> [Argument<'static>; 3] {
        [self.rows, self.channels, self.rows_per_block].map(Integer)
    }

    /// The number of lines of partial results.
    pub fn lines(&self) -> Argument<'static> {
        Integer(self.blocks as i32)
    }
}

/// What `x` is multiplied by, and what is added, per channel, `f32`.
pub(crate) struct Coefficients<M> {
    /// `1 / √(variance + epsilon)`.
    pub inverse: M,
    pub scale: M,
    pub shift: M,
}

/// What the statistics of a batch say.
pub(crate) struct OfBatch<M> {
    pub coefficients: Coefficients<M>,
    pub mean: M,
    /// Divided by one less than the number of values.
    pub variance: M,
}

/// The coefficients from the batch's own statistics.
pub(crate) fn of_batch<Q: Queue>(
    queue: &Q,
    x: View,
    weight: View,
    bias: View,
    epsilon: f64,
) -> Result<OfBatch<Q::Memory>> {
    let channels = weight.count();
    let cut = Cut::of("batch_norm", x.count(), channels, width(channels, &[x]))?;
    let partial = queue.allocate(Stored::F32, cut.blocks * 2 * channels)?;
    let per_channel = || queue.allocate(Stored::F32, channels);
    let (mean, variance) = (per_channel()?, per_channel()?);
    let coefficients = Coefficients { inverse: per_channel()?, scale: per_channel()?, shift: per_channel()? };
    let [rows, channels, rows_per_block] = cut.sizes();
    let arguments = [
        Read(partial.view()),
        cut.lines(),
        rows,
        channels,
        rows_per_block,
        Read(weight),
        Read(bias),
        Double(epsilon),
        Write(mean.view()),
        Write(variance.view()),
        Write(coefficients.inverse.view()),
        Write(coefficients.scale.view()),
        Write(coefficients.shift.view()),
    ];
    // SAFETY: `x` has whole rows of as many channels as `weight` and `bias`; two lines of `partial` for every block.
    unsafe {
        let moments = [Read(x), Write(partial.view()), rows, channels, rows_per_block];
        queue.launch(&named("moments", x.element(), cut.width), cut.grid(), &moments)?;
        queue.launch("moments_finish", cut.channel_grid(), &arguments)?;
    }
    Ok(OfBatch { coefficients, mean, variance })
}

/// The coefficients from given statistics.
pub(crate) fn of_running<Q: Queue>(
    queue: &Q,
    [mean, variance]: [View; 2],
    weight: View,
    bias: View,
    epsilon: f64,
) -> Result<Coefficients<Q::Memory>> {
    let channels = weight.count();
    let per_channel = || queue.allocate(Stored::F32, channels);
    let coefficients = Coefficients { inverse: per_channel()?, scale: per_channel()?, shift: per_channel()? };
    let arguments = [
        Read(mean),
        Read(variance),
        Read(weight),
        Read(bias),
        Double(epsilon),
        Integer(integer("batch_norm", channels)?),
        Write(coefficients.inverse.view()),
        Write(coefficients.scale.view()),
        Write(coefficients.shift.view()),
    ];
    // SAFETY: all have one element for each channel.
    unsafe { queue.launch("running_coefficients", one_each(channels), &arguments)? };
    Ok(coefficients)
}

/// `x · scale + shift` per channel, and a ReLU if wanted.
pub(crate) fn apply<Q: Queue>(queue: &Q, x: View, scale: View, shift: Option<View>, relu: bool) -> Result<Q::Memory> {
    const OPERATION: &str = "batch_norm";
    let channels = scale.count();
    let y = queue.allocate(x.element(), x.count())?;
    let views: Vec<View> = [Some(x), Some(scale), shift].into_iter().flatten().collect();
    let width = width(channels, &views);
    let packs = x.count() / width;
    let arguments = [
        Read(x),
        Write(y.view()),
        Read(scale),
        Maybe(shift),
        Integer(relu.into()),
        Natural(natural(OPERATION, packs)?),
        Integer(integer(OPERATION, channels)?),
    ];
    // SAFETY: `x` and `y` have whole rows of as many channels as the coefficients.
    unsafe { queue.launch(&named("affine", x.element(), width), one_each(packs), &arguments)? };
    Ok(y)
}

/// One batch normalisation, as its backward pass sees it.
#[derive(Clone, Copy)]
pub(crate) struct Normalized<'a> {
    pub x: View<'a>,
    pub mean: View<'a>,
    pub inverse: View<'a>,
    pub scale: View<'a>,
    pub shift: View<'a>,
    pub relu: bool,
    /// Whether the mean and the variance are those of `x` itself: gradients flow through them.
    pub from_batch: bool,
}

/// The gradients of weight and bias, and what flows to the input through the statistics of the batch.
pub(crate) struct Sums<M> {
    pub weight: M,
    pub bias: M,
    slope: M,
    offset: M,
}

/// What the gradient says per channel.
pub(crate) fn gradient_sums<Q: Queue>(queue: &Q, normalized: &Normalized, dy: View) -> Result<Sums<Q::Memory>> {
    let Normalized { x, mean, inverse, scale, shift, relu, from_batch } = *normalized;
    let channels = scale.count();
    let cut = Cut::of("batch_norm backward", x.count(), channels, width(channels, &[x, dy, scale, shift, mean]))?;
    let partial = queue.allocate(Stored::F32, cut.blocks * 2 * channels)?;
    let per_channel = || queue.allocate(Stored::F32, channels);
    let sums = Sums { weight: per_channel()?, bias: per_channel()?, slope: per_channel()?, offset: per_channel()? };
    let [rows, channels, rows_per_block] = cut.sizes();
    let relu = Integer(relu.into());
    let arguments = [
        Read(x),
        Read(dy),
        Read(scale),
        Read(shift),
        Read(mean),
        relu,
        Write(partial.view()),
        rows,
        channels,
        rows_per_block,
    ];
    let finish = [
        Read(partial.view()),
        cut.lines(),
        rows,
        channels,
        Integer(from_batch.into()),
        Read(inverse),
        Read(scale),
        Write(sums.weight.view()),
        Write(sums.bias.view()),
        Write(sums.slope.view()),
        Write(sums.offset.view()),
    ];
    // SAFETY: `x` and `dy` have whole rows of as many channels as the coefficients; two lines of `partial` for every block.
    unsafe {
        queue.launch(&named("gradient_sums", x.element(), cut.width), cut.grid(), &arguments)?;
        queue.launch("gradient_finish", cut.channel_grid(), &finish)?;
    }
    Ok(sums)
}

/// The gradient of the input, plus `existing`. `sums` is needed where the statistics are the batch's.
pub(crate) fn input_gradient<Q: Queue>(
    queue: &Q,
    normalized: &Normalized,
    dy: View,
    sums: Option<&Sums<Q::Memory>>,
    existing: Option<View>,
) -> Result<Q::Memory> {
    const OPERATION: &str = "batch_norm backward";
    let Normalized { x, mean, scale, shift, relu, from_batch, .. } = *normalized;
    let channels = scale.count();
    let dx = queue.allocate(x.element(), x.count())?;
    let mut views = vec![x, dy, scale, shift, mean];
    views.extend(existing);
    let width = width(channels, &views);
    let packs = x.count() / width;
    let through = sums.filter(|_| from_batch);
    let arguments = [
        Read(x),
        Read(dy),
        Maybe(existing),
        Write(dx.view()),
        Read(scale),
        Read(shift),
        Read(mean),
        Maybe(through.map(|sums| sums.slope.view())),
        Maybe(through.map(|sums| sums.offset.view())),
        Integer(relu.into()),
        Natural(natural(OPERATION, packs)?),
        Integer(integer(OPERATION, channels)?),
    ];
    // SAFETY: all large arrays have whole rows of as many channels as the coefficients.
    unsafe { queue.launch(&named("input_gradient", x.element(), width), one_each(packs), &arguments)? };
    Ok(dx)
}
