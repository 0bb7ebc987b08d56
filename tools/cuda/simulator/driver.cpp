// libcuda.so.1 of a GPU that does not exist. Streams do at once what they are asked for; the kernels of this project are
// those of crates/tensor/src/kernels/cuda/sources, compiled for the CPU (emulator.cpp); Candle's own are in candle.h, as far
// as this project uses them. A kernel that is unknown is named on standard error.
//
// Memory: TSBD_SIMULATED_MEMORY bytes (64 GiB); fresh memory holds numbers that are none. TSBD_SIMULATED_GPUS GPUs (1).
//
// Shown by it: that everything is launched that has to be, with arguments that fit, in an order that works; that every
// tensor is where it should be; what happens when memory runs out. Not shown: anything about time, about two streams, about
// the machine code of kernels.
#include <atomic>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "../../../crates/tensor/src/kernels/cuda/emulator/emulator.cpp"
#include "memory.h"

#include "candle.h"

enum Status {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    INVALID_DEVICE = 101,
    NOT_FOUND = 500,
    ILLEGAL_ADDRESS = 700,
};

namespace {
std::mutex lock;

struct Memory {
    std::unordered_map<uint64_t, size_t> sizes;
    size_t used = 0, most = 0;
} memory;

uint64_t setting(const char *name, uint64_t otherwise) {
    const char *text = getenv(name);
    return text ? strtoull(text, nullptr, 10) : otherwise;
}

int complain(Status status, const char *what, const std::string &about) {
    fprintf(stderr, "simulated GPU: %s: %s\n", what, about.c_str());
    return status;
}

// Something that has an address and nothing else: contexts, streams, events, modules.
void *handle() { return new char; }

int allocate(uint64_t *address, size_t bytes) {
    const std::lock_guard<std::mutex> guard(lock);
    if (bytes == 0) return INVALID_VALUE;
    if (memory.used + bytes > setting("TSBD_SIMULATED_MEMORY", 64ull << 30)) return OUT_OF_MEMORY;
    // As CUDA: multiples of 256.
    void *host = aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (!host) return OUT_OF_MEMORY;
    memset(host, 0xff, bytes);
    *address = (uint64_t)host + MOVED;
    memory.sizes[*address] = bytes;
    memory.used += bytes;
    memory.most = std::max(memory.most, memory.used);
    return SUCCESS;
}

int release(uint64_t address) {
    const std::lock_guard<std::mutex> guard(lock);
    const auto found = memory.sizes.find(address);
    if (found == memory.sizes.end()) return complain(INVALID_VALUE, "freed and not allocated", std::to_string(address));
    memory.used -= found->second;
    free((void *)(address - MOVED));
    memory.sizes.erase(found);
    return SUCCESS;
}

struct Function {
    std::string name;
    // Empty for a kernel of this project.
    CandleKernel candle;
};
} // namespace

extern "C" {
int cuInit(unsigned) { return SUCCESS; }
int cuGetErrorName(int, const char **name) { return *name = "CUDA_ERROR_SIMULATED", SUCCESS; }
int cuGetErrorString(int status, const char **text) {
    switch (status) {
    case OUT_OF_MEMORY: *text = "out of memory"; break;
    case INVALID_DEVICE: *text = "invalid device ordinal"; break;
    case NOT_FOUND: *text = "named symbol not found"; break;
    default: *text = "invalid argument"; break;
    }
    return SUCCESS;
}

int cuDeviceGetCount(int *count) { return *count = (int)setting("TSBD_SIMULATED_GPUS", 1), SUCCESS; }
int cuDeviceGet(int *device, int ordinal) {
    if (ordinal < 0 || (uint64_t)ordinal >= setting("TSBD_SIMULATED_GPUS", 1)) return INVALID_DEVICE;
    return *device = ordinal, SUCCESS;
}
int cuDeviceGetName(char *name, int length, int) { return snprintf(name, length, "Simulated GPU"), SUCCESS; }
int cuDeviceGetUuid_v2(unsigned char *uuid, int device) { return memset(uuid, device, 16), SUCCESS; }
int cuDeviceTotalMem_v2(size_t *bytes, int) { return *bytes = setting("TSBD_SIMULATED_MEMORY", 64ull << 30), SUCCESS; }
int cuDeviceGetAttribute(int *value, int attribute, int) {
    // Memory pools are supported; the compute capability is 9.0.
    *value = attribute == 115 ? 1 : attribute == 75 ? 9 : 0;
    return SUCCESS;
}
int cuDeviceGetDefaultMemPool(void **pool, int) { return *pool = &memory, SUCCESS; }
int cuMemPoolSetAttribute(void *, int, void *) { return SUCCESS; }
int cuMemPoolGetAttribute(void *, int attribute, void *value) {
    const std::lock_guard<std::mutex> guard(lock);
    // CU_MEMPOOL_ATTR_USED_MEM_HIGH, USED_MEM_CURRENT.
    *(uint64_t *)value = attribute == 8 ? memory.most : attribute == 7 ? memory.used : 0;
    return SUCCESS;
}

static thread_local void *current;
int cuDevicePrimaryCtxRetain(void **context, int) { return *context = handle(), SUCCESS; }
int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
int cuCtxGetCurrent(void **context) { return *context = current, SUCCESS; }
int cuCtxSetCurrent(void *context) { return current = context, SUCCESS; }
int cuCtxSynchronize() { return SUCCESS; }
int cuCtxDestroy_v2(void *) { return SUCCESS; }

int cuStreamCreate(void **stream, unsigned) { return *stream = handle(), SUCCESS; }
int cuStreamDestroy_v2(void *stream) { return delete (char *)stream, SUCCESS; }
int cuStreamSynchronize(void *) { return SUCCESS; }
int cuStreamWaitEvent(void *, void *, unsigned) { return SUCCESS; }
int cuStreamIsCapturing(void *, int *status) { return *status = 0, SUCCESS; }
int cuEventCreate(void **event, unsigned) { return *event = handle(), SUCCESS; }
int cuEventDestroy_v2(void *event) { return delete (char *)event, SUCCESS; }
int cuEventRecord(void *, void *) { return SUCCESS; }

int cuMemAlloc_v2(uint64_t *address, size_t bytes) { return allocate(address, bytes); }
int cuMemAllocAsync(uint64_t *address, size_t bytes, void *) { return allocate(address, bytes); }
int cuMemFree_v2(uint64_t address) { return release(address); }
int cuMemFreeAsync(uint64_t address, void *) { return release(address); }
int cuMemsetD8Async(uint64_t address, unsigned char value, size_t bytes, void *) {
    return memset((void *)(address - MOVED), value, bytes), SUCCESS;
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *) {
    return memcpy((void *)(to - MOVED), from, bytes), SUCCESS;
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *) {
    return memcpy(to, (const void *)(from - MOVED), bytes), SUCCESS;
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *) {
    return memmove((void *)(to - MOVED), (const void *)(from - MOVED), bytes), SUCCESS;
}
int cuMemcpyPeerAsync(uint64_t to, void *, uint64_t from, void *, size_t bytes, void *stream) {
    return cuMemcpyDtoDAsync_v2(to, from, bytes, stream);
}

int cuModuleLoad(void **, const char *) { return NOT_FOUND; }
int cuModuleLoadData(void **module, const void *) { return *module = handle(), SUCCESS; }
int cuModuleUnload(void *module) { return delete (char *)module, SUCCESS; }
int cuModuleGetFunction(void **function, void *, const char *name) {
    if (is_kernel(name)) return *function = new Function{name, {}}, SUCCESS;
    CandleKernel candle = candle_kernel(name);
    if (!candle) return complain(NOT_FOUND, "there is no such kernel", name);
    return *function = new Function{name, candle}, SUCCESS;
}

int cuLaunchKernel(const Function *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned, void *, void **parameters, void **) {
    const std::lock_guard<std::mutex> guard(lock);
    if (grid_x == 0 || grid_y == 0 || grid_y > 65535 || grid_z != 1 || block_y != 1 || block_z != 1)
        return complain(INVALID_VALUE, "a grid that CUDA refuses", function->name);
    if (function->candle) return function->candle(parameters), SUCCESS;
    if (block_x != THREADS) return complain(INVALID_VALUE, "blocks of another size", function->name);
    const char *complaint = launch(function->name.c_str(), grid_x, grid_y, parameters, MOVED);
    return complaint ? complain(ILLEGAL_ADDRESS, function->name.c_str(), complaint) : SUCCESS;
}
}
