// Element by element; `count` is a number of packs of V elements.

extern "C" __global__ void NAME(add)(const T *a, const T *b, T *sum, unsigned count) {
    const unsigned i = global_index();
    if (i >= count) return;
    float left[V], right[V];
    load<T, V>(a, i, left);
    load<T, V>(b, i, right);
#pragma unroll
    for (int k = 0; k < V; k++) left[k] += right[k];
    store<T, V>(sum, i, left);
}

extern "C" __global__ void NAME(relu)(const T *x, T *y, unsigned count) {
    const unsigned i = global_index();
    if (i >= count) return;
    float values[V];
    load<T, V>(x, i, values);
#pragma unroll
    for (int k = 0; k < V; k++) values[k] = rectified(values[k]);
    store<T, V>(y, i, values);
}

extern "C" __global__ void NAME(relu_backward)(const T *dy, const T *x, T *dx, unsigned count) {
    const unsigned i = global_index();
    if (i >= count) return;
    float gradients[V], values[V];
    load<T, V>(dy, i, gradients);
    load<T, V>(x, i, values);
#pragma unroll
    for (int k = 0; k < V; k++) gradients[k] = values[k] <= 0.f ? 0.f : gradients[k];
    store<T, V>(dx, i, gradients);
}

// y = x + bias per channel.
extern "C" __global__ void NAME(add_bias)(const T *x, const T *bias, T *y, unsigned count, int channels) {
    const unsigned i = global_index();
    if (i >= count) return;
    float values[V], added[V];
    load<T, V>(x, i, values);
    load<T, V>(bias, i % (unsigned)(channels / V), added);
#pragma unroll
    for (int k = 0; k < V; k++) values[k] += added[k];
    store<T, V>(y, i, values);
}
