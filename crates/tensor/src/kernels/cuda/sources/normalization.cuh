// Batch normalisation over rows of channels, with the ReLU that usually follows it, and other sums over rows.
//
// The sums are made in two steps whose order depends on the shape alone: block (p, q) takes the rows
// p * rows_per_block .. and the q-th THREADS groups of V channels, and writes one line of partial results; a kernel of
// coefficients.cuh puts the lines together in f64.

// What a thread does in its block: `group` of V channels, rows first + lane, first + lane + lanes, ... before `end`.
struct Cut {
    int columns, lanes, lane, group, first, end;

    __device__ __forceinline__ Cut(int rows, int channels, int rows_per_block) {
        const int offset = blockIdx.y * THREADS, left = channels / V - offset;
        columns = left < THREADS ? left : THREADS;
        lanes = THREADS / columns;
        lane = threadIdx.x / columns;
        group = offset + threadIdx.x % columns;
        first = blockIdx.x * rows_per_block;
        end = rows - first < rows_per_block ? rows : first + rows_per_block;
    }

    // A block has a few threads more than whole rows need.
    __device__ __forceinline__ bool is_used() const { return lane < lanes; }
};

// Number, means and sums of squared deviations of some values of V channels.
struct Moments {
    int count;
    float mean[V], squares[V];

    // Chan, Golub and LeVeque 1983: no cancellation, also when the mean is much larger than the deviation.
    __device__ __forceinline__ void merge(int more, const float (&more_mean)[V], const float (&more_squares)[V]) {
        const float share = (float)more / (float)(count + more);
#pragma unroll
        for (int k = 0; k < V; k++) {
            const float delta = more_mean[k] - mean[k];
            mean[k] += delta * share;
            squares[k] += more_squares[k] + delta * delta * (float)count * share;
        }
        count += more;
    }
};

// partial: [blocks][2][channels], means and sums of squared deviations of each block's rows.
extern "C" __global__ void NAME(moments)(const T *x, float *partial, int rows, int channels, int rows_per_block) {
    constexpr int BATCH = 4;  // rows that are read before anything is computed
    __shared__ int counts[THREADS];
    __shared__ float means[THREADS][V], squares[THREADS][V];
    const Cut cut(rows, channels, rows_per_block);
    Moments own = {};
    if (cut.is_used()) {
        for (int row = cut.first + cut.lane; row < cut.end; row += BATCH * cut.lanes) {
            float values[BATCH][V] = {};
            int count = 0;
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                if (row + i * cut.lanes < cut.end) {
                    load<T, V>(x, (size_t)(row + i * cut.lanes) * (channels / V) + cut.group, values[i]);
                    count = i + 1;
                }
            }
            float mean[V] = {}, deviations[V] = {};
#pragma unroll
            for (int k = 0; k < V; k++) {
#pragma unroll
                for (int i = 0; i < BATCH; i++) mean[k] += values[i][k];
                mean[k] /= (float)count;
#pragma unroll
                for (int i = 0; i < BATCH; i++) {
                    const float deviation = i < count ? values[i][k] - mean[k] : 0.f;
                    deviations[k] += deviation * deviation;
                }
            }
            own.merge(count, mean, deviations);
        }
    }
    const int me = threadIdx.x;
    const auto publish = [&] {
        counts[me] = own.count;
#pragma unroll
        for (int k = 0; k < V; k++) {
            means[me][k] = own.mean[k];
            squares[me][k] = own.squares[k];
        }
    };
    publish();
    __syncthreads();
    for (int step = THREADS / 2; step > 0; step /= 2) {
        if (cut.lane < step && cut.lane + step < cut.lanes) {
            const int other = me + step * cut.columns;
            if (counts[other] > 0) own.merge(counts[other], means[other], squares[other]);
            publish();
        }
        __syncthreads();
    }
    if (cut.lane == 0) {
        float *line = partial + (size_t)blockIdx.x * 2 * channels;
        store<float, V>(line, cut.group, own.mean);
        store<float, V>(line + channels, cut.group, own.squares);
    }
}

// Sums the `sums` of a block's lanes, in a fixed order, and writes them as one line [Q][channels] of `partial`.
template <int Q>
__device__ __forceinline__ void sum_lanes(float (&sums)[Q][V], const Cut &cut, float *partial, int channels) {
    __shared__ float shared[THREADS][Q][V];
    const int me = threadIdx.x;
    const auto publish = [&] {
#pragma unroll
        for (int q = 0; q < Q; q++) {
#pragma unroll
            for (int k = 0; k < V; k++) shared[me][q][k] = sums[q][k];
        }
    };
    publish();
    __syncthreads();
    for (int step = THREADS / 2; step > 0; step /= 2) {
        if (cut.lane < step && cut.lane + step < cut.lanes) {
            const int other = me + step * cut.columns;
#pragma unroll
            for (int q = 0; q < Q; q++) {
#pragma unroll
                for (int k = 0; k < V; k++) sums[q][k] += shared[other][q][k];
            }
            publish();
        }
        __syncthreads();
    }
    if (cut.lane == 0) {
#pragma unroll
        for (int q = 0; q < Q; q++) store<float, V>(partial + ((size_t)blockIdx.x * Q + q) * channels, cut.group, sums[q]);
    }
}

// partial: [blocks][1][channels], sums of x, or of x * factor (null: of x alone).
extern "C" __global__ void NAME(column_sums)(const T *x, const T *factor, float *partial, int rows, int channels,
                                             int rows_per_block) {
    const Cut cut(rows, channels, rows_per_block);
    float sums[1][V] = {};
    if (cut.is_used()) {
#pragma unroll 4
        for (int row = cut.first + cut.lane; row < cut.end; row += cut.lanes) {
            const size_t place = (size_t)row * (channels / V) + cut.group;
            float values[V];
            load<T, V>(x, place, values);
            if (factor) {
                float factors[V];
                load<T, V>(factor, place, factors);
#pragma unroll
                for (int k = 0; k < V; k++) values[k] *= factors[k];
            }
#pragma unroll
            for (int k = 0; k < V; k++) sums[0][k] += values[k];
        }
    }
    sum_lanes<1>(sums, cut, partial, channels);
}

// y = x * scale + shift (null: of 0) per channel, and a ReLU. The backward kernels compute the same expression to know its
// sign.
extern "C" __global__ void NAME(affine)(const T *x, T *y, const float *scale, const float *shift, int relu,
                                        unsigned count, int channels) {
    const unsigned i = global_index();
    if (i >= count) return;
    const unsigned group = i % (unsigned)(channels / V);
    float values[V], factor[V], offset[V] = {};
    load<T, V>(x, i, values);
    load<float, V>(scale, group, factor);
    if (shift) load<float, V>(shift, group, offset);
#pragma unroll
    for (int k = 0; k < V; k++) {
        values[k] = fmaf(values[k], factor[k], offset[k]);
        if (relu) values[k] = rectified(values[k]);
    }
    store<T, V>(y, i, values);
}

// partial: [blocks][2][channels], sums of dy and of dy * (x - mean), where dy has passed back through the ReLU.
extern "C" __global__ void NAME(gradient_sums)(const T *x, const T *dy, const float *scale, const float *shift,
                                               const float *mean, int relu, float *partial, int rows, int channels,
                                               int rows_per_block) {
    const Cut cut(rows, channels, rows_per_block);
    float sums[2][V] = {};
    if (cut.is_used()) {
        float factor[V], offset[V], centre[V];
        load<float, V>(scale, cut.group, factor);
        load<float, V>(shift, cut.group, offset);
        load<float, V>(mean, cut.group, centre);
#pragma unroll 4
        for (int row = cut.first + cut.lane; row < cut.end; row += cut.lanes) {
            const size_t place = (size_t)row * (channels / V) + cut.group;
            float values[V], gradients[V];
            load<T, V>(x, place, values);
            load<T, V>(dy, place, gradients);
#pragma unroll
            for (int k = 0; k < V; k++) {
                const bool blocked = relu && fmaf(values[k], factor[k], offset[k]) <= 0.f;
                const float gradient = blocked ? 0.f : gradients[k];
                sums[0][k] += gradient;
                sums[1][k] += gradient * (values[k] - centre[k]);
            }
        }
    }
    sum_lanes<2>(sums, cut, partial, channels);
}

// dx = dy * scale + (x - mean) * slope + offset + existing, where dy has passed back through the ReLU. Without statistics
// of the batch (`slope` and `offset` null), or without `existing` (null), there are no such terms.
extern "C" __global__ void NAME(input_gradient)(const T *x, const T *dy, const T *existing, T *dx, const float *scale,
                                                const float *shift, const float *mean, const float *slope,
                                                const float *offset, int relu, unsigned count, int channels) {
    const unsigned i = global_index();
    if (i >= count) return;
    const unsigned group = i % (unsigned)(channels / V);
    float values[V], gradients[V], factor[V], shifted[V];
    float centre[V] = {}, tilt[V] = {}, lift[V] = {}, before[V] = {};
    load<T, V>(x, i, values);
    load<T, V>(dy, i, gradients);
    if (existing) load<T, V>(existing, i, before);
    load<float, V>(scale, group, factor);
    load<float, V>(shift, group, shifted);
    if (slope) {
        load<float, V>(mean, group, centre);
        load<float, V>(slope, group, tilt);
        load<float, V>(offset, group, lift);
    }
#pragma unroll
    for (int k = 0; k < V; k++) {
        const bool blocked = relu && fmaf(values[k], factor[k], shifted[k]) <= 0.f;
        const float gradient = blocked ? 0.f : gradients[k];
        values[k] = gradient * factor[k] + ((values[k] - centre[k]) * tilt[k] + lift[k]) + before[k];
    }
    store<T, V>(dx, i, values);
}
