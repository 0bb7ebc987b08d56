// From the partial sums of normalization.cuh to a few numbers per channel, in f64. A block has 32 channels and 8 lanes
// that share the lines of partial results.
#pragma once

constexpr int COLUMNS = 32;
constexpr int LANES = THREADS / COLUMNS;

struct Channel {
    int channel, lane;

    __device__ __forceinline__ Channel()
        : channel(blockIdx.x * COLUMNS + threadIdx.x % COLUMNS), lane(threadIdx.x / COLUMNS) {}
};

// Adds the Q columns of this thread's channel over all lines of `partial` [blocks][Q][channels]. Lane 0 has the sums.
template <int Q>
__device__ __forceinline__ void sum_lines(const float *partial, int blocks, int channels, double (&sums)[Q]) {
    __shared__ double shared[LANES][Q][COLUMNS];
    const Channel me;
    const int column = threadIdx.x % COLUMNS;
    for (int q = 0; q < Q; q++) {
        sums[q] = 0.;
        if (me.channel < channels) {
            for (int p = me.lane; p < blocks; p += LANES) sums[q] += partial[((size_t)p * Q + q) * channels + me.channel];
        }
        shared[me.lane][q][column] = sums[q];
    }
    __syncthreads();
    if (me.lane > 0) return;
    for (int q = 0; q < Q; q++) {
        for (int lane = 1; lane < LANES; lane++) sums[q] += shared[lane][q][column];
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
    __shared__ double means[LANES][COLUMNS], squares[LANES][COLUMNS], counts[LANES][COLUMNS];
    const Channel me;
    const int column = threadIdx.x % COLUMNS;
    double count = 0., average = 0., spread = 0.;
    if (me.channel < channels) {
        for (int p = me.lane; p < blocks; p += LANES) {
            const float *line = partial + (size_t)p * 2 * channels + me.channel;
            const int left = rows - p * rows_per_block;
            const double more = left < rows_per_block ? left : rows_per_block, total = count + more;
            const double delta = line[0] - average;
            average += delta * more / total;
            spread += line[channels] + delta * delta * count * more / total;
            count = total;
        }
    }
    means[me.lane][column] = average;
    squares[me.lane][column] = spread;
    counts[me.lane][column] = count;
    __syncthreads();
    if (me.lane > 0 || me.channel >= channels) return;
    for (int lane = 1; lane < LANES; lane++) {
        const double more = counts[lane][column], total = count + more;
        if (more == 0.) continue;
        const double delta = means[lane][column] - average;
        average += delta * more / total;
        spread += squares[lane][column] + delta * delta * count * more / total;
        count = total;
    }
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
