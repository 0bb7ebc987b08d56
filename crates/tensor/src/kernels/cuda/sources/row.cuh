// Sums over single rows, as rows.cuh makes them: some threads of a block, a power of two of them, share a row.
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

// The sum of what the lanes of a row have, for each of them. All threads of a block have to call it.
__device__ __forceinline__ double row_sum(double own, int lanes) {
    __shared__ double sums[THREADS];
    const int me = threadIdx.x, lane = me % lanes;
    sums[me] = own;
    __syncthreads();
    for (int step = lanes / 2; step > 0; step /= 2) {
        if (lane < step) sums[me] += sums[me + step];
        __syncthreads();
    }
    const double sum = sums[me - lane];
    __syncthreads();  // before the next call writes
    return sum;
}
