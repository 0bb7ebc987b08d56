// Images [images][height][width][channels] at the points [images][points][2] of a grid (x, then y), which is f32 whatever
// the images are: 8 bits would not tell pixels apart.
//
// Places are computed in f64, as on the CPU: so rounding puts none of them between other pixels than there.

// Where a coordinate lies along a side of `size` pixels: beyond pixel `low` by `share`, and the derivative of that place.
struct Located {
    int low;
    float share, slope;

    __device__ __forceinline__ Located(float coordinate, int size, int align_corners, int clamp) {
        double place = align_corners ? (coordinate + 1.) * 0.5 * (size - 1.) : ((coordinate + 1.) * size - 1.) * 0.5;
        slope = align_corners ? 0.5f * (size - 1) : 0.5f * size;
        if (clamp && place <= 0.) {
            place = 0.;
            slope = 0.f;
        } else if (clamp && place >= size - 1.) {
            place = size - 1.;
            slope = 0.f;
        }
        // A place that is no number, or has no pixel beside it, is given a pixel that is not there.
        low = place >= -1. && place < size ? (int)floor(place) : -2;
        share = (float)(place - floor(place));
    }

    __device__ __forceinline__ float weight_of(bool second) const { return second ? share : 1.f - share; }
};

struct Point {
    Located row, column;

    __device__ __forceinline__ Point(const float *coordinates, int height, int width, int align_corners, int clamp)
        : row(coordinates[1], height, align_corners, clamp), column(coordinates[0], width, align_corners, clamp) {}

    // The place of one of the four pixels around the point in its image, in pixels; -1 outside.
    __device__ __forceinline__ int pixel(bool below, bool right, int height, int width) const {
        const int y = row.low + below, x = column.low + right;
        return y >= 0 && y < height && x >= 0 && x < width ? y * width + x : -1;
    }
};

#define SAMPLING int height, int width, int channels, int points, int align_corners, int clamp

// A thread for each element of the result, `count` of them. A pixel outside counts as zero, and zero times a weight that is
// not a number is not a number.
extern "C" __global__ void NAME(grid_sample)(const T *x, const float *grid, T *y, unsigned count, SAMPLING) {
    const unsigned i = global_index();
    if (i >= count) return;
    const unsigned point = i / channels;
    const Point at(grid + 2 * (size_t)point, height, width, align_corners, clamp);
    const T *image = x + (size_t)(point / points) * height * width * channels;
    const auto weighted = [&](bool below, bool right) {
        const int pixel = at.pixel(below, right, height, width);
        const float value = pixel < 0 ? 0.f : wide(image[(size_t)pixel * channels + i % channels]);
        return value * (at.row.weight_of(below) * at.column.weight_of(right));
    };
    const float above = weighted(false, false) + weighted(false, true);
    y[i] = Narrow<T>::of(above + (weighted(true, false) + weighted(true, true)));
}

// The gradient of the grid, a thread for each point; `count` of them.
extern "C" __global__ void NAME(grid_sample_grid_gradient)(const T *x, const float *grid, const T *dy, float *dgrid,
                                                           unsigned count, SAMPLING) {
    const unsigned i = global_index();
    if (i >= count) return;
    const Point at(grid + 2 * (size_t)i, height, width, align_corners, clamp);
    const T *image = x + (size_t)(i / points) * height * width * channels;
    const T *gradients = dy + (size_t)i * channels;
    const auto product = [&](bool below, bool right) {
        const int pixel = at.pixel(below, right, height, width);
        double sum = 0.;
        for (int channel = 0; pixel >= 0 && channel < channels; channel++)
            sum += wide(image[(size_t)pixel * channels + channel]) * wide(gradients[channel]);
        return (float)sum;
    };
    const float a = product(false, false), b = product(false, true), c = product(true, false), d = product(true, true);
    const float above = 1.f - at.row.share, left = 1.f - at.column.share;
    dgrid[2 * (size_t)i] = (above * (b - a) + at.row.share * (d - c)) * at.column.slope;
    dgrid[2 * (size_t)i + 1] = (left * (c - a) + at.column.share * (d - b)) * at.row.slope;
}

// The gradient of the images, a thread for each of their elements, `chunks` blocks for each image. Where points lie nothing
// is known of, so every thread looks at all points of its image, a block of them at a time, in their order.
extern "C" __global__ void NAME(grid_sample_image_gradient)(const float *grid, const T *dy, T *dx, int chunks, SAMPLING) {
    __shared__ int rows[THREADS], columns[THREADS];
    __shared__ float downwards[THREADS], rightwards[THREADS];
    const int image = blockIdx.x / chunks, size = height * width * channels;
    const int place = blockIdx.x % chunks * THREADS + threadIdx.x;
    const int channel = place % channels, x = place / channels % width, y = place / channels / width;
    double sum = 0.;
    for (int begin = 0; begin < points; begin += THREADS) {
        const size_t first = (size_t)image * points + begin;
        const int here = points - begin < THREADS ? points - begin : THREADS, me = threadIdx.x;
        __syncthreads();  // the points before have been looked at
        if (me < here) {
            const Point at(grid + 2 * (first + me), height, width, align_corners, clamp);
            rows[me] = at.row.low;
            columns[me] = at.column.low;
            downwards[me] = at.row.share;
            rightwards[me] = at.column.share;
        }
        __syncthreads();
        for (int i = 0; i < here; i++) {
            const int below = y - rows[i], right = x - columns[i];
            if (below < 0 || below > 1 || right < 0 || right > 1) continue;
            const float of_row = below ? downwards[i] : 1.f - downwards[i];
            const float of_column = right ? rightwards[i] : 1.f - rightwards[i];
            sum += wide(dy[(first + i) * channels + channel]) * (of_row * of_column);
        }
    }
    if (place < size) dx[(size_t)image * size + place] = Narrow<T>::of((float)sum);
}

#undef SAMPLING
