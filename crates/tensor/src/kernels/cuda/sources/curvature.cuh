// How the softmax cross-entropy moves when its logits do, and its second derivatives: as loss.cuh, a thread for each row,
// in f64.
#pragma once

// The mean of `values` with the shares of the softmax of `row`.
__device__ __forceinline__ double softmax_mean(const float *row, const float *values, int classes, double normalizer) {
    double sum = 0.;
    for (int i = 0; i < classes; i++) sum += exp((double)row[i] - normalizer) * values[i];
    return sum;
}

// The slope of every row's loss when its logits move along `tangent`: the sum of (softmax - target) * tangent. Labels as in
// cross_entropy.
extern "C" __global__ void cross_entropy_tangent(const float *logits, const float *tangent, const uint32_t *labels,
                                                 float *slopes, int rows, int classes, double smoothing) {
    const int row = (int)global_index();
    if (row >= rows) return;
    const float *own = logits + (size_t)row * classes, *along = tangent + (size_t)row * classes;
    if (labels[row] >= (uint32_t)classes) {
        slopes[row] = NAN;
        return;
    }
    double sum = 0.;
    for (int i = 0; i < classes; i++) sum += along[i];
    const double target = (1. - smoothing) * along[labels[row]] + smoothing * (sum / classes);
    slopes[row] = (float)(softmax_mean(own, along, classes, log_sum_exp(own, classes)) - target);
}

// The gradient of the mean slope with respect to the logits, which is the Hessian of the mean loss times the tangent:
// softmax * (tangent - its mean), times the gradient of the mean slope by the rows. Labels have no part in it.
extern "C" __global__ void cross_entropy_curvature(const float *gradient, const float *logits, const float *tangent,
                                                   float *dlogits, int rows, int classes) {
    const int row = (int)global_index();
    if (row >= rows) return;
    const size_t begin = (size_t)row * classes;
    const double normalizer = log_sum_exp(logits + begin, classes);
    const double mean = softmax_mean(logits + begin, tangent + begin, classes, normalizer);
    const double factor = (double)gradient[0] / rows;
    for (int i = 0; i < classes; i++) {
        const double share = exp((double)logits[begin + i] - normalizer);
        dlogits[begin + i] = (float)(factor * share * (tangent[begin + i] - mean));
    }
}
