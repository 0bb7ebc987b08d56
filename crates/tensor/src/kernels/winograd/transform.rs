//! The transforms of F(4x4, 3x3) (Lavin and Gray 2016, "Fast algorithms for convolutional neural networks",
//! section 4.3), one register of channels at a time. Points 0, ±1, ±2 and infinity.
//!
//! In one dimension, with `d` the six inputs, `g` the three taps and `m` the six products, the four outputs
//! are `Aᵀ [(G g) ⊙ (Bᵀ d)]`. The weight gradient uses the transposed maps: `Gᵀ [(A dy) ⊙ (Bᵀ d)]`. In two
//! dimensions each map is applied to the columns of a square and then to its rows. The loops are written out in
//! each function, not passed through closures, so that the compiler keeps everything in registers.

#![allow(clippy::needless_range_loop)] // rows and columns of small squares are told apart by their indices

use super::{Maps, Positions};
use crate::kernels::convolution::Start;
use crate::kernels::lanes::{Lanes, for_lanes, prefetch};
use crate::kernels::product::Products;

/// Side of an output tile.
pub(super) const TILE: usize = 4;
/// Side of an input patch: a tile and the kernel's margin.
const PATCH: usize = 6;
/// Products per tile and channel.
pub(super) const POSITIONS: usize = PATCH * PATCH;

/// `Bᵀ d`
#[inline(always)]
fn input<L: Lanes>([d0, d1, d2, d3, d4, d5]: [L; 6]) -> [L; 6] {
    let (even, odd) = (d2.times_add(-4., d4), d1.times_add(-4., d3));
    let (even_2, odd_2) = (d4 - d2, d3 - d1);
    [
        d0.times_add(4., d2.times_add(-5., d4)),
        even + odd,
        even - odd,
        odd_2.times_add(2., even_2),
        odd_2.times_add(-2., even_2),
        d1.times_add(4., d3.times_add(-5., d5)),
    ]
}

/// `Aᵀ m`
#[inline(always)]
fn output<L: Lanes>([m0, m1, m2, m3, m4, m5]: [L; 6]) -> [L; 4] {
    let (sum, difference) = (m1 + m2, m1 - m2);
    let (sum_2, difference_2) = (m3 + m4, m3 - m4);
    [
        m0 + (sum + sum_2),
        difference_2.times_add(2., difference),
        sum_2.times_add(4., sum),
        m5 + difference_2.times_add(8., difference),
    ]
}

/// `A y`, the transpose of [`output`].
#[inline(always)]
fn output_transposed<L: Lanes>([y0, y1, y2, y3]: [L; 4]) -> [L; 6] {
    let (even, odd) = (y0 + y2, y1 + y3);
    let (even_2, odd_2) = (y2.times_add(4., y0), y3.times_add(8., y1.times(2.)));
    [y0, even + odd, even - odd, even_2 + odd_2, even_2 - odd_2, y3]
}

/// `G g`
#[inline(always)]
fn weight<L: Lanes>([g0, g1, g2]: [L; 3]) -> [L; 6] {
    let even = g0 + g2;
    let even_2 = g0.times_add(1. / 24., g2.times(1. / 6.));
    [
        g0.times(0.25),
        (even + g1).times(-1. / 6.),
        (even - g1).times(-1. / 6.),
        g1.times_add(1. / 12., even_2),
        g1.times_add(-1. / 12., even_2),
        g2,
    ]
}

/// `Gᵀ u`, the transpose of [`weight`].
#[inline(always)]
fn weight_transposed<L: Lanes>([u0, u1, u2, u3, u4, u5]: [L; 6]) -> [L; 3] {
    let (sum, difference) = (u1 + u2, u2 - u1);
    let (sum_2, difference_2) = (u3 + u4, u3 - u4);
    [
        u0.times_add(0.25, sum.times_add(-1. / 6., sum_2.times(1. / 24.))),
        difference.times_add(1. / 6., difference_2.times(1. / 12.)),
        (sum_2 - sum).times_add(1. / 6., u5),
    ]
}

/// How far ahead of the tile at work memory is asked for: rows of pixels are too far apart for the machine to
/// guess.
const AHEAD: usize = 2;

/// A square of pixels that may stick out of its map, and which of its rows and columns do not.
struct Square {
    /// The place of its first element, outside the map if the first pixel is.
    corner: isize,
    rows: (usize, usize),
    columns: (usize, usize),
}

impl Square {
    /// The square of side `side` whose first pixel lies `margin` pixels above and left of tile `tile`.
    #[inline(always)]
    fn of(maps: &Maps, tile: usize, side: usize, margin: usize) -> Self {
        let place = maps.tile(tile);
        let inside = |first: usize, size: usize| (margin.saturating_sub(first), side.min(size + margin - first));
        let back = (margin * maps.width + margin) * maps.pixel;
        Self {
            corner: maps.element(place) as isize - back as isize,
            rows: inside(place.y, maps.height),
            columns: inside(place.x, maps.width),
        }
    }

    #[inline(always)]
    fn is_whole(&self, side: usize) -> bool {
        self.rows == (0, side) && self.columns == (0, side)
    }

    #[inline(always)]
    fn holds(&self, row: usize, column: usize) -> bool {
        (self.rows.0..self.rows.1).contains(&row) && (self.columns.0..self.columns.1).contains(&column)
    }
}

/// One register of channels of every pixel of a square; zeros outside the map.
///
/// # Safety
/// The lanes' instructions; `map` holds the map that the square was cut from, and `channel` is followed by as many
/// channels as there are lanes.
#[inline(always)]
unsafe fn load<L: Lanes, const SIDE: usize>(
    maps: &Maps,
    square: &Square,
    map: *const f32,
    channel: usize,
) -> [[L; SIDE]; SIDE] {
    // SAFETY: pixels outside the map are not touched; the rest is as the caller vouches.
    unsafe {
        let corner = map.wrapping_offset(square.corner).wrapping_add(channel);
        let place = |y: usize, x: usize| corner.wrapping_add((y * maps.width + x) * maps.pixel);
        let mut values = [[L::zero(); SIDE]; SIDE];
        if square.is_whole(SIDE) {
            for y in 0..SIDE {
                for x in 0..SIDE {
                    values[y][x] = L::load(place(y, x));
                }
            }
        } else {
            for y in square.rows.0..square.rows.1 {
                for x in square.columns.0..square.columns.1 {
                    values[y][x] = L::load(place(y, x));
                }
            }
        }
        values
    }
}

/// Asks for the pixels of a tile that are not yet in the cache, and those below it.
#[inline(always)]
fn prefetch_tile(maps: &Maps, tile: *const f32, rows: usize) {
    for y in 0..rows {
        for x in 0..TILE {
            prefetch(tile.wrapping_add((y * maps.width + x) * maps.pixel));
        }
    }
}

for_lanes! {
    /// Transforms the patches of `count` tiles from tile `first` on: position `p` of tile `t` goes to
    /// `v[p·stride + t·channels ..]`, as numbers, or if `LEFT` as a row of a matrix on the left.
    ///
    /// # Safety
    /// The lanes' instructions; `x` holds the maps; `v` holds `36·stride` elements, `stride >= count·channels`.
    pub(super) unsafe fn patches<L: Products, const LEFT: bool>(
        maps: &Maps, x: *const f32, first: usize, count: usize, v: *mut f32, stride: usize,
    ) {
        for tile in 0..count {
            let square = Square::of(maps, first + tile, PATCH, 1);
            let next = x.wrapping_add(maps.element(maps.tile(first + tile + AHEAD)));
            for channel in (0..maps.channels).step_by(L::COUNT) {
                prefetch_tile(maps, next.wrapping_add(channel), TILE + 1);
                // SAFETY: as the caller vouches.
                unsafe {
                    let d = load::<L, PATCH>(maps, &square, x, channel);
                    let v = v.add(tile * maps.channels);
                    let mut columns = [[L::zero(); PATCH]; PATCH];
                    for x in 0..PATCH {
                        let mapped = input([d[0][x], d[1][x], d[2][x], d[3][x], d[4][x], d[5][x]]);
                        for y in 0..PATCH {
                            columns[y][x] = mapped[y];
                        }
                    }
                    for (y, row) in columns.into_iter().enumerate() {
                        for (x, value) in input(row).into_iter().enumerate() {
                            let v = v.add((y * PATCH + x) * stride);
                            if LEFT {
                                value.store_left(v, channel);
                            } else {
                                value.store(v.add(channel));
                            }
                        }
                    }
                }
            }
        }
    }
}

for_lanes! {
    /// Transforms the tiles of a gradient of the output for the weight gradient; the layout of `v` is that of
    /// [`patches`].
    ///
    /// # Safety
    /// As [`patches`].
    pub(super) unsafe fn gradient_tiles<L: Lanes>(
        maps: &Maps, dy: *const f32, first: usize, count: usize, v: *mut f32, stride: usize,
    ) {
        for tile in 0..count {
            let square = Square::of(maps, first + tile, TILE, 0);
            let next = dy.wrapping_add(maps.element(maps.tile(first + tile + AHEAD)));
            for channel in (0..maps.channels).step_by(L::COUNT) {
                prefetch_tile(maps, next.wrapping_add(channel), TILE);
                // SAFETY: as the caller vouches.
                unsafe {
                    let d = load::<L, TILE>(maps, &square, dy, channel);
                    let mut columns = [[L::zero(); TILE]; PATCH];
                    for x in 0..TILE {
                        let mapped = output_transposed([d[0][x], d[1][x], d[2][x], d[3][x]]);
                        for y in 0..PATCH {
                            columns[y][x] = mapped[y];
                        }
                    }
                    let v = v.add(tile * maps.channels + channel);
                    for (y, row) in columns.into_iter().enumerate() {
                        for (x, value) in output_transposed(row).into_iter().enumerate() {
                            value.store(v.add((y * PATCH + x) * stride));
                        }
                    }
                }
            }
        }
    }
}

for_lanes! {
    /// Transforms products back to tiles of the output and adds `start`.
    ///
    /// # Safety
    /// The lanes' instructions; `y`, and a residual, hold the maps, a bias their channels; `products` is laid out as by
    /// [`patches`].
    pub(super) unsafe fn tiles<L: Lanes>(
        maps: &Maps, products: *const f32, stride: usize, first: usize, count: usize, start: Start<f32>,
        y: *mut f32,
    ) {
        for tile in 0..count {
            let square = Square::of(maps, first + tile, TILE, 0);
            let whole = square.is_whole(TILE);
            let next = maps.element(maps.tile(first + tile + AHEAD));
            for channel in (0..maps.channels).step_by(L::COUNT) {
                prefetch_tile(maps, y.wrapping_add(next + channel), TILE);
                if let Start::Residual(residual) = start {
                    prefetch_tile(maps, residual.as_ptr().wrapping_add(next + channel), TILE);
                }
                // SAFETY: pixels outside the map are not touched; the rest is as the caller vouches.
                unsafe {
                    let products = products.add(tile * maps.channels + channel);
                    let mut columns = [[L::zero(); PATCH]; TILE];
                    for x in 0..PATCH {
                        let column = std::array::from_fn(|y| L::load(products.add((y * PATCH + x) * stride)));
                        let mapped = output(column);
                        for y in 0..TILE {
                            columns[y][x] = mapped[y];
                        }
                    }
                    for (row, values) in columns.into_iter().enumerate() {
                        for (column, value) in output(values).into_iter().enumerate() {
                            if whole || square.holds(row, column) {
                                let pixel = square.corner as usize + (row * maps.width + column) * maps.pixel + channel;
                                let value = match start {
                                    Start::Nothing => value,
                                    Start::Bias(bias) => value + L::load(bias.as_ptr().add(channel)),
                                    Start::Residual(residual) => value + L::load(residual.as_ptr().add(pixel)),
                                };
                                value.store(y.add(pixel));
                            }
                        }
                    }
                }
            }
        }
    }
}

for_lanes! {
    /// Transforms one register of columns of two rows of the taps, at `w` with strides from tap to tap and row to row, and
    /// stores it from row and column `place` on in the matrices on the right of the 36 positions, `u[p·stride ..]`.
    ///
    /// # Safety
    /// The lanes' instructions; all places are valid.
    pub(super) unsafe fn taps<L: Products>(
        w: *const f32, w_strides: [usize; 2], u: *mut f32, stride: usize, place: [usize; 2], size: [usize; 2],
    ) {
        let [tap, row] = w_strides;
        // SAFETY: as for this function.
        unsafe {
            let mut transformed = [[L::zero(); POSITIONS]; 2];
            for (index, transformed) in transformed.iter_mut().enumerate() {
                let w = w.add(index * row);
                let mut columns = [[L::zero(); 3]; PATCH];
                for x in 0..3 {
                    let column: [L; 3] = std::array::from_fn(|y| L::load(w.add((y * 3 + x) * tap)));
                    let mapped = weight(column);
                    for y in 0..PATCH {
                        columns[y][x] = mapped[y];
                    }
                }
                for (y, row) in columns.into_iter().enumerate() {
                    for (x, value) in weight(row).into_iter().enumerate() {
                        transformed[y * PATCH + x] = value;
                    }
                }
            }
            for position in 0..POSITIONS {
                let rows = [transformed[0][position], transformed[1][position]];
                L::store_right(&rows, u.add(position * stride), place, size);
            }
        }
    }
}

for_lanes! {
    /// Turns a square of as many rows and columns as a register has numbers around: the taps backwards, rows and columns
    /// exchanged. Written to `turned` without gaps.
    ///
    /// # Safety
    /// The lanes' instructions; all places are valid.
    pub(super) unsafe fn turn<L: Lanes>(w: *const f32, w_strides: [usize; 2], turned: *mut f32) {
        let [tap, row] = w_strides;
        for index in 0..9 {
            // SAFETY: as for this function.
            unsafe { L::transpose(w.add((8 - index) * tap), row, turned.add(index * L::COUNT * L::COUNT)) };
        }
    }
}

for_lanes! {
    /// The way back of [`taps`] for gradients: sums the partial results of all groups, one register at element `element`
    /// of each of the 36 positions, and transforms them to `dw[tap·tap_stride ..]`.
    ///
    /// # Safety
    /// The lanes' instructions; all places are valid, and no other thread writes to them.
    pub(super) unsafe fn tap_gradients<L: Lanes>(groups: &[Positions], element: usize, dw: *mut f32, tap_stride: usize) {
        // SAFETY: as for this function.
        unsafe {
            let mut columns = [[L::zero(); PATCH]; 3];
            for x in 0..PATCH {
                let mut column = [L::zero(); PATCH];
                for group in groups {
                    for (y, sum) in column.iter_mut().enumerate() {
                        *sum = *sum + L::load(group.at(y * PATCH + x, element));
                    }
                }
                let mapped = weight_transposed(column);
                for y in 0..3 {
                    columns[y][x] = mapped[y];
                }
            }
            for (y, row) in columns.into_iter().enumerate() {
                for (x, value) in weight_transposed(row).into_iter().enumerate() {
                    value.store(dw.add((y * 3 + x) * tap_stride));
                }
            }
        }
    }
}
