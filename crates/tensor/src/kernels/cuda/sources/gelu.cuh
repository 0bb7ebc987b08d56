// The Gaussian error linear unit x * P(X < x) for a standard normal X, element by element; `count` is a number of packs of
// V elements. The probability is that of the complementary error function, which keeps its digits in the lower tail.

// P(X < x), and the density at x.
__device__ __forceinline__ float probability(float x) { return 0.5f * erfcf(-0.70710678f * x); }
__device__ __forceinline__ float density(float x) { return 0.39894228f * expf(-0.5f * x * x); }

extern "C" __global__ void NAME(gelu)(const T *x, T *y, unsigned count) {
    const unsigned i = global_index();
    if (i >= count) return;
    float values[V];
    load<T, V>(x, i, values);
#pragma unroll
    for (int k = 0; k < V; k++) values[k] *= probability(values[k]);
    store<T, V>(y, i, values);
}

extern "C" __global__ void NAME(gelu_backward)(const T *dy, const T *x, T *dx, unsigned count) {
    const unsigned i = global_index();
    if (i >= count) return;
    float gradients[V], values[V];
    load<T, V>(dy, i, gradients);
    load<T, V>(x, i, values);
#pragma unroll
    for (int k = 0; k < V; k++) gradients[k] *= probability(values[k]) + values[k] * density(values[k]);
    store<T, V>(dx, i, gradients);
}
