// What Candle's own kernels do, as far as this project calls them: by name and parameters as in candle-kernels 0.11.
#pragma once
#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <string>

#include "memory.h"

struct CandleKernel {
    static constexpr int MOST_PARAMETERS = 10;
    // How many it has.
    int parameters = 0;
    std::function<void(void **)> run;
};

namespace {
// An element of 16 bits, computed with in f32.
struct Short {
    uint16_t bits;
    Short() = default;
    template <typename N> Short(N value) : bits(narrowed((float)value)) {}
    operator float() const { return widened(bits); }
};

// What is computed with.
template <typename T> T wide(T value) { return value; }
float wide(Short value) { return value; }

template <typename P> P parameter(void **parameters, int index) {
    P value;
    memcpy(&value, parameters[index], sizeof value);
    if constexpr (std::is_pointer_v<P>) return on_host(value);
    return value;
}

// Where element `index` lies; `info` has the sizes, then the strides of one or more arrays. Null: one after the other.
struct Layout {
    size_t dimensions;
    const size_t *info;
    size_t at(size_t index, size_t array = 0) const {
        if (!info) return index;
        size_t place = 0;
        for (size_t d = dimensions; d-- > 0;) {
            place += index % info[d] * info[(1 + array) * dimensions + d];
            index /= info[d];
        }
        return place;
    }
};

Layout layout(void **parameters) { return {parameter<size_t>(parameters, 1), parameter<const size_t *>(parameters, 2)}; }

template <typename T, typename F> CandleKernel unary(F f) {
    return {5, [f](void **p) {
        const size_t count = parameter<size_t>(p, 0);
        const Layout from = layout(p);
        const T *x = parameter<const T *>(p, 3);
        T *y = parameter<T *>(p, 4);
        for (size_t i = 0; i < count; i++) y[i] = T(f(wide(x ? x[from.at(i)] : y[i])));
    }};
}

template <typename T, typename R, typename F> CandleKernel binary(F f) {
    return {6, [f](void **p) {
        const size_t count = parameter<size_t>(p, 0);
        const Layout from = layout(p);
        const T *a = parameter<const T *>(p, 3), *b = parameter<const T *>(p, 4);
        R *c = parameter<R *>(p, 5);
        for (size_t i = 0; i < count; i++) c[i] = R(f(wide(a[from.at(i, 0)]), wide(b[from.at(i, 1)])));
    }};
}

template <typename S, typename T> void cast(void **p) {
    const size_t count = parameter<size_t>(p, 0);
    const Layout from = layout(p);
    const S *x = parameter<const S *>(p, 3);
    T *y = parameter<T *>(p, 4);
    for (size_t i = 0; i < count; i++) y[i] = T(wide(x[from.at(i)]));
}

template <typename T> void affine(void **p) {
    const size_t count = parameter<size_t>(p, 0);
    const Layout from = layout(p);
    const T *x = parameter<const T *>(p, 3);
    T *y = parameter<T *>(p, 4);
    const T factor = parameter<T>(p, 5), term = parameter<T>(p, 6);
    for (size_t i = 0; i < count; i++) y[i] = T((x ? x[from.at(i)] : y[i]) * factor + term);
}

template <typename T> void power(void **p) {
    const size_t count = parameter<size_t>(p, 0);
    const Layout from = layout(p);
    const T exponent = parameter<T>(p, 3);
    const T *x = parameter<const T *>(p, 4);
    T *y = parameter<T *>(p, 5);
    for (size_t i = 0; i < count; i++) y[i] = T(std::pow(wide(x[from.at(i)]), wide(exponent)));
}

template <typename T> void fill(void **p) {
    T *y = parameter<T *>(p, 0);
    const T value = parameter<T>(p, 1);
    std::fill(y, y + parameter<size_t>(p, 2), value);
}

template <typename T> void const_set(void **p) {
    const size_t count = parameter<size_t>(p, 0);
    const Layout to = layout(p);
    const T value = parameter<T>(p, 3);
    T *y = parameter<T *>(p, 4);
    for (size_t i = 0; i < count; i++) y[to.at(i)] = value;
}

template <typename T> void copy2d(void **p) {
    const T *from = parameter<const T *>(p, 0);
    T *to = parameter<T *>(p, 1);
    const uint32_t rows = parameter<uint32_t>(p, 2), columns = parameter<uint32_t>(p, 3);
    const uint32_t from_stride = parameter<uint32_t>(p, 4), to_stride = parameter<uint32_t>(p, 5);
    for (size_t row = 0; row < rows; row++)
        std::copy_n(from + row * from_stride, columns, to + row * to_stride);
}

template <typename T, typename I> void index_select(void **p) {
    const size_t count = parameter<size_t>(p, 0);
    const I *ids = parameter<const I *>(p, 3);
    const T *x = parameter<const T *>(p, 4);
    T *y = parameter<T *>(p, 5);
    const size_t source = parameter<size_t>(p, 7), chosen = parameter<size_t>(p, 8), right = parameter<size_t>(p, 9);
    for (size_t i = 0; i < count; i++)
        y[i] = x[(i / (chosen * right) * source + ids[i / right % chosen]) * right + i % right];
}

template <typename T, typename C> void where(void **p) {
    const size_t count = parameter<size_t>(p, 0);
    const Layout from = layout(p);
    const C *condition = parameter<const C *>(p, 3);
    const T *yes = parameter<const T *>(p, 4), *no = parameter<const T *>(p, 5);
    T *y = parameter<T *>(p, 6);
    for (size_t i = 0; i < count; i++) y[i] = condition[from.at(i, 0)] ? yes[from.at(i, 1)] : no[from.at(i, 2)];
}

// For each result, `step` over as many elements, the last dimensions; `is_index`: of the one that is kept.
template <typename T, typename F> CandleKernel reduce(bool is_index, bool counts_results, F replaces_or_sum) {
    return {6, [=](void **p) {
        const size_t each = parameter<size_t>(p, 1);
        const size_t results = counts_results ? parameter<size_t>(p, 0) : parameter<size_t>(p, 0) / each;
        const Layout from = {parameter<size_t>(p, 2), parameter<const size_t *>(p, 3)};
        const T *x = parameter<const T *>(p, 4);
        void *y = parameter<void *>(p, 5);
        for (size_t result = 0; result < results; result++) {
            T kept = x[from.at(result * each)];
            uint32_t place = 0;
            for (size_t i = 1; i < each; i++) {
                if (replaces_or_sum(kept, x[from.at(result * each + i)])) place = (uint32_t)i;
            }
            if (is_index) ((uint32_t *)y)[result] = place;
            else ((T *)y)[result] = kept;
        }
    }};
}

using Kernels = std::map<std::string, CandleKernel>;

template <typename T> void of_numbers(Kernels &all, const std::string &t) {
    all["affine_" + t] = {7, affine<T>};
    all["upowf_" + t] = {6, power<T>};
    all["fill_" + t] = {3, fill<T>};
    all["const_set_" + t] = {5, const_set<T>};
    all["copy2d_" + t] = {6, copy2d<T>};
    all["is_u32_" + t] = {10, index_select<T, uint32_t>};
    all["is_i64_" + t] = {10, index_select<T, int64_t>};
    all["where_u8_" + t] = {7, where<T, uint8_t>};
    all["where_u32_" + t] = {7, where<T, uint32_t>};
    all["ucopy_" + t] = unary<T>([](auto x) { return x; });
    all["uneg_" + t] = unary<T>([](auto x) { return -x; });
    all["uabs_" + t] = unary<T>([](auto x) { return x < 0 ? -x : x; });
    all["usign_" + t] = unary<T>([](auto x) { return (x > 0) - (x < 0); });
    all["usqr_" + t] = unary<T>([](auto x) { return x * x; });
    all["usqrt_" + t] = unary<T>([](auto x) { return std::sqrt(x); });
    all["uexp_" + t] = unary<T>([](auto x) { return std::exp(x); });
    all["ulog_" + t] = unary<T>([](auto x) { return std::log(x); });
    all["urecip_" + t] = unary<T>([](auto x) { return 1 / x; });
    all["utanh_" + t] = unary<T>([](auto x) { return std::tanh(x); });
    all["urelu_" + t] = unary<T>([](auto x) { return x > 0 ? x : x * 0; });
    all["badd_" + t] = binary<T, T>([](auto a, auto b) { return a + b; });
    all["bsub_" + t] = binary<T, T>([](auto a, auto b) { return a - b; });
    all["bmul_" + t] = binary<T, T>([](auto a, auto b) { return a * b; });
    all["bdiv_" + t] = binary<T, T>([](auto a, auto b) { return a / b; });
    all["bmaximum_" + t] = binary<T, T>([](auto a, auto b) { return a > b ? a : b; });
    all["bminimum_" + t] = binary<T, T>([](auto a, auto b) { return a < b ? a : b; });
    all["eq_" + t] = binary<T, uint8_t>([](auto a, auto b) { return a == b; });
    all["ne_" + t] = binary<T, uint8_t>([](auto a, auto b) { return a != b; });
    all["lt_" + t] = binary<T, uint8_t>([](auto a, auto b) { return a < b; });
    all["le_" + t] = binary<T, uint8_t>([](auto a, auto b) { return a <= b; });
    all["gt_" + t] = binary<T, uint8_t>([](auto a, auto b) { return a > b; });
    all["ge_" + t] = binary<T, uint8_t>([](auto a, auto b) { return a >= b; });
    const auto sum = [](T &kept, T value) { return kept = T(kept + value), false; };
    const auto larger = [](T &kept, T value) { return value > kept ? (kept = value, true) : false; };
    const auto smaller = [](T &kept, T value) { return value < kept ? (kept = value, true) : false; };
    all["fast_sum_" + t] = reduce<T>(false, false, sum);
    all["fast_sum_small_" + t] = reduce<T>(false, true, sum);
    all["fast_max_" + t] = reduce<T>(false, false, larger);
    all["fast_min_" + t] = reduce<T>(false, false, smaller);
    all["fast_argmax_" + t] = reduce<T>(true, false, larger);
    all["fast_argmin_" + t] = reduce<T>(true, false, smaller);
    all["cast_" + t + "_f32"] = {5, cast<T, float>};
    all["cast_" + t + "_f64"] = {5, cast<T, double>};
    all["cast_" + t + "_bf16"] = {5, cast<T, Short>};
    all["cast_" + t + "_u32"] = {5, cast<T, uint32_t>};
    all["cast_" + t + "_u8"] = {5, cast<T, uint8_t>};
    all["cast_" + t + "_i64"] = {5, cast<T, int64_t>};
}
} // namespace

// The kernel of this name; empty if there is none here.
static CandleKernel candle_kernel(const std::string &name) {
    static const Kernels all = [] {
        Kernels all;
        of_numbers<float>(all, "f32");
        of_numbers<double>(all, "f64");
        of_numbers<Short>(all, "bf16");
        of_numbers<uint32_t>(all, "u32");
        of_numbers<uint8_t>(all, "u8");
        of_numbers<int64_t>(all, "i64");
        return all;
    }();
    const auto found = all.find(name);
    return found == all.end() ? CandleKernel() : found->second;
}
