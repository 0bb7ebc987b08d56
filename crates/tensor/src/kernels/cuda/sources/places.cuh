// Elements copied to other places: columns of matrices, repeated pixels, borders of zeros. `count` is the number of packs
// of V elements that are written; numbers of columns and channels count packs too.

// Some columns of a matrix, from column `from_start` of rows of `from_width` to column `to_start` of rows of `to_width`.
extern "C" __global__ void NAME(copy_columns)(const T *from, T *to, unsigned count, int columns, int from_width,
                                              int from_start, int to_width, int to_start) {
    const unsigned i = global_index();
    if (i >= count) return;
    const size_t row = i / (unsigned)columns;
    const int column = i % (unsigned)columns;
    float values[V];
    load<T, V>(from, row * from_width + from_start + column, values);
    store<T, V>(to, row * to_width + to_start + column, values);
}

// A pixel of `height` by `width` images, in the order of memory.
struct Pixel {
    int channel, column, row;
    unsigned image;

    __device__ __forceinline__ Pixel(unsigned i, int height, int width, int channels)
        : channel(i % channels), column(i / channels % width), row(i / channels / width % height),
          image(i / channels / width / height) {}
};

// Images `x` with their first pixel `up` rows and `left` columns (also negative) within `y`; what they leave is 0.
extern "C" __global__ void NAME(place_images)(const T *x, T *y, unsigned count, int channels, int height, int width,
                                              int out_height, int out_width, int up, int left) {
    const unsigned i = global_index();
    if (i >= count) return;
    const Pixel to(i, out_height, out_width, channels);
    const int row = to.row - up, column = to.column - left;
    float values[V] = {};
    if (row >= 0 && row < height && column >= 0 && column < width)
        load<T, V>(x, (((size_t)to.image * height + row) * width + column) * channels + to.channel, values);
    store<T, V>(y, i, values);
}

// Every pixel of `height` by `width` images as a square of `factor` by `factor`.
extern "C" __global__ void NAME(repeat_pixels)(const T *x, T *y, unsigned count, int channels, int height, int width,
                                               int factor) {
    const unsigned i = global_index();
    if (i >= count) return;
    const Pixel to(i, height * factor, width * factor, channels);
    const size_t row = (size_t)to.image * height + to.row / factor;
    float values[V];
    load<T, V>(x, (row * width + to.column / factor) * channels + to.channel, values);
    store<T, V>(y, i, values);
}

// The sum over each square, row by row.
extern "C" __global__ void NAME(repeat_pixels_backward)(const T *dy, T *dx, unsigned count, int channels, int height,
                                                        int width, int factor) {
    const unsigned i = global_index();
    if (i >= count) return;
    const Pixel to(i, height, width, channels);
    const size_t first_row = ((size_t)to.image * height + to.row) * factor;
    float sums[V] = {};
    for (int row = 0; row < factor; row++) {
        for (int column = 0; column < factor; column++) {
            const size_t pixel = ((first_row + row) * width + to.column) * factor + column;
            float values[V];
            load<T, V>(dy, pixel * channels + to.channel, values);
#pragma unroll
            for (int k = 0; k < V; k++) sums[k] += values[k];
        }
    }
    store<T, V>(dx, i, sums);
}
