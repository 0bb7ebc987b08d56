// Rows that are normalised one by one: softmax, its logarithm, layer normalisation. Each row of `columns` elements is shared
// by `lanes` threads of a block, a power of two.
//
// Sums over a row are made in f64, by each thread over its packs and then by halves over the threads: an order that depends
// on the shape alone. No thread leaves before the others: all of a block meet at the barriers of the sums.

// What a thread does in its row: packs lane, lane + lanes, ... of the `packs` from `first` on. Beyond the last row: nothing.
struct Part {
    int lanes, lane, packs;
    size_t row, first;

    __device__ __forceinline__ Part(int rows, int columns, int lanes) : lanes(lanes), lane(threadIdx.x % lanes) {
        row = (size_t)blockIdx.x * (THREADS / lanes) + threadIdx.x / lanes;
        packs = row < (size_t)rows ? columns / V : 0;
        first = row * (columns / V);
    }

    // Calls `visit` with the place of each pack in its array, and in its row.
    template <typename Visit> __device__ __forceinline__ void each(Visit visit) const {
        for (int pack = lane; pack < packs; pack += lanes) visit(first + pack, (size_t)pack);
    }

    // What the threads of a row have, combined by twos; all of them get it.
    template <typename N, typename Combine> __device__ __forceinline__ N joined(N own, Combine combine) const {
        __shared__ N shared[THREADS];
        const int me = threadIdx.x;
        __syncthreads();  // what an earlier use has left has been read
        shared[me] = own;
        for (int step = lanes / 2; step > 0; step /= 2) {
            __syncthreads();
            if (lane < step) shared[me] = combine(shared[me], shared[me + step]);
        }
        __syncthreads();
        return shared[me - lane];
    }

    __device__ __forceinline__ double sum(double own) const {
        return joined(own, [](double a, double b) { return a + b; });
    }

    // What is not a number is passed over.
    __device__ __forceinline__ float largest(float own) const {
        return joined(own, [](float a, float b) { return fmaxf(a, b); });
    }
};

// A row with something that is not a number, or with a positive infinity, has no softmax: all of it becomes not a number
// through the sum.
extern "C" __global__ void NAME(softmax)(const T *x, T *y, int logarithm, int rows, int columns, int lanes) {
    const Part part(rows, columns, lanes);
    float own = -INFINITY;
    part.each([&](size_t place, size_t) {
        float values[V];
        load<T, V>(x, place, values);
#pragma unroll
        for (int k = 0; k < V; k++) own = fmaxf(own, values[k]);
    });
    const float largest = part.largest(own);
    double sum = 0.;
    part.each([&](size_t place, size_t) {
        float values[V];
        load<T, V>(x, place, values);
#pragma unroll
        for (int k = 0; k < V; k++) sum += expf(values[k] - largest);
    });
    sum = part.sum(sum);
    const float normalizer = logarithm ? (float)log(sum) : 0.f, share = (float)(1. / sum);
    part.each([&](size_t place, size_t) {
        float values[V];
        load<T, V>(x, place, values);
#pragma unroll
        for (int k = 0; k < V; k++) {
            const float below = values[k] - largest;
            values[k] = logarithm ? below - normalizer : expf(below) * share;
        }
        store<T, V>(y, place, values);
    });
}

// From the output y of softmax: y * (dy - mean of dy with the shares y), or of the logarithm: dy - exp(y) * sum of dy. The
// mean is divided by the sum of the shares, which is 1 but for the rounding of y to T.
extern "C" __global__ void NAME(softmax_backward)(const T *y, const T *dy, T *dx, int logarithm, int rows, int columns,
                                                  int lanes) {
    const Part part(rows, columns, lanes);
    double own = 0., own_shares = 0.;
    part.each([&](size_t place, size_t) {
        float values[V], gradients[V];
        load<T, V>(y, place, values);
        load<T, V>(dy, place, gradients);
#pragma unroll
        for (int k = 0; k < V; k++) {
            own += logarithm ? gradients[k] : gradients[k] * values[k];
            own_shares += values[k];
        }
    });
    const double sum = part.sum(own), mean = sum / part.sum(own_shares);
    part.each([&](size_t place, size_t) {
        float values[V], gradients[V];
        load<T, V>(y, place, values);
        load<T, V>(dy, place, gradients);
#pragma unroll
        for (int k = 0; k < V; k++) {
            values[k] = logarithm ? gradients[k] - expf(values[k]) * (float)sum : (float)(gradients[k] - mean) * values[k];
        }
        store<T, V>(dx, place, values);
    });
}

// y = (x - mean) * inverse * weight + bias, where mean and inverse = 1 / sqrt(variance + epsilon) are those of each row,
// which are kept for the backward pass.
extern "C" __global__ void NAME(layer_norm)(const T *x, const float *weight, const float *bias, T *y, float *mean,
                                            float *inverse, double epsilon, int rows, int columns, int lanes) {
    const Part part(rows, columns, lanes);
    double sum = 0., squares = 0.;
    part.each([&](size_t place, size_t) {
        float values[V];
        load<T, V>(x, place, values);
#pragma unroll
        for (int k = 0; k < V; k++) sum += values[k];
    });
    const float centre = (float)(part.sum(sum) / columns);
    part.each([&](size_t place, size_t) {
        float values[V];
        load<T, V>(x, place, values);
#pragma unroll
        for (int k = 0; k < V; k++) squares += (values[k] - centre) * (values[k] - centre);
    });
    const float factor = (float)(1. / sqrt(part.sum(squares) / columns + epsilon));
    part.each([&](size_t place, size_t pack) {
        float values[V], scale[V], shift[V];
        load<T, V>(x, place, values);
        load<float, V>(weight, pack, scale);
        load<float, V>(bias, pack, shift);
#pragma unroll
        for (int k = 0; k < V; k++) values[k] = (values[k] - centre) * factor * scale[k] + shift[k];
        store<T, V>(y, place, values);
    });
    if (part.packs > 0 && part.lane == 0) {
        mean[part.row] = centre;
        inverse[part.row] = factor;
    }
}

// With g = dy * weight and the normalised row n: (g - mean of g - n * mean of g * n) * inverse.
extern "C" __global__ void NAME(layer_norm_backward)(const T *x, const T *dy, const float *weight, const float *mean,
                                                     const float *inverse, T *dx, int rows, int columns, int lanes) {
    const Part part(rows, columns, lanes);
    const bool is_used = part.packs > 0;
    const float centre = is_used ? mean[part.row] : 0.f, factor = is_used ? inverse[part.row] : 0.f;
    double own = 0., own_products = 0.;
    part.each([&](size_t place, size_t pack) {
        float values[V], gradients[V], scale[V];
        load<T, V>(x, place, values);
        load<T, V>(dy, place, gradients);
        load<float, V>(weight, pack, scale);
#pragma unroll
        for (int k = 0; k < V; k++) {
            const float gradient = gradients[k] * scale[k];
            own += gradient;
            own_products += gradient * ((values[k] - centre) * factor);
        }
    });
    const float offset = (float)(part.sum(own) / columns), slope = (float)(part.sum(own_products) / columns);
    part.each([&](size_t place, size_t pack) {
        float values[V], gradients[V], scale[V];
        load<T, V>(x, place, values);
        load<T, V>(dy, place, gradients);
        load<float, V>(weight, pack, scale);
#pragma unroll
        for (int k = 0; k < V; k++) {
            const float normalized = (values[k] - centre) * factor;
            values[k] = (gradients[k] * scale[k] - offset - normalized * slope) * factor;
        }
        store<T, V>(dx, place, values);
    });
}

// partial: [blocks][2][channels], sums over each block's rows of dy * n, where n is the normalised row, and of dy; see
// normalization.cuh.
extern "C" __global__ void NAME(layer_norm_sums)(const T *x, const T *dy, const float *mean, const float *inverse,
                                                 float *partial, int rows, int channels, int rows_per_block) {
    const Cut cut(rows, channels, rows_per_block);
    float sums[2][V] = {};
    if (cut.is_used()) {
#pragma unroll 4
        for (int row = cut.first + cut.lane; row < cut.end; row += cut.lanes) {
            const size_t place = (size_t)row * (channels / V) + cut.group;
            const float centre = mean[row], factor = inverse[row];
            float values[V], gradients[V];
            load<T, V>(x, place, values);
            load<T, V>(dy, place, gradients);
#pragma unroll
            for (int k = 0; k < V; k++) {
                sums[0][k] += gradients[k] * ((values[k] - centre) * factor);
                sums[1][k] += gradients[k];
            }
        }
    }
    sum_lanes<2>(sums, cut, partial, channels);
}
