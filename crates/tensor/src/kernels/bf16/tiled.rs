//! Convolution in `bf16` on tile registers, as direct sums.
//!
//! A row of a tile is one of sixteen images: the same pixel of sixteen images, 32 of its channels, is one tile wherever the
//! pixel lies, so that strides, borders and maps of any size are a matter of addresses. Activations are first written so
//! ([`images`]); outputs go from the registers to their places. For the gradient of the weight, whose sums run over pixels and
//! images, the rows of a tile are sixteen channels of 32 images ([`channels`]).

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use rayon::prelude::*;

use crate::kernels::convolution::{Geometry, Start};
use crate::kernels::elementwise::sum_blocks;
use crate::kernels::lanes::{prefetch, transposed};
use crate::kernels::tiles::{Configuration, SIDE, of_two, release};
use crate::kernels::{Shared, written};

/// Channels come in multiples of so many: two tiles of sums, and one step of products.
pub(super) const CHANNELS: usize = 32;
/// Bytes of a row of a tile.
const ROW: usize = 64;
/// Bytes of a tile.
const TILE: usize = SIDE * ROW;

/// A row of a tile: 32 `bf16`.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u16; 32]);

impl Line {
    const ZEROS: Line = Line([0; 32]);
}

/// 32 numbers as `bf16`.
///
/// # Safety
/// The numbers can be read.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn line(numbers: *const f32) -> __m512i {
    // SAFETY: the caller vouches for the numbers; both types are 64 bytes of anything.
    unsafe {
        let (first, second) = (_mm512_loadu_ps(numbers), _mm512_loadu_ps(numbers.add(16)));
        std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first))
    }
}

/// Sixteen numbers of each of two rows as `bf16`, two by two: the first row's in the lower halves.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn paired(first: __m512, second: __m512) -> __m512i {
    const ALTERNATING: __m512i = {
        let mut words = [0u16; 32];
        let mut index = 0;
        while index < 32 {
            words[index] = (index / 2 + index % 2 * 16) as u16;
            index += 1;
        }
        // SAFETY: both are 64 bytes without padding or forbidden values.
        unsafe { std::mem::transmute(words) }
    };
    // SAFETY: both types are 64 bytes of anything.
    let rows = unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first)) };
    _mm512_permutexvar_epi16(ALTERNATING, rows)
}

/// Activations `[images, height, width, channels]`.
#[derive(Clone, Copy)]
struct Maps<'a> {
    values: &'a [f32],
    images: usize,
    height: usize,
    width: usize,
    channels: usize,
}

impl<'a> Maps<'a> {
    fn input(g: &Geometry, values: &'a [f32]) -> Self {
        assert_eq!(values.len(), g.images * g.image());
        Self { values, images: g.images, height: g.height, width: g.width, channels: g.in_channels }
    }

    fn output(g: &Geometry, values: &'a [f32]) -> Self {
        assert_eq!(values.len(), g.pixels() * g.out_channels);
        let (height, width) = (g.out_height, g.out_width);
        Self { values, images: g.images, height, width, channels: g.out_channels }
    }

    /// A row of pixels of an image.
    fn row(&self, image: usize, y: usize) -> &'a [f32] {
        let length = self.width * self.channels;
        &self.values[(image * self.height + y) * length..][..length]
    }
}

/// Columns of zeros beside a map.
#[derive(Clone, Copy, Default)]
struct Border {
    left: usize,
    right: usize,
}

impl Border {
    fn width(self, maps: &Maps) -> usize {
        self.left + maps.width + self.right
    }
}

/// The activations as factors on the left, `[groups of 16 images, height, border + width + border, 16 images, channels]`.
///
/// # Safety
/// The machine has AVX-512 with `bf16`; the channels are a multiple of [`CHANNELS`].
unsafe fn images(maps: Maps, border: Border) -> Vec<Line> {
    let (groups, lines) = (maps.images.div_ceil(SIDE), maps.channels / CHANNELS);
    let row = border.width(&maps) * SIDE * lines;
    // SAFETY: the chunks cover the output, and each is written whole; the caller vouches for the machine.
    unsafe {
        written(groups * maps.height * row, |output| {
            output.par_chunks_mut(row).enumerate().for_each(|(index, output)| {
                let (group, y) = (index / maps.height, index % maps.height);
                images_row(&maps, border, group * SIDE, y, output);
            });
        })
    }
}

/// Row `y` of the sixteen images from `first` on; zeros instead of images that are not there.
///
/// # Safety
/// As [`images`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn images_row(maps: &Maps, border: Border, first: usize, y: usize, output: &mut [MaybeUninit<Line>]) {
    let lines = maps.channels / CHANNELS;
    let pixel = SIDE * lines;
    let (left, rest) = output.split_at_mut(border.left * pixel);
    let (inside, right) = rest.split_at_mut(maps.width * pixel);
    left.fill(MaybeUninit::new(Line::ZEROS));
    right.fill(MaybeUninit::new(Line::ZEROS));
    for image in 0..SIDE {
        if first + image >= maps.images {
            for pixel in inside.chunks_exact_mut(pixel) {
                pixel[image * lines..][..lines].fill(MaybeUninit::new(Line::ZEROS));
            }
            continue;
        }
        let row = maps.row(first + image, y);
        for (pixel, numbers) in inside.chunks_exact_mut(pixel).zip(row.chunks_exact(maps.channels)) {
            let place = pixel[image * lines..][..lines].as_mut_ptr();
            for index in 0..lines {
                // SAFETY: there are `lines` times 32 numbers, and as many lines.
                unsafe { _mm512_store_si512(place.add(index).cast(), line(numbers.as_ptr().add(index * CHANNELS))) };
            }
        }
    }
}

/// Images whose products are added at once for the gradient of the weight.
const IMAGES: usize = 32;

/// The activations as factors of the gradient of the weight, `[groups of 32 images, height, border + width + border,
/// channels / 16]` tiles: on the left, sixteen channels of 32 images; on the right, sixteen pairs of images of sixteen
/// channels. There are zeros instead of images that are not there.
///
/// # Safety
/// The machine has AVX-512 with `bf16`; the channels are a multiple of sixteen.
unsafe fn channels<const LEFT: bool>(maps: Maps, border: Border) -> Vec<Line> {
    let row = border.width(&maps) * maps.channels;
    // SAFETY: the chunks cover the output, and each is written whole; the caller vouches for the machine.
    unsafe {
        written(maps.images.div_ceil(IMAGES) * maps.height * row, |output| {
            output.par_chunks_mut(row).enumerate().for_each(|(index, output)| {
                let (group, y) = (index / maps.height, index % maps.height);
                channels_row::<LEFT>(&maps, border, group * IMAGES, y, output);
            });
        })
    }
}

/// Row `y` of the 32 images from `first` on.
///
/// # Safety
/// As [`channels`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn channels_row<const LEFT: bool>(
    maps: &Maps,
    border: Border,
    first: usize,
    y: usize,
    output: &mut [MaybeUninit<Line>],
) {
    // Pixels that are asked for ahead: 32 rows are more than the machine follows by itself.
    const AHEAD: usize = 256;
    let zeros = vec![0.; if first + IMAGES > maps.images { maps.width * maps.channels } else { 0 }];
    let rows: [*const f32; IMAGES] = std::array::from_fn(|image| {
        if first + image < maps.images { maps.row(first + image, y).as_ptr() } else { zeros.as_ptr() }
    });
    let (left, rest) = output.split_at_mut(border.left * maps.channels);
    let (inside, right) = rest.split_at_mut(maps.width * maps.channels);
    left.fill(MaybeUninit::new(Line::ZEROS));
    right.fill(MaybeUninit::new(Line::ZEROS));
    for (index, tile) in inside.chunks_exact_mut(SIDE).enumerate() {
        let mut pairs = [_mm512_setzero_si512(); SIDE];
        for (pair, rows) in pairs.iter_mut().zip(rows.as_chunks::<2>().0) {
            // SAFETY: the rows have as many numbers as there are lines.
            let [first, second] = rows.map(|row| unsafe {
                prefetch(row.wrapping_add(index * SIDE + AHEAD));
                _mm512_loadu_ps(row.add(index * SIDE))
            });
            *pair = paired(first, second);
        }
        let tile_rows = if LEFT { transposed(pairs) } else { pairs };
        for (place, row) in tile.iter_mut().zip(tile_rows) {
            // SAFETY: a line takes 64 bytes.
            unsafe { _mm512_store_si512(place.as_mut_ptr().cast(), row) };
        }
    }
}

/// A matrix `[k, n]` on the right for each tap: `[n / 32, taps, k / 32, 2]` tiles, each of sixteen pairs of steps of sixteen
/// columns. Element `(tap, step, column)` is `weight[tap][step][column]`, or `weight[tap][column][step]` if `TURNED`.
///
/// # Safety
/// The machine has AVX-512 with `bf16`; `k` and `n` are multiples of [`CHANNELS`].
unsafe fn matrices<const TURNED: bool>(weight: &[f32], [k, n]: [usize; 2]) -> Vec<Line> {
    let taps = weight.len() / (k * n);
    assert_eq!(weight.len(), taps * k * n);
    // SAFETY: the chunks cover the output, and each is written whole; the caller vouches for the machine.
    unsafe {
        written(weight.len() / CHANNELS, |output| {
            output.par_chunks_mut(k).enumerate().for_each(|(index, output)| {
                let (column, tap) = (index / taps * CHANNELS, index % taps);
                matrix_columns::<TURNED>(&weight[tap * k * n..][..k * n], [k, n], column, output);
            });
        })
    }
}

/// 32 columns of the matrix of a tap.
///
/// # Safety
/// As [`matrices`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn matrix_columns<const TURNED: bool>(
    weight: &[f32],
    [k, n]: [usize; 2],
    column: usize,
    output: &mut [MaybeUninit<Line>],
) {
    for (index, tile) in output.chunks_exact_mut(SIDE).enumerate() {
        let (step, column) = (index / 2 * CHANNELS, column + index % 2 * SIDE);
        let first = weight.as_ptr();
        // SAFETY: the steps and the columns lie in the matrix.
        let rows: [__m512i; SIDE] = std::array::from_fn(|row| unsafe {
            if TURNED {
                line(first.add((column + row) * k + step))
            } else {
                let place = first.add((step + 2 * row) * n + column);
                paired(_mm512_loadu_ps(place), _mm512_loadu_ps(place.add(n)))
            }
        });
        let rows = if TURNED { transposed(rows) } else { rows };
        for (place, row) in tile.iter_mut().zip(rows) {
            // SAFETY: a line takes 64 bytes.
            unsafe { _mm512_store_si512(place.as_mut_ptr().cast(), row) };
        }
    }
}

/// Runs of tiles whose products are added, and where the sums begin and end, as addresses.
///
/// In memory: where the sums of the first and of the second tile of rows begin and the bytes between rows there (no place:
/// with zeros); for each run, the first tile of each row of tiles on the left and the first two on the right; where the sums of
/// the first and of the second tile of rows are written.
struct Runs {
    words: Vec<usize>,
}

impl Runs {
    fn new() -> Self {
        Self { words: Vec::new() }
    }

    /// Empties the list. Sums begin at `start`, or with zeros if it is null.
    fn begin(&mut self, start: [*const f32; 2], start_row: usize) {
        self.words.clear();
        self.words.extend([start[0] as usize, start[1] as usize, start_row]);
    }

    fn push(&mut self, left: [*const Line; 2], right: *const Line) {
        self.words.extend([left[0] as usize, left[1] as usize, right as usize]);
    }

    /// Adds all products to the sums and writes them.
    ///
    /// # Safety
    /// Tile registers are configured. Everything that has been pushed can be read for `steps` steps, the beginning can be
    /// read, and the sums can be written.
    unsafe fn sum(&mut self, two_rows: bool, sums: [*mut f32; 2], sums_row: usize, steps: usize, strides: Strides) {
        let runs = self.words.len() / 3 - 1;
        self.words.extend([sums[0] as usize, sums[1] as usize]);
        let block = if two_rows { block_2 } else { block_1 };
        // SAFETY: as for this function.
        unsafe { block(self.words.as_ptr(), runs, steps, strides, sums_row) };
    }
}

/// Bytes from one row of a tile on the left to the next, from a tile on the left to that of the next step, and on the right;
/// the second tile of columns follows the first.
#[derive(Clone, Copy)]
struct Strides {
    left_row: usize,
    left_step: usize,
    right_step: usize,
}

/// A block of `$ROWS × 2` tiles of sums.
macro_rules! block {
    ($name:ident, $ROWS:tt) => {
        /// # Safety
        /// As [`Runs::sum`], whose list is at `words`.
        unsafe fn $name(words: *const usize, runs: usize, steps: usize, strides: Strides, sums_row: usize) {
            // SAFETY: the caller vouches for the registers and for all places; nothing else uses tile registers.
            unsafe {
                asm!(
                    "mov {a}, [{words}]",
                    "test {a}, {a}",
                    "jz 2f",
                    "mov {step}, [{words} + 16]",
                    "tileloadd tmm0, [{a} + {step}]",
                    "tileloadd tmm1, [{a} + {step} + 64]",
                    of_two!($ROWS, "mov {a_2}, [{words} + 8]"),
                    of_two!($ROWS, "tileloadd tmm2, [{a_2} + {step}]"),
                    of_two!($ROWS, "tileloadd tmm3, [{a_2} + {step} + 64]"),
                    "jmp 3f",
                    "2:",
                    "tilezero tmm0",
                    "tilezero tmm1",
                    of_two!($ROWS, "tilezero tmm2"),
                    of_two!($ROWS, "tilezero tmm3"),
                    "3:",
                    "add {words}, 24",
                    "test {runs}, {runs}",
                    "jz 6f",
                    "4:",
                    "mov {a}, [{words}]",
                    of_two!($ROWS, "mov {a_2}, [{words} + 8]"),
                    "mov {b}, [{words} + 16]",
                    "mov {step}, {steps}",
                    "5:",
                    "tileloadd tmm4, [{a} + {left_row}]",
                    "tileloadd tmm6, [{b} + {line}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{b} + {line} + 1024]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    of_two!($ROWS, "tileloadd tmm5, [{a_2} + {left_row}]"),
                    of_two!($ROWS, "tdpbf16ps tmm2, tmm5, tmm6"),
                    of_two!($ROWS, "tdpbf16ps tmm3, tmm5, tmm7"),
                    "add {a}, {left_step}",
                    "add {a_2}, {left_step}",
                    "add {b}, {right_step}",
                    "dec {step}",
                    "jnz 5b",
                    "add {words}, 24",
                    "dec {runs}",
                    "jnz 4b",
                    "6:",
                    "mov {a}, [{words}]",
                    "tilestored [{a} + {sums_row}], tmm0",
                    "tilestored [{a} + {sums_row} + 64], tmm1",
                    of_two!($ROWS, "mov {a}, [{words} + 8]"),
                    of_two!($ROWS, "tilestored [{a} + {sums_row}], tmm2"),
                    of_two!($ROWS, "tilestored [{a} + {sums_row} + 64], tmm3"),
                    words = inout(reg) words => _,
                    runs = inout(reg) runs => _,
                    steps = in(reg) steps,
                    step = out(reg) _,
                    a = out(reg) _,
                    a_2 = out(reg) _,
                    b = out(reg) _,
                    left_row = in(reg) strides.left_row,
                    left_step = in(reg) strides.left_step,
                    right_step = in(reg) strides.right_step,
                    sums_row = in(reg) sums_row,
                    line = in(reg) ROW,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

block!(block_1, 1);
block!(block_2, 2);

/// A tap of a phase: which pixel of the input, seen from that of the output, is multiplied with which matrix.
struct Tap {
    down: isize,
    right: isize,
    matrix: usize,
}

/// Pixels of the output that have the same taps: every `step`-th from `first` on, in rows and columns. The taps of the `i`-th of them
/// are seen from pixel `i·stride` of the input.
struct Phase {
    first: [usize; 2],
    step: usize,
    size: [usize; 2],
    stride: usize,
    taps: Vec<Tap>,
}

impl Phase {
    /// All outputs of the convolution.
    fn forward(g: &Geometry) -> Vec<Phase> {
        let taps = (0..g.kernel_height * g.kernel_width).map(|matrix| {
            let place = |tap: usize| tap as isize - g.padding as isize;
            Tap { down: place(matrix / g.kernel_width), right: place(matrix % g.kernel_width), matrix }
        });
        let size = [g.out_height, g.out_width];
        vec![Phase { first: [0, 0], step: 1, size, stride: g.stride, taps: taps.collect() }]
    }

    /// All pixels of the input, as sums over pixels of the output: those whose distance is a multiple of the stride.
    fn backward(g: &Geometry) -> Vec<Phase> {
        let phases = (0..g.stride * g.stride).map(|phase| [phase / g.stride, phase % g.stride]);
        let phases = phases.filter(|[y, x]| *y < g.height && *x < g.width).map(|first| {
            let place = |first: usize, tap: usize| {
                let distance = (first + g.padding) as isize - tap as isize;
                (distance % g.stride as isize == 0).then(|| distance / g.stride as isize)
            };
            let taps = (0..g.kernel_height * g.kernel_width).filter_map(|matrix| {
                let down = place(first[0], matrix / g.kernel_width)?;
                let right = place(first[1], matrix % g.kernel_width)?;
                Some(Tap { down, right, matrix })
            });
            let size = [(g.height - first[0]).div_ceil(g.stride), (g.width - first[1]).div_ceil(g.stride)];
            Phase { first, step: g.stride, size, stride: 1, taps: taps.collect() }
        });
        phases.collect()
    }

    /// The columns beside an input of this width that the taps reach.
    fn border(&self, width: usize) -> Border {
        let reach = |tap: &Tap| (self.stride * (self.size[1] - 1)) as isize + tap.right - (width as isize - 1);
        Border {
            left: self.taps.iter().map(|tap| -tap.right).max().map_or(0, |left| left.max(0) as usize),
            right: self.taps.iter().map(reach).max().map_or(0, |right| right.max(0) as usize),
        }
    }
}

/// The convolution, plus `start`.
///
/// # Safety
/// The process may use tile registers, and the channels are multiples of [`CHANNELS`].
pub(super) unsafe fn forward(g: &Geometry, x: &[f32], weight: &[f32], start: Start<f32>) -> Vec<f32> {
    let (k, n) = (g.in_channels, g.out_channels);
    let size = [g.out_height, g.out_width, n];
    // SAFETY: as for this function.
    unsafe { gather(&Phase::forward(g), Maps::input(g, x), size, &matrices::<false>(weight, [k, n]), start) }
}

/// The gradient with respect to the input, plus `existing`.
///
/// # Safety
/// As [`forward`].
pub(super) unsafe fn backward_input(g: &Geometry, dy: &[f32], weight: &[f32], existing: Option<&[f32]>) -> Vec<f32> {
    let (k, n) = (g.out_channels, g.in_channels);
    let (size, start) = ([g.height, g.width, n], existing.map_or(Start::Nothing, Start::Residual));
    // SAFETY: as for this function.
    unsafe { gather(&Phase::backward(g), Maps::output(g, dy), size, &matrices::<true>(weight, [k, n]), start) }
}

/// Bytes of a piece's input, about: half of what a second-level cache holds.
const PIECE: usize = 512 * 1024;

/// Sums over taps, for images of the `size` of the output: height, width and channels.
///
/// # Safety
/// As [`forward`]; the phases cover the output, and their taps stay within its input's height, or above and below it.
unsafe fn gather(phases: &[Phase], input: Maps, size: [usize; 3], matrices: &[Line], start: Start<f32>) -> Vec<f32> {
    let [height, width, n] = size;
    let image = height * width * n;
    match start {
        Start::Nothing => {}
        Start::Bias(bias) => assert_eq!(bias.len(), n),
        Start::Residual(residual) => assert_eq!(residual.len(), input.images * image),
    }
    let border = phases.iter().map(|phase| phase.border(input.width)).fold(Border::default(), |wide, border| Border {
        left: wide.left.max(border.left),
        right: wide.right.max(border.right),
    });
    let lines = input.channels / CHANNELS;
    let pixel = SIDE * lines;
    let row = border.width(&input) * pixel;
    // SAFETY: the caller vouches for the machine and the channels.
    let left = unsafe { images(input, border) };
    let groups = input.images.div_ceil(SIDE);
    // Rows of a phase that are one piece of work.
    let rows = |phase: &Phase| (PIECE / (row * ROW * phase.stride)).clamp(1, phase.size[0]);
    let pieces: Vec<_> = (0..groups)
        .flat_map(|group| phases.iter().map(move |phase| (group, phase)))
        .flat_map(|(group, phase)| (0..phase.size[0]).step_by(rows(phase)).map(move |first| (group, phase, first)))
        .collect();
    let taps = matrices.len() / (lines * n);
    // SAFETY: every pixel of the output belongs to one phase, whose pieces write it, each its own; all tiles lie in `left` and
    // `matrices`, which have been made for these sizes; those of the last group have as many rows as there are images.
    unsafe {
        written(input.images * image, |output| {
            let output = Shared::of(output);
            pieces.into_par_iter().for_each(|(group, phase, first)| {
                let count = SIDE.min(input.images - group * SIDE);
                Configuration::of(count).load();
                let strides = Strides { left_row: lines * ROW, left_step: ROW, right_step: 2 * TILE };
                let mut runs = Runs::new();
                for column in (0..n).step_by(CHANNELS) {
                    let matrix =
                        |tap: &Tap| &raw const matrices[(column / CHANNELS * taps + tap.matrix) * lines * CHANNELS];
                    for y in first..(first + rows(phase)).min(phase.size[0]) {
                        for x in (0..phase.size[1]).step_by(2) {
                            let two = x + 1 < phase.size[1];
                            let place = |x: usize| {
                                let [y, x] = [phase.first[0] + phase.step * y, phase.first[1] + phase.step * x];
                                group * SIDE * image + (y * width + x) * n + column
                            };
                            let places = [place(x), if two { place(x + 1) } else { place(x) }];
                            match start {
                                Start::Nothing => runs.begin([std::ptr::null(); 2], 0),
                                Start::Bias(bias) => runs.begin([bias[column..].as_ptr(); 2], 0),
                                Start::Residual(residual) => {
                                    runs.begin(
                                        places.map(|place| residual[place..].as_ptr()),
                                        image * size_of::<f32>(),
                                    );
                                }
                            }
                            for tap in &phase.taps {
                                let from = (y * phase.stride) as isize + tap.down;
                                if from < 0 || from >= input.height as isize {
                                    continue;
                                }
                                let beside = border.left as isize + (x * phase.stride) as isize + tap.right;
                                let place = (group * input.height + from as usize) * row + beside as usize * pixel;
                                let second = place + if two { phase.stride * pixel } else { 0 };
                                runs.push([&raw const left[place], &raw const left[second]], matrix(tap));
                            }
                            runs.sum(
                                two,
                                places.map(|place| output.at(place)),
                                image * size_of::<f32>(),
                                lines,
                                strides,
                            );
                        }
                    }
                }
                release();
            });
        })
    }
}

/// The gradient with respect to the weight. The input's channels are cut into blocks, and the rows of pixels into parts with sums
/// of their own, sixteen pieces of work altogether.
///
/// # Safety
/// As [`forward`].
pub(super) unsafe fn backward_weight(g: &Geometry, x: &[f32], dy: &[f32]) -> Vec<f32> {
    /// Bytes of factors that are multiplied with each other before others are, about.
    const FACTORS: usize = 1024 * 1024;
    let (k, n, taps) = (g.in_channels, g.out_channels, g.kernel_height * g.kernel_width);
    let phase = &Phase::forward(g)[0];
    let border = phase.border(g.width);
    let (input, output) = (Maps::input(g, x), Maps::output(g, dy));
    // SAFETY: the caller vouches for the machine and the channels.
    let (left, right) = unsafe { (channels::<true>(input, border), channels::<false>(output, Border::default())) };
    let rows = g.images.div_ceil(IMAGES) * g.out_height;
    let blocks = k / CHANNELS;
    let parts = (16 / blocks).clamp(1, rows);
    let per_part = rows.div_ceil(parts);
    // Rounding up can leave the last part without rows.
    let parts = rows.div_ceil(per_part);
    let (left_row, right_row) = (border.width(&input) * k, g.out_width * n);
    let at_once = (FACTORS / (g.out_width * (n + 2 * CHANNELS) * ROW)).max(1);
    let size = taps * k * n;
    let strides = Strides { left_row: ROW, left_step: phase.stride * k * ROW, right_step: n * ROW };
    // SAFETY: each piece writes the rows of its channels of all taps of its part, with the first of its rows of pixels; all tiles lie in
    // `left` and `right`, which have been made for these sizes.
    let sums = unsafe {
        written(parts * size, |sums| {
            let sums = Shared::of(sums);
            (0..parts * blocks).into_par_iter().for_each(|piece| {
                let (part, block) = (piece / blocks, piece % blocks * CHANNELS);
                let mut runs = Runs::new();
                Configuration::of(SIDE).load();
                let (begin, end) = (part * per_part, rows.min((part + 1) * per_part));
                for first in (begin..end).step_by(at_once) {
                    for column in (0..n).step_by(CHANNELS) {
                        for tap in &phase.taps {
                            let place = |row: usize| part * size + (tap.matrix * k + block + row) * n + column;
                            let places = [place(0), place(SIDE)].map(|place| sums.at(place));
                            match first > begin {
                                true => runs.begin(places.map(<*mut f32>::cast_const), n * size_of::<f32>()),
                                false => runs.begin([std::ptr::null(); 2], 0),
                            }
                            for row in first..end.min(first + at_once) {
                                let (group, y) = (row / g.out_height, row % g.out_height);
                                let from = (y * phase.stride) as isize + tap.down;
                                if from < 0 || from >= g.height as isize {
                                    continue;
                                }
                                let beside = (border.left as isize + tap.right) as usize;
                                let tile = (group * g.height + from as usize) * left_row + beside * k + block;
                                let factors = [&raw const left[tile], &raw const left[tile + SIDE]];
                                runs.push(factors, &raw const right[row * right_row + column]);
                            }
                            runs.sum(true, places, n * size_of::<f32>(), g.out_width, strides);
                        }
                    }
                }
                release();
            });
        })
    };
    sum_blocks(sums, size)
}
