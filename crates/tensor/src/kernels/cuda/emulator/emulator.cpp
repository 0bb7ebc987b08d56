// Runs the kernels on a CPU: blocks one after another, the threads of a block as coroutines that change places at
// __syncthreads. The order is fixed, and can be turned round: results that depend on it show a missing barrier.
//
// Not emulated: warps, several blocks at once, memory that is not aligned, speed.

// It takes a jump from one stack to another for a mistake.
#undef _FORTIFY_SOURCE
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <type_traits>
#include <ucontext.h>
#include <vector>

struct Place {
    unsigned x, y;
};
static Place threadIdx, blockIdx, gridDim;
static void barrier();

#define __global__
#define __grid_constant__
#define __device__
#define __forceinline__ inline
// One block runs at a time.
#define __shared__ static
#define __syncthreads() barrier()
// By how much the addresses of the host that launches are larger than those here.
static uint64_t addresses_moved;
#define AT_ADDRESS(address) ((address) - addresses_moved)
#include "../sources/kernels.cu"

// --- the coroutines of one block ---

static constexpr size_t STACK = 64 * 1024;
static char stacks[THREADS][STACK];
// Where the scheduler and each coroutine go on. They are begun once, on their stacks, and then take one block after another; jumping
// keeps no signals, which would be a system call for every change.
static jmp_buf scheduler, coroutines[THREADS];
static bool begun[THREADS];
static bool finished[THREADS];
static unsigned running;
static const std::function<void()> *body;

static void barrier() {
    if (!_setjmp(coroutines[running])) _longjmp(scheduler, 1);
}

static void work() {
    for (;;) {
        (*body)();
        finished[running] = true;
        barrier();
    }
}

// Lets a thread run to its next barrier, or to its end.
static void resume(unsigned thread) {
    running = thread;
    threadIdx = {thread, 0};
    if (_setjmp(scheduler)) return;
    if (begun[thread]) _longjmp(coroutines[thread], 1);
    begun[thread] = true;
    ucontext_t first;
    getcontext(&first);
    first.uc_stack.ss_sp = stacks[thread];
    first.uc_stack.ss_size = STACK;
    first.uc_link = nullptr;
    makecontext(&first, work, 0);
    setcontext(&first);
}

// Whether all threads came to the same barriers.
static bool run_block(bool reversed) {
    memset(finished, 0, sizeof finished);
    for (;;) {
        unsigned done = 0;
        for (unsigned i = 0; i < THREADS; i++) {
            const unsigned thread = reversed ? THREADS - 1 - i : i;
            resume(thread);
            done += finished[thread];
        }
        if (done == THREADS) return true;
        if (done > 0) {
            // Some wait in the middle of this block.
            memset(begun, 0, sizeof begun);
            return false;
        }
    }
}

// --- arguments, as the host gives them ---

enum Kind : int32_t { READ, WRITE, INTEGER, NATURAL, SINGLE, DOUBLE, TABLE };
enum Element : int32_t { F32, BF16, U8, U32, I32, NOTHING };

struct Argument {
    Kind kind;
    union {
        Element element;
        // Numbers of a table.
        int32_t count;
    };
    union {
        void *pointer;
        int32_t integer;
        uint32_t natural;
        float single;
        double wide;
    };
};

template <typename T> constexpr Element element() {
    if constexpr (std::is_same_v<T, float>) return F32;
    else if constexpr (std::is_same_v<T, bf16>) return BF16;
    else if constexpr (std::is_same_v<T, uint8_t>) return U8;
    else if constexpr (std::is_same_v<T, uint32_t>) return U32;
    else return std::is_same_v<T, int32_t> ? I32 : NOTHING;
}

// The argument as a parameter of type P, or a complaint: CUDA itself checks nothing here.
template <typename P> static P convert(const Argument &argument, std::string &complaint) {
    if constexpr (std::is_pointer_v<P>) {
        using Target = std::remove_pointer_t<P>;
        const Kind wanted = std::is_const_v<Target> ? READ : WRITE;
        // A null pointer has no element type.
        const bool fits = !argument.pointer || argument.element == element<std::remove_const_t<Target>>();
        if (argument.kind != wanted || !fits) complaint += " a pointer does not fit its parameter;";
        return (P)argument.pointer;
    } else if constexpr (std::is_class_v<P>) {
        P table = {};
        if (argument.kind == TABLE && argument.count * sizeof(int64_t) == sizeof table)
            memcpy(&table, argument.pointer, sizeof table);
        else complaint += " a table of another size expected;";
        return table;
    } else if constexpr (std::is_same_v<P, float>) {
        if (argument.kind != SINGLE) complaint += " float expected;";
        return argument.single;
    } else if constexpr (std::is_same_v<P, double>) {
        if (argument.kind != DOUBLE) complaint += " double expected;";
        return argument.wide;
    } else if constexpr (std::is_same_v<P, unsigned>) {
        if (argument.kind != NATURAL) complaint += " unsigned expected;";
        return argument.natural;
    } else {
        static_assert(std::is_same_v<P, int>);
        if (argument.kind != INTEGER) complaint += " int expected;";
        return argument.integer;
    }
}

// The argument as CUDA's driver is given it: by its address, and pointers moved by `moved` bytes.
template <typename P> static P as_given(const void *argument, uint64_t moved) {
    P value;
    memcpy(&value, argument, sizeof value);
    if constexpr (std::is_pointer_v<P>) {
        if (value) value = (P)((uint64_t)value - moved);
    }
    return value;
}

// A kernel with its arguments, from either.
struct Bound {
    std::function<std::function<void()>(const Argument *, size_t, std::string &)> checked;
    std::function<std::function<void()>(void *const *, uint64_t)> given;
};

template <typename... P, size_t... I> static Bound bound(void (*kernel)(P...), std::index_sequence<I...>) {
    const auto checked = [kernel](const Argument *arguments, size_t count,
                                  std::string &complaint) -> std::function<void()> {
        if (count != sizeof...(P)) {
            complaint = " it takes " + std::to_string(sizeof...(P)) + " arguments, not " + std::to_string(count);
            return {};
        }
        const auto values = std::make_tuple(convert<P>(arguments[I], complaint)...);
        return [kernel, values] { std::apply(kernel, values); };
    };
    const auto given = [kernel](void *const *arguments, uint64_t moved) -> std::function<void()> {
        const auto values = std::make_tuple(as_given<P>(arguments[I], moved)...);
        return [kernel, values] { std::apply(kernel, values); };
    };
    return {checked, given};
}
template <typename... P> static Bound bind(void (*kernel)(P...)) {
    return bound(kernel, std::index_sequence_for<P...>());
}

static const std::map<std::string, Bound> &kernels() {
#define KERNEL(name) {#name, bind(name)}
#define KIND(name, kind) {#name "_" #kind, bind(kind::name##_##kind)}
#define ROWS(kind)                                                                                                  \
    KIND(moments, kind), KIND(add_bias, kind), KIND(column_sums, kind), KIND(affine, kind),                         \
        KIND(gradient_sums, kind), KIND(input_gradient, kind), KIND(row_sums, kind), KIND(normalized_rows, kind),   \
        KIND(normalized_rows_backward, kind), KIND(filled_rows, kind), KIND(repeated_row, kind)
#define MAPS(kind)                                                                                                  \
    KIND(add, kind), KIND(subtract, kind), KIND(multiply, kind), KIND(divide, kind), KIND(scale, kind),             \
        KIND(offset, kind), KIND(square_root, kind), KIND(square_root_backward, kind), KIND(absolute, kind),        \
        KIND(absolute_backward, kind), KIND(relu, kind), KIND(relu_backward, kind), KIND(sigmoid, kind),            \
        KIND(sigmoid_backward, kind), KIND(tanh, kind), KIND(tanh_backward, kind), KIND(gelu, kind),                 \
        KIND(gelu_backward, kind)
#define NORMALIZED(kind)                                                                                            \
    KIND(softmax, kind), KIND(softmax_backward, kind), KIND(layer_norm, kind), KIND(layer_norm_backward, kind),     \
        KIND(layer_norm_sums, kind)
#define SAMPLES(kind)                                                                                               \
    KIND(grid_sample, kind), KIND(grid_sample_grid_gradient, kind), KIND(grid_sample_image_gradient, kind)
#define PLACES(kind)                                                                                                \
    KIND(copy_columns, kind), KIND(place_images, kind), KIND(repeat_pixels, kind), KIND(repeat_pixels_backward, kind), \
        KIND(resize, kind), KIND(resize_backward, kind)
#define ELEMENTS(kind)                                                                                              \
    KIND(max_pool, kind), KIND(max_pool_backward, kind), KIND(max_pool_gather, kind), KIND(average_pool, kind), KIND(average_pool_backward, kind), \
        KIND(global_average_pool, kind), KIND(global_average_pool_backward, kind)
#define WIDTHS(kernels) kernels(f32x4), kernels(f32x1), kernels(bf16x8), kernels(bf16x1)
    static const std::map<std::string, Bound> all = {
        WIDTHS(ROWS), WIDTHS(MAPS), WIDTHS(NORMALIZED), WIDTHS(PLACES), ELEMENTS(f32x1), ELEMENTS(bf16x1),
        SAMPLES(f32x1), SAMPLES(bf16x1),
        KERNEL(column_sums_finish), KERNEL(moments_finish), KERNEL(running_coefficients), KERNEL(gradient_finish),
        KERNEL(cross_entropy), KERNEL(cross_entropy_backward), KERNEL(cross_entropy_tangent),
        KERNEL(cross_entropy_curvature), KERNEL(mean), KERNEL(count_correct), KERNEL(sgd), KERNEL(move_estimates), KERNEL(adam), KERNEL(amsgrad),
        KERNEL(binary_cross_entropy), KERNEL(binary_cross_entropy_backward), KERNEL(augment),
        KERNEL(split), KERNEL(transpose_f32_to_f32), KERNEL(transpose_f32_to_bf16), KERNEL(transpose_bf16_to_f32),
        KERNEL(transpose_bf16_to_bf16),
    };
    return all;
}

// Runs a kernel that has its arguments. Returns null, or what is wrong; the text is good until the next call.
static const char *run(const std::function<void()> &call, unsigned grid_x, unsigned grid_y, bool reversed) {
    body = &call;
    gridDim = {grid_x, grid_y};
    for (unsigned y = 0; y < grid_y; y++) {
        for (unsigned x = 0; x < grid_x; x++) {
            blockIdx = {x, y};
            if (!run_block(reversed)) return "the threads of a block came to different barriers";
        }
    }
    return nullptr;
}

// Runs a kernel and checks its arguments. Not for several threads at once, as what follows.
extern "C" const char *emulate(const char *name, unsigned grid_x, unsigned grid_y, const Argument *arguments,
                               size_t count, int reversed) {
    static std::string complaint;
    complaint.clear();
    const auto found = kernels().find(name);
    if (found == kernels().end()) return "there is no such kernel";
    const std::function<void()> call = found->second.checked(arguments, count, complaint);
    if (!complaint.empty()) return complaint.c_str();
    addresses_moved = 0;
    return run(call, grid_x, grid_y, reversed);
}

extern "C" bool is_kernel(const char *name) { return kernels().count(name) != 0; }

// A launch of a kernel of this project with the arguments that CUDA's driver is given, which are copied. Called, it returns
// null or what is wrong.
std::function<const char *()> prepared(const char *name, unsigned grid_x, unsigned grid_y, void *const *arguments,
                                       uint64_t moved) {
    return [=, call = kernels().at(name).given(arguments, moved)] {
        addresses_moved = moved;
        return run(call, grid_x, grid_y, false);
    };
}
