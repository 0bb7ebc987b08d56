// libcuda.so.1 of a GPU that does not exist. Streams do at once what they are asked for; the kernels of this project are
// those of crates/tensor/src/kernels/cuda/sources, compiled for the CPU (emulator.cpp); Candle's own are in candle.h, as far
// as this project uses them. A kernel that is unknown is named on standard error.
//
// Memory: TSBD_SIMULATED_MEMORY bytes (64 GiB); fresh memory holds numbers that are none. TSBD_SIMULATED_GPUS GPUs (1).
//
// Graphs: what a stream is asked for while it is captured is done when the graph is launched, with the arguments of the
// capture. Numbers for memory of the host that the driver knows come when the host waits for them. What a capture may do is judged more strictly than by CUDA: no number is copied between host and GPU, nothing is
// freed that was not allocated in it, nothing allocated in it is left; what lies in its memory is gone after each launch. Each
// launch is told on standard error. With TSBD_SIMULATED_CAPTURE=refused no capture begins, with =broken none ends well; with =halfway one
// becomes invalid when a kernel is launched, with =large there is no memory for what was captured, with =slow each takes so long that
// other threads meet it. Whoever waits for a context meanwhile, as libraries do when they make or destroy a handle, makes all
// captures in it invalid.
//
// TSBD_SIMULATED_STREAMS: how many streams there can be at a time. TSBD_SIMULATED_DRIVER: the driver's version (13000).
// TSBD_SIMULATED_CAPABILITY: the major number of the compute capability (9).
//
// Faults: launching the kernel TSBD_SIMULATED_FAULT is one. After it the process can ask for nothing any more.
//
// Shown by it: that everything is launched that has to be, with arguments that fit, in an order that works; that every
// tensor is where it should be; what happens when memory runs out. Not shown: anything about time, about two streams, about
// the machine code of kernels.
#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <unordered_map>
#include <utility>

#include "../../../crates/tensor/src/kernels/cuda/emulator/emulator.cpp"
#include "memory.h"

#include "candle.h"
#include "stream.h"

enum Status {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    INVALID_DEVICE = 101,
    NOT_FOUND = 500,
    ILLEGAL_ADDRESS = 700,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
};

namespace {
std::mutex lock;
std::atomic<bool> is_faulty{false};

struct Memory {
    std::unordered_map<uint64_t, size_t> sizes;
    size_t used = 0, most = 0;
} memory;

uint64_t setting(const char *name, uint64_t otherwise) {
    const char *text = getenv(name);
    return text ? strtoull(text, nullptr, 10) : otherwise;
}

bool captures_are(const char *how) {
    const char *text = getenv("TSBD_SIMULATED_CAPTURE");
    return text && !strcmp(text, how);
}

int complain(Status status, const char *what, const std::string &about) {
    fprintf(stderr, "simulated GPU: %s: %s\n", what, about.c_str());
    return status;
}

// Something that has an address and nothing else: contexts, modules.
void *handle() { return new char; }

// What a stream was asked for while it was captured.
struct Graph {
    std::vector<Work> work;
    // What was allocated, and whether it was freed again.
    std::unordered_map<uint64_t, bool> freed;
    std::atomic<bool> is_valid{true};
};

// Numbers on their way to memory of the host that the driver knows: they come when somebody waits for them.
struct Delivery {
    void *to;
    std::string bytes;
};

struct Stream {
    Graph *captured = nullptr;
    std::vector<Delivery> deliveries;

    void deliver(size_t count) {
        count = std::min(count, deliveries.size());
        for (size_t i = 0; i < count; i++) memcpy(deliveries[i].to, deliveries[i].bytes.data(), deliveries[i].bytes.size());
        deliveries.erase(deliveries.begin(), deliveries.begin() + count);
        delivered += count;
    }

    // How many ever.
    size_t delivered = 0;
};

// Of what a stream was asked for, all that was there when the event was recorded.
struct Event {
    Stream *stream = nullptr;
    size_t deliveries = 0;
};

// Memory of the host that the driver knows.
std::set<void *> pinned;

// Streams that there are, and graphs that are being captured.
std::atomic<size_t> streams{0};
std::set<Graph *> in_capture;

Graph *captured(void *stream) { return stream ? ((Stream *)stream)->captured : nullptr; }

int invalidate(Graph *graph, const char *what) {
    graph->is_valid = false;
    return complain(CAPTURE_UNSUPPORTED, "while a stream is captured", what);
}

// Waits for everything in a context, which no capture in it survives.
int wait_for_context() {
    if (is_faulty) return ILLEGAL_ADDRESS;
    const std::lock_guard<std::mutex> guard(lock);
    if (in_capture.empty()) return SUCCESS;
    for (Graph *graph : in_capture) graph->is_valid = false;
    return complain(CAPTURE_UNSUPPORTED, "while a stream is captured", "a context is waited for");
}

// Nothing can be asked of a stream whose capture has become invalid, but to end it.
bool is_lost(void *stream) { return captured(stream) && !captured(stream)->is_valid; }

int allocate(uint64_t *address, size_t bytes) {
    if (is_faulty) return ILLEGAL_ADDRESS;
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

void forget(Graph *graph) {
    for (const auto &[address, freed] : graph->freed) release(address);
    delete graph;
}

struct Function {
    std::string name;
    // Without `run` for a kernel of this project.
    CandleKernel candle;
};
} // namespace

extern "C" {
int cuInit(unsigned) {
    const char *service = getenv("CUDA_MPS_PIPE_DIRECTORY");
    if (service) fprintf(stderr, "simulated GPU: shared by the service at %s\n", service);
    return SUCCESS;
}
int cuGetErrorName(int, const char **name) { return *name = "CUDA_ERROR_SIMULATED", SUCCESS; }
int cuGetErrorString(int status, const char **text) {
    switch (status) {
    case OUT_OF_MEMORY: *text = "out of memory"; break;
    case INVALID_DEVICE: *text = "invalid device ordinal"; break;
    case NOT_FOUND: *text = "named symbol not found"; break;
    case ILLEGAL_ADDRESS: *text = "an illegal memory access was encountered"; break;
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
    // Memory pools are supported; the minor number of the compute capability is 0.
    *value = attribute == 115 ? 1 : attribute == 75 ? (int)setting("TSBD_SIMULATED_CAPABILITY", 9) : 0;
    return SUCCESS;
}
int cuDriverGetVersion(int *version) { return *version = (int)setting("TSBD_SIMULATED_DRIVER", 13000), SUCCESS; }
// Memory of graphs is counted with the rest.
int cuDeviceGetGraphMemAttribute(int, int, void *value) { return *(uint64_t *)value = 0, SUCCESS; }
int cuDeviceSetGraphMemAttribute(int, int, void *) { return SUCCESS; }
int cuDeviceGraphMemTrim(int) { return SUCCESS; }
int cuMemPoolTrimTo(void *, size_t) { return SUCCESS; }
int cuDeviceGetDefaultMemPool(void **pool, int) { return *pool = &memory, SUCCESS; }
int cuMemPoolSetAttribute(void *, int attribute, void *) {
    const std::lock_guard<std::mutex> guard(lock);
    if (attribute == 8) memory.most = memory.used;
    return SUCCESS;
}
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
int cuCtxSynchronize() { return wait_for_context(); }
int cuCtxDestroy_v2(void *) { return SUCCESS; }

int cuStreamCreate(void **stream, unsigned) {
    if (++streams > setting("TSBD_SIMULATED_STREAMS", SIZE_MAX)) return --streams, OUT_OF_MEMORY;
    return *stream = new Stream, SUCCESS;
}
int cuStreamDestroy_v2(Stream *stream) { return --streams, delete stream, SUCCESS; }
int cuStreamSynchronize(Stream *stream) {
    if (is_faulty) return ILLEGAL_ADDRESS;
    if (captured(stream)) return invalidate(captured(stream), "the host waits");
    if (stream) stream->deliver(stream->deliveries.size());
    return SUCCESS;
}
int cuStreamWaitEvent(void *, void *, unsigned) { return SUCCESS; }
int cuStreamIsCapturing(void *stream, int *status) { return *status = captured(stream) ? 1 : 0, SUCCESS; }
int cuEventCreate(Event **event, unsigned) { return *event = new Event, SUCCESS; }
int cuEventDestroy_v2(Event *event) { return delete event, SUCCESS; }
int cuEventRecord(Event *event, Stream *stream) {
    if (stream) *event = {stream, stream->delivered + stream->deliveries.size()};
    return SUCCESS;
}
int cuEventSynchronize(Event *event) {
    if (is_faulty) return ILLEGAL_ADDRESS;
    Stream *stream = event->stream;
    if (stream && event->deliveries > stream->delivered) stream->deliver(event->deliveries - stream->delivered);
    return SUCCESS;
}

int cuStreamBeginCapture_v2(Stream *stream, int) {
    if (captures_are("refused")) return CAPTURE_UNSUPPORTED;
    if (stream->captured) return complain(INVALID_VALUE, "a stream that is captured", "is captured again");
    const std::lock_guard<std::mutex> guard(lock);
    in_capture.insert(stream->captured = new Graph);
    return SUCCESS;
}
int cuStreamEndCapture(Stream *stream, Graph **graph) {
    if (captures_are("slow")) std::this_thread::sleep_for(std::chrono::milliseconds(500));
    Graph *captured = std::exchange(stream->captured, nullptr);
    *graph = nullptr;
    if (!captured) return complain(INVALID_VALUE, "a capture that has not begun", "ends");
    {
        const std::lock_guard<std::mutex> guard(lock);
        in_capture.erase(captured);
    }
    for (const auto &[address, freed] : captured->freed)
        if (!freed && captured->is_valid) invalidate(captured, "memory is left");
    if (!captured->is_valid || captures_are("broken")) return forget(captured), CAPTURE_INVALIDATED;
    return *graph = captured, SUCCESS;
}
int cuGraphInstantiateWithFlags(Graph **executable, Graph *graph, unsigned long long) {
    return *executable = graph, SUCCESS;
}
int cuGraphUpload(Graph *, void *) { return captures_are("large") ? OUT_OF_MEMORY : SUCCESS; }
int cuGraphExecDestroy(Graph *) { return SUCCESS; }
int cuGraphDestroy(Graph *graph) { return forget(graph), SUCCESS; }
int cuGraphLaunch(Graph *graph, void *) {
    if (is_faulty) return ILLEGAL_ADDRESS;
    fprintf(stderr, "simulated GPU: a graph of %zu nodes\n", graph->work.size());
    for (const Work &work : graph->work)
        if (const int status = work()) return status;
    const std::lock_guard<std::mutex> guard(lock);
    for (const auto &[address, freed] : graph->freed) memset((void *)(address - MOVED), 0xff, memory.sizes[address]);
    return SUCCESS;
}

int cuMemGetInfo_v2(size_t *free, size_t *total) {
    const std::lock_guard<std::mutex> guard(lock);
    *total = setting("TSBD_SIMULATED_MEMORY", 64ull << 30);
    return *free = *total - memory.used, SUCCESS;
}
int simulated_handle(bool is_new) {
    // So much of the memory a handle needs.
    constexpr uint64_t NEEDED = 64 << 10;
    if (const int waited = wait_for_context()) return waited;
    const std::lock_guard<std::mutex> guard(lock);
    return is_new && memory.used + NEEDED > setting("TSBD_SIMULATED_MEMORY", 64ull << 30) ? OUT_OF_MEMORY : SUCCESS;
}
int simulated_work(void *stream, Work work) {
    if (is_faulty) return ILLEGAL_ADDRESS;
    Graph *graph = captured(stream);
    if (!graph) return work();
    if (captures_are("halfway") && graph->work.size() > 20) graph->is_valid = false;
    if (is_lost(stream)) return CAPTURE_INVALIDATED;
    return graph->work.push_back(std::move(work)), SUCCESS;
}

int cuMemAlloc_v2(uint64_t *address, size_t bytes) { return allocate(address, bytes); }
int cuMemAllocAsync(uint64_t *address, size_t bytes, void *stream) {
    if (is_lost(stream)) return CAPTURE_INVALIDATED;
    const int status = allocate(address, bytes);
    if (status == SUCCESS && captured(stream)) captured(stream)->freed[*address] = false;
    return status;
}
int cuMemFree_v2(uint64_t address) { return release(address); }
int cuMemHostAlloc(void **host, size_t bytes, unsigned) {
    const std::lock_guard<std::mutex> guard(lock);
    *host = memset(malloc(bytes), 0xff, bytes);
    pinned.insert(*host);
    return SUCCESS;
}
int cuMemFreeHost(void *host) {
    const std::lock_guard<std::mutex> guard(lock);
    pinned.erase(host);
    return free(host), SUCCESS;
}
int cuMemFreeAsync(uint64_t address, void *stream) {
    Graph *graph = captured(stream);
    if (!graph) return release(address);
    if (is_lost(stream)) return CAPTURE_INVALIDATED;
    const auto found = graph->freed.find(address);
    if (found == graph->freed.end() || found->second) return invalidate(graph, "memory of others is freed");
    return found->second = true, SUCCESS;
}
int cuMemsetD8Async(uint64_t address, unsigned char value, size_t bytes, void *stream) {
    return simulated_work(stream, [=] { return memset((void *)(address - MOVED), value, bytes), SUCCESS; });
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
    if (is_faulty) return ILLEGAL_ADDRESS;
    if (captured(stream)) return invalidate(captured(stream), "numbers of the host are read");
    return memcpy((void *)(to - MOVED), from, bytes), SUCCESS;
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
    if (is_faulty) return ILLEGAL_ADDRESS;
    if (captured(stream)) return invalidate(captured(stream), "the host reads numbers");
    if (stream && pinned.count(to)) {
        ((Stream *)stream)->deliveries.push_back({to, {(const char *)(from - MOVED), bytes}});
        return SUCCESS;
    }
    return memcpy(to, (const void *)(from - MOVED), bytes), SUCCESS;
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) {
    return simulated_work(stream, [=] {
        return memmove((void *)(to - MOVED), (const void *)(from - MOVED), bytes), SUCCESS;
    });
}
int cuMemcpyPeerAsync(uint64_t to, void *, uint64_t from, void *, size_t bytes, void *stream) {
    return cuMemcpyDtoDAsync_v2(to, from, bytes, stream);
}

int cuModuleLoad(void **, const char *) { return NOT_FOUND; }
int cuModuleLoadData(void **module, const void *) { return *module = handle(), SUCCESS; }
int cuModuleUnload(void *module) { return delete (char *)module, SUCCESS; }
int cuModuleGetFunction(void **function, void *, const char *name) {
    if (is_kernel(name)) return *function = new Function{name, {}}, SUCCESS;
    const CandleKernel candle = candle_kernel(name);
    if (!candle.run) return complain(NOT_FOUND, "there is no such kernel", name);
    return *function = new Function{name, candle}, SUCCESS;
}

int cuLaunchKernel(const Function *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned, void *stream, void **parameters, void **) {
    if (grid_x == 0 || grid_y == 0 || grid_y > 65535 || grid_z != 1 || block_y != 1 || block_z != 1)
        return complain(INVALID_VALUE, "a grid that CUDA refuses", function->name);
    if (function->candle.run) {
        // Copied as the driver does: each is 8 bytes at most.
        std::array<uint64_t, CandleKernel::MOST_PARAMETERS> values;
        for (int i = 0; i < function->candle.parameters; i++) memcpy(&values[i], parameters[i], sizeof values[i]);
        return simulated_work(stream, [values, run = function->candle.run]() mutable {
            void *parameters[CandleKernel::MOST_PARAMETERS];
            for (size_t i = 0; i < values.size(); i++) parameters[i] = &values[i];
            const std::lock_guard<std::mutex> guard(lock);
            return run(parameters), SUCCESS;
        });
    }
    if (block_x != THREADS) return complain(INVALID_VALUE, "blocks of another size", function->name);
    const char *faulty = getenv("TSBD_SIMULATED_FAULT");
    if (faulty && function->name == faulty) {
        is_faulty = true;
        return complain(ILLEGAL_ADDRESS, faulty, "as TSBD_SIMULATED_FAULT says");
    }
    const auto launch = prepared(function->name.c_str(), grid_x, grid_y, parameters, MOVED);
    return simulated_work(stream, [launch, function] {
        const std::lock_guard<std::mutex> guard(lock);
        const char *complaint = launch();
        return complaint ? complain(ILLEGAL_ADDRESS, function->name.c_str(), complaint) : SUCCESS;
    });
}
}
