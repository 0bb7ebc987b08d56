// Matrices transposed: weights of convolutions are [kh][kw][in][out] in this project and [out][kh][kw][in] in cuDNN.
// [rows][columns] to [columns][rows]; block (x, y) moves the tile of columns 32 x .. and rows 32 y ..
extern "C" __global__ void NAME(transpose)(const T *from, T *to, int rows, int columns) {
    constexpr int TILE = 32;
    __shared__ T tile[TILE][TILE + 1];
    const int across = threadIdx.x % TILE, down = threadIdx.x / TILE;
    const int left = blockIdx.x * TILE, top = blockIdx.y * TILE;
    for (int i = down; i < TILE; i += THREADS / TILE) {
        if (top + i < rows && left + across < columns)
            tile[i][across] = from[(size_t)(top + i) * columns + left + across];
    }
    __syncthreads();
    for (int i = down; i < TILE; i += THREADS / TILE) {
        if (left + i < columns && top + across < rows) to[(size_t)(left + i) * rows + top + across] = tile[across][i];
    }
}
