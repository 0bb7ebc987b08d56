// Softmax cross-entropy, a thread for each row, in f64: the tensors are small and the sums delicate.
#pragma once

// ln Σ exp(row), with the largest element taken out first.
__device__ __forceinline__ double log_sum_exp(const float *row, int classes) {
    double largest = row[0], sum = 0.;
    for (int i = 1; i < classes; i++) largest = fmax(largest, (double)row[i]);
    for (int i = 0; i < classes; i++) sum += exp((double)row[i] - largest);
    return largest + log(sum);
}

// The target is 1 - smoothing on the label plus smoothing / classes everywhere. A label that is no class makes its loss
// not a number: the host does not wait to look at labels.
extern "C" __global__ void cross_entropy(const float *logits, const uint32_t *labels, float *losses, int rows,
                                         int classes, double smoothing) {
    const int row = (int)global_index();
    if (row >= rows) return;
    const float *own = logits + (size_t)row * classes;
    if (labels[row] >= (uint32_t)classes) {
        losses[row] = NAN;
        return;
    }
    const double normalizer = log_sum_exp(own, classes), on_label = normalizer - own[labels[row]];
    double loss = on_label;
    if (smoothing != 0.) {
        double sum = 0.;
        for (int i = 0; i < classes; i++) sum += own[i];
        loss = (1. - smoothing) * on_label + smoothing * (normalizer - sum / classes);
    }
    losses[row] = (float)loss;
}

// factor * (softmax - target), where the factor is the gradient of the mean loss over the rows (`of_mean` = 1), or that
// of each row's own loss.
extern "C" __global__ void cross_entropy_backward(const float *gradient, const float *logits, const uint32_t *labels,
                                                  float *dlogits, int of_mean, int rows, int classes,
                                                  double smoothing) {
    const int row = (int)global_index();
    if (row >= rows) return;
    const size_t begin = (size_t)row * classes;
    const double normalizer = log_sum_exp(logits + begin, classes);
    const double factor = of_mean ? (double)gradient[0] / rows : (double)gradient[row];
    for (int i = 0; i < classes; i++) {
        const double target = ((uint32_t)i == labels[row] ? 1. - smoothing : 0.) + smoothing / classes;
        dlogits[begin + i] = (float)(factor * (exp((double)logits[begin + i] - normalizer) - target));
    }
}

// The mean of a few values, by one block.
extern "C" __global__ void mean(const float *values, float *result, int count) {
    __shared__ double sums[THREADS];
    double sum = 0.;
    for (int i = threadIdx.x; i < count; i += THREADS) sum += values[i];
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int i = 1; i < THREADS; i++) sum += sums[i];
    result[0] = (float)(sum / count);
}

// Of how many rows the largest element is the label's, by one block. The first of equals is the largest; what is not a
// number is larger than all that is.
extern "C" __global__ void count_correct(const float *logits, const uint32_t *labels, float *result, int rows,
                                         int classes) {
    __shared__ int counts[THREADS];
    int count = 0;
    for (int row = threadIdx.x; row < rows; row += THREADS) {
        const float *own = logits + (size_t)row * classes;
        int best = 0;
        for (int i = 1; i < classes; i++)
            if (own[i] > own[best] || (own[i] != own[i] && own[best] == own[best])) best = i;
        count += (uint32_t)best == labels[row];
    }
    counts[threadIdx.x] = count;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int i = 1; i < THREADS; i++) count += counts[i];
    result[0] = (float)count;
}
