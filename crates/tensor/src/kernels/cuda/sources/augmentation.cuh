// Random crops, mirroring and normalisation of 8-bit images [images][height][width][3]. The host draws where each
// window lies, so that a GPU sees the same images as a CPU, bit for bit; the values of the levels come from its table.
#pragma once

constexpr int COLORS = 3;

// placements: [batch][3], rows by which the window lies above the image, columns by which it lies left of it, and
// whether it is mirrored. table: [3][256]. Outside the image is black, level 0.
extern "C" __global__ void augment(const uint8_t *pixels, const uint32_t *indices, const int32_t *placements,
                                   const float *table, float *batch, unsigned count, int height, int width) {
    const unsigned i = global_index();
    if (i >= count) return;
    const int color = i % COLORS, x = i / COLORS % width, y = i / COLORS / width % height;
    const unsigned image = i / COLORS / width / height;
    const int32_t *placement = placements + (size_t)image * 3;
    const int row = y - placement[0], column = (placement[2] ? width - 1 - x : x) - placement[1];
    const bool inside = row >= 0 && row < height && column >= 0 && column < width;
    const size_t place = (((size_t)indices[image] * height + row) * width + column) * COLORS + color;
    batch[i] = table[color * 256 + (inside ? pixels[place] : 0)];
}
