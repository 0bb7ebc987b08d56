//! The transforms of F(4x4, 3x3) (Lavin and Gray 2016, "Fast algorithms for convolutional neural networks",
//! section 4.3), sixteen channels at a time. Points 0, ±1, ±2 and infinity.
//!
//! In one dimension, with `d` the six inputs, `g` the three taps and `m` the six products, the four outputs
//! are `Aᵀ [(G g) ⊙ (Bᵀ d)]`. The weight gradient uses the transposed maps: `Gᵀ [(A dy) ⊙ (Bᵀ d)]`. In two
//! dimensions each map is applied to the columns of a square and then to its rows. The loops are written out in
//! each function, not passed through closures, so that the compiler keeps everything in registers.

#![allow(clippy::needless_range_loop)] // rows and columns of small squares are told apart by their indices

use super::lanes::{LANES, Lanes, prefetch};
use super::winograd::Maps;

/// Side of an output tile.
pub(super) const TILE: usize = 4;
/// Side of an input patch: a tile and the kernel's margin.
pub(super) const PATCH: usize = 6;
/// Products per tile and channel.
pub(super) const POSITIONS: usize = PATCH * PATCH;

/// `Bᵀ d`
#[inline(always)]
fn input([d0, d1, d2, d3, d4, d5]: [Lanes; 6]) -> [Lanes; 6] {
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
fn output([m0, m1, m2, m3, m4, m5]: [Lanes; 6]) -> [Lanes; 4] {
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
fn output_transposed([y0, y1, y2, y3]: [Lanes; 4]) -> [Lanes; 6] {
    let (even, odd) = (y0 + y2, y1 + y3);
    let (even_2, odd_2) = (y2.times_add(4., y0), y3.times_add(8., y1.times(2.)));
    [y0, even + odd, even - odd, even_2 + odd_2, even_2 - odd_2, y3]
}

/// `G g`
#[inline(always)]
fn weight([g0, g1, g2]: [Lanes; 3]) -> [Lanes; 6] {
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
fn weight_transposed([u0, u1, u2, u3, u4, u5]: [Lanes; 6]) -> [Lanes; 3] {
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

/// Transforms the patches of `count` tiles from tile `first` on: position `p` of tile `t` goes to
/// `v[p·stride + t·channels ..]`.
///
/// # Safety
/// AVX-512; `x` holds the maps; `v` holds `36·stride` elements, `stride >= count·channels`.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn patches(maps: &Maps, x: *const f32, first: usize, count: usize, v: *mut f32, stride: usize) {
    let (height, width, channels) = (maps.height, maps.width, maps.channels);
    for tile in 0..count {
        // The patch begins one pixel above and left of the tile, maybe in the padding.
        let place = maps.tile(first + tile);
        let (top, left) = (place.y as isize - 1, place.x as isize - 1);
        let inner = top >= 0 && left >= 0 && place.y + TILE < height && place.x + TILE < width;
        let image = x.wrapping_add(place.image * height * width * channels);
        let next = x.wrapping_add(maps.element(maps.tile(first + tile + AHEAD)));
        for channel in (0..channels).step_by(LANES) {
            for y in 0..TILE + 1 {
                for x in 0..TILE {
                    prefetch(next.wrapping_add((y * width + x) * channels + channel));
                }
            }
            // SAFETY: pixels outside the image are skipped; `v` is as the caller vouches.
            unsafe {
                let mut d = [[Lanes::zero(); PATCH]; PATCH];
                if inner {
                    let corner = image.add((top as usize * width + left as usize) * channels + channel);
                    for (y, row) in d.iter_mut().enumerate() {
                        for (x, value) in row.iter_mut().enumerate() {
                            *value = Lanes::load(corner.add((y * width + x) * channels));
                        }
                    }
                } else {
                    for (y, row) in d.iter_mut().enumerate() {
                        let y = top + y as isize;
                        if y < 0 || y >= height as isize {
                            continue;
                        }
                        for (x, value) in row.iter_mut().enumerate() {
                            let x = left + x as isize;
                            if x >= 0 && x < width as isize {
                                let pixel = y as usize * width + x as usize;
                                *value = Lanes::load(image.add(pixel * channels + channel));
                            }
                        }
                    }
                }
                let v = v.add(tile * channels + channel);
                let mut columns = [[Lanes::zero(); PATCH]; PATCH];
                for x in 0..PATCH {
                    let mapped = input([d[0][x], d[1][x], d[2][x], d[3][x], d[4][x], d[5][x]]);
                    for y in 0..PATCH {
                        columns[y][x] = mapped[y];
                    }
                }
                for (y, row) in columns.into_iter().enumerate() {
                    for (x, value) in input(row).into_iter().enumerate() {
                        value.store(v.add((y * PATCH + x) * stride));
                    }
                }
            }
        }
    }
}

/// Transforms the tiles of a gradient of the output for the weight gradient; the layout of `v` is that of
/// [`patches`].
///
/// # Safety
/// As [`patches`].
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn gradient_tiles(
    maps: &Maps,
    dy: *const f32,
    first: usize,
    count: usize,
    v: *mut f32,
    stride: usize,
) {
    let (width, channels) = (maps.width, maps.channels);
    for tile in 0..count {
        let corner = dy.wrapping_add(maps.element(maps.tile(first + tile)));
        let next = dy.wrapping_add(maps.element(maps.tile(first + tile + AHEAD)));
        for channel in (0..channels).step_by(LANES) {
            // SAFETY: tiles lie inside the maps; `v` is as the caller vouches.
            unsafe {
                let mut columns = [[Lanes::zero(); TILE]; PATCH];
                for x in 0..TILE {
                    let mapped = output_transposed(std::array::from_fn(|y| {
                        prefetch(next.wrapping_add((y * width + x) * channels + channel));
                        Lanes::load(corner.add((y * width + x) * channels + channel))
                    }));
                    for y in 0..PATCH {
                        columns[y][x] = mapped[y];
                    }
                }
                let v = v.add(tile * channels + channel);
                for (y, row) in columns.into_iter().enumerate() {
                    for (x, value) in output_transposed(row).into_iter().enumerate() {
                        value.store(v.add((y * PATCH + x) * stride));
                    }
                }
            }
        }
    }
}

/// Transforms products back to tiles of the output and adds `addend` (in the layout of the output).
///
/// # Safety
/// AVX-512; `y`, and `addend` if there is one, hold the maps; `products` is laid out as by [`patches`].
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn tiles(
    maps: &Maps,
    products: *const f32,
    stride: usize,
    first: usize,
    count: usize,
    addend: Option<*const f32>,
    y: *mut f32,
) {
    let (width, channels) = (maps.width, maps.channels);
    for tile in 0..count {
        let corner = maps.element(maps.tile(first + tile));
        let next = maps.element(maps.tile(first + tile + AHEAD));
        for channel in (0..channels).step_by(LANES) {
            // SAFETY: tiles lie inside the maps; the rest is as the caller vouches.
            unsafe {
                let products = products.add(tile * channels + channel);
                let mut columns = [[Lanes::zero(); PATCH]; TILE];
                for x in 0..PATCH {
                    let mapped = output(std::array::from_fn(|y| Lanes::load(products.add((y * PATCH + x) * stride))));
                    for y in 0..TILE {
                        columns[y][x] = mapped[y];
                    }
                }
                for (row, values) in columns.into_iter().enumerate() {
                    for (column, value) in output(values).into_iter().enumerate() {
                        let pixel = (row * width + column) * channels + channel;
                        let value = match addend {
                            Some(addend) => {
                                prefetch(addend.wrapping_add(next + pixel));
                                value + Lanes::load(addend.add(corner + pixel))
                            }
                            None => value,
                        };
                        prefetch(y.wrapping_add(next + pixel));
                        value.store(y.add(corner + pixel));
                    }
                }
            }
        }
    }
}

/// Transforms one row of the taps, `w[tap·tap_stride ..+ 16]`, to the 36 positions `u[p·stride ..+ 16]`.
///
/// # Safety
/// AVX-512; all places are valid.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn taps(w: *const f32, tap_stride: usize, u: *mut f32, stride: usize) {
    // SAFETY: as for this function.
    unsafe {
        let mut columns = [[Lanes::zero(); 3]; PATCH];
        for x in 0..3 {
            let mapped = weight(std::array::from_fn(|y| Lanes::load(w.add((y * 3 + x) * tap_stride))));
            for y in 0..PATCH {
                columns[y][x] = mapped[y];
            }
        }
        for (y, row) in columns.into_iter().enumerate() {
            for (x, value) in weight(row).into_iter().enumerate() {
                value.store(u.add((y * PATCH + x) * stride));
            }
        }
    }
}

/// The way back of [`taps`] for gradients: sums `groups` partial results, `group_stride` apart, of the 36
/// positions `u[p·stride ..+ 16]` and transforms them to `dw[tap·tap_stride ..+ 16]`.
///
/// # Safety
/// AVX-512; all places are valid.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn tap_gradients(
    u: *const f32,
    stride: usize,
    [groups, group_stride]: [usize; 2],
    dw: *mut f32,
    tap_stride: usize,
) {
    // SAFETY: as for this function.
    unsafe {
        let mut columns = [[Lanes::zero(); PATCH]; 3];
        for x in 0..PATCH {
            let mapped = weight_transposed(std::array::from_fn(|y| {
                let u = u.add((y * PATCH + x) * stride);
                let mut sum = Lanes::load(u);
                for group in 1..groups {
                    sum = sum + Lanes::load(u.add(group * group_stride));
                }
                sum
            }));
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
