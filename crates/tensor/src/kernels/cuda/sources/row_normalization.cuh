// Rows that are normalised one by one: softmax, its logarithm, layer normalisation. `count` and `columns` are numbers of packs
// of V elements. Sums over a row are made in f64.

// A row with something that is not a number, or with a positive infinity, has no softmax: all of it becomes not a number
// through the sum.
extern "C" __global__ void NAME(softmax)(const T *x, T *y, int logarithm, unsigned count, unsigned columns, int lanes) {
    const Row row(count, columns, lanes);
    float own = -INFINITY;
    for (size_t i = row.first + row.lane; i < row.end; i += lanes) {
        float values[V];
        load<T, V>(x, i, values);
#pragma unroll
        for (int k = 0; k < V; k++) own = fmaxf(own, values[k]);
    }
    const float largest = row_largest(own, lanes);
    double sum = 0.;
    for (size_t i = row.first + row.lane; i < row.end; i += lanes) {
        float values[V];
        load<T, V>(x, i, values);
#pragma unroll
        for (int k = 0; k < V; k++) sum += expf(values[k] - largest);
    }
    sum = row_sum(sum, lanes);
    const float normalizer = logarithm ? (float)log(sum) : 0.f, share = (float)(1. / sum);
    for (size_t i = row.first + row.lane; i < row.end; i += lanes) {
        float values[V];
        load<T, V>(x, i, values);
#pragma unroll
        for (int k = 0; k < V; k++) {
            const float below = values[k] - largest;
            values[k] = logarithm ? below - normalizer : expf(below) * share;
        }
        store<T, V>(y, i, values);
    }
}

// From the output y of softmax: y * (dy - mean of dy with the shares y), or of the logarithm: dy - exp(y) * sum of dy. The
// mean is divided by the sum of the shares, which is 1 but for the rounding of y to T.
extern "C" __global__ void NAME(softmax_backward)(const T *y, const T *dy, T *dx, int logarithm, unsigned count,
                                                  unsigned columns, int lanes) {
    const Row row(count, columns, lanes);
    double own = 0., own_shares = 0.;
    for (size_t i = row.first + row.lane; i < row.end; i += lanes) {
        float values[V], gradients[V];
        load<T, V>(y, i, values);
        load<T, V>(dy, i, gradients);
#pragma unroll
        for (int k = 0; k < V; k++) {
            own += logarithm ? gradients[k] : gradients[k] * values[k];
            own_shares += values[k];
        }
    }
    const double sum = row_sum(own, lanes), mean = sum / row_sum(own_shares, lanes);
    for (size_t i = row.first + row.lane; i < row.end; i += lanes) {
        float values[V], gradients[V];
        load<T, V>(y, i, values);
        load<T, V>(dy, i, gradients);
#pragma unroll
        for (int k = 0; k < V; k++) {
            values[k] = logarithm ? gradients[k] - expf(values[k]) * (float)sum : (float)(gradients[k] - mean) * values[k];
        }
        store<T, V>(dx, i, values);
    }
}

// y = (x - mean) * inverse * weight + bias, where mean and inverse = 1 / sqrt(variance + epsilon) are those of each row,
// which are kept for the backward pass.
extern "C" __global__ void NAME(layer_norm)(const T *x, const float *weight, const float *bias, T *y, float *mean,
                                            float *inverse, double epsilon, unsigned count, unsigned columns, int lanes) {
    const Row row(count, columns, lanes);
    const double elements = (double)columns * V;
    double sum = 0., squares = 0.;
    for (size_t i = row.first + row.lane; i < row.end; i += lanes) {
        float values[V];
        load<T, V>(x, i, values);
#pragma unroll
        for (int k = 0; k < V; k++) sum += values[k];
    }
    const float centre = (float)(row_sum(sum, lanes) / elements);
    for (size_t i = row.first + row.lane; i < row.end; i += lanes) {
        float values[V];
        load<T, V>(x, i, values);
#pragma unroll
        for (int k = 0; k < V; k++) squares += (values[k] - centre) * (values[k] - centre);
    }
    const float factor = (float)(1. / sqrt(row_sum(squares, lanes) / elements + epsilon));
    for (size_t i = row.first + row.lane; i < row.end; i += lanes) {
        float values[V], scale[V], shift[V];
        load<T, V>(x, i, values);
        load<float, V>(weight, i - row.first, scale);
        load<float, V>(bias, i - row.first, shift);
#pragma unroll
        for (int k = 0; k < V; k++) values[k] = (values[k] - centre) * factor * scale[k] + shift[k];
        store<T, V>(y, i, values);
    }
    if (row.exists() && row.lane == 0) {
        mean[row.index] = centre;
        inverse[row.index] = factor;
    }
}

// With g = dy * weight and the normalised row n: (g - mean of g - n * mean of g * n) * inverse.
extern "C" __global__ void NAME(layer_norm_backward)(const T *x, const T *dy, const float *weight, const float *mean,
                                                     const float *inverse, T *dx, unsigned count, unsigned columns,
                                                     int lanes) {
    const Row row(count, columns, lanes);
    const double elements = (double)columns * V;
    const float centre = row.exists() ? mean[row.index] : 0.f, factor = row.exists() ? inverse[row.index] : 0.f;
    double own = 0., own_products = 0.;
    for (size_t i = row.first + row.lane; i < row.end; i += lanes) {
        float values[V], gradients[V], scale[V];
        load<T, V>(x, i, values);
        load<T, V>(dy, i, gradients);
        load<float, V>(weight, i - row.first, scale);
#pragma unroll
        for (int k = 0; k < V; k++) {
            const float gradient = gradients[k] * scale[k];
            own += gradient;
            own_products += gradient * ((values[k] - centre) * factor);
        }
    }
    const float offset = (float)(row_sum(own, lanes) / elements);
    const float slope = (float)(row_sum(own_products, lanes) / elements);
    for (size_t i = row.first + row.lane; i < row.end; i += lanes) {
        float values[V], gradients[V], scale[V];
        load<T, V>(x, i, values);
        load<T, V>(dy, i, gradients);
        load<float, V>(weight, i - row.first, scale);
#pragma unroll
        for (int k = 0; k < V; k++) {
            const float normalized = (values[k] - centre) * factor;
            values[k] = (gradients[k] * scale[k] - offset - normalized * slope) * factor;
        }
        store<T, V>(dx, i, values);
    }
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
