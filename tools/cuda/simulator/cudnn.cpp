// libcudnn.so.9: convolutions of NHWC tensors, f32 or bf16, by their definition and summed in f64. It checks what cuDNN
// leaves to its users: that sizes of descriptors agree, that an algorithm is one it has offered and its workspace as large
// as it said, and that f32 is not computed on tensor cores, unless it may be: then its factors are rounded to TF32.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "memory.h"
#include "stream.h"

namespace {
enum { SUCCESS = 0, BAD_PARAM = 2000, NOT_SUPPORTED = 3000, NOT_SUPPORTED_SHAPE = 3002 };
enum { NHWC = 1, FLOAT = 0, BFLOAT16 = 9, DEFAULT_MATH = 0, TENSOR_OP_MATH = 1, FMA_MATH = 3 };

// Sizes as cuDNN names them: images, channels, height, width; of a filter: outputs, inputs, height, width.
struct Tensor {
    int format = -1, type = -1, sizes[4] = {};
    bool bf16() const { return type == BFLOAT16; }
    size_t count() const { return (size_t)sizes[0] * sizes[1] * sizes[2] * sizes[3]; }
};

struct Convolution {
    int padding[2], stride[2], dilation[2], mode, type, math = 0;
};

struct Algorithm {
    int algorithm, status;
    float time;
    size_t memory;
    int determinism, math, reserved[3];
};

// One that repeats its bits, one that rounds, and one that is offered and then refused; and the workspace that they need.
constexpr int REPEATABLE = 1, ROUNDING = 4, PROMISED = 3;
constexpr size_t WORKSPACE = 4096;

int refuse(const char *what) {
    fprintf(stderr, "simulated cuDNN: %s\n", what);
    return BAD_PARAM;
}

int check(const Tensor *x, const Tensor *w, const Tensor *y, const Convolution *c) {
    if (x->format != NHWC || w->format != NHWC || y->format != NHWC) return refuse("a layout that is not NHWC");
    if (x->type != w->type || x->type != y->type || c->type != FLOAT) return refuse("types that do not fit");
    if (c->mode != 1 || c->dilation[0] != 1 || c->dilation[1] != 1) return refuse("no plain cross-correlation");
    const bool known = c->math == TENSOR_OP_MATH || (!x->bf16() && (c->math == DEFAULT_MATH || c->math == FMA_MATH));
    if (!known) return refuse("products that are rounded otherwise than asked");
    const auto out = [&](int d) { return (x->sizes[2 + d] + 2 * c->padding[d] - w->sizes[2 + d]) / c->stride[d] + 1; };
    const bool fits = x->sizes[0] == y->sizes[0] && x->sizes[1] == w->sizes[1] && y->sizes[1] == w->sizes[0] &&
                      y->sizes[2] == out(0) && y->sizes[3] == out(1);
    return fits ? SUCCESS : refuse("sizes that do not fit");
}

int offer(int asked, int *returned, Algorithm *list, const Convolution *c) {
    const int math = c->math == FMA_MATH ? FMA_MATH : TENSOR_OP_MATH;
    const Algorithm all[] = {
        {5, NOT_SUPPORTED, -1, 0, 1, math, {}},
        // What rounds factors, offered also to those who forbid it.
        {c->math == FMA_MATH ? ROUNDING : REPEATABLE, SUCCESS, .5, WORKSPACE, 1, TENSOR_OP_MATH, {}},
        {PROMISED, SUCCESS, .7f, WORKSPACE, 1, math, {}},
        {0, SUCCESS, 1, 0, 0, math, {}},                    // the fastest, whose bits do not repeat
        {6, SUCCESS, 2, 1ull << 40, 1, math, {}},           // more memory than there is
        {REPEATABLE, SUCCESS, 3, WORKSPACE, 1, math, {}},
    };
    *returned = 0;
    while (*returned < asked && *returned < 6) list[*returned] = all[*returned], ++*returned;
    return SUCCESS;
}

// With TSBD_SIMULATED_CUDNN=eights, bf16 is multiplied only where both numbers of channels are multiples of 8.
int chosen(int algorithm, const void *workspace, size_t bytes, const Tensor *w) {
    const char *setting = getenv("TSBD_SIMULATED_CUDNN");
    const bool eights = w->bf16() && setting && !strcmp(setting, "eights");
    if (algorithm == PROMISED || (eights && (w->sizes[0] % 8 || w->sizes[1] % 8))) return NOT_SUPPORTED_SHAPE;
    if (algorithm == ROUNDING) return refuse("an algorithm that rounds factors, which was forbidden");
    if (algorithm != REPEATABLE) return refuse("an algorithm whose bits do not repeat, though there is one whose do");
    return workspace && bytes >= WORKSPACE ? SUCCESS : refuse("a workspace that is too small");
}

// The factors at an address, as they are multiplied.
std::vector<double> factors(const void *at, const Tensor &tensor, const Convolution &c) {
    auto values = numbers(on_host(at), tensor.bf16(), tensor.count());
    if (!tensor.bf16() && c.math != FMA_MATH)
        for (float &value : values) {
            uint32_t bits;
            memcpy(&bits, &value, 4);
            if ((bits >> 23 & 255) != 255) bits = (bits + 0xFFF + (bits >> 13 & 1)) & ~0x1FFFu;
            memcpy(&value, &bits, 4);
        }
    return {values.begin(), values.end()};
}

// sums[i] += Σ factors[k] · rows[k][i]: factors `apart` from each other, each row `stride` after the last.
template <size_t COUNT>
void add_block(double *sums, size_t count, const double *factors, size_t apart, const double *rows, size_t stride) {
    double block[COUNT];
    memcpy(block, sums, sizeof block);
    for (size_t k = 0; k < count; k++)
        for (size_t i = 0; i < COUNT; i++) block[i] += factors[k * apart] * rows[k * stride + i];
    memcpy(sums, block, sizeof block);
}

void add_products(double *sums, size_t width, size_t count, const double *factors, size_t apart, const double *rows,
                  size_t stride) {
    size_t i = 0;
    for (; i + 32 <= width; i += 32) add_block<32>(sums + i, count, factors, apart, rows + i, stride);
    for (; i + 8 <= width; i += 8) add_block<8>(sums + i, count, factors, apart, rows + i, stride);
    for (; i < width; i++) add_block<1>(sums + i, count, factors, apart, rows + i, stride);
}

// Calls `visit(x, tap, y, count)` for all products: with the places of the first pixels of each row of them, `count` in number.
template <typename F> void each_row(const Tensor &x, const Tensor &w, const Tensor &y, const Convolution &c, F visit) {
    const int inputs = w.sizes[1], outputs = w.sizes[0], height = x.sizes[2], width = x.sizes[3];
    for (int n = 0; n < y.sizes[0]; n++)
        for (int i = 0; i < y.sizes[2]; i++)
            for (int p = 0; p < w.sizes[2]; p++) {
                const int row = i * c.stride[0] + p - c.padding[0];
                if (row < 0 || row >= height) continue;
                for (int q = 0; q < w.sizes[3]; q++) {
                    const auto column = [&](int j) { return j * c.stride[1] + q - c.padding[1]; };
                    int first = 0, end = y.sizes[3];
                    while (first < end && column(first) < 0) first++;
                    while (first < end && column(end - 1) >= width) end--;
                    if (first == end) continue;
                    const size_t at_x = (((size_t)n * height + row) * width + column(first)) * inputs;
                    const size_t at_y = (((size_t)n * y.sizes[2] + i) * y.sizes[3] + first) * outputs;
                    visit(at_x, p * (size_t)w.sizes[3] + q, at_y, (size_t)(end - first));
                }
            }
}

void finish(const std::vector<double> &sums, float alpha, float beta, void *to, bool bf16) {
    for (size_t i = 0; i < sums.size(); i++)
        set_number(to, bf16, i, alpha * sums[i] + (beta ? beta * number(to, bf16, i) : 0));
}
} // namespace

extern "C" {
struct Handle {
    void *stream = nullptr;
};

// As cuDNN does, of what it lacks it says no more than that it is not initialised (1001).
int cudnnCreate(Handle **handle) { return simulated_handle(true) ? 1001 : (*handle = new Handle, 0); }
int cudnnDestroy(Handle *handle) { return delete handle, simulated_handle(false) ? 1001 : 0; }
int cudnnSetStream(Handle *handle, void *stream) { return handle->stream = stream, 0; }
const char *cudnnGetErrorString(int) { return "simulated"; }
void cudnnGetLastErrorString(char *text, size_t size) { snprintf(text, size, "no last error is kept"); }
int cudnnCreateTensorDescriptor(Tensor **d) { return *d = new Tensor, 0; }
int cudnnDestroyTensorDescriptor(Tensor *d) { return delete d, 0; }
int cudnnCreateFilterDescriptor(Tensor **d) { return *d = new Tensor, 0; }
int cudnnDestroyFilterDescriptor(Tensor *d) { return delete d, 0; }
int cudnnCreateConvolutionDescriptor(Convolution **d) { return *d = new Convolution, 0; }
int cudnnDestroyConvolutionDescriptor(Convolution *d) { return delete d, 0; }
int cudnnSetTensor4dDescriptor(Tensor *d, int format, int type, int n, int c, int h, int w) {
    return *d = {format, type, {n, c, h, w}}, 0;
}
int cudnnSetFilter4dDescriptor(Tensor *d, int type, int format, int k, int c, int h, int w) {
    return *d = {format, type, {k, c, h, w}}, 0;
}
int cudnnSetConvolution2dDescriptor(Convolution *d, int pad_h, int pad_w, int u, int v, int dilation_h, int dilation_w,
                                    int mode, int type) {
    return *d = {{pad_h, pad_w}, {u, v}, {dilation_h, dilation_w}, mode, type}, 0;
}
int cudnnSetConvolutionMathType(Convolution *d, int math) { return d->math = math, 0; }

int cudnnGetConvolutionForwardAlgorithm_v7(void *, Tensor *x, Tensor *w, Convolution *c, Tensor *y, int asked, int *returned,
                                           Algorithm *list) {
    const int wrong = check(x, w, y, c);
    return wrong ? wrong : offer(asked, returned, list, c);
}
int cudnnGetConvolutionBackwardDataAlgorithm_v7(void *, Tensor *w, Tensor *y, Convolution *c, Tensor *x, int asked,
                                                int *returned, Algorithm *list) {
    const int wrong = check(x, w, y, c);
    return wrong ? wrong : offer(asked, returned, list, c);
}
int cudnnGetConvolutionBackwardFilterAlgorithm_v7(void *, Tensor *x, Tensor *y, Convolution *c, Tensor *w, int asked,
                                                  int *returned, Algorithm *list) {
    const int wrong = check(x, w, y, c);
    return wrong ? wrong : offer(asked, returned, list, c);
}

int cudnnConvolutionForward(Handle *handle, const float *alpha, Tensor *x, const void *x_at, Tensor *w, const void *w_at,
                            Convolution *c, int algorithm, void *workspace, size_t bytes, const float *beta, Tensor *y,
                            void *y_at) {
    if (const int wrong = check(x, w, y, c)) return wrong;
    if (const int wrong = chosen(algorithm, workspace, bytes, w)) return wrong;
    return simulated_work(handle->stream, [=, x = *x, w = *w, y = *y, c = *c, alpha = *alpha, beta = *beta] {
        const auto image = factors(x_at, x, c), filter = factors(w_at, w, c);
        const size_t inputs = w.sizes[1], outputs = w.sizes[0], patch = (size_t)w.sizes[2] * w.sizes[3] * inputs;
        // Between the inputs of one output and of the next.
        const size_t step = c.stride[1] * inputs;
        // For each element of a patch, its factors for all outputs.
        std::vector<double> turned(filter.size()), sums(y.count());
        for (size_t out = 0; out < outputs; out++)
            for (size_t in = 0; in < patch; in++) turned[in * outputs + out] = filter[out * patch + in];
        each_row(x, w, y, c, [&](size_t at_x, size_t tap, size_t at_y, size_t pixels) {
            for (size_t j = 0; j < pixels; j++)
                add_products(&sums[at_y + j * outputs], outputs, inputs, &image[at_x + j * step], 1,
                             &turned[tap * inputs * outputs], outputs);
        });
        return finish(sums, alpha, beta, on_host(y_at), x.bf16()), SUCCESS;
    });
}

int cudnnConvolutionBackwardData(Handle *handle, const float *alpha, Tensor *w, const void *w_at, Tensor *y, const void *y_at,
                                 Convolution *c, int algorithm, void *workspace, size_t bytes, const float *beta, Tensor *x,
                                 void *x_at) {
    if (const int wrong = check(x, w, y, c)) return wrong;
    if (const int wrong = chosen(algorithm, workspace, bytes, w)) return wrong;
    return simulated_work(handle->stream, [=, x = *x, w = *w, y = *y, c = *c, alpha = *alpha, beta = *beta] {
        const auto gradient = factors(y_at, y, c), filter = factors(w_at, w, c);
        const size_t inputs = w.sizes[1], outputs = w.sizes[0], patch = (size_t)w.sizes[2] * w.sizes[3] * inputs;
        // Between the inputs of one output and of the next.
        const size_t step = c.stride[1] * inputs;
        std::vector<double> sums(x.count());
        each_row(x, w, y, c, [&](size_t at_x, size_t tap, size_t at_y, size_t pixels) {
            for (size_t j = 0; j < pixels; j++)
                add_products(&sums[at_x + j * step], inputs, outputs, &gradient[at_y + j * outputs], 1,
                             &filter[tap * inputs], patch);
        });
        return finish(sums, alpha, beta, on_host(x_at), x.bf16()), SUCCESS;
    });
}

int cudnnConvolutionBackwardFilter(Handle *handle, const float *alpha, Tensor *x, const void *x_at, Tensor *y, const void *y_at,
                                   Convolution *c, int algorithm, void *workspace, size_t bytes, const float *beta, Tensor *w,
                                   void *w_at) {
    if (const int wrong = check(x, w, y, c)) return wrong;
    if (const int wrong = chosen(algorithm, workspace, bytes, w)) return wrong;
    return simulated_work(handle->stream, [=, x = *x, w = *w, y = *y, c = *c, alpha = *alpha, beta = *beta] {
        const auto image = factors(x_at, x, c), gradient = factors(y_at, y, c);
        const size_t inputs = w.sizes[1], outputs = w.sizes[0], patch = (size_t)w.sizes[2] * w.sizes[3] * inputs;
        // Between the inputs of one output and of the next.
        const size_t step = c.stride[1] * inputs;
        std::vector<double> sums(w.count());
        each_row(x, w, y, c, [&](size_t at_x, size_t tap, size_t at_y, size_t pixels) {
            for (size_t out = 0; out < outputs; out++)
                add_products(&sums[out * patch + tap * inputs], inputs, pixels, &gradient[at_y + out], outputs, &image[at_x],
                             step);
        });
        return finish(sums, alpha, beta, on_host(w_at), x.bf16()), SUCCESS;
    });
}
}
