// What all kernels share: element types, wide accesses, numbers of threads.
#pragma once
#include <cuda_bf16.h>
#include <stdint.h>

typedef __nv_bfloat16 bf16;

// Threads of every block.
constexpr int THREADS = 256;

__device__ __forceinline__ float wide(float value) { return value; }
__device__ __forceinline__ float wide(bf16 value) { return __bfloat162float(value); }

template <typename T> struct Narrow;
template <> struct Narrow<float> {
    static __device__ __forceinline__ float of(float value) { return value; }
};
template <> struct Narrow<bf16> {
    static __device__ __forceinline__ bf16 of(float value) { return __float2bfloat16(value); }
};

// V elements that are read or written by one instruction.
template <typename T, int V> struct alignas(sizeof(T) * V) Pack {
    T values[V];
};

// Elements V * index .. V * (index + 1).
template <typename T, int V> __device__ __forceinline__ void load(const T *from, size_t index, float (&values)[V]) {
    const Pack<T, V> pack = reinterpret_cast<const Pack<T, V> *>(from)[index];
#pragma unroll
    for (int k = 0; k < V; k++) values[k] = wide(pack.values[k]);
}

template <typename T, int V> __device__ __forceinline__ void store(T *to, size_t index, const float (&values)[V]) {
    Pack<T, V> pack;
#pragma unroll
    for (int k = 0; k < V; k++) pack.values[k] = Narrow<T>::of(values[k]);
    reinterpret_cast<Pack<T, V> *>(to)[index] = pack;
}

// What lies at an address that came as a number.
#ifndef AT_ADDRESS
#define AT_ADDRESS(address) (address)
#endif
template <typename T> __device__ __forceinline__ T *at_address(unsigned long long address) {
    return reinterpret_cast<T *>(AT_ADDRESS(address));
}

// ReLU as everywhere in this project: what is not a number stays so.
__device__ __forceinline__ float rectified(float value) { return value <= 0.f ? 0.f : value; }

// 1 / (1 + exp(-x)), by the exponential of a number that is not above 0; what is not a number stays so.
__device__ __forceinline__ float logistic(float value) {
    const float decayed = expf(-fabsf(value));
    return (value < 0.f ? decayed : 1.f) / (1.f + decayed);
}

// P(X < x) for a standard normal X, by the complementary error function, which keeps its digits in the lower tail; and the
// density at x.
__device__ __forceinline__ float probability_below(float x) { return 0.5f * erfcf(-0.70710678f * x); }
__device__ __forceinline__ float density(float x) { return 0.39894228f * expf(-0.5f * x * x); }

// The number of this thread among all of the grid, along x.
__device__ __forceinline__ unsigned global_index() { return blockIdx.x * THREADS + threadIdx.x; }
