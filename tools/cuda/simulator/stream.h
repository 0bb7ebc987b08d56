// What libraries ask of a stream of the simulated GPU.
#pragma once
#include <functional>

// Returns a status: 0 is success.
using Work = std::function<int()>;

// Does it now, or, while the stream is captured, whenever the graph is launched. In libcuda.so.1.
extern "C" int simulated_work(void *stream, Work work);

// What making a handle of a library, or destroying it, asks of the driver. In libcuda.so.1.
extern "C" int simulated_handle(bool is_new);
