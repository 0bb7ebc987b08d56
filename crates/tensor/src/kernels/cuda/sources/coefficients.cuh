// From the partial sums of normalization.cuh to a few numbers per channel, in f64. A block has 8 channels and 32 lanes
// that share the lines of partial results: what each lane does one after the other is what all wait for.
#pragma once

constexpr int COLUMNS = 8;
constexpr int LANES = THREADS / COLUMNS;

struct Channel {
    int channel, lane;

    __device__ __forceinline__ Channel()
        : channel(blockIdx.x * COLUMNS + threadIdx.x % COLUMNS), lane(threadIdx.x / COLUMNS) {}
};

// The sum of what the lanes of a channel have, in a fixed order, for all of them. Every thread of the block has to come here.
__device__ __forceinline__ double over_lanes(double value) {
    __shared__ double shared[LANES][COLUMNS];
    const int lane = threadIdx.x / COLUMNS, column = threadIdx.x % COLUMNS;
    shared[lane][column] = value;
    __syncthreads();
    for (int step = LANES / 2; step > 0; step /= 2) {
        if (lane < step) shared[lane][column] += shared[lane + step][column];
        __syncthreads();
    }
    const double sum = shared[0][column];
    __syncthreads();
    return sum;
}

// Adds the Q columns of this thread's channel over all lines of `partial` [blocks][Q][channels].
template <int Q>
__device__ __forceinline__ void sum_lines(const float *partial, int blocks, int channels, double (&sums)[Q]) {
    const Channel me;
#pragma unroll
    for (int q = 0; q < Q; q++) {
        sums[q] = 0.;
        if (me.channel < channels) {
#pragma unroll 4
            for (int p = me.lane; p < blocks; p += LANES) sums[q] += partial[((size_t)p * Q + q) * channels + me.channel];
        }
        sums[q] = over_lanes(sums[q]);
    }
}

// The sums of column_sums.
extern "C" __global__ void column_sums_finish(const float *partial, int blocks, int channels, float *result) {
    double sums[1];
    sum_lines<1>(partial, blocks, channels, sums);
    const Channel me;
    if (me.lane == 0 && me.channel < channels) result[me.channel] = (float)sums[0];
}

// What a batch normalisation multiplies by and adds, from the moments of the batch; the mean and the unbiased variance,
// for the running estimates.
extern "C" __global__ void moments_finish(const float *partial, int blocks, int rows, int channels, int rows_per_block,
                                          const float *weight, const float *bias, double epsilon, float *mean,
                                          float *unbiased, float *inverse, float *scale, float *shift) {
    const Channel me;
    const auto rows_of = [&](int p) {
        const int left = rows - p * rows_per_block;
        return (double)(left < rows_per_block ? left : rows_per_block);
    };
    const auto over_lines = [&](const auto &of_line) {
        double sum = 0.;
        if (me.channel < channels) {
#pragma unroll 4
            for (int p = me.lane; p < blocks; p += LANES) {
                const float *line = partial + (size_t)p * 2 * channels + me.channel;
                sum += of_line(rows_of(p), (double)line[0], (double)line[channels]);
            }
        }
        return over_lanes(sum);
    };
    const double average = over_lines([](double count, double mean, double) { return count * mean; }) / rows;
    const double spread = over_lines([&](double count, double mean, double squares) {
        return squares + count * (mean - average) * (mean - average);
    });
    if (me.lane > 0 || me.channel >= channels) return;
    const double deviation = 1. / sqrt(spread / rows + epsilon), factor = weight[me.channel] * deviation;
    mean[me.channel] = (float)average;
    unbiased[me.channel] = (float)(spread / (rows - 1));
    inverse[me.channel] = (float)deviation;
    scale[me.channel] = (float)factor;
    shift[me.channel] = (float)(bias[me.channel] - average * factor);
}

// The same from running estimates.
extern "C" __global__ void running_coefficients(const float *mean, const float *variance, const float *weight,
                                                const float *bias, double epsilon, int channels, float *inverse,
                                                float *scale, float *shift) {
    const int channel = (int)global_index();
    if (channel >= channels) return;
    const double deviation = 1. / sqrt(variance[channel] + epsilon), factor = weight[channel] * deviation;
    inverse[channel] = (float)deviation;
    scale[channel] = (float)factor;
    shift[channel] = (float)(bias[channel] - mean[channel] * factor);
}

// The gradients of weight and bias, and what flows to the input through the statistics of the batch (`batch` = 1; with
// given statistics nothing does): see input_gradient.
extern "C" __global__ void gradient_finish(const float *partial, int blocks, int rows, int channels, int batch,
                                           const float *inverse, const float *scale, float *dweight, float *dbias,
                                           float *slope, float *offset) {
    double sums[2];
    sum_lines<2>(partial, blocks, channels, sums);
    const Channel me;
    if (me.lane > 0 || me.channel >= channels) return;
    const double deviation = inverse[me.channel], factor = batch ? -(double)scale[me.channel] / rows : 0.;
    const double normalized = sums[1] * deviation;
    dbias[me.channel] = (float)sums[0];
    dweight[me.channel] = (float)normalized;
    slope[me.channel] = (float)(factor * normalized * deviation);
    offset[me.channel] = (float)(factor * sums[0]);
}
