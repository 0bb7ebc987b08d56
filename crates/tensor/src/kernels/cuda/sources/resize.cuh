// Bilinear change of size, [images][height][width][channels] to [images][out_height][out_width][channels], a thread for
// each pack of V channels of a result; `count` of them.
//
// Places are computed in f64, as on the CPU: so rounding puts none of them between other pixels than there.

// What one axis is: `size` pixels become `to`.
struct Axis {
    int size, to, align_corners;

    __device__ __forceinline__ double step() const {
        if (!align_corners) return (double)size / to;
        return to > 1 ? (double)(size - 1) / (to - 1) : 0.;
    }

    // The place of result 0, in pixels, where nothing is cut off.
    __device__ __forceinline__ double start() const { return align_corners ? 0. : 0.5 * step() - 0.5; }
};

// The place of result `index` between two pixels, and the share of the second.
struct Between {
    int low, high;
    float share;

    __device__ __forceinline__ Between(const Axis &axis, int index) {
        double place = axis.align_corners ? index * axis.step() : (index + 0.5) * axis.step() - 0.5;
        place = place < 0. ? 0. : place;
        low = (int)place < axis.size ? (int)place : axis.size - 1;
        high = low + 1 < axis.size ? low + 1 : low;
        const double beyond = place - low;
        share = (float)(beyond < 1. ? beyond : 1.);
    }

    __device__ __forceinline__ bool holds(int pixel) const { return low == pixel || high == pixel; }

    __device__ __forceinline__ float weight_of(int pixel) const {
        return (low == pixel ? 1.f - share : 0.f) + (high == pixel ? share : 0.f);
    }
};

// Results first .. last: those, and a few more, that take something from a pixel.
struct Takers {
    int first, last;

    __device__ __forceinline__ Takers(const Axis &axis, int pixel) : first(0), last(axis.to - 1) {
        const double step = axis.step();
        if (step == 0.) return;
        const double from = floor((pixel - 1 - axis.start()) / step), until = ceil((pixel + 1 - axis.start()) / step);
        if (from > first) first = (int)from;
        if (until < last) last = (int)until;
    }
};

#define SIZES int height, int width, int channels, int out_height, int out_width, int align_corners

extern "C" __global__ void NAME(resize)(const T *x, T *y, unsigned count, SIZES) {
    const unsigned i = global_index();
    if (i >= count) return;
    const int groups = channels / V, ox = i / groups % out_width, oy = i / groups / out_width % out_height;
    const size_t image = (size_t)(i / groups / out_width / out_height) * height * width;
    const Between row(Axis{height, out_height, align_corners}, oy), column(Axis{width, out_width, align_corners}, ox);
    float values[4][V];
    const auto pixel = [&](int down, int across) { return (image + (size_t)down * width + across) * groups + i % groups; };
    load<T, V>(x, pixel(row.low, column.low), values[0]);
    load<T, V>(x, pixel(row.low, column.high), values[1]);
    load<T, V>(x, pixel(row.high, column.low), values[2]);
    load<T, V>(x, pixel(row.high, column.high), values[3]);
    const float above = 1.f - row.share, left = 1.f - column.share;
#pragma unroll
    for (int k = 0; k < V; k++) {
        const float upper = values[0][k] * (above * left) + values[1][k] * (above * column.share);
        values[0][k] = upper + (values[2][k] * (row.share * left) + values[3][k] * (row.share * column.share));
    }
    store<T, V>(y, i, values[0]);
}

// Each pixel collects the gradients of the results that it gave something to, row by row.
extern "C" __global__ void NAME(resize_backward)(const T *dy, T *dx, unsigned count, SIZES) {
    const unsigned i = global_index();
    if (i >= count) return;
    const int groups = channels / V, x = i / groups % width, y = i / groups / width % height;
    const size_t image = (size_t)(i / groups / width / height) * out_height * out_width;
    const Axis rows{height, out_height, align_corners}, columns{width, out_width, align_corners};
    const Takers down(rows, y), across(columns, x);
    double sums[V] = {};
    for (int oy = down.first; oy <= down.last; oy++) {
        const Between row(rows, oy);
        if (!row.holds(y)) continue;
        for (int ox = across.first; ox <= across.last; ox++) {
            const Between column(columns, ox);
            if (!column.holds(x)) continue;
            const float weight = row.weight_of(y) * column.weight_of(x);
            float gradients[V];
            load<T, V>(dy, (image + (size_t)oy * out_width + ox) * groups + i % groups, gradients);
#pragma unroll
            for (int k = 0; k < V; k++) sums[k] += gradients[k] * weight;
        }
    }
    float values[V];
#pragma unroll
    for (int k = 0; k < V; k++) values[k] = (float)sums[k];
    store<T, V>(dx, i, values);
}

#undef SIZES
