// Element by element; `count` is a number of packs of V elements. Kernels have the names of the loops on the CPU.

// result = value(a)
template <typename F> __device__ __forceinline__ void map_one(const T *a, T *result, unsigned count, F value) {
    const unsigned i = global_index();
    if (i >= count) return;
    float values[V];
    load<T, V>(a, i, values);
#pragma unroll
    for (int k = 0; k < V; k++) values[k] = value(values[k]);
    store<T, V>(result, i, values);
}

// result = value(a, b)
template <typename F>
__device__ __forceinline__ void map_two(const T *a, const T *b, T *result, unsigned count, F value) {
    const unsigned i = global_index();
    if (i >= count) return;
    float left[V], right[V];
    load<T, V>(a, i, left);
    load<T, V>(b, i, right);
#pragma unroll
    for (int k = 0; k < V; k++) left[k] = value(left[k], right[k]);
    store<T, V>(result, i, left);
}

#define OF_ONE(name, x, value)                                                          \
    extern "C" __global__ void NAME(name)(const T *from, T *result, unsigned count) {   \
        map_one(from, result, count, [](float x) -> float { return value; });           \
    }
#define OF_ONE_AND_A_NUMBER(name, x, number, value)                                                   \
    extern "C" __global__ void NAME(name)(const T *from, T *result, unsigned count, float number) {   \
        map_one(from, result, count, [=](float x) -> float { return value; });                        \
    }
#define OF_TWO(name, a, b, value)                                                                            \
    extern "C" __global__ void NAME(name)(const T *first, const T *second, T *result, unsigned count) {      \
        map_two(first, second, result, count, [](float a, float b) -> float { return value; });              \
    }

OF_TWO(add, a, b, a + b)
OF_TWO(subtract, a, b, a - b)
OF_TWO(multiply, a, b, a * b)
OF_TWO(divide, a, b, a / b)
OF_ONE_AND_A_NUMBER(scale, x, factor, x * factor)
OF_ONE_AND_A_NUMBER(offset, x, term, x + term)
OF_ONE(square_root, x, sqrtf(x))
OF_TWO(square_root_backward, dy, root, dy / (root + root))
OF_ONE(absolute, x, fabsf(x))
OF_TWO(absolute_backward, dy, x, x > 0.f ? dy : x < 0.f ? 0.f - dy : 0.f)
OF_ONE(relu, x, rectified(x))
OF_TWO(relu_backward, dy, x, x <= 0.f ? 0.f : dy)
OF_ONE(sigmoid, x, logistic(x))
OF_TWO(sigmoid_backward, dy, y, dy * (y * (1.f - y)))
OF_ONE(tanh, x, tanhf(x))
OF_TWO(tanh_backward, dy, y, dy * (1.f - y * y))
OF_ONE(gelu, x, x * probability_below(x))
OF_TWO(gelu_backward, dy, x, dy * (probability_below(x) + x * density(x)))

#undef OF_ONE
#undef OF_ONE_AND_A_NUMBER
#undef OF_TWO

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
