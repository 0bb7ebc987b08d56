//! Convolution 3x3 with stride 1 and padding 1 by Winograd's F(4x4, 3x3), in `f32`: 36 products for 16 outputs instead of
//! 144. For channels in multiples of the registers' size, and maps that tiles of 4x4 pixels cover without much waste.
//!
//! A piece of work is a run of tiles: their patches are transformed into memory of the thread, multiplied
//! with the transformed weights position by position, and transformed back. Rounding errors are about ten
//! times those of the direct sum (1e-6 relative to the largest output); what is not finite spoils its whole
//! tile and its neighbours.

mod product;
mod transform;

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::convolution::Geometry;
use super::lanes::{Lanes, with_widest_lanes};
use super::{Element, written};
use product::{Right, panel, product};
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
        if serves(g) { with_widest_lanes!(fits, $L => $call) } else { None }
    }};
}

/// The sizes of a batch of images or activations, cut into tiles.
#[derive(Clone, Copy)]
pub(super) struct Maps {
    pub images: usize,
    pub height: usize,
    pub width: usize,
    pub channels: usize,
}

/// The top left pixel of a tile.
#[derive(Clone, Copy)]
pub(super) struct Corner {
    pub image: usize,
    pub y: usize,
    pub x: usize,
}

impl Maps {
    fn input(g: &Geometry) -> Self {
        Self { images: g.images, height: g.height, width: g.width, channels: g.in_channels }
    }

    fn output(g: &Geometry) -> Self {
        Self { channels: g.out_channels, ..Self::input(g) }
    }

    fn tiles(&self) -> usize {
        self.images * self.height.div_ceil(TILE) * self.width.div_ceil(TILE)
    }

    fn length(&self) -> usize {
        self.images * self.height * self.width * self.channels
    }

    pub fn tile(&self, index: usize) -> Corner {
        let (columns, rows) = (self.width.div_ceil(TILE), self.height.div_ceil(TILE));
        let (row, column) = (index / columns, index % columns);
        Corner { image: row / rows, y: row % rows * TILE, x: column * TILE }
    }

    /// The place of the first element of a pixel.
    pub fn element(&self, corner: Corner) -> usize {
        ((corner.image * self.height + corner.y) * self.width + corner.x) * self.channels
    }
}

/// A pointer that pieces of work on several threads write through, each to places of its own.
#[derive(Clone, Copy)]
struct Shared(*mut f32);

// SAFETY: the users below write to places that no other piece of work touches.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    fn of(slice: &mut [MaybeUninit<f32>]) -> Self {
        Self(slice.as_mut_ptr().cast())
    }

    /// A method, so that closures take the whole struct.
    fn at(self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}

/// Elements added between positions, so that they do not all fall on the same cache sets.
const SKEW: usize = 16;

/// Tiles per piece of work: the transformed patches and products take about half a megabyte.
fn tiles_per_piece(g: &Geometry) -> usize {
    let tiles = 128 * 1024 / (POSITIONS * (g.in_channels + g.out_channels));
    match tiles {
        96.. => 96,
        48..96 => 48,
        _ if g.in_channels.max(g.out_channels) >= 256 => 96,
        _ if g.in_channels.max(g.out_channels) >= 128 => 48,
        _ => 24,
    }
}

/// The first 64-byte boundary in a slice, and `length` elements from there.
fn aligned(scratch: &mut [f32], length: usize) -> *mut f32 {
    let offset = scratch.as_ptr().align_offset(64).min(16);
    scratch[offset..][..length].as_mut_ptr()
}

/// `weight: [3, 3, k, n]` transformed: `[36]` matrices `[k, n]` in panels of columns.
fn transformed_weight<L: Lanes>(weight: &[f32], k: usize, n: usize) -> Vec<f32> {
    assert_eq!(weight.len(), 9 * k * n);
    // SAFETY: the loops write every row and every panel of all 36 matrices. A register of columns lies inside
    // its panel, which lies inside the matrix; different pieces write different rows.
    unsafe {
        written(POSITIONS * k * n, |u| {
            let u = Shared::of(u);
            (0..k).into_par_iter().with_min_len(16).for_each(|row| {
                for column in (0..n).step_by(L::COUNT) {
                    let (start, width) = panel::<L>(column, n);
                    let place = u.at(start * k + row * width + (column - start));
                    transform::taps::<L>(weight.as_ptr().add(row * n + column), k * n, place, k * n);
                }
            });
        })
    }
}

/// The weight of the convolution that takes the gradient back: taps turned around, channels exchanged;
/// `[3, 3, in, out]` to `[3, 3, out, in]`.
fn turned_weight(weight: &[f32], inputs: usize, outputs: usize) -> Vec<f32> {
    let size = inputs * outputs;
    // SAFETY: the taps are chunks of the output, and the blocks below cover each of them.
    unsafe {
        written(9 * size, |turned| {
            turned.par_chunks_mut(size).enumerate().for_each(|(tap, turned)| {
                let weight = &weight[(8 - tap) * size..][..size];
                const BLOCK: usize = 16;
                // Blocks: one side is read along rows, the other written so.
                for input in (0..inputs).step_by(BLOCK) {
                    for output in (0..outputs).step_by(BLOCK) {
                        for o in output..outputs.min(output + BLOCK) {
                            for i in input..inputs.min(input + BLOCK) {
                                turned[o * inputs + i].write(weight[i * outputs + o]);
                            }
                        }
                    }
                }
            });
        })
    }
}

/// The convolution of `x` with a weight `[3, 3, in, out]`, plus `addend`.
pub(super) fn forward(g: &Geometry, x: &[f32], weight: &[f32], addend: Option<&[f32]>) -> Option<Vec<f32>> {
    with_lanes!(g, L => {
        let weight = transformed_weight::<L>(weight, g.in_channels, g.out_channels);
        convolve::<L>(g, x, &weight, addend)
    })
}

/// The gradient of the input, plus `existing`: a convolution with the weight turned around.
pub(super) fn backward_input(g: &Geometry, dy: &[f32], weight: &[f32], existing: Option<&[f32]>) -> Option<Vec<f32>> {
    with_lanes!(g, L => {
        let turned = turned_weight(weight, g.in_channels, g.out_channels);
        let weight = transformed_weight::<L>(&turned, g.out_channels, g.in_channels);
        let g = Geometry { in_channels: g.out_channels, out_channels: g.in_channels, ..*g };
        convolve::<L>(&g, dy, &weight, existing)
    })
}

fn convolve<L: Lanes>(g: &Geometry, x: &[f32], weight: &[f32], addend: Option<&[f32]>) -> Vec<f32> {
    let (input, output) = (Maps::input(g), Maps::output(g));
    assert!(x.len() == input.length() && addend.is_none_or(|addend| addend.len() == output.length()));
    let (k, n) = (g.in_channels, g.out_channels);
    assert_eq!(weight.len(), POSITIONS * k * n);
    let (tiles, piece) = (input.tiles(), tiles_per_piece(g));
    // SAFETY: the lanes are the machine's (`with_lanes`); the pieces write every tile of the output, each its own; the
    // lengths of all slices have been asserted.
    unsafe {
        written(output.length(), |y| {
            let y = Shared::of(y);
            (0..tiles.div_ceil(piece)).into_par_iter().for_each(|index| {
                let (first, count) = (index * piece, piece.min(tiles - index * piece));
                let (v_stride, m_stride) = (count * k + SKEW, count * n + SKEW);
                let length = POSITIONS * (v_stride + m_stride);
                f32::with_scratch(length + 16, |scratch| {
                    let v = aligned(scratch, length);
                    let m = v.add(POSITIONS * v_stride);
                    transform::patches::<L>(&input, x.as_ptr(), first, count, v, v_stride);
                    for position in 0..POSITIONS {
                        let (v, m) = (v.add(position * v_stride), m.add(position * m_stride));
                        let weight = Right::Panels(weight.as_ptr().add(position * k * n));
                        product::<L>([count, n, k], v, [k, 1], weight, m, false);
                    }
                    let addend = addend.map(<[f32]>::as_ptr);
                    transform::tiles::<L>(&output, m, m_stride, first, count, addend, y.at(0));
                });
            });
        })
    }
}

/// The gradient of the weight.
pub(super) fn backward_weight(g: &Geometry, x: &[f32], dy: &[f32]) -> Option<Vec<f32>> {
    with_lanes!(g, L => weight_gradient::<L>(g, x, dy))
}

fn weight_gradient<L: Lanes>(g: &Geometry, x: &[f32], dy: &[f32]) -> Vec<f32> {
    let (input, output) = (Maps::input(g), Maps::output(g));
    assert!(x.len() == input.length() && dy.len() == output.length());
    let (k, n) = (g.in_channels, g.out_channels);
    let all_at_once = input.tiles() * (k + n) <= 256 * 1024 && k * n >= 64 * 64;
    let (products, groups) =
        if all_at_once { (by_positions::<L>(&input, &output, x, dy), 1) } else { by_groups::<L>(&input, &output, x, dy) };
    // SAFETY: the lanes are the machine's (`with_lanes`); every row of every tap is written by its own piece of work, and
    // `products` holds `groups` times 36 matrices.
    unsafe {
        written(9 * k * n, |dw| {
            let dw = Shared::of(dw);
            (0..k).into_par_iter().with_min_len(16).for_each(|row| {
                for column in (0..n).step_by(L::COUNT) {
                    let place = row * n + column;
                    let products = products.as_ptr().add(place);
                    transform::tap_gradients::<L>(products, k * n, groups, POSITIONS * k * n, dw.at(place), k * n);
                }
            });
        })
    }
}

/// Few tiles and large matrices: everything is transformed first, then each position is one product.
fn by_positions<L: Lanes>(input: &Maps, output: &Maps, x: &[f32], dy: &[f32]) -> Vec<f32> {
    const PIECE: usize = 16;
    let (k, n, tiles) = (input.channels, output.channels, input.tiles());
    let (v_stride, m_stride) = (tiles * k + SKEW, tiles * n + SKEW);
    let mut transformed: Vec<f32> = Vec::with_capacity(POSITIONS * (v_stride + m_stride) + 16);
    let v = Shared::of(transformed.spare_capacity_mut());
    let v = Shared(v.at(v.0.align_offset(64).min(16)));
    let m = Shared(v.at(POSITIONS * v_stride));
    // SAFETY: the lanes are the machine's (`with_lanes`). The caller has asserted the lengths. The pieces transform all
    // tiles, each to its own place, before the products read them; each product writes its own matrix. What
    // `SKEW` leaves between positions is never read.
    unsafe {
        (0..tiles.div_ceil(PIECE)).into_par_iter().for_each(|index| {
            let (first, count) = (index * PIECE, PIECE.min(tiles - index * PIECE));
            transform::patches::<L>(input, x.as_ptr(), first, count, v.at(first * k), v_stride);
            transform::gradient_tiles::<L>(output, dy.as_ptr(), first, count, m.at(first * n), m_stride);
        });
        written(POSITIONS * k * n, |products| {
            let products = Shared::of(products);
            (0..POSITIONS).into_par_iter().for_each(|position| {
                let (v, m) = (v.at(position * v_stride), m.at(position * m_stride));
                product::<L>([k, n, tiles], v, [1, k], Right::Rows(m, n), products.at(position * k * n), false);
            });
        })
    }
}

/// Many tiles: a fixed number of groups of tiles, each with products of its own. Returns them and their number.
fn by_groups<L: Lanes>(input: &Maps, output: &Maps, x: &[f32], dy: &[f32]) -> (Vec<f32>, usize) {
    let (k, n, tiles) = (input.channels, output.channels, input.tiles());
    let size = POSITIONS * k * n;
    let piece = if k.max(n) <= 32 {
        96
    } else if k.max(n) <= 64 {
        32
    } else if k.max(n) <= 128 {
        64
    } else {
        128
    };
    let per_group = tiles.div_ceil((4 * 1024 * 1024 / size).clamp(2, 16)).next_multiple_of(piece);
    let groups = tiles.div_ceil(per_group);
    // SAFETY: the lanes are the machine's (`with_lanes`). The caller has asserted the lengths. Every group has at least
    // one tile, and the products of its first piece write all of its matrices.
    let products = unsafe {
        written(groups * size, |products| {
            let products = Shared::of(products);
            (0..groups).into_par_iter().for_each(|group| {
                let (start, end) = (group * per_group, tiles.min((group + 1) * per_group));
                let (v_stride, m_stride) = (piece * k + SKEW, piece * n + SKEW);
                let length = POSITIONS * (v_stride + m_stride);
                f32::with_scratch(length + 16, |scratch| {
                    let v = aligned(scratch, length);
                    let m = v.add(POSITIONS * v_stride);
                    for first in (start..end).step_by(piece) {
                        let count = piece.min(end - first);
                        transform::patches::<L>(input, x.as_ptr(), first, count, v, v_stride);
                        transform::gradient_tiles::<L>(output, dy.as_ptr(), first, count, m, m_stride);
                        for position in 0..POSITIONS {
                            let (v, m) = (v.add(position * v_stride), m.add(position * m_stride));
                            let products = products.at(group * size + position * k * n);
                            product::<L>([k, n, count], v, [1, k], Right::Rows(m, n), products, first > start);
                        }
                    }
                });
            });
        })
    };
    (products, groups)
}
