// Numbers of f32 as sums of one that TF32 holds and of what is left, which it holds but for a bit or two: for convolutions on
// tensor cores whose products are not to be rounded, (h + l) (h' + l') = h h' + h l' + l h' to 2^-21 or so. The three products of two factors are those of longer rows.
#pragma once

// Of each row of `length` numbers three rows side by side: high, high and low parts, or (of the other factor) high, low, high.
extern "C" __global__ void split(const float *from, float *to, unsigned count, unsigned length, int other) {
    const unsigned i = global_index();
    if (i >= count) return;
    const float value = from[i];
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    // Ten bits behind the point, rounded. What is not finite, or would not be, has no low part.
    bits = (bits + 0x1000u) & 0xffffe000u;
    float high;
    memcpy(&high, &bits, sizeof(high));
    const bool whole = !(fabsf(value) <= 3.4e38f);
    if (whole) high = value;
    const float low = whole ? 0.f : value - high;
    float *row = to + (size_t)(i / length) * 3 * length + i % length;
    row[0] = high;
    row[length] = other ? low : high;
    row[2 * (size_t)length] = other ? high : low;
}
