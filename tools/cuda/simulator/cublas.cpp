// libcublas.so.13: the products that Candle asks for, summed in f64. TF32 is refused: nobody here asks for it.
#include <cstdio>
#include <vector>

#include "memory.h"
#include "stream.h"

enum Type { F32 = 0, F64 = 1, BF16 = 14 };

// Columns one after the other; `transposed` as cuBLAS means it.
template <typename Read, typename Write>
static void product(int ta, int tb, int m, int n, int k, double alpha, Read a, int lda, long long stride_a, Read b, int ldb,
                    long long stride_b, double beta, Write c, int ldc, long long stride_c, int batch) {
    // Factors of one sum lie one after the other.
    std::vector<double> left((size_t)m * k), right((size_t)k * n);
    for (long long i = 0; i < batch; i++) {
        for (long long row = 0; row < m; row++)
            for (long long inner = 0; inner < k; inner++)
                left[row * k + inner] = a(0, i * stride_a + (ta ? inner + row * lda : row + inner * lda));
        for (long long column = 0; column < n; column++)
            for (long long inner = 0; inner < k; inner++)
                right[column * k + inner] = b(1, i * stride_b + (tb ? column + inner * ldb : inner + column * ldb));
        for (long long column = 0; column < n; column++)
            for (long long row = 0; row < m; row++) {
                double sum = 0;
                for (long long inner = 0; inner < k; inner++) sum += left[row * k + inner] * right[column * k + inner];
                c(i * stride_c + row + column * ldc, alpha * sum, beta);
            }
    }
}

extern "C" {
struct Handle {
    void *stream = nullptr;
};

// As cuBLAS does, of what it lacks it says no more than that it is not initialised (1).
int cublasCreate_v2(Handle **handle) { return simulated_handle(true) ? 1 : (*handle = new Handle, 0); }
int cublasDestroy_v2(Handle *handle) { return delete handle, simulated_handle(false) ? 1 : 0; }
int cublasSetStream_v2(Handle *handle, void *stream) { return handle->stream = stream, 0; }

int cublasGemmStridedBatchedEx(Handle *handle, int ta, int tb, int m, int n, int k, const void *alpha, const void *a, int type_a,
                               int lda, long long stride_a, const void *b, int type_b, int ldb, long long stride_b,
                               const void *beta, void *c, int type_c, int ldc, long long stride_c, int batch, int compute,
                               int) {
    const int f32 = 68;
    if (compute != f32 || type_a != type_b || type_a != type_c || (type_a != F32 && type_a != BF16)) {
        fprintf(stderr, "simulated cuBLAS: a product of types %d, computed as %d\n", type_a, compute);
        return 15;
    }
    const bool bf16 = type_a == BF16;
    const float factor = *(const float *)alpha, kept = *(const float *)beta;
    return simulated_work(handle->stream, [=] {
        const void *factors[] = {on_host(a), on_host(b)};
        void *result = on_host(c);
        const auto read = [&](int which, long long index) { return (double)number(factors[which], bf16, index); };
        const auto write = [&](long long index, double value, double beta) {
            set_number(result, bf16, index, value + (beta ? beta * number(result, bf16, index) : 0));
        };
        product(ta, tb, m, n, k, factor, read, lda, stride_a, read, ldb, stride_b, kept, write, ldc, stride_c, batch);
        return 0;
    });
}

int cublasDgemmStridedBatched(Handle *handle, int ta, int tb, int m, int n, int k, const double *alpha, const double *a,
                              int lda, long long stride_a, const double *b, int ldb, long long stride_b, const double *beta,
                              double *c, int ldc, long long stride_c, int batch) {
    const double factor = *alpha, kept = *beta;
    return simulated_work(handle->stream, [=] {
        const double *factors[] = {on_host(a), on_host(b)};
        double *result = on_host(c);
        const auto read = [&](int which, long long index) { return factors[which][index]; };
        const auto write = [&](long long index, double value, double beta) {
            result[index] = value + (beta ? beta * result[index] : 0);
        };
        product(ta, tb, m, n, k, factor, read, lda, stride_a, read, ldb, stride_b, kept, write, ldc, stride_c, batch);
        return 0;
    });
}
}
