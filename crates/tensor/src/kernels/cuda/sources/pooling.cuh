// Pooling, a thread for each element of the result. Windows as in PyTorch; the padding never holds the maximum and
// counts as zeros in the mean.


// The part of window `index` that lies inside `size` rows or columns.
__device__ __forceinline__ int window_begin(int index, int stride, int padding) {
    const int begin = index * stride - padding;
    return begin < 0 ? 0 : begin;
}
__device__ __forceinline__ int window_end(int index, int stride, int padding, int kernel, int size) {
    const int end = index * stride - padding + kernel;
    return end < size ? end : size;
}

// The windows that hold row or column `place`: from first_window to last_window.
__device__ __forceinline__ int first_window(int place, int stride, int padding, int kernel) {
    const int beyond = place + padding - kernel;  // the last row of the windows before
    return beyond < 0 ? 0 : beyond / stride + 1;
}
__device__ __forceinline__ int last_window(int place, int stride, int padding, int count) {
    const int last = (place + padding) / stride;
    return last < count ? last : count - 1;
}

#define WINDOWS int height, int width, int channels, int kernel, int stride, int padding, int out_height, int out_width

// `from`: the place of each maximum in its image; the first of equal ones, and what is not a number wins.
extern "C" __global__ void NAME(max_pool)(const T *x, T *y, uint32_t *from, unsigned count, WINDOWS) {
    const unsigned i = global_index();
    if (i >= count) return;
    const int channel = i % channels, ox = i / channels % out_width, oy = i / channels / out_width % out_height;
    const size_t image = (size_t)(i / channels / out_width / out_height) * height * width * channels;
    float best = 0.f;
    int place = -1;
    for (int row = window_begin(oy, stride, padding); row < window_end(oy, stride, padding, kernel, height); row++) {
        for (int column = window_begin(ox, stride, padding); column < window_end(ox, stride, padding, kernel, width);
             column++) {
            const int here = (row * width + column) * channels + channel;
            const float value = wide(x[image + here]);
            if (place < 0 || value > best || value != value) {
                best = value;
                place = here;
            }
        }
    }
    y[i] = Narrow<T>::of(best);
    from[i] = (uint32_t)place;
}

// Each input collects the gradients of the windows whose maximum it was, in the order of the windows.
extern "C" __global__ void NAME(max_pool_backward)(const T *dy, const uint32_t *from, T *dx, unsigned count, WINDOWS) {
    const unsigned i = global_index();
    if (i >= count) return;
    const unsigned size = (unsigned)height * width * channels, place = i % size;
    const int channel = i % channels, column = i / channels % width, row = i / channels / width % height;
    const size_t image = (size_t)(i / size) * out_height * out_width * channels;
    float sum = 0.f;
    for (int oy = first_window(row, stride, padding, kernel); oy <= last_window(row, stride, padding, out_height); oy++) {
        for (int ox = first_window(column, stride, padding, kernel);
             ox <= last_window(column, stride, padding, out_width); ox++) {
            const size_t there = image + (size_t)(oy * out_width + ox) * channels + channel;
            if (from[there] == place) sum += wide(dy[there]);
        }
    }
    dx[i] = Narrow<T>::of(sum);
}

// The elements at the places of the maxima, in arrays whose images have `image` elements, and their results `out_image`.
extern "C" __global__ void NAME(max_pool_gather)(const T *x, const uint32_t *from, T *y, unsigned count, int image,
                                                 int out_image) {
    const unsigned i = global_index();
    if (i >= count) return;
    y[i] = x[(size_t)(i / out_image) * image + from[i]];
}

extern "C" __global__ void NAME(average_pool)(const T *x, T *y, unsigned count, WINDOWS) {
    const unsigned i = global_index();
    if (i >= count) return;
    const int channel = i % channels, ox = i / channels % out_width, oy = i / channels / out_width % out_height;
    const size_t image = (size_t)(i / channels / out_width / out_height) * height * width * channels;
    float sum = 0.f;
    for (int row = window_begin(oy, stride, padding); row < window_end(oy, stride, padding, kernel, height); row++) {
        for (int column = window_begin(ox, stride, padding); column < window_end(ox, stride, padding, kernel, width);
             column++)
            sum += wide(x[image + (size_t)(row * width + column) * channels + channel]);
    }
    y[i] = Narrow<T>::of(sum / (float)(kernel * kernel));
}

extern "C" __global__ void NAME(average_pool_backward)(const T *dy, T *dx, unsigned count, WINDOWS) {
    const unsigned i = global_index();
    if (i >= count) return;
    const int channel = i % channels, column = i / channels % width, row = i / channels / width % height;
    const size_t image = (size_t)(i / channels / width / height) * out_height * out_width * channels;
    float sum = 0.f;
    for (int oy = first_window(row, stride, padding, kernel); oy <= last_window(row, stride, padding, out_height); oy++) {
        for (int ox = first_window(column, stride, padding, kernel);
             ox <= last_window(column, stride, padding, out_width); ox++)
            sum += wide(dy[image + (size_t)(oy * out_width + ox) * channels + channel]);
    }
    dx[i] = Narrow<T>::of(sum / (float)(kernel * kernel));
}

// [images, pixels, channels] to [images, channels]; `count` results.
extern "C" __global__ void NAME(global_average_pool)(const T *x, T *y, unsigned count, int pixels, int channels) {
    const unsigned i = global_index();
    if (i >= count) return;
    const size_t image = (size_t)(i / channels) * pixels * channels;
    float sum = 0.f;
    for (int pixel = 0; pixel < pixels; pixel++) sum += wide(x[image + (size_t)pixel * channels + i % channels]);
    y[i] = Narrow<T>::of(sum / (float)pixels);
}

extern "C" __global__ void NAME(global_average_pool_backward)(const T *dy, T *dx, unsigned count, int pixels,
                                                              int channels) {
    const unsigned i = global_index();
    if (i >= count) return;
    dx[i] = Narrow<T>::of(wide(dy[(size_t)(i / channels / pixels) * channels + i % channels]) / (float)pixels);
}

#undef WINDOWS
