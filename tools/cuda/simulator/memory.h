// Addresses on the simulated GPU: those of the host, moved to where the host can touch nothing. What a kernel or a library
// is given is moved back; a host that follows such an address by itself is ended by the system, as with a real GPU.
#pragma once
#include <cstdint>
#include <cstring>
#include <vector>

static constexpr uint64_t MOVED = 1ull << 60;

template <typename T> static T *on_host(T *address) {
    return address ? reinterpret_cast<T *>(reinterpret_cast<uint64_t>(address) - MOVED) : nullptr;
}

// Numbers as they are stored, f32 or bf16, rounded to nearest even as the GPU does.
static inline float widened(uint16_t value) {
    const uint32_t bits = (uint32_t)value << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

static inline uint16_t narrowed(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline float number(const void *values, bool is_bf16, size_t index) {
    return is_bf16 ? widened(((const uint16_t *)values)[index]) : ((const float *)values)[index];
}

static inline std::vector<float> numbers(const void *values, bool is_bf16, size_t count) {
    std::vector<float> read(count);
    for (size_t i = 0; i < count; i++) read[i] = number(values, is_bf16, i);
    return read;
}

static inline void set_number(void *values, bool is_bf16, size_t index, double value) {
    if (is_bf16) ((uint16_t *)values)[index] = narrowed((float)value);
    else ((float *)values)[index] = (float)value;
}
