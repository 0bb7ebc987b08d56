// What libraries ask of a stream of the simulated GPU.
#pragma once
#include <functional>

// Returns a status: 0 is success.
using Work = std::function<int()>;

// Does it now, or, while the stream is captured, whenever the graph is launched. In libcuda.so.1.
extern "C" int simulated_work(void *stream, Work work);
