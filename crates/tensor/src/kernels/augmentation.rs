//! Windows cut out of 8-bit images, mirrored and normalised.

/// Channels of an image.
pub(crate) const COLORS: usize = 3;

/// Image number `i` of the result is the image `indices[i]` of `pixels` `[images, height, width, 3]`, as `placements[i]`
/// says: rows by which its window lies above the image, columns by which it lies left of it, and whether it is mirrored. The
/// value of a level comes from `table` `[3, 256]`; outside the image all are level 0.
pub(crate) fn augment(
    pixels: &[u8],
    indices: &[u32],
    placements: &[[i32; 3]],
    table: &[f32],
    [height, width]: [usize; 2],
) -> Vec<f32> {
    let image = height * width * COLORS;
    let mut batch = Vec::with_capacity(indices.len() * image);
    for (&index, &[up, left, mirrored]) in indices.iter().zip(placements) {
        let pixels = &pixels[index as usize * image..][..image];
        let inside = |place: i64, size: usize| usize::try_from(place).ok().filter(|&place| place < size);
        for y in 0..height {
            let row = inside(y as i64 - i64::from(up), height);
            for x in 0..width {
                let x = if mirrored == 0 { x } else { width - 1 - x };
                let column = inside(x as i64 - i64::from(left), width);
                for color in 0..COLORS {
                    let level = match (row, column) {
                        (Some(row), Some(column)) => pixels[(row * width + column) * COLORS + color],
                        _ => 0,
                    };
                    batch.push(table[color * 256 + usize::from(level)]);
                }
            }
        }
    }
    batch
}
