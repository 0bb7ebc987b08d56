// Cross-entropy of single bits, whose probabilities are the logistic function of logits, in f64 as loss.cuh.
#pragma once

// -t ln σ(x) - (1 - t) ln(1 - σ(x)) for each logit. A target that is no probability makes its loss not a number: the host
// does not wait to look at targets.
extern "C" __global__ void binary_cross_entropy(const float *logits, const float *targets, float *losses, unsigned count) {
    const unsigned i = global_index();
    if (i >= count) return;
    const double logit = logits[i], target = targets[i];
    // Never the exponential of a large number.
    const double log_sigmoid = fmin(logit, 0.) - log1p(exp(-fabs(logit)));
    losses[i] = target >= 0. && target <= 1. ? (float)((1. - target) * logit - log_sigmoid) : NAN;
}

// gradient * share * (σ(x) - t), of one gradient for all.
extern "C" __global__ void binary_cross_entropy_backward(const float *gradient, const float *logits, const float *targets,
                                                         float *dlogits, unsigned count, double share) {
    const unsigned i = global_index();
    if (i >= count) return;
    const double sigmoid = 1. / (1. + exp(-(double)logits[i]));
    dlogits[i] = (float)(gradient[0] * share * (sigmoid - targets[i]));
}
