//! Convolution 3x3 with stride 1 and padding 1 by Winograd's F(4x4, 3x3), in `f32`: 36 products for 16 outputs instead of
//! 144. For channels in multiples of the registers' size, and maps that tiles of 4x4 pixels cover without much waste.
//!
//! A piece of work is a run of tiles: their patches are transformed into memory of the thread, multiplied
//! with the transformed weights position by position, and transformed back. Rounding errors are about ten
//! times those of the direct sum (1e-6 relative to the largest output, and 1e-5 where the products are done on tile
//! registers); what is not finite spoils its whole tile and its neighbours.

mod transform;

use std::ops::Range;

use rayon::prelude::*;

use super::convolution::{Geometry, Start};
use super::lanes::with_widest_lanes;
use super::product::{LINE, Products};
use super::{Element, Shared, written};
use transform::{POSITIONS, TILE};

/// Whether these sizes are served here at all, on machines whose registers divide the channels.
fn serves(g: &Geometry) -> bool {
    let covered = g.height.next_multiple_of(TILE) * g.width.next_multiple_of(TILE);
    g.kernel_height == 3
        && g.kernel_width == 3
        && g.stride == 1
        && g.padding == 1
        // A tile costs a quarter of its pixels' direct products, and as much again for the transforms.
        && g.height * g.width * 2 >= covered
}

/// Calls `$call` with `$L` standing for the widest lanes whose registers the channels fill; `None` if there are none or the
/// sizes are not served.
macro_rules! with_lanes {
    ($g:expr, $L:ident => $call:expr) => {{
        let g: &Geometry = $g;
        let fits = |count: usize| g.in_channels.is_multiple_of(count) && g.out_channels.is_multiple_of(count);
        if serves(g) { with_widest_lanes!(true, fits, $L => $call) } else { None }
    }};
}

/// The sizes of a batch of images or activations, cut into tiles.
#[derive(Clone, Copy)]
struct Maps {
    images: usize,
    height: usize,
    width: usize,
    /// Channels that are worked on.
    channels: usize,
    /// Elements from a pixel to the next: all its channels.
    pixel: usize,
}

/// The top left pixel of a tile.
#[derive(Clone, Copy)]
struct Corner {
    image: usize,
    y: usize,
    x: usize,
}

impl Maps {
    fn input(g: &Geometry) -> Self {
        let (channels, pixel) = (g.in_channels, g.in_channels);
        Self { images: g.images, height: g.height, width: g.width, channels, pixel }
    }

    fn output(g: &Geometry) -> Self {
        Self { channels: g.out_channels, pixel: g.out_channels, ..Self::input(g) }
    }

    fn tiles(&self) -> usize {
        self.images * self.height.div_ceil(TILE) * self.width.div_ceil(TILE)
    }

    fn length(&self) -> usize {
        self.images * self.height * self.width * self.pixel
    }

    fn tile(&self, index: usize) -> Corner {
        let (columns, rows) = (self.width.div_ceil(TILE), self.height.div_ceil(TILE));
        let (row, column) = (index / columns, index % columns);
        Corner { image: row / rows, y: row % rows * TILE, x: column * TILE }
    }

    /// The place of the first element of a pixel.
    fn element(&self, corner: Corner) -> usize {
        ((corner.image * self.height + corner.y) * self.width + corner.x) * self.pixel
    }
}

/// Elements added between positions, so that they do not all fall on the same cache sets.
const SKEW: usize = LINE;

/// A matrix for each of the 36 positions, written by pieces of work and then read.
struct Positions {
    /// Empty: what lies beyond its length is written through `first`.
    memory: Vec<f32>,
    first: Shared,
    /// From the matrix of one position to that of the next.
    stride: usize,
}

impl Positions {
    /// Room for matrices of `size` elements, on a cache line each where `size` allows it.
    fn of(size: usize) -> Self {
        let stride = size + SKEW;
        let mut memory = Vec::with_capacity(POSITIONS * stride + LINE);
        let first = Shared::of(memory.spare_capacity_mut());
        let first = Shared(first.at(first.at(0).align_offset(LINE * size_of::<f32>()).min(LINE)));
        Self { memory, first, stride }
    }

    /// An element of the matrix of `position`.
    fn at(&self, position: usize, element: usize) -> *mut f32 {
        debug_assert!(self.memory.is_empty());
        self.first.at(position * self.stride + element)
    }
}

/// Tiles per piece of work: the transformed patches and products take about half a megabyte, and more for many channels,
/// whose transformed weights are read once per piece. Whole blocks of the products' rows.
fn tiles_per_piece<L: Products>(g: &Geometry) -> usize {
    let tiles: usize = 128 * 1024 / (POSITIONS * (g.in_channels + g.out_channels));
    let tiles: usize = match tiles {
        96.. => 96,
        48..96 => 48,
        _ if g.in_channels.max(g.out_channels) >= 256 => 96,
        _ if g.in_channels.max(g.out_channels) >= 128 => 48,
        _ => 36,
    };
    tiles.next_multiple_of(L::BLOCK_ROWS)
}

/// The first 64-byte boundary in a slice, and `length` elements from there.
fn aligned(scratch: &mut [f32], length: usize) -> *mut f32 {
    let offset = scratch.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
    scratch[offset..][..length].as_mut_ptr()
}

/// `weight: [3, 3, k, n]` transformed: a matrix `[k, n]` on the right of products for each position.
///
/// # Safety
/// The lanes' instructions.
unsafe fn transformed_weight<L: Products>(weight: &[f32], k: usize, n: usize) -> Positions {
    assert_eq!(weight.len(), 9 * k * n);
    let u = Positions::of(k * n);
    (0..k / 2).into_par_iter().with_min_len(8).for_each(|pair| {
        for column in (0..n).step_by(L::COUNT) {
            let place = [2 * pair, column];
            // SAFETY: a register of columns lies inside the matrix; every two rows of all matrices are written, different
            // rows by different pieces of work.
            unsafe {
                let weight = weight.as_ptr().add(2 * pair * n + column);
                transform::taps::<L>(weight, [k * n, n], u.at(0, 0), u.stride, place, [k, n]);
            }
        }
    });
    u
}

/// The weight of the convolution that takes the gradient back, transformed: `weight: [3, 3, n, k]` with taps turned around
/// and channels exchanged, otherwise as [`transformed_weight`].
///
/// # Safety
/// The lanes' instructions.
unsafe fn transformed_turned_weight<L: Products>(weight: &[f32], k: usize, n: usize) -> Positions {
    assert_eq!(weight.len(), 9 * k * n);
    let u = Positions::of(k * n);
    (0..k / L::COUNT).into_par_iter().for_each(|square| {
        let row = square * L::COUNT;
        // No register is longer than a line.
        let mut turned = [0.; 9 * LINE * LINE];
        for column in (0..n).step_by(L::COUNT) {
            // SAFETY: as in `transformed_weight`; the squares cover the weight.
            unsafe {
                transform::turn::<L>(weight.as_ptr().add(column * k + row), [k * n, k], turned.as_mut_ptr());
                for pair in (0..L::COUNT).step_by(2) {
                    let weight = turned.as_ptr().add(pair * L::COUNT);
                    let strides = [L::COUNT * L::COUNT, L::COUNT];
                    transform::taps::<L>(weight, strides, u.at(0, 0), u.stride, [row + pair, column], [k, n]);
                }
            }
        }
    });
    u
}

/// The convolution of `x` with a weight `[3, 3, in, out]`, plus `start`.
pub(super) fn forward(g: &Geometry, x: &[f32], weight: &[f32], start: Start<f32>) -> Option<Vec<f32>> {
    with_lanes!(g, L => {
        // SAFETY: the lanes are the machine's.
        unsafe {
            let weight = transformed_weight::<L>(weight, g.in_channels, g.out_channels);
            convolve::<L>(g, x, &weight, start)
        }
    })
}

/// The gradient of the input, plus `existing`: a convolution with the weight turned around.
pub(super) fn backward_input(g: &Geometry, dy: &[f32], weight: &[f32], existing: Option<&[f32]>) -> Option<Vec<f32>> {
    with_lanes!(g, L => {
        let turned_sizes = Geometry { in_channels: g.out_channels, out_channels: g.in_channels, ..*g };
        // SAFETY: the lanes are the machine's.
        unsafe {
            let weight = transformed_turned_weight::<L>(weight, g.out_channels, g.in_channels);
            convolve::<L>(&turned_sizes, dy, &weight, existing.map_or(Start::Nothing, Start::Residual))
        }
    })
}

/// The convolution with transformed weights, plus `start`.
///
/// # Safety
/// The lanes' instructions.
unsafe fn convolve<L: Products>(g: &Geometry, x: &[f32], weight: &Positions, start: Start<f32>) -> Vec<f32> {
    let (input, output) = (Maps::input(g), Maps::output(g));
    let (k, n) = (g.in_channels, g.out_channels);
    assert_eq!(x.len(), input.length());
    match start {
        Start::Nothing => {}
        Start::Bias(bias) => assert_eq!(bias.len(), n),
        Start::Residual(residual) => assert_eq!(residual.len(), output.length()),
    }
    assert!(weight.stride >= k * n);
    let (tiles, piece) = (input.tiles(), tiles_per_piece::<L>(g));
    // SAFETY: the caller vouches for the lanes; the pieces write every tile of the output, each its own; the
    // lengths of all slices have been asserted.
    unsafe {
        written(output.length(), |y| {
            let y = Shared::of(y);
            (0..tiles.div_ceil(piece)).into_par_iter().for_each(|index| {
                let (first, count) = (index * piece, piece.min(tiles - index * piece));
                let (v_stride, m_stride) = (count * k + SKEW, count * n + SKEW);
                let length = POSITIONS * (v_stride + m_stride);
                f32::with_scratch(length + LINE, |scratch| {
                    let v = aligned(scratch, length);
                    let m = v.add(POSITIONS * v_stride);
                    transform::patches::<L, true>(&input, x.as_ptr(), first, count, v, v_stride);
                    for position in 0..POSITIONS {
                        let (v, m) = (v.add(position * v_stride), m.add(position * m_stride));
                        L::product([count, n, k], v, weight.at(position, 0), m, false);
                    }
                    transform::tiles::<L>(&output, m, m_stride, first, count, start, y.at(0));
                });
            });
        })
    }
}

/// The gradient of the weight.
pub(super) fn backward_weight(g: &Geometry, x: &[f32], dy: &[f32]) -> Option<Vec<f32>> {
    with_lanes!(g, L => {
        // SAFETY: the lanes are the machine's.
        unsafe { weight_gradient::<L>(g, x, dy) }
    })
}

/// Channels of a block of the weight gradient along each side: its 36 products and a piece of what they are made of stay
/// in the second-level cache.
const BLOCK: usize = 64;

/// The tiles are cut into a fixed number of groups and the channels into blocks; each pair is a piece of work with products
/// of its own.
///
/// # Safety
/// The lanes' instructions.
unsafe fn weight_gradient<L: Products>(g: &Geometry, x: &[f32], dy: &[f32]) -> Vec<f32> {
    let (input, output) = (Maps::input(g), Maps::output(g));
    assert!(x.len() == input.length() && dy.len() == output.length());
    let (k, n, tiles) = (g.in_channels, g.out_channels, input.tiles());
    let blocks = [k.div_ceil(BLOCK), n.div_ceil(BLOCK)];
    let groups = (16 / (blocks[0] * blocks[1])).clamp(1, tiles.div_ceil(256));
    let per_group = tiles.div_ceil(groups);
    let groups = tiles.div_ceil(per_group);
    // SAFETY: the caller vouches for the lanes; every block writes its own part of every tap.
    unsafe {
        written(9 * k * n, |dw| {
            let dw = Shared::of(dw);
            (0..blocks[0] * blocks[1]).into_par_iter().for_each(|block| {
                let (row, column) = (block / blocks[1] * BLOCK, block % blocks[1] * BLOCK);
                let input = Maps { channels: BLOCK.min(k - row), ..input };
                let output = Maps { channels: BLOCK.min(n - column), ..output };
                let (x, dy) = (&x[row..], &dy[column..]);
                let products: Vec<Positions> = (0..groups)
                    .into_par_iter()
                    .map(|group| {
                        let tiles = group * per_group..tiles.min((group + 1) * per_group);
                        tap_products::<L>(&input, &output, x, dy, tiles)
                    })
                    .collect();
                let columns = output.channels;
                for i in 0..input.channels {
                    for j in (0..columns).step_by(L::COUNT) {
                        let dw = dw.at((row + i) * n + column + j);
                        transform::tap_gradients::<L>(&products, i * columns + j, dw, k * n);
                    }
                }
            });
        })
    }
}

/// The products of the transformed patches of `x` with the transformed tiles of `dy`, summed over some tiles: a matrix
/// `[channels of x, channels of dy]` for each position.
///
/// # Safety
/// The lanes' instructions; `x` and `dy` hold the maps from the first channel on; `tiles` is not empty.
unsafe fn tap_products<L: Products>(
    input: &Maps,
    output: &Maps,
    x: &[f32],
    dy: &[f32],
    tiles: Range<usize>,
) -> Positions {
    let (k, n) = (input.channels, output.channels);
    let products = Positions::of(k * n);
    let piece = (64 * BLOCK / k.max(n)).min(96);
    let (v_stride, m_stride) = (piece * k + SKEW, piece * n + SKEW);
    let factors = POSITIONS * (v_stride + m_stride);
    let length = factors + L::scratch_of_columns([k, n, piece]);
    f32::with_scratch(length + LINE, |scratch| {
        let v = aligned(scratch, length);
        // SAFETY: the caller vouches for the maps; the products of the first piece write all of their matrices.
        unsafe {
            let m = v.add(POSITIONS * v_stride);
            let scratch = v.add(factors);
            for first in tiles.clone().step_by(piece) {
                let count = piece.min(tiles.end - first);
                transform::patches::<L, false>(input, x.as_ptr(), first, count, v, v_stride);
                transform::gradient_tiles::<L>(output, dy.as_ptr(), first, count, m, m_stride);
                for position in 0..POSITIONS {
                    let (v, m) = (v.add(position * v_stride), m.add(position * m_stride));
                    let (products, accumulate) = (products.at(position, 0), first > tiles.start);
                    L::product_of_columns([k, n, count], [v, m], [k, n], products, accumulate, scratch);
                }
            }
        }
    });
    products
}
