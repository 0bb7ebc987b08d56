// All kernels, as one module.
//
// Kernels that read or write large tensors exist once for each way in which these are stored and accessed, in a namespace
// of its own: T is the element type in memory, V how many elements of a row one thread takes at once (16 bytes where the
// rows allow it, else one). Numbers are always computed in f32; what few numbers there are, in f64.
//
// Tests without a GPU compile this file with a C++ compiler (emulator.cpp): the kernels use threadIdx.x, blockIdx.x and
// .y, gridDim.x, static shared memory and __syncthreads, and nothing else of CUDA. Every block has THREADS threads.
#include "common.cuh"

#include "coefficients.cuh"
#include "loss.cuh"
#include "curvature.cuh"
#include "optimizer.cuh"
#include "augmentation.cuh"
#include "split.cuh"
#include "transpose.cuh"
#include "binary_cross_entropy.cuh"
#include "row.cuh"

namespace f32x4 {
typedef float T;
constexpr int V = 4;
#define NAME(kernel) kernel##_f32x4
#include "elementwise.cuh"
#include "normalization.cuh"
#include "places.cuh"
#include "resize.cuh"
#include "rows.cuh"
#include "row_normalization.cuh"
#undef NAME
}

namespace f32x1 {
typedef float T;
constexpr int V = 1;
#define NAME(kernel) kernel##_f32x1
#include "elementwise.cuh"
#include "normalization.cuh"
#include "places.cuh"
#include "resize.cuh"
#include "rows.cuh"
#include "row_normalization.cuh"
#include "pooling.cuh"
#include "grid_sample.cuh"
#undef NAME
}

namespace bf16x8 {
typedef bf16 T;
constexpr int V = 8;
#define NAME(kernel) kernel##_bf16x8
#include "elementwise.cuh"
#include "normalization.cuh"
#include "places.cuh"
#include "resize.cuh"
#include "rows.cuh"
#include "row_normalization.cuh"
#undef NAME
}

namespace bf16x1 {
typedef bf16 T;
constexpr int V = 1;
#define NAME(kernel) kernel##_bf16x1
#include "elementwise.cuh"
#include "normalization.cuh"
#include "places.cuh"
#include "resize.cuh"
#include "rows.cuh"
#include "row_normalization.cuh"
#include "pooling.cuh"
#include "grid_sample.cuh"
#undef NAME
}
