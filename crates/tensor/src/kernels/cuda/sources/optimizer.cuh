// Steps of optimisers, in place.
#pragma once

// Where one parameter and what belongs to it lie, and how many numbers each has.
struct Descent {
    unsigned long long parameter, velocity, gradient, count;
};

// Stochastic gradient descent of many parameters, those of one along a row of blocks.
extern "C" __global__ void sgd(const int64_t *descents, float learning_rate, float momentum, float weight_decay) {
    const Descent descent = reinterpret_cast<const Descent *>(descents)[blockIdx.y];
    float *parameter = at_address<float>(descent.parameter), *velocity = at_address<float>(descent.velocity);
    const float *gradient = at_address<const float>(descent.gradient);
    for (unsigned long long i = global_index(); i < descent.count; i += gridDim.x * THREADS) {
        const float moved = momentum * velocity[i] + (gradient[i] + weight_decay * parameter[i]);
        velocity[i] = moved;
        parameter[i] -= learning_rate * moved;
    }
}

// Where a running estimate, what a batch had instead, and what becomes of the estimate lie, and how many numbers each has.
struct Estimate {
    unsigned long long old, met, moved, count;
};

// Running estimates, one along each row of blocks: the part `share` of each is replaced by what was met.
extern "C" __global__ void move_estimates(const int64_t *estimates, float keep, float share) {
    const Estimate estimate = reinterpret_cast<const Estimate *>(estimates)[blockIdx.y];
    const float *old = at_address<const float>(estimate.old), *met = at_address<const float>(estimate.met);
    float *moved = at_address<float>(estimate.moved);
    for (unsigned long long i = global_index(); i < estimate.count; i += gridDim.x * THREADS)
        moved[i] = keep * old[i] + share * met[i];
}

// What Adam makes of the moments of one element: m += (1 - keep_first) (g - m), v = keep_second v + (1 - keep_second) g^2.
__device__ __forceinline__ void move_moments(float &first, float &second, float gradient, float keep_first,
                                             float keep_second) {
    first += (1.f - keep_first) * (gradient - first);
    second = keep_second * second + (1.f - keep_second) * (gradient * gradient);
}

// Adam. The bias corrections are in `step_size` and `root_correction`.
extern "C" __global__ void adam(float *parameter, float *first, float *second, const float *gradient, float step_size,
                                float keep_first, float keep_second, float root_correction, float epsilon,
                                unsigned count) {
    const unsigned i = global_index();
    if (i >= count) return;
    move_moments(first[i], second[i], gradient[i], keep_first, keep_second);
    parameter[i] -= step_size * (first[i] / (sqrtf(second[i]) / root_correction + epsilon));
}

// Adam by the largest second moment there was.
extern "C" __global__ void amsgrad(float *parameter, float *first, float *second, float *largest, const float *gradient,
                                   float step_size, float keep_first, float keep_second, float root_correction,
                                   float epsilon, unsigned count) {
    const unsigned i = global_index();
    if (i >= count) return;
    move_moments(first[i], second[i], gradient[i], keep_first, keep_second);
    if (second[i] > largest[i]) largest[i] = second[i];
    parameter[i] -= step_size * (first[i] / (sqrtf(largest[i]) / root_correction + epsilon));
}
