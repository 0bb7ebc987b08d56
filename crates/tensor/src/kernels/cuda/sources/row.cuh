// Sums and maxima over single rows, for rows.cuh and row_normalization.cuh: some threads of a block, a power of two of them, share a row.
#pragma once

// What a thread does: packs first + lane, first + lane + lanes, ... before `end`, of row `index`. The last row may be shorter
// than the others, and the last block may have fewer rows than it has threads for.
struct Row {
    int lane;
    unsigned index;
    size_t first, end;

    // Of `count` packs, `columns` to a row.
    __device__ __forceinline__ Row(unsigned count, unsigned columns, int lanes)
        : lane(threadIdx.x % lanes), index(blockIdx.x * (THREADS / lanes) + threadIdx.x / lanes),
          first((size_t)index * columns), end(first + columns < count ? first + columns : count) {}

    __device__ __forceinline__ bool exists() const { return first < end; }
};

// What the lanes of a row have, combined by twos, for each of them. All threads of a block have to call it.
template <typename N, typename Combine> __device__ __forceinline__ N row_joined(N own, int lanes, Combine combine) {
    __shared__ N shared[THREADS];
    const int me = threadIdx.x, lane = me % lanes;
    shared[me] = own;
    __syncthreads();
    for (int step = lanes / 2; step > 0; step /= 2) {
        if (lane < step) shared[me] = combine(shared[me], shared[me + step]);
        __syncthreads();
    }
    const N joined = shared[me - lane];
    __syncthreads();  // before the next call writes
    return joined;
}

__device__ __forceinline__ double row_sum(double own, int lanes) {
    return row_joined(own, lanes, [](double a, double b) { return a + b; });
}

// What is not a number is passed over.
__device__ __forceinline__ float row_largest(float own, int lanes) {
    return row_joined(own, lanes, [](float a, float b) { return fmaxf(a, b); });
}
