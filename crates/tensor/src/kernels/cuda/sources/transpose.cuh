// Matrices transposed: weights of convolutions are [kh][kw][in][out] in this project and [out][kh][kw][in] in cuDNN, where
// they have the element type of the activations.
#pragma once

// [rows][columns] to [columns][rows]; block (x, y) moves the tile of columns 32 x .. and rows 32 y ..
template <typename From, typename To>
__device__ __forceinline__ void transpose(const From *from, To *to, int rows, int columns) {
    constexpr int TILE = 32;
    __shared__ From tile[TILE][TILE + 1];
    const int across = threadIdx.x % TILE, down = threadIdx.x / TILE;
    const int left = blockIdx.x * TILE, top = blockIdx.y * TILE;
    for (int i = down; i < TILE; i += THREADS / TILE) {
        if (top + i < rows && left + across < columns)
            tile[i][across] = from[(size_t)(top + i) * columns + left + across];
    }
    __syncthreads();
    for (int i = down; i < TILE; i += THREADS / TILE) {
        if (left + i < columns && top + across < rows)
            to[(size_t)(left + i) * rows + top + across] = Narrow<To>::of(wide(tile[across][i]));
    }
}

#define TRANSPOSE(name, From, To)                                                                                   \
    extern "C" __global__ void transpose_##name(const From *from, To *to, int rows, int columns) {                  \
        transpose<From, To>(from, to, rows, columns);                                                               \
    }
TRANSPOSE(f32_to_f32, float, float)
TRANSPOSE(f32_to_bf16, float, bf16)
TRANSPOSE(bf16_to_f32, bf16, float)
TRANSPOSE(bf16_to_bf16, bf16, bf16)
#undef TRANSPOSE
