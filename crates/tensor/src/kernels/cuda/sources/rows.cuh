// Sums over single rows, and numbers spread over rows. `count` and `columns` are numbers of packs of V elements.

// The sum over each row, times a factor.
extern "C" __global__ void NAME(row_sums)(const T *x, float *sums, unsigned count, unsigned columns, int lanes,
                                          double factor) {
    const Row row(count, columns, lanes);
    double own = 0.;
#pragma unroll 4
    for (size_t i = row.first + row.lane; i < row.end; i += lanes) {
        float values[V];
        load<T, V>(x, i, values);
#pragma unroll
        for (int k = 0; k < V; k++) own += values[k];
    }
    const double sum = row_sum(own, lanes);
    if (row.exists() && row.lane == 0) sums[row.index] = (float)(sum * factor);
}

// Each row divided by its Euclidean norm plus epsilon.
extern "C" __global__ void NAME(normalized_rows)(const T *x, T *y, unsigned count, unsigned columns, int lanes,
                                                 double epsilon) {
    const Row row(count, columns, lanes);
    double own = 0.;
    for (size_t i = row.first + row.lane; i < row.end; i += lanes) {
        float values[V];
        load<T, V>(x, i, values);
#pragma unroll
        for (int k = 0; k < V; k++) own += (double)values[k] * values[k];
    }
    const float divisor = (float)(sqrt(row_sum(own, lanes)) + epsilon);
    for (size_t i = row.first + row.lane; i < row.end; i += lanes) {
        float values[V];
        load<T, V>(x, i, values);
#pragma unroll
        for (int k = 0; k < V; k++) values[k] /= divisor;
        store<T, V>(y, i, values);
    }
}

// A norm of 0 has a gradient of 0.
extern "C" __global__ void NAME(normalized_rows_backward)(const T *dy, const T *x, T *dx, unsigned count,
                                                          unsigned columns, int lanes, double epsilon) {
    const Row row(count, columns, lanes);
    double own_squares = 0., own_products = 0.;
    for (size_t i = row.first + row.lane; i < row.end; i += lanes) {
        float values[V], gradients[V];
        load<T, V>(x, i, values);
        load<T, V>(dy, i, gradients);
#pragma unroll
        for (int k = 0; k < V; k++) {
            own_squares += (double)values[k] * values[k];
            own_products += (double)gradients[k] * values[k];
        }
    }
    const double norm = sqrt(row_sum(own_squares, lanes)), along = row_sum(own_products, lanes);
    const double divisor = norm + epsilon, pull = norm > 0. ? along / (norm * divisor * divisor) : 0.;
    for (size_t i = row.first + row.lane; i < row.end; i += lanes) {
        float values[V], gradients[V];
        load<T, V>(x, i, values);
        load<T, V>(dy, i, gradients);
#pragma unroll
        for (int k = 0; k < V; k++) values[k] = (float)(gradients[k] / divisor - values[k] * pull);
        store<T, V>(dx, i, values);
    }
}

// One number for each row, times a factor, at all its places.
extern "C" __global__ void NAME(filled_rows)(const T *numbers, T *result, unsigned count, unsigned columns, float factor) {
    const unsigned i = global_index();
    if (i >= count) return;
    const float number = wide(numbers[i / columns]) * factor;
    float values[V];
#pragma unroll
    for (int k = 0; k < V; k++) values[k] = number;
    store<T, V>(result, i, values);
}

// The same row again and again.
extern "C" __global__ void NAME(repeated_row)(const T *row, T *result, unsigned count, unsigned columns) {
    const unsigned i = global_index();
    if (i >= count) return;
    float values[V];
    load<T, V>(row, i % columns, values);
    store<T, V>(result, i, values);
}
